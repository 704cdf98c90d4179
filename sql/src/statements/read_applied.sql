-- How far a manual shard has applied a partition: its own epoch, the fence, and what is known of the time before.
select i.epoch, f.epoch, f.next_offset, p.next_offset, p.slots
from shard_identity i
left join kafka_fence f on f.user_id = $1 and f.topic = $2 and f.kafka_partition = $3
left join shard_past p on p.topic = $2 and p.kafka_partition = $3
