//! What only Citus has: owners, and maps that grow old.

use shardlane_router::{RouteKey, ShardMap};
use shardlane_sql::testing::TestDb;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::apply::stream;
use crate::events::{direct, users};
use crate::ground::{Ground, apply, citus_map, connect, with_port};
use crate::model::Model;

const READ_ORDERS: &str = include_str!("../../src/statements/read_orders.sql");

/// The map's first shard with some of its users, and a client of the node that owns it.
async fn owner(db: &TestDb, map: &ShardMap) -> (Client, u16, Vec<Uuid>) {
    let range = &map.shards()[0];
    let port = map.node_of(range).port;
    let theirs = |user: &Uuid| map.route(&RouteKey::Uuid(*user)).shard == range.shard;
    let users: Vec<Uuid> = users(81, 400).into_iter().filter(theirs).take(50).collect();
    assert_eq!(users.len(), 50);
    (connect(&with_port(&db.urls()[0], port)).await, port, users)
}

/// One task, on the node that was asked: planned with the values, and with a generic plan.
#[tokio::test(flavor = "multi_thread")]
async fn an_owners_statement_stays_on_its_node() {
    let Some(db) = Ground::CITUS_OWNER.db().await else {
        return;
    };
    let map = citus_map(&db).await;
    let (client, port, users) = owner(&db, &map).await;
    let uuids = users
        .iter()
        .map(|user| format!("'{user}'"))
        .collect::<Vec<_>>()
        .join(",");
    let orders = vec!["'o'"; users.len()].join(",");
    let arguments = format!("array[{uuids}]::uuid[], array[{orders}]::text[]");
    client
        .batch_execute(&format!("prepare p (uuid[], text[]) as {READ_ORDERS}"))
        .await
        .unwrap();
    for round in 0..8 {
        let rows = client
            .query(&format!("explain execute p({arguments})"), &[])
            .await
            .unwrap();
        let plan = rows
            .iter()
            .map(|row| row.get::<_, String>(0))
            .collect::<Vec<_>>()
            .join("\n");
        assert!(plan.contains("Task Count: 1\n"), "round {round}:\n{plan}");
        assert!(
            plan.contains(&format!("port={port} ")),
            "round {round}, owner on port {port}:\n{plan}"
        );
        client
            .batch_execute(&format!("execute p({arguments})"))
            .await
            .unwrap();
    }
    // The test can fail: users of all shards are more tasks.
    let uuids = crate::events::users(82, 50)
        .iter()
        .map(|it| format!("'{it}'"))
        .collect::<Vec<_>>()
        .join(",");
    let rows = client
        .query(
            &format!("explain execute p(array[{uuids}]::uuid[], array[{orders}]::text[])"),
            &[],
        )
        .await
        .unwrap();
    let plan = rows
        .iter()
        .map(|row| row.get::<_, String>(0))
        .collect::<Vec<_>>()
        .join("\n");
    assert!(plan.contains("Task Count: 4\n"), "{plan}");
}

/// "A stale map costs a hop, never a row": the store keeps the map that it loaded at start.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_with_a_stale_map_writes_right_after_a_move_and_after_a_split() {
    let Some(db) = Ground::CITUS_OWNER.db().await else {
        return;
    };
    let stale = db.store().await;
    let mut model = Model::default();
    let events = stream(83);
    let third = events.len() / 3;
    let (before, rest) = events.split_at(third);
    let (moved, split) = rest.split_at(third);
    for event in before {
        model.take(event);
    }
    apply(&stale, &direct(before.to_vec())).await.unwrap();

    let admin = db.client(0).await;
    let map = citus_map(&db).await;
    let (range, to) = (
        &map.shards()[0],
        map.shards().iter().map(|it| it.node).max().unwrap(),
    );
    let (from, to) = (
        map.node_of(range).port,
        map.nodes()[if range.node == to { 0 } else { to }].port,
    );
    let shard = range.shard;
    admin
        .batch_execute(&format!(
            "select citus_move_shard_placement({shard}, '127.0.0.1', {from}, '127.0.0.1', {to}, 'block_writes')"
        ))
        .await
        .unwrap();
    let now = citus_map(&db).await;
    assert_eq!(now.node_of(&now.shards()[0]).port, to, "the shard moved");
    for event in moved {
        model.take(event);
    }
    apply(&stale, &direct(moved.to_vec())).await.unwrap();
    model.check(&db).await;

    let (first, last) = map.shards()[1].range.hash_bounds();
    let middle = i32::try_from((i64::from(first) + i64::from(last)) / 2).unwrap();
    let (id, group) = (map.shards()[1].shard, map.node_of(&map.shards()[1]).group);
    let node: i32 = admin
        .query_one(
            "select nodeid from pg_dist_node where groupid = $1",
            &[&group],
        )
        .await
        .unwrap()
        .get(0);
    admin
        .batch_execute(&format!(
            "select citus_split_shard_by_split_points({id}, array['{middle}'], array[{node}, {node}], 'block_writes')"
        ))
        .await
        .unwrap();
    assert_eq!(
        citus_map(&db).await.shards().len(),
        5,
        "the shard was split"
    );
    for event in split {
        model.take(event);
    }
    apply(&stale, &direct(split.to_vec())).await.unwrap();
    model.check(&db).await;

    // A fresh store by the new map sees the same and goes on.
    let fresh = db.store().await;
    assert_eq!(fresh.routes().targets().count(), 5);
    let more = stream(84);
    for event in &more {
        model.take(event);
    }
    apply(&fresh, &direct(more)).await.unwrap();
    model.check(&db).await;
}
