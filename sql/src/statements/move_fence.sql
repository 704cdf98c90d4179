-- Moves the fence of one partition over this batch. No row comes back if another worker was here before, or if the
-- shard has taken other slots since this batch was routed.
insert into kafka_fence as f (user_id, topic, kafka_partition, epoch, first_offset, next_offset)
values ($1, $2, $3, $4, $5, $6)
on conflict (user_id, topic, kafka_partition) do update
set epoch = excluded.epoch, first_offset = excluded.first_offset, next_offset = excluded.next_offset
where f.epoch < excluded.epoch or f.epoch = excluded.epoch and f.next_offset <= excluded.first_offset
