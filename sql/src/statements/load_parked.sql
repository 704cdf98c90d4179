-- What some parked events carry. `user_id = any` lets Citus prune to one shard.
select p.user_id, p.source, p.seq, p.topic, p.kafka_partition, p.kafka_offset, p.record_key, p.headers::text,
       p.received_at, p.parked_at, p.payload::text
from unnest($1::uuid[], $2::text[], $3::bigint[]) as k (user_id, source, seq)
join parked p using (user_id, source, seq)
where p.user_id = any($1)
