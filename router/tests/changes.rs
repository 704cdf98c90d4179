//! Moving slots by hand, telling two maps apart, and which map may replace which.

mod common;

use std::collections::BTreeMap;

use common::{nodes, partition_list, shard_list, shards};
use proptest::prelude::*;
use shardlane_router::{
    Epoch, KeyType, MapError, RouteKey, SLOT_COUNT, ShardId, ShardMap, ShardRoute, SlotMap,
    TokenHash,
};

fn aligned(partitions: u32, shard_count: i64) -> SlotMap {
    let hash = TokenHash::Postgres;
    SlotMap::aligned(Epoch(1), hash, partitions, &shards(shard_count)).unwrap()
}

#[test]
fn moved_slots_have_the_new_shard_and_nothing_else_changes() {
    let map = aligned(8, 2);
    let next = map.with_slots_moved([5, 4095, 5, 6], ShardId(9)).unwrap();
    assert_eq!(next.epoch(), Epoch(2));
    assert_eq!(next.shards(), [ShardId(0), ShardId(1), ShardId(9)]);
    assert_eq!(next.slot_ranges_of(ShardId(9)), [5..=6, 4095..=4095]);
    assert_eq!(partition_list(&next), partition_list(&map));
    let changed = (0..SLOT_COUNT).filter(|&slot| shard_list(&next)[slot] != shard_list(&map)[slot]);
    assert_eq!(changed.collect::<Vec<_>>(), [5, 6, 4095]);
    assert_eq!(map.check_successor(&next), Ok(()));
}

#[test]
fn a_shard_that_loses_its_last_slot_leaves_the_map() {
    let map = aligned(4, 3);
    let of_one = || map.slot_ranges_of(ShardId(1)).into_iter().flatten();
    let all_but_one = map.with_slots_moved(of_one().skip(1), ShardId(0)).unwrap();
    assert_eq!(all_but_one.shards(), shards(3));
    let without = map.with_slots_moved(of_one(), ShardId(0)).unwrap();
    assert_eq!(without.shards(), [ShardId(0), ShardId(2)]);
    assert!(without.slot_ranges_of(ShardId(1)).is_empty());
}

#[test]
fn a_slot_that_does_not_exist_moves_nothing() {
    let map = aligned(4, 2);
    assert_eq!(
        map.with_slots_moved([0, 4096], ShardId(1)),
        Err(MapError::SlotOutOfRange { number: 4096 })
    );
}

#[test]
fn moving_nothing_is_a_new_epoch_all_the_same() {
    let map = aligned(4, 2);
    let next = map.with_slots_moved([], ShardId(1)).unwrap();
    assert_eq!(next.epoch(), Epoch(2));
    assert!(map.diff(&next).unwrap().is_empty());
    assert_eq!(map.diff(&next).unwrap().to_string(), "");
}

#[test]
fn the_last_epoch_has_no_successor() {
    let hash = TokenHash::Postgres;
    let map = SlotMap::aligned(Epoch(u64::MAX), hash, 1, &shards(1)).unwrap();
    let refused = map.with_slots_moved([0], ShardId(1)).unwrap_err();
    assert!(matches!(refused, MapError::EpochExhausted { .. }));
}

#[test]
fn a_difference_is_one_line_a_run() {
    let map = aligned(2, 2);
    let next = map.plan_partitions(4).unwrap().map;
    let next = next.with_slots_moved([7], ShardId(5)).unwrap();
    let diff = map.diff(&next).unwrap();
    assert_eq!((diff.from_epoch, diff.to_epoch), (Epoch(1), Epoch(3)));
    assert_eq!(
        diff.to_string(),
        "slots 1024-2047: partition 0 -> 2\n\
         slots 3072-4095: partition 1 -> 3\n\
         slot 7: shard 0 -> 5\n"
    );
    assert_eq!(diff.partitions[0].slot_count(), 1024);
    assert_eq!(
        serde_json::to_value(&diff.shards).unwrap(),
        serde_json::json!([{"first": 7, "last": 7, "from": 0, "to": 5}])
    );
}

#[test]
fn neighbours_with_other_owners_are_other_runs() {
    let map = aligned(1, 2);
    let next = map.with_slots_moved(2047..=2048, ShardId(2)).unwrap();
    assert_eq!(
        map.diff(&next).unwrap().to_string(),
        "slot 2047: shard 0 -> 2\nslot 2048: shard 1 -> 2\n"
    );
}

#[test]
fn maps_of_two_hashes_cannot_be_compared() {
    let map = aligned(2, 2);
    let other = SlotMap::aligned(Epoch(1), TokenHash::Murmur3, 2, &shards(2)).unwrap();
    assert!(matches!(map.diff(&other), Err(MapError::OtherHash { .. })));
}

#[test]
fn a_shard_map_is_replaced_by_its_successors_only() {
    let uniform = |epoch, hash, key_type| {
        ShardMap::uniform(Epoch(epoch), hash, key_type, nodes(2), ShardId(1), 4).unwrap()
    };
    let map = uniform(5, TokenHash::Postgres, KeyType::Uuid);
    let moved = map.with_shard_moved(ShardId(1), 1).unwrap();
    let read: ShardMap = serde_json::from_str(&serde_json::to_string(&map).unwrap()).unwrap();
    assert_eq!(map.check_successor(&moved), Ok(()));
    assert_eq!(map.check_successor(&read), Ok(()));
    assert_eq!(
        moved.check_successor(&map),
        Err(MapError::OlderEpoch {
            ours: Epoch(6),
            theirs: Epoch(5)
        })
    );
    assert_eq!(
        moved.check_successor(&uniform(6, TokenHash::Postgres, KeyType::Uuid)),
        Err(MapError::SameEpochOtherMap { epoch: Epoch(6) })
    );
    let refused = map.check_successor(&uniform(6, TokenHash::Murmur3, KeyType::Uuid));
    assert!(matches!(refused, Err(MapError::OtherHash { .. })));
    let refused = map.check_successor(&uniform(6, TokenHash::Postgres, KeyType::Int8));
    assert!(matches!(refused, Err(MapError::OtherKeyType { .. })));
}

/// Property 2 for shard maps: the same answer from every thread, and after a round trip.
#[test]
fn a_shard_map_answers_alike_on_every_thread_and_after_a_round_trip() {
    let hash = TokenHash::Postgres;
    let map = ShardMap::uniform(Epoch(1), hash, KeyType::Int8, nodes(3), ShardId(1), 37).unwrap();
    let read: ShardMap = serde_json::from_str(&serde_json::to_string(&map).unwrap()).unwrap();
    let routes = |map: &ShardMap| -> Vec<ShardRoute> {
        (0..2_000)
            .map(|key| map.route(&RouteKey::Int8(key)))
            .collect()
    };
    let expected = routes(&read);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(routes(&map), expected));
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn replaying_a_difference_gives_the_other_map(
        slots in prop::collection::vec((0_u16..4096, 0_i64..6), 0..200),
        partitions in 1_u32..40,
    ) {
        let map = aligned(8, 3);
        let mut next = map.plan_partitions(partitions).unwrap().map;
        let by_shard = slots.iter().fold(BTreeMap::new(), |mut groups, &(slot, shard)| {
            groups.entry(shard).or_insert_with(Vec::new).push(slot);
            groups
        });
        for (shard, slots) in by_shard {
            next = next.with_slots_moved(slots, ShardId(shard)).unwrap();
        }
        let diff = map.diff(&next).unwrap();

        let mut shard_of = shard_list(&map);
        for step in &diff.shards {
            prop_assert_ne!(step.from, step.to);
            for owner in &mut shard_of[step.first.index()..=step.last.index()] {
                prop_assert_eq!(*owner, step.from);
                *owner = step.to;
            }
        }
        prop_assert_eq!(shard_of, shard_list(&next));
        let mut partition_of = partition_list(&map);
        for step in &diff.partitions {
            for owner in &mut partition_of[step.first.index()..=step.last.index()] {
                prop_assert_eq!(*owner, step.from);
                *owner = step.to;
            }
        }
        prop_assert_eq!(partition_of, partition_list(&next));
        prop_assert_eq!(diff.to_string().lines().count(), diff.shards.len() + diff.partitions.len());
    }
    /// Property 9: whatever the changes, each map replaces the ones before it and none after it.
    #[test]
    fn an_epoch_never_goes_back(
        steps in prop::collection::vec((0_u16..4096, 0_i64..4, 1_u32..20), 1..8),
    ) {
        let mut maps = vec![aligned(8, 2)];
        for (slot, shard, partitions) in steps {
            let last = &maps[maps.len() - 1];
            let moved = last.with_slots_moved([slot], ShardId(shard)).unwrap();
            let grown = moved.plan_partitions(partitions).unwrap().map;
            maps.extend([moved, grown]);
        }
        for (older, map) in maps.iter().enumerate() {
            for (newer, next) in maps.iter().enumerate() {
                prop_assert_eq!(map.check_successor(next).is_ok(), older <= newer);
            }
        }
    }

    /// Property 9 for manual shards: a stale map is wrong about the moved slots and no others.
    #[test]
    fn a_stale_map_is_wrong_only_about_what_moved(
        slots in prop::collection::vec(0_u16..4096, 0..300), keys: [i64; 64],
    ) {
        let stale = aligned(4, 2);
        let next = stale.with_slots_moved(slots.iter().copied(), ShardId(2)).unwrap();
        for key in keys.map(RouteKey::Int8) {
            let route = stale.route(&key);
            let moved = slots.contains(&route.slot.number());
            prop_assert_eq!(next.shard_for(&key), if moved { ShardId(2) } else { route.shard });
            prop_assert_eq!(next.partition_for(&key), route.partition);
        }
    }
}
