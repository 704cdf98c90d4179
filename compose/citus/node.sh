#!/bin/bash
# A Citus node that joins its cluster by itself: node.sh coordinator|worker POSTGRES-ARGUMENTS...
#
# Each worker has the name of its container, which outlives the container, and its data in a directory of that name. So
# any number may be started (`--scale citus-worker=3`), stopped and made anew, and joining again changes nothing.
set -euo pipefail

role=$1
shift
coordinator=citus-coordinator
passwords=/run/citus/passwords

say() { echo "node: $*" >&2; }

# Citus connects from node to node as the same user.
mkdir -p /run/citus
(umask 077 && printf '*:*:*:%s:%s\n' "$POSTGRES_USER" "$(cat "$POSTGRES_PASSWORD_FILE")" >"$passwords")
chown -R postgres: /run/citus
export PGPASSFILE=$passwords

own_name() {
    if [ "$role" = coordinator ]; then
        echo "$coordinator"
        return
    fi
    # Docker's name server knows it as NAME.NETWORK; /etc/hosts would say the container's id, which does not last.
    local address name
    address=$(hostname -i | cut -d ' ' -f 1)
    name=$(getent -s hosts:dns hosts "$address" | awk '{ print $2 }')
    name=${name%%.*}
    [ -n "$name" ] || { say "no name is known for $address"; return 1; }
    echo "$name"
}

name=$(own_name)
export PGDATA=/var/lib/citus/$name

sql() { # host, statement
    psql -X -v ON_ERROR_STOP=1 -qAt -h "$1" -U "$POSTGRES_USER" -d "$POSTGRES_DB" -c "$2"
}

# The server that the image starts to set itself up has no TCP, so whoever answers here is ready.
wait_for() {
    until pg_isready -q -h "$1" -d "$POSTGRES_DB" -U "$POSTGRES_USER"; do sleep 1; done
}

# Newer minor releases of PostgreSQL refuse an output plugin that is not listed, and Citus splits a shard with its own.
allow_online_splits() {
    local known
    known=$(sql "$name" "select count(*) from pg_settings where name = 'output_plugin_libraries'")
    [ "$known" = 0 ] || sql "$name" "set citus.enable_ddl_propagation = off;
        alter database \"$POSTGRES_DB\" set output_plugin_libraries = pgoutput, test_decoding, citus"
}

join() {
    wait_for "$name"
    allow_online_splits
    if [ "$role" = coordinator ]; then
        sql "$coordinator" "select citus_set_coordinator_host('$coordinator', 5432)" >/dev/null
        say "is the coordinator"
        return
    fi
    wait_for "$coordinator"
    # Also activates the node and syncs the metadata to it.
    sql "$coordinator" "select citus_set_coordinator_host('$coordinator', 5432);
        select citus_add_node('$name', 5432);
        select citus_set_node_property('$coordinator', 5432, 'shouldhaveshards', false)" >/dev/null
    say "joined $coordinator as $name"
    # One that comes later takes its part of the shards that are there.
    local empty
    empty=$(sql "$coordinator" "select exists (select from pg_dist_shard) and not exists (select from citus_shards
        where nodename = '$name')")
    if [ "$empty" = t ]; then
        # Refused while another rebalance runs, which may not know this node.
        sql "$coordinator" "select citus_rebalance_start(shard_transfer_mode => 'auto')" >/dev/null
        say "its part of the shards is on its way: select * from citus_rebalance_status()"
    fi
}

join_in_time() {
    for _ in $(seq 60); do
        if (join); then return; fi
        sleep 2
    done
    say "could not join $coordinator; the reasons are above"
}

join_in_time &
exec docker-entrypoint.sh postgres "$@"
