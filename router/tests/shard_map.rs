//! Shard maps: tiling, range search against Citus's formula, moves, splits, and Kafka's partitions
//! over Citus's shards.

mod common;

use common::{nodes, shards};
use proptest::prelude::*;
use shardlane_router::{
    Alignment, Epoch, KeyRange, KeyType, MapError, PartitionId, RouteKey, ShardId, ShardMap,
    ShardRange, SlotMap, Token, TokenHash,
};
use uuid::Uuid;

const PG: TokenHash = TokenHash::Postgres;
const FIRST: i64 = 102_008;

fn uniform(count: u32) -> ShardMap {
    let first = ShardId(FIRST);
    ShardMap::uniform(Epoch(1), PG, KeyType::Uuid, nodes(3), first, count).unwrap()
}

fn build(ranges: Vec<ShardRange>) -> Result<ShardMap, MapError> {
    ShardMap::new(Epoch(1), PG, KeyType::Uuid, nodes(2), ranges)
}

fn range(shard: i64, first: u32, last: u32, node: usize) -> ShardRange {
    ShardRange {
        shard: ShardId(shard),
        range: KeyRange::new(Token::new(first), Token::new(last)).unwrap(),
        node,
    }
}

/// Citus's own arithmetic for `count` equal shards, as it does it on signed hashes.
fn ordinal_by_formula(token: Token, count: u32) -> i64 {
    let width = (1_i64 << 32) / i64::from(count);
    let offset = i64::from(token.hash_i32()) - i64::from(i32::MIN);
    (offset / width).min(i64::from(count) - 1)
}

/// Property 3 for one count: at both ends of every shard, range search finds what the formula says.
fn check_uniform(count: u32) {
    let map = uniform(count);
    assert_eq!(map.shards().len(), count as usize);
    let mut next = 0_u64;
    for (ordinal, shard) in map.shards().iter().enumerate() {
        assert_eq!(
            u64::from(shard.range.first().value()),
            next,
            "{count} shards: a gap or an overlap"
        );
        next += shard.range.width();
        for token in [shard.range.first(), shard.range.last()] {
            let found = map.shard_for(token);
            assert_eq!(found.shard.0 - FIRST, ordinal_by_formula(token, count));
            assert_eq!(found.shard.0 - FIRST, ordinal as i64);
            assert_eq!(found.node, ordinal % 3, "round-robin");
        }
    }
    assert_eq!(
        next,
        1 << 32,
        "{count} shards: the ranges do not tile the tokens"
    );
}

#[test]
fn range_search_equals_the_uniform_formula() {
    (1..=300).for_each(check_uniform);
    (300..=64_000).step_by(6_397).for_each(check_uniform);
    [512, 1024, 4096, 32_768, 63_999, 64_000]
        .into_iter()
        .for_each(check_uniform);
}

#[test]
#[ignore = "two thousand million ranges: minutes, and only with --release"]
fn range_search_equals_the_uniform_formula_for_every_count_that_citus_allows() {
    (1..=64_000).for_each(check_uniform);
}

#[test]
fn citus_counts_have_bounds() {
    let of =
        |nodes, count| ShardMap::uniform(Epoch(1), PG, KeyType::Uuid, nodes, ShardId(1), count);
    assert_eq!(of(nodes(1), 0), Err(MapError::NoShards));
    assert_eq!(of(nodes(0), 1), Err(MapError::NoNodes));
    assert_eq!(
        of(nodes(1), 64_001),
        Err(MapError::TooManyShards {
            asked: 64_001,
            max: 64_000
        })
    );
}

/// What `pg_dist_shard` holds for 4 shards.
#[test]
fn four_shards_have_the_bounds_that_citus_writes() {
    let bounds: Vec<_> = uniform(4)
        .shards()
        .iter()
        .map(|s| s.range.hash_bounds())
        .collect();
    assert_eq!(
        bounds,
        [
            (-2147483648, -1073741825),
            (-1073741824, -1),
            (0, 1073741823),
            (1073741824, 2147483647),
        ]
    );
}

#[test]
fn bad_maps_are_refused_each_with_its_own_error() {
    const END: u32 = u32::MAX;
    assert!(
        build(vec![range(2, 10, END, 1), range(1, 0, 9, 0)]).is_ok(),
        "any order"
    );
    assert_eq!(build(vec![]), Err(MapError::NoShards));
    assert_eq!(
        ShardMap::new(
            Epoch(1),
            PG,
            KeyType::Uuid,
            vec![],
            vec![range(1, 0, END, 0)]
        ),
        Err(MapError::NoNodes)
    );
    let gap = |first, last| {
        Err(MapError::Gap {
            range: KeyRange::new(Token::new(first), Token::new(last)).unwrap(),
        })
    };
    assert_eq!(
        build(vec![range(1, 0, 8, 0), range(2, 10, END, 0)]),
        gap(9, 9)
    );
    assert_eq!(build(vec![range(1, 5, END, 0)]), gap(0, 4));
    assert_eq!(build(vec![range(1, 0, END - 1, 0)]), gap(END, END));
    let overlap = |first, second| {
        Err(MapError::Overlap {
            first: ShardId(first),
            second: ShardId(second),
        })
    };
    assert_eq!(
        build(vec![range(1, 0, 9, 0), range(2, 9, END, 0)]),
        overlap(1, 2)
    );
    assert_eq!(
        build(vec![range(1, 0, END, 0), range(2, 5, 9, 0)]),
        overlap(1, 2)
    );
    assert_eq!(
        build(vec![range(1, 0, END, 0), range(1, 0, END, 0)]),
        overlap(1, 1)
    );
    assert_eq!(
        build(vec![range(1, 0, END, 2)]),
        Err(MapError::UnknownNode {
            shard: ShardId(1),
            node: 2,
            nodes: 2
        })
    );
    // Two placements of one shard (citus.shard_replication_factor = 2).
    assert_eq!(
        build(vec![range(1, 0, END, 0), range(1, 0, END, 1)]),
        Err(MapError::SeveralPlacements {
            shard: ShardId(1),
            first: 0,
            second: 1
        })
    );
}

#[test]
fn written_maps_are_checked_like_built_ones() {
    let map = uniform(5);
    let json = serde_json::to_string(&map).unwrap();
    assert_eq!(serde_json::from_str::<ShardMap>(&json).unwrap(), map);

    let mut broken = serde_json::to_value(&map).unwrap();
    broken["ranges"].as_array_mut().unwrap().remove(2);
    let error = serde_json::from_value::<ShardMap>(broken).unwrap_err();
    assert!(
        error.to_string().contains("no shard owns the tokens"),
        "{error}"
    );

    let mut broken = serde_json::to_value(&map).unwrap();
    broken["ranges"][0]["node"] = 3.into();
    assert!(serde_json::from_value::<ShardMap>(broken).is_err());

    let mut broken = serde_json::to_value(&map).unwrap();
    broken["ranges"][0]["range"] = serde_json::json!({"first": 5, "last": 4});
    let error = serde_json::from_value::<ShardMap>(broken).unwrap_err();
    assert!(error.to_string().contains("reversed"), "{error}");
}

#[test]
fn a_move_changes_the_node_and_nothing_else() {
    let map = uniform(8);
    let shard = ShardId(FIRST + 3);
    let moved = map.with_shard_moved(shard, 2).unwrap();
    assert_eq!(moved.epoch(), Epoch(2));
    for (before, after) in map.shards().iter().zip(moved.shards()) {
        assert_eq!((before.shard, before.range), (after.shard, after.range));
        let expected = if before.shard == shard {
            2
        } else {
            before.node
        };
        assert_eq!(after.node, expected);
    }
    assert_eq!(
        map.with_shard_moved(ShardId(7), 0),
        Err(MapError::UnknownShard { shard: ShardId(7) })
    );
    assert!(map.with_shard_moved(shard, 3).is_err());
}

#[test]
fn splits_that_make_no_sense_are_refused() {
    let map = uniform(2);
    let (first, last) = (map.shards()[0].range.first(), map.shards()[0].range.last());
    let split = |points: &[Token], children: &[(i64, usize)]| {
        let children: Vec<_> = children
            .iter()
            .map(|&(id, node)| (ShardId(id), node))
            .collect();
        map.with_shard_split(ShardId(FIRST), points, &children)
    };
    let is_split_point = |result| matches!(result, Err(MapError::SplitPoint { .. }));
    assert!(is_split_point(split(&[last], &[(1, 0), (2, 0)])));
    assert!(is_split_point(split(&[Token::MAX], &[(1, 0), (2, 0)])));
    let five = Token::new(5);
    assert!(is_split_point(split(
        &[five, five],
        &[(1, 0), (2, 0), (3, 0)]
    )));
    assert!(split(&[first], &[(1, 0), (2, 0)]).is_ok());
    assert_eq!(
        split(&[five], &[(1, 0)]),
        Err(MapError::SplitChildren {
            points: 1,
            children: 1
        })
    );
    for taken in [FIRST, FIRST + 1, 1] {
        assert_eq!(
            split(&[five], &[(1, 0), (taken, 0)]),
            Err(MapError::DuplicateShard {
                shard: ShardId(taken)
            })
        );
    }
}

/// Isolating a hash value leaves a shard of one token in the middle of another's range.
#[test]
fn one_token_can_be_a_shard() {
    let map = uniform(4);
    let token = PG.token(&RouteKey::Int8(42));
    let parent = *map.shard_for(token);
    let before = Token::new(token.value() - 1);
    let children = [(ShardId(1), 0), (ShardId(2), 1), (ShardId(3), 0)];
    let isolated = map
        .with_shard_split(parent.shard, &[before, token], &children)
        .unwrap();
    assert_eq!(isolated.shard_for(token).shard, ShardId(2));
    assert_eq!(isolated.shard_for(before).shard, ShardId(1));
    assert_eq!(
        isolated.shard_for(Token::new(token.value() + 1)).shard,
        ShardId(3)
    );
}

#[test]
fn ranges_are_found_by_stretch() {
    let map = uniform(4);
    let ids = |first, last| -> Vec<i64> {
        let found = map.shards_of_range(Token::new(first), Token::new(last));
        found.iter().map(|range| range.shard.0 - FIRST).collect()
    };
    assert_eq!(ids(0, u32::MAX), [0, 1, 2, 3]);
    assert_eq!(ids(0, 0), [0]);
    assert_eq!(ids((1 << 30) - 1, 1 << 30), [0, 1]);
    assert_eq!(ids(u32::MAX, u32::MAX), [3]);
    assert!(ids(5, 4).is_empty());
    assert_eq!(map.ranges_of(ShardId(FIRST)).count(), 1);
    assert_eq!(map.ranges_of(ShardId(0)).count(), 0);
}

#[test]
fn manual_shards_route_alike_by_slot_and_by_range() {
    let slots = SlotMap::aligned(Epoch(4), PG, 8, &shards(3)).unwrap();
    let slots = slots.plan_shards(&shards(5)).unwrap().map;
    let node_of = |shard: ShardId| usize::try_from(shard.0).ok();
    let map = ShardMap::from_slot_map(&slots, KeyType::Uuid, nodes(5), node_of).unwrap();
    assert_eq!(map.epoch(), slots.epoch());
    assert!(map.shards().len() > 5, "a shard has several runs here");
    for n in 0..20_000 {
        let key = RouteKey::Uuid(Uuid::from_u128(n));
        let (by_slot, by_range) = (slots.route(&key), map.route(&key));
        assert_eq!(by_slot.shard, by_range.shard);
        assert_eq!(by_slot.slot, by_range.slot);
        assert_eq!(by_range.node as i64, by_range.shard.0);
    }
    assert_eq!(
        ShardMap::from_slot_map(&slots, KeyType::Uuid, nodes(5), |shard| {
            (shard.0 != 4).then_some(0)
        }),
        Err(MapError::UnknownShard { shard: ShardId(4) })
    );
}

/// Property 5 with Citus's ranges: 1 when N divides P, N / P when P divides N.
#[test]
fn citus_shards_of_a_partition() {
    for p in 0..=7 {
        for n in 0..=7 {
            let slots = SlotMap::aligned(Epoch(1), PG, 1 << p, &shards(1)).unwrap();
            let map = uniform(1 << n);
            let fan_out = if n <= p { 1 } else { 1 << (n - p) };
            for partition in (0..1 << p).map(PartitionId) {
                let found = map.shards_of_partition(&slots, partition).unwrap();
                assert_eq!(found.len(), fan_out, "2^{p} partitions, 2^{n} shards");
            }
            assert!(map.alignment_with(&slots).unwrap().is_aligned());
        }
    }
    let slots = SlotMap::aligned(Epoch(1), PG, 12, &shards(1)).unwrap();
    assert!(!uniform(32).alignment_with(&slots).unwrap().is_aligned());
    let unknown = uniform(4).shards_of_partition(&slots, PartitionId(12));
    assert_eq!(unknown, Ok(vec![]));
    let by_modulo = SlotMap::modulo(Epoch(1), PG, 32, &shards(1)).unwrap();
    assert_eq!(
        uniform(32).alignment_with(&by_modulo),
        Ok(Alignment::NotAligned {
            max_shards_per_partition: 32
        })
    );
}

#[test]
fn maps_of_different_hashes_or_key_types_do_not_meet() {
    let murmur3 = SlotMap::aligned(Epoch(1), TokenHash::Murmur3, 4, &shards(1)).unwrap();
    let map = uniform(4);
    for refused in [
        map.shards_of_partition(&murmur3, PartitionId(0))
            .unwrap_err(),
        map.alignment_with(&murmur3).unwrap_err(),
        map.check_compatible(murmur3.hash().id(), Epoch(1))
            .unwrap_err(),
    ] {
        assert!(matches!(refused, MapError::OtherHash { .. }));
    }
    assert!(matches!(
        map.check_compatible(PG.id(), Epoch(0)),
        Err(MapError::OlderEpoch { .. })
    ));
    assert_eq!(map.check_key_type(KeyType::Uuid), Ok(()));
    assert_eq!(
        map.check_key_type(KeyType::Text),
        Err(MapError::OtherKeyType {
            ours: KeyType::Uuid,
            theirs: KeyType::Text
        })
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Property 3 at random tokens.
    #[test]
    fn any_token_is_where_the_formula_says(count in 1_u32..=64_000, tokens: [u32; 32]) {
        let map = uniform(count);
        for token in tokens.map(Token::new) {
            let found = map.shard_for(token);
            prop_assert!(found.range.contains(token));
            prop_assert_eq!(found.shard.0 - FIRST, ordinal_by_formula(token, count));
        }
    }

    /// Property 4 for ordinals, on ranges of any lengths.
    #[test]
    fn ordinals_keep_the_order_of_tokens(
        cuts in prop::collection::btree_set(0..u32::MAX, 0..50), a: u32, b: u32,
    ) {
        let points: Vec<Token> = cuts.into_iter().map(Token::new).collect();
        let ranges = KeyRange::FULL.split_after(&points).unwrap();
        let map = build(
            ranges.iter().zip(0..).map(|(&range, id)| ShardRange {
                shard: ShardId(id), range, node: 0,
            }).collect(),
        ).unwrap();
        let ordinal = |token| map.shard_for(Token::new(token)).shard;
        prop_assert!(ordinal(a.min(b)) <= ordinal(a.max(b)));
        prop_assert!(map.shard_for(Token::new(a)).range.contains(Token::new(a)));
    }

    /// Property 6: children tile the parent, every other key keeps its shard.
    #[test]
    fn a_split_touches_only_its_own_shard(
        count in 1_u32..100, pick: prop::sample::Index, cuts: [u32; 3], keys: [u32; 64],
    ) {
        let map = uniform(count);
        let parent = map.shards()[pick.index(count as usize)];
        let width = parent.range.width();
        let mut points: Vec<Token> = cuts.iter().map(|&cut| {
            let offset = u64::from(cut) % (width - 1);
            Token::new(parent.range.first().value() + u32::try_from(offset).unwrap())
        }).collect();
        points.sort_unstable();
        points.dedup();
        let children: Vec<_> = (0..=points.len()).map(|i| (ShardId(i as i64), i % 3)).collect();
        let split = map.with_shard_split(parent.shard, &points, &children).unwrap();

        let pieces: Vec<_> = split.shards().iter().filter(|r| r.shard.0 < 4).collect();
        prop_assert_eq!(pieces.len(), children.len());
        prop_assert_eq!(pieces[0].range.first(), parent.range.first());
        prop_assert_eq!(pieces[pieces.len() - 1].range.last(), parent.range.last());
        prop_assert_eq!(pieces.iter().map(|r| r.range.width()).sum::<u64>(), width);
        for token in keys.map(Token::new) {
            let (before, after) = (map.shard_for(token), split.shard_for(token));
            prop_assert_eq!(before.shard == parent.shard, after.shard.0 < 4);
            prop_assert!(before.shard == parent.shard || before == after);
        }
    }

    /// Property 5: moves never change which shards a partition leads to.
    #[test]
    fn any_moves_leave_the_alignment(moves in prop::collection::vec((0_i64..16, 0_usize..3), 0..40)) {
        let slots = SlotMap::aligned(Epoch(1), PG, 8, &shards(1)).unwrap();
        let mut map = uniform(16);
        for (ordinal, node) in moves {
            map = map.with_shard_moved(ShardId(FIRST + ordinal), node).unwrap();
        }
        for partition in (0..8).map(PartitionId) {
            prop_assert_eq!(map.shards_of_partition(&slots, partition).unwrap().len(), 2);
        }
    }

    /// Property 9 as far as it needs no database: by a stale map of shards every key still has one
    /// owner, and only the keys of what moved or split are sent elsewhere.
    #[test]
    fn a_stale_map_is_wrong_only_about_what_moved(keys: [u64; 64], ordinal in 0_u8..16) {
        let stale = uniform(16);
        let moved = ShardId(FIRST + i64::from(ordinal));
        let fresh = stale.with_shard_moved(moved, (usize::from(ordinal) + 1) % 3).unwrap();
        for key in keys {
            let key = RouteKey::Uuid(Uuid::from_u128(u128::from(key)));
            let (old, new) = (stale.route(&key), fresh.route(&key));
            prop_assert_eq!(old.shard, new.shard);
            prop_assert_eq!(old.node != new.node, new.shard == moved);
        }
        prop_assert!(fresh.check_compatible(PG.id(), stale.epoch()).is_err());
        prop_assert!(stale.check_compatible(PG.id(), fresh.epoch()).is_ok());
    }
}
