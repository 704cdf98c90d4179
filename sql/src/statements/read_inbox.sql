-- The payloads under which known events were taken. `user_id = any` lets Citus prune to one shard.
select i.user_id, i.source, i.event_id, i.payload_hash
from unnest($1::uuid[], $2::text[], $3::text[]) as k (user_id, source, event_id)
join inbox i using (user_id, source, event_id)
where i.user_id = any($1)
