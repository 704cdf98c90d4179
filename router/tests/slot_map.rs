//! Slot maps: what builds, what is refused, what is written, and when borders are shared.

mod common;

use std::sync::Arc;

use common::{load_bounds, partition_list, shard_list, shards};
use proptest::prelude::*;
use shardlane_router::{
    Alignment, Epoch, KeyRange, MapError, PartitionId, RouteKey, SLOT_COUNT, ShardId, Slot,
    SlotMap, Token, TokenHash,
};
use uuid::Uuid;

const PG: TokenHash = TokenHash::Postgres;

fn aligned(partitions: u32, shard_count: i64) -> SlotMap {
    SlotMap::aligned(Epoch(1), PG, partitions, &shards(shard_count)).unwrap()
}

#[test]
fn a_slot_is_2_to_the_20_tokens_and_the_slots_tile_the_line() {
    assert!(Slot::new(4095).is_ok());
    assert_eq!(
        Slot::new(4096),
        Err(MapError::SlotOutOfRange { number: 4096 })
    );
    assert_eq!(Slot::all().len(), SLOT_COUNT);
    let mut next = 0_u64;
    for slot in Slot::all() {
        let range = slot.key_range();
        assert_eq!(u64::from(range.first().value()), next);
        assert_eq!(range.width(), 1 << 20);
        assert_eq!((range.first().slot(), range.last().slot()), (slot, slot));
        next += range.width();
    }
    assert_eq!(next, 1 << 32);
}

#[test]
fn aligned_maps_are_contiguous_and_even() {
    for (partitions, shard_count) in [(1, 1), (3, 2), (12, 5), (13, 4), (64, 64), (4096, 4096)] {
        let map = aligned(partitions, shard_count);
        assert_eq!(map.partition_count(), partitions);
        assert_eq!(map.shards(), shards(shard_count));
        assert!(partition_list(&map).is_sorted());
        assert!(shard_list(&map).is_sorted());
        for (min, max) in [
            load_bounds(&partition_list(&map)),
            load_bounds(&shard_list(&map)),
        ] {
            assert!(max - min <= 1, "{partitions} x {shard_count}: {min}..{max}");
        }
        for shard in map.shards() {
            assert_eq!(map.slot_ranges_of(*shard).len(), 1);
        }
    }
}

#[test]
fn shards_keep_the_order_in_which_they_are_given() {
    let given = [ShardId(30), ShardId(-1), ShardId(7)];
    let map = SlotMap::aligned(Epoch(0), PG, 1, &given).unwrap();
    assert_eq!(map.shards(), [ShardId(-1), ShardId(7), ShardId(30)]);
    assert_eq!(map.slot_ranges_of(ShardId(30)), [0..=1365]);
    assert_eq!(map.slot_ranges_of(ShardId(-1)), [1366..=2730]);
    assert_eq!(map.slot_ranges_of(ShardId(7)), [2731..=4095]);
    assert!(map.slot_ranges_of(ShardId(8)).is_empty());
}

#[test]
fn both_directions_agree() {
    let map = aligned(3, 2);
    assert_eq!(map.shards_of(PartitionId(1)), shards(2));
    assert_eq!(
        map.partitions_of(ShardId(0)),
        [PartitionId(0), PartitionId(1)]
    );
    for unknown in [PartitionId(-1), PartitionId(3), PartitionId(i32::MIN)] {
        assert!(map.shards_of(unknown).is_empty());
        assert!(map.slot_ranges_of_partition(unknown).is_empty());
    }
    assert!(map.partitions_of(ShardId(2)).is_empty());
}

#[test]
fn alignment_is_judged_by_borders() {
    let check = |partitions, shard_count, expected| {
        let map = aligned(partitions, shard_count);
        assert_eq!(map.alignment(), expected, "{partitions} x {shard_count}");
    };
    let yes = |shards_per_partition, partitions_per_shard| Alignment::Aligned {
        shards_per_partition,
        partitions_per_shard,
    };
    let no = |max_shards_per_partition| Alignment::NotAligned {
        max_shards_per_partition,
    };
    check(8, 2, yes(1, 4));
    check(2, 8, yes(4, 1));
    check(4, 4, yes(1, 1));
    check(12, 4, yes(1, 3));
    check(1, 5, yes(5, 1));
    check(3, 2, no(2));
    check(2, 3, no(2));
    check(4, 6, no(2));
}

/// Property 5, over all powers of two up to 256 (and 4096, where a slot is one partition).
#[test]
fn powers_of_two_are_aligned_with_the_quotient_as_fan_out() {
    for p in (0..=8).chain([12]) {
        for n in 0..=8 {
            let map = aligned(1 << p, 1 << n);
            let fan_out = if n <= p { 1 } else { 1 << (n - p) };
            assert!(map.alignment().is_aligned());
            for partition in 0..1 << p {
                assert_eq!(map.shards_of(PartitionId(partition)).len(), fan_out);
            }
        }
    }
}

#[test]
fn modulo_leads_every_partition_to_every_shard() {
    let map = SlotMap::modulo(Epoch(1), PG, 32, &shards(32)).unwrap();
    assert_eq!(
        map.alignment(),
        Alignment::NotAligned {
            max_shards_per_partition: 32
        }
    );
    assert_eq!(map.shards_of(PartitionId(5)), shards(32));
    assert_eq!(map.partition_of(Slot::new(33).unwrap()), PartitionId(1));
}

/// The rule "shard = partition % N" that this house does not use: with 3 order partitions, 2 dispute
/// partitions and 2 shards, half of the users have their disputes on another shard.
#[test]
fn shard_by_partition_number_splits_users_and_shard_by_slot_does_not() {
    let (orders, disputes) = (aligned(3, 2), aligned(2, 2));
    let mut split_by_number = 0;
    for n in 0..10_000 {
        let key = RouteKey::Uuid(Uuid::from_u128(n));
        let by_number = |map: &SlotMap| map.partition_for(&key).0 % 2;
        split_by_number += i32::from(by_number(&orders) != by_number(&disputes));
        assert_eq!(orders.shard_for(&key), disputes.shard_for(&key));
    }
    assert!(
        (4_500..5_500).contains(&split_by_number),
        "{split_by_number}"
    );
}

#[test]
fn bad_maps_are_refused_each_with_its_own_error() {
    let build = |partitions, shards: &[ShardId]| SlotMap::aligned(Epoch(1), PG, partitions, shards);
    let one = [ShardId(1)];
    assert_eq!(build(0, &one), Err(MapError::NoPartitions));
    assert_eq!(
        build(4097, &one),
        Err(MapError::TooManyPartitions { asked: 4097 })
    );
    assert_eq!(
        build(u32::MAX, &one),
        Err(MapError::TooManyPartitions {
            asked: u64::from(u32::MAX)
        })
    );
    assert_eq!(build(1, &[]), Err(MapError::NoShards));
    assert_eq!(
        build(1, &shards(4097)),
        Err(MapError::TooManyShards {
            asked: 4097,
            max: 4096
        })
    );
    assert_eq!(
        build(1, &[ShardId(1), ShardId(2), ShardId(1)]),
        Err(MapError::DuplicateShard { shard: ShardId(1) })
    );
    assert!(SlotMap::modulo(Epoch(1), PG, 0, &one).is_err());

    let partitions = |edit: fn(&mut Vec<PartitionId>)| {
        let mut list = vec![PartitionId(0); SLOT_COUNT];
        edit(&mut list);
        SlotMap::from_tables(Epoch(1), PG, &list, &vec![ShardId(1); SLOT_COUNT])
    };
    assert!(partitions(|_| ()).is_ok());
    assert_eq!(
        partitions(|list| list.truncate(4095)),
        Err(MapError::TableLength {
            table: "partition",
            got: 4095
        })
    );
    assert_eq!(
        partitions(|list| list[7] = PartitionId(-1)),
        Err(MapError::UnknownPartition {
            partition: PartitionId(-1),
            partition_count: 1
        })
    );
    assert_eq!(
        partitions(|list| list[7] = PartitionId(2)),
        Err(MapError::UnusedPartition {
            partition: PartitionId(1),
            partition_count: 3
        })
    );
    for high in [4096, i32::MAX] {
        let mut list = vec![PartitionId(0); SLOT_COUNT];
        list[0] = PartitionId(high);
        assert_eq!(
            SlotMap::from_tables(Epoch(1), PG, &list, &vec![ShardId(1); SLOT_COUNT]),
            Err(MapError::TooManyPartitions {
                asked: u64::from(high.unsigned_abs()) + 1
            })
        );
    }
    assert_eq!(
        SlotMap::from_tables(Epoch(1), PG, &[PartitionId(0); SLOT_COUNT], &one),
        Err(MapError::TableLength {
            table: "shard",
            got: 1
        })
    );
}

#[test]
fn written_maps_that_are_broken_are_refused() {
    let json = |partition_count: u32, partitions: &str, shards: &str| {
        format!(
            r#"{{"epoch":1,"hash":"postgres","partition_count":{partition_count},"partitions":{partitions},"shards":{shards}}}"#
        )
    };
    let all = "[[0,4095,0]]";
    let check = |text: String, part_of_error: &str| {
        let error = serde_json::from_str::<SlotMap>(&text)
            .unwrap_err()
            .to_string();
        assert!(error.contains(part_of_error), "{text}\n{error}");
    };
    assert!(serde_json::from_str::<SlotMap>(&json(1, all, all)).is_ok());
    check(json(1, "[]", all), "covers 0 slots");
    check(json(1, "[[0,4094,0]]", all), "covers 4095 slots");
    check(
        json(1, "[[0,9,0],[11,4095,0]]", all),
        "starts at slot 11 where slot 10 was due",
    );
    check(
        json(1, "[[0,9,0],[9,4095,0]]", all),
        "starts at slot 9 where slot 10 was due",
    );
    check(json(1, "[[0,4096,0]]", all), "slot 4096 does not exist");
    check(json(1, "[[0,65535,0]]", all), "slot 65535 does not exist");
    check(
        json(1, "[[5,4,0]]", all),
        "starts at slot 5 where slot 0 was due",
    );
    check(
        json(1, "[[0,9,0],[10,9,0],[10,4095,0]]", all),
        "slot 10 where slot 10 was due",
    );
    check(json(2, all, all), "no slot leads to partition 1");
    check(json(0, all, all), "partition 0 is not one of");
    check(json(1, "[[0,4095,-1]]", all), "partition -1 is not one of");
    check(json(1, all, "[[0,1,5]]"), "covers 2 slots");
    check(
        json(1, all, all).replace("postgres", "fnv"),
        "unknown variant `fnv`",
    );
    check(
        json(1, all, all).replace("\"epoch\":1", "\"epoch\":1,\"x\":1"),
        "unknown field `x`",
    );
    check(
        json(1, all, all).replace("\"epoch\":1,", ""),
        "missing field `epoch`",
    );
}

#[test]
fn an_epoch_never_goes_back_and_hashes_do_not_mix() {
    let at =
        |epoch, partitions| SlotMap::aligned(Epoch(epoch), PG, partitions, &shards(2)).unwrap();
    let current = at(5, 4);
    assert_eq!(current.check_compatible("pg-lookup3-1", Epoch(5)), Ok(()));
    assert_eq!(current.check_compatible("pg-lookup3-1", Epoch(6)), Ok(()));
    assert_eq!(
        current.check_compatible("pg-lookup3-1", Epoch(4)),
        Err(MapError::OlderEpoch {
            ours: Epoch(5),
            theirs: Epoch(4)
        })
    );
    for other in ["murmur3-x86-32-seed0-1", "pg-lookup3-2", "postgres", ""] {
        assert!(matches!(
            current.check_compatible(other, Epoch(5)),
            Err(MapError::OtherHash {
                ours: "pg-lookup3-1",
                ..
            })
        ));
    }
    assert_eq!(current.check_successor(&at(5, 4)), Ok(()));
    assert_eq!(current.check_successor(&at(6, 8)), Ok(()));
    assert_eq!(
        current.check_successor(&at(5, 8)),
        Err(MapError::SameEpochOtherMap { epoch: Epoch(5) })
    );
    assert!(current.check_successor(&at(4, 4)).is_err());
    assert_eq!(
        at(u64::MAX, 4).plan_partitions(8).unwrap_err(),
        MapError::EpochExhausted {
            epoch: Epoch(u64::MAX)
        }
    );
}

/// Property 2: the same answer from every thread, and from a map that was written and read.
#[test]
fn routes_are_the_same_on_every_thread_and_after_a_round_trip() {
    let map = Arc::new(SlotMap::modulo(Epoch(3), PG, 12, &shards(5)).unwrap());
    let copy: SlotMap = serde_json::from_str(&serde_json::to_string(&*map).unwrap()).unwrap();
    assert_eq!(copy, *map);
    let keys: Vec<Uuid> = (0..2_000).map(|n| Uuid::from_u128(n * n)).collect();
    let expected: Vec<_> = keys.iter().map(|key| copy.route(&(*key).into())).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let routes: Vec<_> = keys.iter().map(|key| map.route(&(*key).into())).collect();
                assert_eq!(routes, expected);
            });
        }
    });
}

fn any_map() -> impl Strategy<Value = SlotMap> {
    let counts = (1..40_i32, 1..40_i64);
    (any::<u64>(), any::<bool>(), counts, any::<u64>()).prop_map(
        |(epoch, murmur3, (partitions, shard_count), seed)| {
            let mut sequence = common::Sequence(seed);
            let mut draw = |below: i64| i64::from(sequence.next_u32()) % below;
            let mut partition_of = |slot: i32| {
                // The first slots name every partition, so that none is unused.
                let drawn = i32::try_from(draw(partitions.into())).unwrap();
                PartitionId(if slot < partitions { slot } else { drawn })
            };
            let partition_of: Vec<_> = (0..4096).map(&mut partition_of).collect();
            let shard_of: Vec<_> = (0..4096).map(|_| ShardId(draw(shard_count) - 7)).collect();
            let hash = if murmur3 { TokenHash::Murmur3 } else { PG };
            SlotMap::from_tables(Epoch(epoch), hash, &partition_of, &shard_of).unwrap()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Property 2 for arbitrary tables and keys of every type.
    #[test]
    fn every_key_has_exactly_one_route(
        map in any_map(), number: i64, bytes: [u8; 16], text in "[^\0]{1,60}",
    ) {
        let copy: SlotMap = serde_json::from_str(&serde_json::to_string(&map).unwrap()).unwrap();
        for key in [
            RouteKey::Int8(number),
            RouteKey::Uuid(Uuid::from_bytes(bytes)),
            RouteKey::Text(&text),
        ] {
            let route = map.route(&key);
            prop_assert_eq!(copy.route(&key), route);
            prop_assert_eq!(route.token, map.token(&key));
            prop_assert!(route.slot.key_range().contains(route.token));
            prop_assert_eq!(route.partition, map.partition_for(&key));
            prop_assert_eq!(route.shard, map.shard_for(&key));
            prop_assert!(map.shards_of(route.partition).contains(&route.shard));
            prop_assert!(map.partitions_of(route.shard).contains(&route.partition));
            let holders = map.shards().iter().filter(|shard| {
                map.slot_ranges_of(**shard).iter().any(|run| run.contains(&route.slot.number()))
            });
            prop_assert_eq!(holders.collect::<Vec<_>>(), [&route.shard]);
        }
    }

    /// Property 4 for slots.
    #[test]
    fn slots_keep_the_order_of_tokens(a: u32, b: u32) {
        let (a, b) = (Token::new(a.min(b)), Token::new(a.max(b)));
        prop_assert!(a.slot() <= b.slot());
        prop_assert!(a.hash_i32() <= b.hash_i32());
        prop_assert_eq!(Token::from_hash(a.hash_i32()), a);
    }

    #[test]
    fn ranges_say_the_same_signed_and_unsigned(a: i32, b: i32, at: i32) {
        match KeyRange::from_hash_bounds(a, b) {
            Ok(range) => {
                prop_assert_eq!(range.hash_bounds(), (a, b));
                prop_assert_eq!(range.contains(Token::from_hash(at)), (a..=b).contains(&at));
                let json = serde_json::to_string(&range).unwrap();
                prop_assert_eq!(serde_json::from_str::<KeyRange>(&json).unwrap(), range);
            }
            Err(error) => {
                prop_assert!(a > b);
                let reversed = matches!(error, MapError::RangeReversed { .. });
                prop_assert!(reversed);
            }
        }
    }
}
