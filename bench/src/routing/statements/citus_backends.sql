-- A node's connection to another one bears the global number of the client's session for which it was opened.
with clients as (
    select distinct global_pid from citus_stat_activity where application_name = 'shardlane routing'
)
select count(*) from citus_stat_activity where global_pid in (select global_pid from clients)
