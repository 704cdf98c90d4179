#!/bin/sh
# Installs what demo and test need and this machine lacks: Debian's packages, as root. Elsewhere it names them and
# goes on; what cannot run without them is skipped, visibly.
set -eu

if ! command -v cargo >/dev/null 2>&1; then
    echo "setup: cargo is missing; install Rust 1.92 or newer (rustup, or your distribution), then try again" >&2
    exit 1
fi

missing=""
need() { # package, condition...
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
has_postgres() { ls /usr/lib/postgresql/*/bin/postgres || command -v postgres || [ -n "${SHARDLANE_PG_BIN:-}" ]; }
has_partman() { ls /usr/share/postgresql/*/extension/pg_partman.control || [ -n "${SHARDLANE_PG_BIN:-}" ]; }
has_java() { java -version; }

# librdkafka is built from source: a C and a C++ compiler, make, and pkg-config.
need gcc command -v cc
need g++ command -v c++
need pkg-config command -v pkg-config
need postgresql has_postgres
need openjdk-17-jre-headless has_java
need maven command -v mvn

if [ -n "$missing" ] || ! has_partman >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        # shellcheck disable=SC2086 # the list is words
        [ -z "$missing" ] || apt-get install -y -qq --no-install-recommends $missing
        version=$(ls /usr/lib/postgresql 2>/dev/null | sort -n | tail -n 1)
        has_partman >/dev/null 2>&1 || [ -z "$version" ] ||
            apt-get install -y -qq --no-install-recommends "postgresql-$version-partman" ||
            echo "setup: pg_partman is not packaged here; the layout partman will be skipped" >&2
    else
        has_partman >/dev/null 2>&1 || missing="$missing postgresql-15-partman"
        echo "setup: not installed:$missing (names of Debian's packages); what needs them is skipped" >&2
    fi
fi
