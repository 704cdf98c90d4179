-- The queues of a batch's users, without what they carry. `user_id = any` lets Citus prune to one shard.
select p.user_id, p.source, p.seq, p.order_id, p.opens, p.bytes, p.deadline,
       p.event_id
from parked p
where p.user_id = any($1)
