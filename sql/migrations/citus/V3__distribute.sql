-- All tables are distributed by user_id and colocated: one user's rows, the fence and the outbox of a batch
-- live in the same shard group on the same node. The shard count is citus.shard_count of this session.
select create_distributed_table('inbox', 'user_id', colocate_with => 'none');
select create_distributed_table('kafka_fence', 'user_id', colocate_with => 'inbox');
select create_distributed_table('kafka_outcomes', 'user_id', colocate_with => 'inbox');
select create_distributed_table('parked', 'user_id', colocate_with => 'inbox');
select create_distributed_table('orders', 'user_id', colocate_with => 'inbox');
select create_distributed_table('disputes', 'user_id', colocate_with => 'inbox');
-- A sequence counts on each node apart, and a user's rows may be written on another node after a move. Microseconds
-- are the same everywhere, as far as the nodes' clocks agree.
alter table outbox alter column seq set default (extract(epoch from clock_timestamp()) * 1000000)::bigint;
drop sequence outbox_seq;
select create_distributed_table('outbox', 'user_id', colocate_with => 'inbox');
select create_distributed_table('order_directory', 'user_id', colocate_with => 'inbox');
select create_distributed_table('order_events', 'user_id', colocate_with => 'inbox');
select create_distributed_table('dispute_events', 'user_id', colocate_with => 'inbox');
-- By its own key: a letter may name no user. So each node can write and read it, and none is special.
select create_distributed_table('dead_letters', 'id', colocate_with => 'none');
