//! Offset commits that do not get through.

use std::time::Duration;

use rdkafka::admin::{AdminOptions, AlterConfig, ResourceSpecifier};
use shardlane_local::{Kafka, KafkaOptions};
use shardlane_sql::Layout;
use shardlane_sql::testing::{TestDb, test_map, unique};
use shardlane_worker::TopicSet;

use crate::events::{user, walks};
use crate::poison::admin;
use crate::world::{Ring, World, until, until_counts, until_done};

/// Kafka's default for `max.message.bytes`.
const MESSAGE_BYTES_MAX: &str = "1048588";

/// The longest record that the topic takes in which the broker keeps all groups' offsets.
async fn set_offsets_bytes_max(ring: &Ring, bytes: &str) {
    let topic = ResourceSpecifier::Topic("__consumer_offsets");
    // What is not named here falls back to its default.
    let config = AlterConfig::new(topic)
        .set("cleanup.policy", "compact")
        .set("max.message.bytes", bytes);
    let admin = admin(ring);
    let answers = admin.alter_configs([&config], &AdminOptions::new()).await;
    answers.unwrap()[0].as_ref().unwrap();
}

async fn until_committed(world: &World, group: &str) {
    let settings = world.ring.settings(group);
    until("all is committed", async || {
        let offsets = world.ring.offsets(&settings);
        let done = offsets.values().all(|(committed, end)| committed == end);
        done.then_some(()).ok_or_else(|| format!("{offsets:?}"))
    })
    .await;
}

/// It takes seconds: a broker of its own, because what refuses the commits does so to all groups.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_was_refused_is_repeated_though_nothing_new_comes() {
    let Some(db) = TestDb::new(Layout::Shards).await else {
        return;
    };
    if shardlane_local::require("kafka").is_none() {
        return;
    }
    let broker = Kafka::start(KafkaOptions::default()).await.unwrap();
    let ring = Ring {
        bootstrap: broker.bootstrap(),
        topics: TopicSet::with_prefix(&unique("commits")),
        map: test_map(),
    };
    ring.create(ring.map.partition_count()).await;
    let world = World { db, ring };
    let (ring, mut settings) = (&world.ring, world.ring.settings(""));
    settings.commit_repeat = Duration::from_millis(50);
    let events = walks((0..40).map(user));
    let (first, second) = events.split_at(events.len() / 2);
    let worker = world.start(settings.clone()).await;
    ring.publish(first).await;
    until_committed(&world, "").await;

    set_offsets_bytes_max(ring, "1").await;
    ring.publish(second).await;
    until_done(&worker, events.len()).await;
    let stats = worker.stats();
    // Once it is repeated after all was done, no commit of a batch is still to come.
    let repeats = stats.counts().commit_repeats;
    let counts = until_counts(&stats, "a repeat", |it| it.commit_repeats > repeats).await;
    assert!(counts.commit_failures > 0, "{counts:?}");
    let offsets = ring.offsets(&settings);
    let committed: i64 = offsets.values().map(|(committed, _)| committed).sum();
    assert_eq!(committed.unsigned_abs(), first.len() as u64, "{offsets:?}");

    set_offsets_bytes_max(ring, MESSAGE_BYTES_MAX).await;
    until_committed(&world, "").await;
    let counts = stats.counts();
    assert_eq!((counts.done, counts.fenced), (240, 0), "{counts:?}");
    worker.stop().await.unwrap();
    broker.stop().await.unwrap();
}
