-- How each of the tables is cut; nulls where it is not distributed or does not exist.
select w.name,
       c.oid is not null,
       p.partmethod::text,
       p.colocationid,
       a.attname::text,
       format_type(a.atttypid, null)
from unnest($1::text[]) with ordinality as w (name, n)
left join pg_class c on c.oid = to_regclass(w.name)
left join pg_dist_partition p on p.logicalrelid = c.oid
left join pg_attribute a
    on a.attrelid = c.oid and p.partkey is not null
   and a.attname = column_to_column_name(p.logicalrelid, p.partkey)
order by w.n
