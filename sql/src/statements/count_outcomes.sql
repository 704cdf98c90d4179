-- Adds to the counts of one partition.
insert into kafka_outcomes as o
    (user_id, topic, kafka_partition, applied, duplicate, duplicate_with_different_payload, stale, illegal, parked,
     dead_lettered, released, expired)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
on conflict (user_id, topic, kafka_partition) do update
set applied = o.applied + excluded.applied,
    duplicate = o.duplicate + excluded.duplicate,
    duplicate_with_different_payload =
        o.duplicate_with_different_payload + excluded.duplicate_with_different_payload,
    stale = o.stale + excluded.stale,
    illegal = o.illegal + excluded.illegal,
    parked = o.parked + excluded.parked,
    dead_lettered = o.dead_lettered + excluded.dead_lettered,
    released = o.released + excluded.released,
    expired = o.expired + excluded.expired
