//! Anchors, groups and explanations.

mod common;

use common::{Sequence, nodes, shards};
use proptest::prelude::*;
use shardlane_router::{
    Epoch, KeyRange, KeyType, MapError, RouteKey, ShardId, ShardMap, SlotMap, Token, TokenHash,
    anchor_uuid, explain, group_by_shard,
};
use uuid::Uuid;

const PG: TokenHash = TokenHash::Postgres;

#[test]
fn an_anchor_is_the_smallest_number_that_falls_into_the_range() {
    let map = ShardMap::uniform(Epoch(1), PG, KeyType::Uuid, nodes(1), ShardId(0), 64).unwrap();
    for shard in map.shards() {
        let anchor = anchor_uuid(PG, &shard.range);
        let falls_into = |n: u128| shard.range.contains(PG.token(&Uuid::from_u128(n).into()));
        assert!(falls_into(anchor.as_u128()));
        assert!((0..anchor.as_u128()).all(|n| !falls_into(n)));
    }
    assert_eq!(anchor_uuid(PG, &KeyRange::FULL), Uuid::nil());
}

#[test]
fn a_range_of_one_token_has_an_anchor_too() {
    let mut sequence = Sequence(1);
    let ends = [Token::MIN, Token::MAX];
    let some = (0..30).map(|_| Token::new(sequence.next_u32()));
    let tokens: Vec<Token> = some.chain(ends).collect();
    for hash in [PG, TokenHash::Murmur3] {
        for &token in &tokens {
            let range = KeyRange::new(token, token).unwrap();
            let anchor = anchor_uuid(hash, &range);
            assert_eq!(hash.token(&anchor.into()), token, "{hash} {token}");
            assert_eq!(anchor_uuid(hash, &range), anchor);
        }
    }
}

/// Fence rows are found again by these: they must not change from one version to the next.
#[test]
fn anchors_are_frozen() {
    let range = |min, max| KeyRange::from_hash_bounds(min, max).unwrap();
    let quarter = range(i32::MIN, -1_073_741_825);
    let shown = |hash, range| anchor_uuid(hash, &range).to_string();
    assert_eq!(shown(PG, quarter), ANCHORS[0]);
    assert_eq!(shown(TokenHash::Murmur3, quarter), ANCHORS[1]);
    assert_eq!(shown(PG, range(7, 7)), ANCHORS[2]);
    assert_eq!(shown(TokenHash::Murmur3, range(7, 7)), ANCHORS[3]);
}

/// The last two are computed: no small number hashes to a range of one token.
const ANCHORS: [&str; 4] = [
    "00000000-0000-0000-0000-000000000003",
    "00000000-0000-0000-0000-000000000000",
    "820d48b0-9815-3bc2-4977-3e1000000000",
    "00000000-0000-0000-0000-00004a492a96",
];

#[test]
fn groups_keep_order_inside_and_come_by_first_appearance() {
    let items = [(3, 'a'), (1, 'b'), (3, 'c'), (2, 'd'), (1, 'e'), (3, 'f')];
    let groups = group_by_shard(items, |item| ShardId(item.0));
    assert_eq!(
        groups,
        [
            (ShardId(3), vec![(3, 'a'), (3, 'c'), (3, 'f')]),
            (ShardId(1), vec![(1, 'b'), (1, 'e')]),
            (ShardId(2), vec![(2, 'd')]),
        ]
    );
    assert!(group_by_shard(Vec::<i64>::new(), |n| ShardId(*n)).is_empty());
}

proptest! {
    #[test]
    fn grouping_loses_nothing_and_reorders_nothing(items: Vec<(u8, u32)>) {
        let shard_of = |item: &(u8, u32)| ShardId(i64::from(item.0 % 7));
        let groups = group_by_shard(items.clone(), shard_of);
        let total: usize = groups.iter().map(|(_, group)| group.len()).sum();
        prop_assert_eq!(total, items.len());
        for (shard, group) in &groups {
            let expected: Vec<_> =
                items.iter().copied().filter(|item| shard_of(item) == *shard).collect();
            prop_assert_eq!(group, &expected);
        }
    }
}

#[test]
fn an_explanation_shows_the_whole_way() {
    let user = RouteKey::parse(KeyType::Uuid, "550E8400-E29B-41D4-A716-446655440000").unwrap();
    let slots = SlotMap::aligned(Epoch(1), PG, 16, &shards(2)).unwrap();
    let citus =
        ShardMap::uniform(Epoch(1), PG, KeyType::Uuid, nodes(2), ShardId(102_008), 32).unwrap();
    let explanation = explain(PG, &user, Some(&slots), Some(&citus)).unwrap();
    assert_eq!(
        explanation.to_string(),
        "key        550e8400-e29b-41d4-a716-446655440000 (uuid)\n\
         hash       -379807113 (pg-lookup3-1)\n\
         token      1767676535\n\
         slot       1685 of 4096\n\
         partition  6\n\
         shard      102021\n\
         placement  node-1:5432"
    );
    assert_eq!(
        serde_json::to_value(&explanation).unwrap(),
        serde_json::json!({
            "key": "550e8400-e29b-41d4-a716-446655440000",
            "key_type": "uuid",
            "hash": "pg-lookup3-1",
            "hash_i32": -379_807_113,
            "token": 1_767_676_535,
            "slot": 1685,
            "partition": 6,
            "shard": 102_021,
            "placement": "node-1:5432",
        })
    );
    let bare = explain(PG, &user, None, None).unwrap();
    assert_eq!(
        (bare.partition, bare.shard, bare.placement),
        (None, None, None)
    );
}

#[test]
fn an_explanation_refuses_maps_that_mean_other_keys() {
    let slots = SlotMap::aligned(Epoch(1), PG, 4, &shards(1)).unwrap();
    let text = ShardMap::uniform(Epoch(1), PG, KeyType::Text, nodes(1), ShardId(1), 4).unwrap();
    let key = RouteKey::Int8(42);
    assert!(matches!(
        explain(TokenHash::Murmur3, &key, Some(&slots), None),
        Err(MapError::OtherHash { .. })
    ));
    assert!(matches!(
        explain(PG, &key, None, Some(&text)),
        Err(MapError::OtherKeyType { .. })
    ));
}

#[test]
fn an_ipv6_node_is_shown_so_that_it_can_be_dialled() {
    let mut node = nodes(1).remove(0);
    node.host = "::1".to_owned();
    assert_eq!(node.to_string(), "[::1]:5432");
}
