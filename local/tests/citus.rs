//! A Citus cluster: metadata on each node, databases of their own, nothing left.

mod support;

use shardlane_local::{CitusCluster, Durability, Postgres, require};
use support::{ask, assert_gone, connect, process};

#[tokio::test]
async fn each_worker_knows_the_metadata() {
    let Some(()) = require("citus") else { return };
    let cluster = CitusCluster::start(2, Durability::Fast).await.unwrap();
    let left: Vec<_> = cluster
        .nodes()
        .map(|it| (process(it.pid()), it.directory().to_owned()))
        .collect();
    cluster.create_database("lane").await.unwrap();

    for node in cluster.nodes() {
        let synced: i64 = ask(
            &node.url("lane"),
            "SELECT count(*) FROM pg_dist_node
             WHERE isactive AND hasmetadata AND metadatasynced AND nodename = '127.0.0.1'",
        )
        .await;
        assert_eq!(synced, 3, "node on port {}", node.port());
    }
    let port = cluster.coordinator.port();
    let sql = format!("SELECT shouldhaveshards FROM pg_dist_node WHERE nodeport = {port}");
    assert!(!ask::<bool>(&cluster.coordinator_url("lane"), &sql).await);

    // A table that is distributed through the coordinator is queried through a worker.
    let client = connect(&cluster.coordinator_url("lane")).await;
    client
        .batch_execute(
            "CREATE TABLE t (user_id uuid PRIMARY KEY);
             SELECT create_distributed_table('t', 'user_id');
             INSERT INTO t SELECT gen_random_uuid() FROM generate_series(1, 100)",
        )
        .await
        .unwrap();
    for worker in &cluster.workers {
        assert_eq!(
            ask::<i64>(&worker.url("lane"), "SELECT count(*) FROM t").await,
            100
        );
    }

    // Each test has a database of its own.
    cluster.create_database("other").await.unwrap();
    drop(client);
    cluster.drop_database("lane").await.unwrap();
    let names = "SELECT count(*) FROM pg_database WHERE datname = 'lane'";
    for node in cluster.nodes() {
        assert_eq!(ask::<i64>(&node.url("postgres"), names).await, 0);
    }
    assert!(cluster.cpu_seconds() > 0.0);

    cluster.stop().await.unwrap();
    for (postmaster, directory) in left {
        assert_gone(postmaster, &directory);
    }
}

#[tokio::test]
async fn a_coordinator_alone_holds_the_shards() {
    let Some(()) = require("citus") else { return };
    let cluster = CitusCluster::start(0, Durability::Fast).await.unwrap();
    cluster.create_database("lane").await.unwrap();
    let sql = "SELECT bool_and(shouldhaveshards) FROM pg_dist_node";
    assert!(ask::<bool>(&cluster.coordinator_url("lane"), sql).await);
    assert_eq!(cluster.nodes().map(Postgres::port).count(), 1);
}
