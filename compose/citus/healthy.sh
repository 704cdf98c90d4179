#!/bin/bash
# Exits with 0 if this node answers and is an active member of the cluster, with the newest metadata.
set -euo pipefail
export PGPASSFILE=/run/citus/passwords
members=$(psql -X -qAt -h 127.0.0.1 -U "$POSTGRES_USER" -d "$POSTGRES_DB" -c "
    select count(*) from pg_dist_node
    where groupid = (select groupid from pg_dist_local_group) and isactive and metadatasynced")
[ "$members" = 1 ]
