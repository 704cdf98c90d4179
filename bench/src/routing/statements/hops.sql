-- How often this node has turned to another node for a part of a statement: over a new connection or a kept one.
select coalesce(sum(connection_establishment_succeeded + connection_reused), 0)::bigint
from citus_stat_counters
where name = current_database()
