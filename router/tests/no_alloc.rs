//! Routing a uuid or an integer allocates nothing.
#![expect(
    unsafe_code,
    reason = "a global allocator that counts is an unsafe impl; it only forwards to the system's"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

use shardlane_router::{Epoch, KeyType, Node, RouteKey, ShardId, ShardMap, SlotMap, TokenHash};
use uuid::Uuid;

struct Counting;

thread_local! {
    /// Of this thread alone, because the test harness allocates on others meanwhile. `const`, so
    /// that reaching it allocates nothing itself.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is forwarded unchanged to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

#[test]
fn the_way_of_a_key_allocates_nothing() {
    assert_eq!(
        allocations(|| drop(black_box(Box::new(1)))),
        1,
        "the counter counts"
    );

    for hash in [TokenHash::Postgres, TokenHash::Murmur3] {
        let slots = SlotMap::aligned(Epoch(1), hash, 12, &[ShardId(0), ShardId(1)]).unwrap();
        let nodes = vec![Node {
            group: 0,
            host: "localhost".to_owned(),
            port: 5432,
        }];
        let shards =
            ShardMap::uniform(Epoch(1), hash, KeyType::Uuid, nodes, ShardId(0), 32).unwrap();
        let counted = allocations(|| {
            for n in 0..1_000_i64 {
                let uuid = Uuid::from_u128(n.unsigned_abs().into());
                for key in [
                    RouteKey::Uuid(uuid),
                    RouteKey::Int8(n),
                    RouteKey::Text("user-1"),
                ] {
                    black_box(slots.route(&key));
                    black_box(slots.partition_for(&key));
                    black_box(slots.shard_for(&key));
                    black_box(slots.shards_of(slots.partition_for(&key)));
                    black_box(shards.route(&key));
                    black_box(shards.node_of(shards.shard_for(hash.token(&key))));
                }
            }
        });
        assert_eq!(counted, 0, "{hash}");
    }
}

/// A partitioner reads keys inside librdkafka's callback, good ones and bad ones.
#[test]
fn reading_a_key_allocates_nothing_even_when_it_is_refused() {
    let bytes: [&[u8]; 7] = [
        b"550e8400-e29b-41d4-a716-446655440000",
        b"42",
        b"007",
        b"99999999999999999999",
        b"a\0b",
        b"\xff",
        b"",
    ];
    let counted = allocations(|| {
        for kind in [KeyType::Uuid, KeyType::Int8, KeyType::Text] {
            for key in bytes {
                black_box(RouteKey::from_kafka_key(kind, Some(key))).ok();
            }
            black_box(RouteKey::from_kafka_key(kind, None)).ok();
        }
    });
    assert_eq!(counted, 0);
}
