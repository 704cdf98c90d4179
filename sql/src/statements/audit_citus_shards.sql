-- Every placement of the tables' shards: table, shard, range of the hash, the physical table, host, port.
select w.name,
       s.shardid,
       s.shardminvalue::integer,
       s.shardmaxvalue::integer,
       shard_name(s.logicalrelid, s.shardid)::text,
       n.nodename::text,
       n.nodeport
from unnest($1::text[]) with ordinality as w (name, ordinal)
join pg_dist_shard s on s.logicalrelid = to_regclass(w.name)
join pg_dist_placement p on p.shardid = s.shardid and p.shardstate = 1
join pg_dist_node n on n.groupid = p.groupid and n.noderole = 'primary'
order by w.ordinal, s.shardminvalue::integer, n.nodename, n.nodeport
