#!/bin/bash
# Waits until as many workers as asked for are active members, because tables spread over the nodes that are there when
# they are distributed.
set -euo pipefail
wanted=$1
PGPASSWORD=$(cat "$POSTGRES_PASSWORD_FILE")
export PGPASSWORD
for _ in $(seq 120); do
    active=$(psql -X -qAt -h citus-coordinator -U "$POSTGRES_USER" -d "$POSTGRES_DB" -c "
        select count(*) from pg_dist_node where groupid > 0 and isactive and metadatasynced" || echo 0)
    echo "citus: $active of $wanted workers joined"
    [ "$active" -lt "$wanted" ] || exit 0
    sleep 1
done
echo "citus: not enough workers; look at the log of citus-worker" >&2
exit 1
