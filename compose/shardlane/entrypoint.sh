#!/bin/sh
# `shardlane`, with its DSNs out of a file: SHARDLANE_DATABASE_FILE=/run/secrets/NAME holds what SHARDLANE_DATABASE would.
set -eu

if [ -n "${SHARDLANE_DATABASE_FILE:-}" ]; then
    SHARDLANE_DATABASE=$(cat "$SHARDLANE_DATABASE_FILE")
    export SHARDLANE_DATABASE
    unset SHARDLANE_DATABASE_FILE
fi

# `migrate` takes its DSNs as arguments.
if [ "${1:-}" = migrate ] && [ -n "${SHARDLANE_DATABASE:-}" ]; then
    IFS=,
    set -f
    # shellcheck disable=SC2086 # one argument a DSN
    set -- "$@" $SHARDLANE_DATABASE
    unset IFS
fi

exec shardlane "$@"
