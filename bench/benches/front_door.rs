//! What the front door does with a request before Kafka has it: time and allocations, step by step.
//!
//! `cargo bench -p shardlane-bench --bench front_door`

use std::alloc::System;
use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use shardlane_bench::stream::{StreamSettings, Webhook, generate};
use shardlane_domain::{Event, SigningKey, Source};
use shardlane_router::{Epoch, RouteKey, ShardId, SlotMap, TokenHash};
use shardlane_worker::accepted_now;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn front_door(criterion: &mut Criterion) {
    let stream = generate(&StreamSettings::ingest(2_000, 500, 0.0, 1, 300));
    let key = SigningKey::parse(SECRET).expect("a secret");
    let map = SlotMap::aligned(Epoch(1), TokenHash::Postgres, 16, &[ShardId(0)]).expect("a map");
    let of = |source: Source| -> Vec<Webhook> {
        let found = stream.iter().filter(|webhook| webhook.source == source);
        found.cloned().collect()
    };
    let (orders, chargebacks) = (of(Source::Orders), of(Source::Chargebacks));
    let verify = |webhook: &Webhook| {
        black_box(key.code(&webhook.event_id, "1614265330", &webhook.payload));
    };
    let decode = |webhook: &Webhook| {
        let payload: Bytes = webhook.payload.clone();
        drop(black_box(Event::decode(
            webhook.source,
            payload,
            accepted_now(),
        )));
    };
    let route = |webhook: &Webhook| {
        black_box(map.route(&RouteKey::Uuid(webhook.user_id)));
    };
    run(criterion, "verify", &orders, verify);
    run(criterion, "decode an order", &orders, decode);
    run(criterion, "decode a chargeback", &chargebacks, decode);
    run(criterion, "route", &orders, route);
}

/// One step for one webhook after the other.
fn run(criterion: &mut Criterion, name: &str, webhooks: &[Webhook], step: impl Fn(&Webhook)) {
    let region = Region::new(ALLOCATOR);
    webhooks.iter().for_each(&step);
    let change = region.change();
    println!(
        "{name}: {:.1} allocations, {:.0} bytes",
        change.allocations as f64 / webhooks.len() as f64,
        change.bytes_allocated as f64 / webhooks.len() as f64
    );
    let mut group = criterion.benchmark_group("front_door");
    group.throughput(Throughput::Elements(1));
    let mut next = webhooks.iter().cycle();
    group.bench_function(name, |bencher| {
        bencher.iter_batched(
            || next.next().expect("a cycle does not end"),
            &step,
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, front_door);
criterion_main!(benches);
