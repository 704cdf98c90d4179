-- The shards of one hash-distributed table with the node that holds each. Every node has this metadata
-- since Citus 11. min and max are text in the catalogue; they are signed 32-bit hashes.
select s.shardid, s.shardminvalue::integer, s.shardmaxvalue::integer, n.groupid, n.nodename, n.nodeport
from pg_dist_shard s
join pg_dist_placement p on p.shardid = s.shardid and p.shardstate = 1
join pg_dist_node n on n.groupid = p.groupid and n.noderole = 'primary' and n.isactive
where s.logicalrelid = $1::text::regclass
order by s.shardminvalue::integer, n.groupid
