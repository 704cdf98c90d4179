-- How each of the tables is distributed; one row a table that exists, nulls where it is not distributed.
select c.relname::text,
       p.partmethod::text,
       p.colocationid,
       a.attname::text,
       format_type(a.atttypid, null),
       coalesce(l.collisdeterministic, true)
from unnest($1::text[]) as wanted(name)
join pg_class c on c.oid = to_regclass(wanted.name)
left join pg_dist_partition p on p.logicalrelid = c.oid
left join pg_attribute a
    on a.attrelid = c.oid and p.partkey is not null
   and a.attname = column_to_column_name(p.logicalrelid, p.partkey)
left join pg_collation l on l.oid = a.attcollation
