#!/bin/sh
# Each fuzz target for SECONDS (20), one after the other. `FUZZ_TARGETS="address" sh fuzz/run.sh 600` chooses.
# Without a nightly compiler or cargo-fuzz it says so and does nothing; with SHARDLANE_REQUIRE=fuzz or =all it fails.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-20}
if ! missing=$(cargo +nightly fuzz --version 2>&1); then
    case ",${SHARDLANE_REQUIRE:-}," in
        *,fuzz,* | *,all,*) echo "fuzz: $missing" >&2; exit 1 ;;
    esac
    echo "skipped: fuzz: no cargo-fuzz here (rustup toolchain install nightly; cargo install cargo-fuzz)"
    exit 0
fi
for target in ${FUZZ_TARGETS:-signature envelope address}; do
    mkdir -p "fuzz/corpus/$target"
    # The code is safe Rust and its assertions are our own: without the address sanitizer it runs twice as often.
    cargo +nightly fuzz run --sanitizer none "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -max_len=4096 -timeout=10 -print_final_stats=1
done
