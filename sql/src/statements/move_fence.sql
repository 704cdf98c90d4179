-- Moves the fence of one partition over this batch. No row comes back if another worker was here before.
insert into kafka_fence as f (user_id, topic, kafka_partition, first_offset, next_offset)
values ($1, $2, $3, $4, $5)
on conflict (user_id, topic, kafka_partition) do update
set first_offset = excluded.first_offset, next_offset = excluded.next_offset
where f.next_offset <= excluded.first_offset
