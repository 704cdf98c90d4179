//! What routing costs, beside the hashes that it could have been.
//!
//! `cargo bench -p shardlane-router` takes about half a minute. Read the ratios, not the times.
//!
//! Each iteration hashes one key of a ring of 1,024, so that neither the branch predictor nor a
//! constant folder knows the key beforehand.

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use shardlane_router::{
    Epoch, KeyType, Node, RouteKey, ShardId, ShardMap, SlotMap, TokenHash, lookup3,
};
use uuid::Uuid;

const RING: usize = 1024;

fn uuids() -> Vec<Uuid> {
    // Multiplied by an odd constant, so that every byte varies.
    (0..RING as u128)
        .map(|n| Uuid::from_u128((n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)))
        .collect()
}

/// Times `work` on the keys in turn.
fn ring<K, R>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    keys: &[K],
    work: impl Fn(&K) -> R,
) {
    group.bench_function(name, |bencher| {
        let mut next = 0;
        bencher.iter(|| {
            next = (next + 1) % RING;
            work(black_box(&keys[next]))
        });
    });
}

/// The reader-based function of the murmur3 crate.
fn murmur3_crate(mut bytes: &[u8]) -> u32 {
    murmur3::murmur3_32(&mut bytes, 0).unwrap_or_default()
}

/// As a Kafka client hashes a key.
fn kafka_murmur2(bytes: &[u8]) -> u32 {
    murmur2::murmur2(bytes, murmur2::KAFKA_SEED)
}

/// A well-kept crate's murmur3 over a slice.
#[inline(always)]
fn murmurhash32_crate(bytes: &[u8]) -> u32 {
    murmurhash32::murmurhash3_with_seed::<0>(bytes)
}

// Inlined, as it is in a caller that knows the type of its key.
#[inline(always)]
fn murmur3_router(key: &RouteKey<'_>) -> i32 {
    TokenHash::Murmur3.hash_i32(key)
}

fn group<'c>(criterion: &'c mut Criterion, name: &str) -> BenchmarkGroup<'c, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group
        .sample_size(50)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));
    group
}

fn hash_uuid(criterion: &mut Criterion) {
    let keys = uuids();
    let mut group = group(criterion, "hash uuid");
    ring(&mut group, "lookup3", &keys, lookup3::hash_uuid);
    ring(&mut group, "murmur3 router", &keys, |key| {
        murmur3_router(&RouteKey::Uuid(*key))
    });
    ring(&mut group, "murmurhash32 crate", &keys, |key| {
        murmurhash32_crate(key.as_bytes())
    });
    ring(&mut group, "murmur3 crate (reader)", &keys, |key| {
        murmur3_crate(key.as_bytes())
    });
    ring(&mut group, "kafka murmur2", &keys, |key| {
        kafka_murmur2(key.as_bytes())
    });
    ring(&mut group, "crc32", &keys, |key| {
        crc32fast::hash(key.as_bytes())
    });
    // What a stock Kafka client pays: it hashes the uuid's 36 characters.
    let texts: Vec<String> = keys.iter().map(Uuid::to_string).collect();
    ring(&mut group, "kafka murmur2 over its text", &texts, |key| {
        kafka_murmur2(key.as_bytes())
    });
    ring(&mut group, "crc32 over its text", &texts, |key| {
        crc32fast::hash(key.as_bytes())
    });
    group.finish();
}

fn hash_int8(criterion: &mut Criterion) {
    let keys: Vec<i64> = (0..RING as i64).map(|n| n * 7_919 - 1_000_000).collect();
    let mut group = group(criterion, "hash int8");
    ring(&mut group, "lookup3", &keys, |key| lookup3::hash_int8(*key));
    ring(&mut group, "murmur3 router", &keys, |key| {
        murmur3_router(&RouteKey::Int8(*key))
    });
    ring(&mut group, "murmurhash32 crate", &keys, |key| {
        murmurhash32_crate(&key.to_le_bytes())
    });
    ring(&mut group, "murmur3 crate (reader)", &keys, |key| {
        murmur3_crate(&key.to_le_bytes())
    });
    ring(&mut group, "kafka murmur2", &keys, |key| {
        kafka_murmur2(&key.to_le_bytes())
    });
    ring(&mut group, "crc32", &keys, |key| {
        crc32fast::hash(&key.to_le_bytes())
    });
    group.finish();
}

fn hash_text(criterion: &mut Criterion) {
    for length in [8, 24, 36, 128] {
        let keys: Vec<String> = (0..RING).map(|n| format!("{n:0>length$}")).collect();
        let mut group = group(criterion, &format!("hash text {length}"));
        ring(&mut group, "lookup3", &keys, |key| lookup3::hash_text(key));
        ring(&mut group, "murmur3 router", &keys, |key| {
            murmur3_router(&RouteKey::Text(key))
        });
        ring(&mut group, "murmurhash32 crate", &keys, |key| {
            murmurhash32_crate(key.as_bytes())
        });
        ring(&mut group, "murmur3 crate (reader)", &keys, |key| {
            murmur3_crate(key.as_bytes())
        });
        ring(&mut group, "kafka murmur2", &keys, |key| {
            kafka_murmur2(key.as_bytes())
        });
        ring(&mut group, "crc32", &keys, |key| {
            crc32fast::hash(key.as_bytes())
        });
        group.finish();
    }
}

fn route(criterion: &mut Criterion) {
    let keys = uuids();
    let shards: Vec<ShardId> = (0..8).map(ShardId).collect();
    let slots = SlotMap::aligned(Epoch(1), TokenHash::Postgres, 64, &shards)
        .expect("64 partitions and 8 shards make a map");
    let by_murmur3 = SlotMap::aligned(Epoch(1), TokenHash::Murmur3, 64, &shards)
        .expect("64 partitions and 8 shards make a map");
    let citus = |count| {
        let node = Node {
            group: 1,
            host: "worker".to_owned(),
            port: 5432,
        };
        ShardMap::uniform(
            Epoch(1),
            TokenHash::Postgres,
            KeyType::Uuid,
            vec![node],
            ShardId(102_008),
            count,
        )
        .expect("Citus allows up to 64,000 shards")
    };
    let (citus_32, citus_1024) = (citus(32), citus(1024));

    let mut group = group(criterion, "route uuid");
    ring(&mut group, "bare lookup3", &keys, lookup3::hash_uuid);
    ring(&mut group, "SlotMap::partition_for", &keys, |key| {
        slots.partition_for(&RouteKey::Uuid(*key))
    });
    ring(
        &mut group,
        "SlotMap::partition_for, murmur3",
        &keys,
        |key| by_murmur3.partition_for(&RouteKey::Uuid(*key)),
    );
    ring(&mut group, "SlotMap::shard_for", &keys, |key| {
        slots.shard_for(&RouteKey::Uuid(*key))
    });
    ring(&mut group, "SlotMap::route", &keys, |key| {
        slots.route(&RouteKey::Uuid(*key))
    });
    ring(&mut group, "ShardMap::route, 32 shards", &keys, |key| {
        citus_32.route(&RouteKey::Uuid(*key))
    });
    ring(&mut group, "ShardMap::route, 1024 shards", &keys, |key| {
        citus_1024.route(&RouteKey::Uuid(*key))
    });
    ring(
        &mut group,
        "murmur3 crate (reader), hash only",
        &keys,
        |key| murmur3_crate(key.as_bytes()),
    );
    ring(&mut group, "kafka murmur2, hash only", &keys, |key| {
        kafka_murmur2(key.as_bytes())
    });
    let texts: Vec<String> = keys.iter().map(Uuid::to_string).collect();
    ring(
        &mut group,
        "parse text, then partition_for",
        &texts,
        |text| RouteKey::parse(KeyType::Uuid, text).map(|key| slots.partition_for(&key)),
    );
    group.finish();
}

criterion_group!(benches, hash_uuid, hash_int8, hash_text, route);
criterion_main!(benches);
