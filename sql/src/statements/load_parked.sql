-- What some parked events carry, if they are still the ones that were read. `user_id = any` lets Citus prune to one shard.
select p.user_id, p.source, p.seq, p.topic, p.kafka_partition, p.kafka_offset, p.record_key, p.headers::text,
       p.received_at, p.parked_at, p.payload::text
from unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[]) as k (user_id, source, seq, event_id)
join parked p using (user_id, source, seq, event_id)
where p.user_id = any($1)
