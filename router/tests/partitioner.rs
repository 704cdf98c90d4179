//! Property 10: the partitioner never panics, for any bytes and any partition count.
#![cfg(feature = "rdkafka")]

mod common;

use std::sync::Arc;

use common::shards;
use proptest::prelude::*;
use rdkafka::producer::{PARTITION_UA, Partitioner};
use shardlane_router::{Epoch, KeyType, RouteKey, SlotMap, SlotPartitioner, TokenHash};
use uuid::Uuid;

fn partitioner(partitions: u32, key_type: KeyType) -> SlotPartitioner {
    let map = SlotMap::aligned(Epoch(1), TokenHash::Postgres, partitions, &shards(1)).unwrap();
    SlotPartitioner::new(Arc::new(map), key_type)
}

/// As librdkafka calls it; it does not ask for availability.
fn ask(partitioner: &SlotPartitioner, key: Option<&[u8]>, count: i32) -> i32 {
    partitioner.partition("orders", key, count, |_| {
        panic!("a key waits for its partition")
    })
}

#[test]
fn a_readable_key_goes_where_the_map_says() {
    let partitioner = partitioner(12, KeyType::Uuid);
    for n in 0..1_000 {
        let user = Uuid::from_u128(n);
        let expected = partitioner.map().partition_for(&user.into()).0;
        let lower = user.to_string();
        for text in [lower.to_uppercase(), lower] {
            assert_eq!(ask(&partitioner, Some(text.as_bytes()), 12), expected);
        }
    }
    assert_eq!(partitioner.unreadable_keys(), 0);
}

#[test]
fn partitions_that_the_map_does_not_know_are_never_chosen() {
    let partitioner = partitioner(4, KeyType::Int8);
    for n in 0..1_000_i64 {
        let expected = partitioner.map().partition_for(&RouteKey::Int8(n)).0;
        assert_eq!(
            ask(&partitioner, Some(n.to_string().as_bytes()), 64),
            expected
        );
        let bad = format!("bad-{n}");
        assert!((0..4).contains(&ask(&partitioner, Some(bad.as_bytes()), 64)));
    }
}

#[test]
fn a_topic_that_is_too_small_fails_the_send_and_misplaces_nothing() {
    let partitioner = partitioner(16, KeyType::Int8);
    let mut beyond = 0;
    for n in 0..1_000_i64 {
        let chosen = ask(&partitioner, Some(n.to_string().as_bytes()), 4);
        assert_eq!(
            chosen,
            partitioner.map().partition_for(&RouteKey::Int8(n)).0
        );
        beyond += i32::from(chosen >= 4);
    }
    assert!(
        beyond > 600,
        "three quarters lie beyond the topic's end, {beyond} of 1000"
    );
}

#[test]
fn an_unreadable_key_goes_somewhere_definite_and_is_counted() {
    let partitioner = partitioner(8, KeyType::Int8);
    let bad: [Option<&[u8]>; 5] = [None, Some(b""), Some(b"007"), Some(b"\xff"), Some(b"x")];
    for key in bad {
        let chosen = ask(&partitioner, key, 8);
        assert!((0..8).contains(&chosen));
        assert_eq!(chosen, ask(&partitioner, key, 8));
        assert_eq!(ask(&partitioner, key, 1), 0);
    }
    assert_eq!(partitioner.unreadable_keys(), 15);
}

#[test]
fn a_topic_without_partitions_is_not_now() {
    let partitioner = partitioner(8, KeyType::Int8);
    for count in [0, -1, i32::MIN] {
        for key in [Some(b"42".as_slice()), Some(b"x"), None] {
            assert_eq!(ask(&partitioner, key, count), PARTITION_UA);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_and_any_count_have_an_answer(
        key: Option<Vec<u8>>, count: i32, partitions in 1_u32..=64, kind in 0_usize..3,
    ) {
        let kind = [KeyType::Uuid, KeyType::Int8, KeyType::Text][kind];
        let partitioner = partitioner(partitions, kind);
        let key = key.as_deref();
        let chosen = ask(&partitioner, key, count);
        prop_assert_eq!(chosen, ask(&partitioner, key, count));
        let known = 0..i32::try_from(partitions).unwrap();
        if count <= 0 {
            prop_assert_eq!(chosen, PARTITION_UA);
        } else {
            prop_assert!(known.contains(&chosen));
        }
        if let Err(_) = RouteKey::from_kafka_key(kind, key) && count > 0 {
            prop_assert!(chosen < count);
            prop_assert_eq!(partitioner.unreadable_keys(), 2);
        } else {
            prop_assert_eq!(partitioner.unreadable_keys(), 0);
        }
    }
}
