-- `user_id = any` lets Citus prune to one shard; the join picks the orders.
select o.user_id, o.order_id, o.status, o.version, o.amount_minor, o.currency, o.created_at, o.updated_at
from unnest($1::uuid[], $2::text[]) as k (user_id, order_id)
join orders o using (user_id, order_id)
where o.user_id = any($1)
