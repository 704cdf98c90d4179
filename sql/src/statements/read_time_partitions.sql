-- The tables that are partitioned by time, and where the last of their partitions ends; the default one has no end.
select parent.relname::text,
       max((regexp_match(pg_get_expr(child.relpartbound, child.oid), 'TO \(''([^'']+)''\)'))[1]::timestamptz)
  from pg_partitioned_table partitioned
  join pg_class parent on parent.oid = partitioned.partrelid
  left join pg_inherits on inhparent = parent.oid
  left join pg_class child on child.oid = inhrelid
 where parent.relname = any ($1) and pg_table_is_visible(parent.oid) and partitioned.partstrat = 'r'
 group by parent.relname
 order by parent.relname
