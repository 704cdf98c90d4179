# Each line calls something that a person could type.
CARGO ?= cargo
SHARDLANE = target/release/shardlane

.PHONY: demo test lint bench up down setup

# The main job: real servers, one seeded stream of webhooks, four layouts, a table and a report.
demo: setup
	$(CARGO) build --release --locked
	$(SHARDLANE) experiment ingest --out out

# Every ring: pure, database, whole. Tests of servers that are not installed are skipped, each with a line.
test: setup
	$(CARGO) test --workspace --locked --no-fail-fast

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
