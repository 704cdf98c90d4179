-- Rows of the inbox on each node.
with rows_of as (
    select get_shard_id_for_distribution_column('inbox', user_id) as shardid, count(*) as rows from inbox group by 1
)
select sum(rows)::bigint from rows_of join citus_shards using (shardid) group by nodename, nodeport
