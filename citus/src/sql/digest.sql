-- One short row that changes whenever the map, or the way the tables are distributed, does. It is the same on every
-- node, so it names neither oids nor placement ids, which differ between nodes.
select md5(concat_ws('|',
    (select string_agg(
         concat_ws(':', s.shardid, s.shardminvalue, s.shardmaxvalue, n.groupid, n.nodename, n.nodeport),
         ',' order by s.shardid, n.groupid)
     from pg_dist_shard s
     join pg_dist_placement p on p.shardid = s.shardid and p.shardstate = 1
     join pg_dist_node n on n.groupid = p.groupid and n.noderole = 'primary' and n.isactive
     where s.logicalrelid = to_regclass(($1::text[])[1])),
    (select string_agg(
         concat_ws(':', wanted.name, p.partmethod, p.colocationid, p.repmodel), ',' order by wanted.name)
     from unnest($1::text[]) as wanted(name)
     left join pg_dist_partition p on p.logicalrelid = to_regclass(wanted.name))))
