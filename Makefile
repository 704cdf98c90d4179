# Each line calls something that a person could type.
CARGO ?= cargo
SHARDLANE = target/release/shardlane

.PHONY: demo test faults fuzz lint bench up down setup

# The main job: real servers, one seeded stream of webhooks, four layouts, a table and a report.
demo: setup
	$(CARGO) build --release --locked
	$(SHARDLANE) experiment ingest --out out

# Every ring: pure, database, whole. Tests of servers that are not installed are skipped, each with a line.
test: setup
	$(CARGO) test --workspace --locked --no-fail-fast

# Every fault, with seeds, and the twelve planted defects, which the oracle has to find: half an hour on two cores.
# `make faults FAULTS="all --quick"` has a look; `target/release/faults list` says what there is.
FAULTS ?= all
faults: setup
	$(CARGO) build --release --locked -p shardlane-faults --features mutants
	target/release/faults $(FAULTS)

# Each fuzz target of the front door for so many seconds, where there are a nightly compiler and cargo-fuzz.
FUZZ_SECONDS ?= 20
fuzz:
	sh fuzz/run.sh $(FUZZ_SECONDS)

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

bench: setup
	$(CARGO) bench -p shardlane-router --bench route
	$(CARGO) bench -p shardlane-bench --bench bulk_insert

# Servers that stay, in ./.shardlane
up: setup
	$(CARGO) build --release --locked
	$(SHARDLANE) up --layouts single,shards --kafka

down:
	$(SHARDLANE) down

setup:
	@sh local/setup.sh
