//! Nodes that go, come back, and change their address.

use std::time::Duration;

use shardlane_citus::operate::Transfer;
use shardlane_citus::{MapChange, Watch};
use shardlane_router::Epoch;
use tokio::net::{TcpListener, TcpStream};

use crate::support::{NEVER, connect, lab, lab_of_its_own, options, other_node, until, wait_for};
use crate::writing::Load;

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_coordinator_stops_neither_the_watch_nor_the_writers() {
    let Some(mut lab) = lab_of_its_own("faults_coordinator").await else {
        return;
    };
    let watch = lab.watch(options(Duration::from_millis(100))).await;
    let before = watch.current();
    let (_writer, load) = Load::start(&lab, &watch).await;
    lab.cluster.coordinator.kill().await.unwrap();
    let map = watch.refresh().await.expect("a worker answers");
    assert_eq!(map, before);
    let polls = watch.stats().polls;
    wait_for("polls go on", async || watch.stats().polls > polls + 5).await;
    let stats = watch.stats();
    assert_eq!((stats.failures, stats.changes), (0, 0), "{stats:?}");
    assert!(stats.confirmed_ago < Duration::from_secs(5), "{stats:?}");

    lab.cluster.coordinator.restart().await.unwrap();
    lab.client = connect(&lab.cluster.coordinator_url(lab.database)).await;
    let to = other_node(&before, 0);
    let shard = before.shards()[0].shard;
    let coordinator = lab.coordinator().await;
    coordinator
        .move_shard(shard, &to, Transfer::BlockWrites)
        .await
        .unwrap();
    let after = until(&watch, "the move", |map| map.epoch() == Epoch(2)).await;
    lab.check(&after).await;
    load.finish(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_answers_until_somebody_does() {
    let Some(lab) = lab_of_its_own("faults_all").await else {
        return;
    };
    let watch = lab.watch(options(Duration::from_millis(100))).await;
    let before = watch.current();
    for node in lab.cluster.nodes() {
        node.kill().await.unwrap();
    }
    let error = watch.refresh().await.expect_err("all are down");
    assert!(std::error::Error::source(&error).is_some(), "{error}");
    assert_eq!(watch.current(), before, "the last map stays");
    let down = Watch::start(lab.config(), &["events"], options(NEVER)).await;
    assert!(down.is_err(), "a watch does not start without a map");
    lab.cluster.workers[1].restart().await.unwrap();
    wait_for("one node suffices", async || watch.refresh().await.is_ok()).await;
    assert_eq!(watch.current(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_at_another_address_is_followed() {
    let Some(lab) = lab("faults_address").await else {
        return;
    };
    let watch = lab.watch(options(Duration::from_millis(100))).await;
    let before = watch.current();
    let (writer, load) = Load::start(&lab, &watch).await;
    let node = before.nodes()[0].clone();
    let port = forwarder(node.port).await;
    let coordinator = lab.coordinator().await;
    let moved = coordinator
        .change_address(&node, "127.0.0.1", port)
        .await
        .unwrap();
    let after = until(&watch, "the address", |map| map.nodes().contains(&moved)).await;
    assert_eq!(after.shards().len(), 4);
    let changed = MapChange::NodeAddressChanged {
        from: node.clone(),
        to: moved.clone(),
    };
    assert_eq!(
        watch.diffs().last().unwrap().changes,
        [changed],
        "no shard has moved"
    );
    wait_for("its pool", async || {
        let nodes = writer.nodes();
        nodes.contains(&moved) && !nodes.contains(&node)
    })
    .await;
    load.finish(&lab).await;
    // All nodes tell the same by now: the operation waited for that.
    let worker = connect(&lab.cluster.workers[0].url(lab.database)).await;
    let theirs = shardlane_citus::load(&worker, &["events"], after.epoch())
        .await
        .unwrap();
    assert_eq!(theirs, *after);
}

/// Another address of the server on `port`.
async fn forwarder(port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut to = TcpStream::connect(("127.0.0.1", port)).await?;
                tokio::io::copy_bidirectional(&mut from, &mut to).await
            });
        }
    });
    address.port()
}
