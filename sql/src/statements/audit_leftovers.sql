-- What a reshard makes in this database: kind, name, whether it is in use, and how much WAL it holds.
select 'subscription', s.subname::text, s.subenabled, null::bigint
from pg_subscription s
join pg_database d on d.oid = s.subdbid
where d.datname = current_database() and s.subname like 'shardlane\_%'
union all
select 'replication slot', slot_name::text, active, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint
from pg_replication_slots
where database = current_database() and slot_name like 'shardlane\_%'
union all
select 'publication', pubname::text, false, null::bigint
from pg_publication
where pubname like 'shardlane\_%'
order by 1, 2
