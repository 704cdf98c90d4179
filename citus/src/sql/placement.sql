-- Where one shard is.
select s.logicalrelid::oid, s.shardminvalue::integer, s.shardmaxvalue::integer, n.groupid, n.nodename, n.nodeport
from pg_dist_shard s
join pg_dist_placement p on p.shardid = s.shardid and p.shardstate = 1
join pg_dist_node n on n.groupid = p.groupid and n.noderole = 'primary'
where s.shardid = $1
