//! The example's writer under load while shards move, split and are isolated; and a map that nobody refreshes.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use shardlane_citus::operate::Transfer;
use shardlane_citus::{Watch, node_config};
use shardlane_router::{Epoch, RouteKey};
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;
use uuid::Uuid;

use crate::support::{Lab, NEVER, lab, options, other_node, until, wait_for};
use crate::writer::Writer;

type Written = HashSet<(Uuid, i64)>;

pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Written>>,
    reader: JoinHandle<u64>,
}

impl Load {
    /// Four writers, and a reader that sees to it that no epoch goes back.
    pub(crate) async fn start(lab: &Lab, watch: &Arc<Watch>) -> (Arc<Writer>, Load) {
        let writer = Arc::new(Writer::start(lab.config(), Arc::clone(watch)).await);
        let stop = Arc::new(AtomicBool::new(false));
        let tasks =
            (0..4).map(|_| tokio::spawn(write_until(Arc::clone(&writer), Arc::clone(&stop))));
        let tasks = tasks.collect();
        let reader = tokio::spawn(epochs_until(Arc::clone(watch), Arc::clone(&stop)));
        let load = Load {
            stop,
            tasks,
            reader,
        };
        (writer, load)
    }

    /// Stops writing and compares: what was acknowledged is stored, and nothing else is.
    pub(crate) async fn finish(self, lab: &Lab) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let mut written = Written::new();
        for task in self.tasks {
            written.extend(task.await.expect("each write was acknowledged in the end"));
        }
        self.reader.await.expect("no epoch went back");
        let rows = lab
            .client
            .query("select user_id, event_id from events", &[])
            .await
            .unwrap();
        let stored: Written = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(rows.len(), stored.len(), "a row is stored twice");
        assert!(
            stored == written,
            "{} stored, {} written",
            stored.len(),
            written.len()
        );
        written.len()
    }
}

async fn write_until(writer: Arc<Writer>, stop: Arc<AtomicBool>) -> Written {
    let mut written = Written::new();
    while !stop.load(Ordering::Relaxed) {
        let (user, event) = (Uuid::from_bytes(rand::random()), rand::random());
        writer
            .write(user, event)
            .await
            .unwrap_or_else(|error| panic!("a write failed: {error:?}"));
        written.insert((user, event));
    }
    written
}

async fn epochs_until(watch: Arc<Watch>, stop: Arc<AtomicBool>) -> u64 {
    let mut last = 0;
    while !stop.load(Ordering::Relaxed) {
        let epoch = watch.peek().epoch().0;
        assert!(epoch >= last, "epoch {epoch} after {last}");
        last = epoch;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_go_on_while_a_shard_moves_splits_and_is_isolated() {
    let Some(lab) = lab("writing_changes").await else {
        return;
    };
    let watch = lab.watch(options(Duration::from_millis(200))).await;
    let (_writer, load) = Load::start(&lab, &watch).await;
    let coordinator = lab.coordinator().await;

    let map = watch.current();
    let (shard, to) = (map.shards()[0], other_node(&map, 0));
    coordinator
        .move_shard(shard.shard, &to, Transfer::Online)
        .await
        .unwrap();
    let map = until(&watch, "the move", |map| map.epoch() == Epoch(2)).await;

    let parent = map.shards()[1];
    let to = other_node(&map, 1);
    let middle = parent.range.first().value() + 1_000_000;
    let middle = shardlane_router::Token::new(middle);
    coordinator
        .split_shard(parent.shard, &[middle], &[&to, &to], Transfer::Online)
        .await
        .unwrap();
    let map = until(&watch, "the split", |map| map.shards().len() == 5).await;

    let tenant = Uuid::from_u128(7);
    let to = map.nodes()[map.route(&RouteKey::Uuid(tenant)).node].clone();
    coordinator
        .isolate_tenant("events", tenant, &to, Transfer::BlockWrites)
        .await
        .unwrap();
    let map = until(&watch, "the isolation", |map| map.shards().len() == 7).await;
    lab.check(&map).await;
    assert_eq!(watch.stats().changes, 3, "{:?}", watch.diffs());
    let written = load.finish(&lab).await;
    assert!(written > 100, "{written} writes are no load");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_map_gives_the_same_rows() {
    let Some(lab) = lab("writing_stale").await else {
        return;
    };
    let stale = lab.watch(options(NEVER)).await;
    let old = stale.current();
    let coordinator = lab.coordinator().await;
    let to = other_node(&old, 0);
    coordinator
        .move_shard(old.shards()[0].shard, &to, Transfer::BlockWrites)
        .await
        .unwrap();
    let (parent, to) = (old.shards()[1], other_node(&old, 1));
    let middle = shardlane_router::Token::new(parent.range.first().value() + 9);
    coordinator
        .split_shard(parent.shard, &[middle], &[&to, &to], Transfer::BlockWrites)
        .await
        .unwrap();

    let mut clients = Vec::new();
    for node in old.nodes() {
        let connected = node_config(&lab.config(), node).connect(NoTls).await;
        let (client, connection) = connected.unwrap();
        tokio::spawn(connection);
        clients.push(client);
    }
    let sql = "insert into events values ($1, 1) on conflict do nothing";
    let users: HashSet<Uuid> = (0..400).map(|_| Uuid::from_bytes(rand::random())).collect();
    for user in &users {
        let node = old.route(&RouteKey::Uuid(*user)).node;
        let rows = clients[node].execute(sql, &[user]).await.unwrap();
        assert_eq!(rows, 1);
    }
    let rows = lab
        .client
        .query("select user_id from events", &[])
        .await
        .unwrap();
    assert_eq!(
        rows.iter().map(|row| row.get(0)).collect::<HashSet<Uuid>>(),
        users
    );
    assert_eq!(
        stale.current().epoch(),
        Epoch(1),
        "it was stale all the while"
    );
    let fresh = stale.refresh().await.unwrap();
    assert_eq!(fresh.epoch(), Epoch(2));
    lab.check(&fresh).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_follow_the_nodes() {
    let Some(lab) = lab("writing_pools").await else {
        return;
    };
    let watch = lab.watch(options(Duration::from_millis(100))).await;
    let (writer, load) = Load::start(&lab, &watch).await;
    let coordinator = lab.coordinator().await;
    let map = watch.current();
    let gone = map.node_of(&map.shards()[0]).clone();
    let kept = other_node(&map, 0);
    assert_eq!(writer.nodes().len(), 2);
    for shard in map.shards() {
        coordinator
            .move_shard(shard.shard, &kept, Transfer::BlockWrites)
            .await
            .unwrap();
    }
    wait_for("one pool", async || writer.nodes() == [kept.clone()]).await;
    let back = map.shards()[0].shard;
    coordinator
        .move_shard(back, &gone, Transfer::BlockWrites)
        .await
        .unwrap();
    wait_for("two pools", async || writer.nodes().len() == 2).await;
    load.finish(&lab).await;
}
