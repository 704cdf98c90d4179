-- Moves a fence over a stretch that holds no record of its shard, unless another worker has moved it since.
insert into kafka_fence as f (user_id, topic, kafka_partition, epoch, first_offset, next_offset)
values ($1, $2, $3, $4, $5, $5)
on conflict (user_id, topic, kafka_partition) do update
set first_offset = excluded.first_offset, next_offset = excluded.next_offset
where f.epoch = excluded.epoch and f.next_offset < excluded.next_offset
