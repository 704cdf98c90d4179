//! Property 7: growing and shrinking move the fewest slots, from the right owners, and stay even.

mod common;

use std::collections::BTreeSet;

use common::{load_bounds, partition_list, shard_list, shards};
use proptest::prelude::*;
use shardlane_router::{
    Epoch, MapError, PartitionId, SLOT_COUNT, ShardId, Slot, SlotMap, TokenHash,
};

fn aligned(partitions: u32, shard_count: i64) -> SlotMap {
    SlotMap::aligned(
        Epoch(1),
        TokenHash::Postgres,
        partitions,
        &shards(shard_count),
    )
    .unwrap()
}

/// `ceil(4096 * (1 - n/m))`.
fn moves_max(from: usize, to: usize) -> usize {
    (SLOT_COUNT * (to - from)).div_ceil(to)
}

/// Grows or shrinks the partitions of `map` and checks everything that must hold; gives the new map.
fn check_partitions(map: &SlotMap, to: u32) -> SlotMap {
    let from = map.partition_count();
    let plan = map.plan_partitions(to).unwrap();
    let (before, after) = (partition_list(map), partition_list(&plan.map));

    assert_eq!(plan.map.epoch().0, map.epoch().0 + 1);
    assert_eq!(plan.map.partition_count(), to);
    assert_eq!(shard_list(&plan.map), shard_list(map), "shards stay");
    let (min, max) = load_bounds(&after);
    assert!(max - min <= 1, "{from} -> {to}: loads {min} to {max}");

    let kept = i32::try_from(from.min(to)).unwrap();
    for step in &plan.moves {
        assert_eq!(before[step.slot.index()], step.from);
        assert_eq!(after[step.slot.index()], step.to);
        if to >= from {
            assert!(
                step.to.0 >= kept,
                "{from} -> {to}: {step:?} goes to an old partition"
            );
        } else {
            assert!(
                step.from.0 >= kept,
                "{from} -> {to}: {step:?} leaves a partition that stays"
            );
        }
    }
    assert!(plan.moves.is_sorted_by_key(|step| step.slot));
    let changed = (0..SLOT_COUNT).filter(|&i| before[i] != after[i]).count();
    assert_eq!(
        plan.moves.len(),
        changed,
        "every change is a move and every move a change"
    );
    if to >= from {
        assert!(
            changed <= moves_max(from as usize, to as usize),
            "{from} -> {to}: {changed}"
        );
    } else {
        let removed = before
            .iter()
            .filter(|partition| partition.0 >= kept)
            .count();
        assert_eq!(
            changed, removed,
            "{from} -> {to}: only what lost its owner moves"
        );
    }
    plan.map
}

#[test]
fn every_growth_up_to_forty_partitions_is_minimal() {
    for from in 1..=40 {
        let map = aligned(from, 4);
        for to in from..=40 {
            check_partitions(&map, to);
        }
    }
}

#[test]
fn twelve_to_thirteen_moves_one_in_thirteen() {
    let plan = aligned(12, 1).plan_partitions(13).unwrap();
    assert_eq!(plan.moves.len(), 315);
    let by_formula = Slot::all()
        .filter(|slot| slot.number() % 12 != slot.number() % 13)
        .count();
    assert!(by_formula > 3_700, "{by_formula}");
}

#[test]
fn growing_to_the_same_number_moves_nothing() {
    let map = aligned(7, 3);
    assert!(map.plan_partitions(7).unwrap().moves.is_empty());
    assert!(map.plan_shards(&shards(3)).unwrap().moves.is_empty());
}

#[test]
fn doubling_keeps_an_aligned_map_aligned() {
    let mut map = aligned(2, 4);
    for _ in 0..10 {
        assert!(map.alignment().is_aligned(), "{map:?}");
        map = check_partitions(&map, map.partition_count() * 2);
    }
    let mut map = aligned(16, 1);
    for power in 1..=8 {
        map = map.plan_shards(&shards(1 << power)).unwrap().map;
        assert!(map.alignment().is_aligned(), "{map:?}");
        assert_eq!(map.slot_ranges_of(ShardId(0)).len(), 1);
    }
}

#[test]
fn removed_shards_give_and_remaining_ones_take() {
    let map = aligned(8, 5);
    let remaining = [ShardId(0), ShardId(2), ShardId(3)];
    let plan = map.plan_shards(&remaining).unwrap();
    assert_eq!(plan.map.shards(), remaining);
    assert_eq!(partition_list(&plan.map), partition_list(&map));
    let from: BTreeSet<ShardId> = plan.moves.iter().map(|step| step.from).collect();
    let to: BTreeSet<ShardId> = plan.moves.iter().map(|step| step.to).collect();
    assert_eq!(from, BTreeSet::from([ShardId(1), ShardId(4)]));
    assert_eq!(to, BTreeSet::from(remaining));
    let (min, max) = load_bounds(&shard_list(&plan.map));
    assert!(max - min <= 1);
}

#[test]
fn replacing_a_shard_moves_its_slots_and_no_others() {
    let map = aligned(4, 4);
    let plan = map
        .plan_shards(&[ShardId(0), ShardId(1), ShardId(9), ShardId(3)])
        .unwrap();
    assert_eq!(plan.moves.len(), 1024);
    assert!(
        plan.moves
            .iter()
            .all(|m| (m.from, m.to) == (ShardId(2), ShardId(9)))
    );
}

#[test]
fn a_lopsided_map_is_evened_out() {
    let mut partition_of = vec![PartitionId(0); SLOT_COUNT];
    partition_of[4095] = PartitionId(1);
    let shard_of = vec![ShardId(1); SLOT_COUNT];
    let map =
        SlotMap::from_tables(Epoch(1), TokenHash::Postgres, &partition_of, &shard_of).unwrap();
    let plan = map.plan_partitions(2).unwrap();
    assert_eq!(plan.moves.len(), 2047);
    assert_eq!(load_bounds(&partition_list(&plan.map)), (2048, 2048));
}

#[test]
fn impossible_sizes_are_refused() {
    let map = aligned(4, 4);
    assert_eq!(map.plan_partitions(0).unwrap_err(), MapError::NoPartitions);
    assert!(map.plan_partitions(4097).is_err());
    assert_eq!(
        map.plan_partitions(4096).unwrap().map.partition_count(),
        4096
    );
    assert_eq!(map.plan_shards(&[]).unwrap_err(), MapError::NoShards);
    assert_eq!(
        map.plan_shards(&[ShardId(1), ShardId(1)]).unwrap_err(),
        MapError::DuplicateShard { shard: ShardId(1) }
    );
}

#[test]
fn a_plan_can_be_written_for_an_operator() {
    let plan = aligned(1, 1).plan_shards(&shards(2)).unwrap();
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(
        json["moves"][0],
        serde_json::json!({"slot": 2048, "from": 0, "to": 1})
    );
    assert_eq!(
        json["map"]["shards"],
        serde_json::json!([[0, 2047, 0], [2048, 4095, 1]])
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_sequence_of_sizes_stays_minimal_and_even(
        sizes in prop::collection::vec(1_u32..=300, 1..8),
    ) {
        let mut map = aligned(sizes[0], 3);
        for &to in &sizes[1..] {
            map = check_partitions(&map, to);
        }
    }

    #[test]
    fn any_sequence_of_shard_sets_keeps_what_it_can(
        sets in prop::collection::vec(prop::collection::btree_set(0_i64..40, 1..20), 1..6),
    ) {
        let mut map = aligned(8, 4);
        for set in sets {
            let new: Vec<ShardId> = set.iter().copied().map(ShardId).collect();
            let old: BTreeSet<ShardId> = map.shards().iter().copied().collect();
            let plan = map.plan_shards(&new).unwrap();
            let (min, max) = load_bounds(&shard_list(&plan.map));
            prop_assert!(max - min <= 1);
            let grown = old.iter().all(|shard| new.contains(shard));
            let even = load_bounds(&shard_list(&map));
            if grown && even.1 - even.0 <= 1 {
                prop_assert!(plan.moves.len() <= moves_max(old.len(), new.len()));
            }
            let shrunk = new.iter().all(|shard| old.contains(shard));
            for step in &plan.moves {
                prop_assert!(!grown || !old.contains(&step.to));
                prop_assert!(!shrunk || !new.contains(&step.from));
            }
            map = plan.map;
        }
    }
}
