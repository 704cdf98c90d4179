//! What was judged and what was not, where the group's offset says otherwise and slots have moved.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use shardlane_domain::{Event, Source};
use shardlane_router::{RouteKey, ShardId};
use shardlane_sql::testing::test_map;
use shardlane_sql::{Backend, Store, StoreOptions};
use shardlane_worker::Worker;
use tokio_postgres::NoTls;
use uuid::Uuid;

use crate::events::{order, partition_of, user};
use crate::reshard::{Ground, print};
use crate::world::{Ring, until, until_done};

/// The partition that leads to both shards.
const MIXED: i32 = 2;

/// A user of the mixed partition for each shard.
fn users(ring: &Ring) -> [Uuid; 2] {
    [ShardId(0), ShardId(1)].map(|shard| {
        let is_here = |user: &Uuid| {
            partition_of(&ring.map, *user) == MIXED
                && test_map().shard_for(&RouteKey::Uuid(*user)) == shard
        };
        (0..).map(user).find(is_here).unwrap()
    })
}

/// The events of one order of a user with these numbers.
fn events(user: Uuid, numbers: Range<i64>) -> Vec<Event> {
    let event = |number| {
        let status = if number == 0 { "created" } else { "updated" };
        order(user, &format!("e{number}"), "ord", status, number)
    };
    numbers.map(event).collect()
}

async fn send(ring: &Ring, user: Uuid, numbers: Range<i64>) {
    ring.publish(&events(user, numbers)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_of_two_shards_is_read_from_the_one_that_is_behind() {
    let Some(ground) = Ground::new().await else {
        return;
    };
    let (world, ring) = (&ground.world, &ground.world.ring);
    let [first, second] = users(ring);
    let mut settings = ring.settings("");
    settings.drain_max = Duration::from_millis(200);
    // One batch has the records of both shards.
    settings.batch_linger = Duration::from_secs(1);
    send(ring, first, 0..2).await;
    send(ring, second, 0..2).await;
    let worker = world.start(settings.clone()).await;
    until_done(&worker, 4).await;

    // The second shard stands still, and the first one takes its part of what comes.
    let mut client = world.db.client(1).await;
    let lock = client.transaction().await.unwrap();
    lock.batch_execute("lock table inbox in share row exclusive mode")
        .await
        .unwrap();
    // The first one's come last: its fence is at the end.
    let publisher = ring.publisher().await;
    for event in [events(second, 2..4), events(first, 2..4)].concat() {
        publisher.publish(&event).await.unwrap();
    }
    ground.until_applied(first, 4).await;
    worker.stop().await.unwrap();
    drop(lock);
    ring.set_offset(&settings, Source::Orders, MIXED, 8);
    send(ring, first, 4..5).await;

    let worker = world.start(settings.clone()).await;
    ground.until_applied(first, 5).await;
    ground.until_applied(second, 4).await;
    assert_eq!(worker.stats().counts().caught_up, 2);
    worker.stop().await.unwrap();
    // Nothing came for the second shard meanwhile, and nobody reads its part of the log again.
    send(ring, first, 5..6).await;
    let query = format!(
        "select max(next_offset) from kafka_fence where kafka_partition = {MIXED} and topic like '%orders%'"
    );
    let before = world.ask(&query).await;
    let worker = world.start(settings.clone()).await;
    ground.until_applied(first, 6).await;
    assert_eq!(before, [9, 8], "the fences were moved over what was read");
    assert_eq!(worker.stats().counts().caught_up, 0);
    worker.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_an_old_map_catches_up_by_the_new_one() {
    let Some(ground) = Ground::new().await else {
        return;
    };
    let (world, ring) = (&ground.world, &ground.world.ring);
    let settings = ring.settings("");
    let users = users(ring);
    for user in users {
        send(ring, user, 0..2).await;
    }
    let worker = world.start(settings.clone()).await;
    until_done(&worker, 4).await;
    worker.stop().await.unwrap();
    // It hears of nothing unless a shard refuses it.
    let options = StoreOptions {
        poll_interval: Duration::from_secs(3_600),
        ..StoreOptions::default()
    };
    let backend = Backend::Shards {
        urls: world.db.urls().to_vec(),
        map: test_map(),
    };
    let old = Arc::new(Store::connect(backend, options).await.unwrap());
    for user in users {
        send(ring, user, 2..4).await;
    }
    let mut reshard = ground.reshard().await;
    reshard.run(&ground.grow(), print).await.unwrap();
    ring.set_offset(&settings, Source::Orders, MIXED, 8);
    send(ring, users[0], 4..5).await;
    let worker = Worker::start(settings.clone(), old).await.unwrap();
    ground.until_applied(users[0], 5).await;
    ground.until_applied(users[1], 4).await;
    assert_eq!(worker.stats().counts().caught_up, 4);
    worker.stop().await.unwrap();
}

/// Outcomes of the orders, over all shards.
async fn outcomes(ground: &Ground) -> i64 {
    let mut sum = 0;
    for url in ground.urls() {
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        tokio::spawn(connection);
        let query = "select coalesce(sum(applied + duplicate + duplicate_with_different_payload + stale + illegal \
                     + parked + dead_lettered), 0)::bigint from kafka_outcomes";
        sum += client.query_one(query, &[]).await.unwrap().get::<_, i64>(0);
    }
    sum
}

/// What was refused is no row, so only fences know that it was judged. Slots move there and back before it is replayed.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_after_a_reshard_judges_nothing_anew() {
    let Some(ground) = Ground::new().await else {
        return;
    };
    let (world, ring) = (&ground.world, &ground.world.ring);
    let settings = ring.settings("");
    let all: Vec<Uuid> = (0..24).map(user).collect();
    for user in &all {
        let events = [
            ("e0", "created", 0),
            ("e1", "success", 1),
            ("e2", "updated", 2),
        ];
        let events = events.map(|(id, status, second)| order(*user, id, "ord", status, second));
        ring.publish(&events).await;
    }
    let worker = world.start(settings.clone()).await;
    until_done(&worker, 3 * all.len()).await;
    assert_eq!(worker.stats().counts().illegal, all.len() as u64);
    worker.stop().await.unwrap();
    let mut reshard = ground.reshard().await;
    reshard.run(&ground.grow(), print).await.unwrap();

    let letters = ring.topics.dlq_of(Source::Orders);
    let letters = || ring.read(&letters).len();
    for group in ["replay", "replay again"] {
        let settings = ring.settings(group);
        let worker = Worker::start(settings.clone(), world.db.store().await);
        let worker = worker.await.unwrap();
        let counts = until_done(&worker, 3 * all.len()).await;
        until("the offsets are committed", async || {
            let offsets = ring.offsets(&settings);
            let done = offsets.values().all(|(committed, end)| committed == end);
            done.then_some(()).ok_or_else(|| format!("{offsets:?}"))
        })
        .await;
        worker.stop().await.unwrap();
        assert_eq!(counts.fenced, 3 * all.len() as u64, "{counts:?}");
        assert_eq!((counts.duplicates, counts.illegal), (0, 0), "{counts:?}");
        assert_eq!(letters(), all.len());
        assert_eq!(outcomes(&ground).await, 3 * all.len() as i64);
    }
}
