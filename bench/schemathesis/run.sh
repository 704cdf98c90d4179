#!/bin/sh
# Tries the contract on a running front door: what /openapi.json says, and what it forbids.
#
#   sh bench/schemathesis/run.sh http://127.0.0.1:8080 [options of `schemathesis run`]
#
# It sends webhooks that may be taken: only to a server whose data nobody needs. Exit code 0: no failure.
set -eu
if [ $# -eq 0 ]; then
    echo "usage: sh bench/schemathesis/run.sh URL [options of schemathesis run]" >&2
    exit 2
fi
url=$1
shift
if ! command -v schemathesis >/dev/null 2>&1; then
    echo "skipped: schemathesis: not installed here (pip install schemathesis)"
    exit 0
fi
exec schemathesis --config-file "$(dirname "$0")/schemathesis.toml" run "$url/openapi.json" "$@"
