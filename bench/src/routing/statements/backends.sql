-- The clients' connections to this node, and those of other nodes on their behalf.
select count(*)
from pg_stat_activity
where datname = current_database()
  and (application_name = 'shardlane routing' or application_name like 'citus_internal%')
