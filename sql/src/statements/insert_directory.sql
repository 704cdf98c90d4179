-- Only for orders that this batch creates: a concurrent creator fails the optimistic lock of upsert_orders.sql
-- first. So no row can be there, and the insert needs no ON CONFLICT, which costs Citus an intermediate result.
insert into order_directory (user_id, order_id)
select * from unnest($1::uuid[], $2::text[])
