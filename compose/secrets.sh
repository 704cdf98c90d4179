#!/bin/sh
# Makes the secrets of a cluster on a laptop in compose/secrets/, once: what is there stays.
#
# The files can be read by everybody, because containers read them as their own users; the directory cannot be entered.
set -eu
cd "$(dirname "$0")"
mkdir -p secrets
chmod 700 secrets
cd secrets

make() { # name: what standard input says
    if [ -e "$1" ]; then
        cat >/dev/null
    else
        cat >"$1.new"
        chmod 644 "$1.new"
        mv "$1.new" "$1"
        echo "secrets: made $1"
    fi
}
random() { head -c "$1" /dev/urandom; }
dsn() { printf 'postgres://shardlane:%s@%s:5432/shardlane' "$(cat postgres-password)" "$1"; }

random 24 | base64 | tr '+/' '-_' | tr -d '\n' | make postgres-password
random 24 | base64 | tr '+/' '-_' | tr -d '\n' | make grafana-password
printf 'whsec_%s' "$(random 24 | base64 | tr -d '\n')" | make webhooks
dsn postgres-single | make database-single
dsn postgres-partman | make database-partman
printf '%s,%s' "$(dsn postgres-shard-0)" "$(dsn postgres-shard-1)" | make database-shards
dsn citus-coordinator | make database-citus
