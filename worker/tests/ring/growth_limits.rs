//! What stops a growth, who else may add partitions, and numbers that are no power of two.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use shardlane_domain::Source;
use shardlane_router::{Epoch, ShardId, SlotMap, TokenHash};
use shardlane_sql::Layout;
use shardlane_sql::testing::{TestDb, kafka, unique};
use shardlane_worker::{
    GrowthError, GrowthOutcome, GrowthStep, MapTiming, MapTopicError, MapWatch, PublishError,
    TopicSet, abort_growth, grow,
};

use crate::events::{order, order_json, partition_of, user, users_of, walks};
use crate::growth::{dies_at, document, moving_user, watching};
use crate::storm::TIMING;
use crate::world::{PATIENCE, Ring, World, until, until_counts, until_done};

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_drain_in_time_keeps_the_old_partitions() {
    let Some(world) = World::new(Layout::Single).await else {
        return;
    };
    let ring = &world.ring;
    ring.create_map().await;
    let settings = ring.settings("");
    let mut growth = ring.growth(&settings);
    let (publisher, _watch) = ring.follower().await;
    for partition in 0..4 {
        let user = users_of(&ring.map, partition, 1)[0];
        publisher
            .publish(&order(user, "e0", "ord", "created", 0))
            .await
            .unwrap();
    }
    growth.groups = vec!["misspelt".to_owned()];
    let error = grow(&growth, 6, |_| {}).await.unwrap_err();
    assert!(
        matches!(&error, GrowthError::StrangeGroup { group, records: 4 } if group == "misspelt"),
        "{error:?}"
    );
    assert_eq!(document(ring).await.map().epoch(), Epoch(1));
    growth.groups = vec![settings.group.clone()];
    let worker = world.start(settings.clone()).await;
    until_done(&worker, 4).await;
    worker.stop().await.unwrap();

    let user = users_of(&ring.map, 0, 1)[0];
    publisher
        .publish(&order(user, "e1", "ord", "updated", 1))
        .await
        .unwrap();
    growth.drain_max = Duration::from_millis(500);
    let outcome = grow(&growth, 6, |_| {}).await.unwrap();
    let expected = GrowthOutcome::RolledBack {
        epoch: Epoch(3),
        records_left: 1,
    };
    assert_eq!(outcome, expected);
    let rolled_back = document(ring).await;
    assert_eq!(
        (rolled_back.map().partition_count(), rolled_back.frozen()),
        (4, &[][..])
    );

    let worker = world.start(settings.clone()).await;
    until_done(&worker, 1).await;
    let outcome = grow(&ring.growth(&settings), 6, |_| {}).await.unwrap();
    assert_eq!(outcome, GrowthOutcome::Grown { epoch: Epoch(5) });
    worker.stop().await.unwrap();
}

/// A run that was suspended while another took over must not write when it wakes up.
#[tokio::test(flavor = "multi_thread")]
async fn a_growth_that_was_taken_over_writes_no_more() {
    let Some(ring) = Ring::new().await else {
        return;
    };
    ring.create_map().await;
    let growth = ring.growth(&ring.settings(""));
    let runtime = tokio::runtime::Handle::current();
    let suspended = {
        let growth = growth.clone();
        let settings = growth.clone();
        tokio::spawn(async move {
            let mut progress = |step: &GrowthStep| {
                if matches!(step, GrowthStep::Drained) {
                    let take_over = async { abort_growth(&settings).await.unwrap() };
                    let epoch = tokio::task::block_in_place(|| runtime.block_on(take_over));
                    assert_eq!(epoch, Some(Epoch(3)));
                }
            };
            grow(&growth, 6, &mut progress).await
        })
    };
    let error = suspended.await.unwrap().unwrap_err();
    assert!(
        matches!(error, GrowthError::MapTopic(MapTopicError::TakenOver(_))),
        "{error:?}"
    );
    let left = document(&ring).await;
    assert_eq!(
        (left.map().epoch(), left.map().partition_count()),
        (Epoch(3), 4)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_partitions_grow_to_a_hundred_and_twenty_eight() {
    let (Some(bootstrap), Some(db)) = (kafka().await, TestDb::new(Layout::Shards).await) else {
        return;
    };
    let shards = [ShardId(0), ShardId(1)];
    let map = SlotMap::aligned(Epoch(1), TokenHash::Postgres, 64, &shards).unwrap();
    let topics = TopicSet::with_prefix(&unique("hundred"));
    let ring = Ring {
        bootstrap,
        topics,
        map,
    };
    ring.create(64).await;
    ring.create_map().await;
    let world = World { db, ring };
    let settings = world.ring.settings("");
    let worker = watching(&world, settings.clone()).await;
    let (publisher, watch) = world.ring.follower().await;
    let growth = world.ring.growth(&settings);
    let users: Vec<_> = (0..60).map(user).collect();
    let walks = walks(users.iter().copied());
    let (mut from, mut done) = (world.ring.map.clone(), 0);
    // 64 -> 100 -> 128, with two steps of each walk before each growth and after the last.
    for (round, partitions) in [(0, Some(100)), (1, Some(128)), (2, None)] {
        for user in &users {
            let own = walks.iter().filter(|event| event.user_id == *user);
            for event in own.skip(2 * round).take(2) {
                let published = publisher.publish(event).await.unwrap();
                assert_eq!(published.partition, partition_of(&from, *user));
            }
        }
        done += 2 * users.len();
        let Some(partitions) = partitions else { break };
        let outcome = grow(&growth, partitions, |_| {}).await.unwrap();
        let epoch = Epoch(from.epoch().0 + 2);
        assert_eq!(outcome, GrowthOutcome::Grown { epoch });
        watch.newer_than(Epoch(epoch.0 - 1)).await;
        from = document(&world.ring).await.map().clone();
        assert_eq!((from.partition_count(), from.epoch()), (partitions, epoch));
    }
    let counts = until_done(&worker, done).await;
    worker.stop().await.unwrap();
    assert_eq!(
        (counts.applied + counts.parked, counts.misrouted),
        (done as u64, 0),
        "{counts:?}"
    );
    world.has_walks_of(&users).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_somebody_else_adds_are_reported_and_consumed_and_not_used() {
    let Some(world) = World::new(Layout::Single).await else {
        return;
    };
    let ring = &world.ring;
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", &ring.bootstrap)
        .create()
        .unwrap();
    let orders = ring.topics.of(Source::Orders);
    let more = NewPartitions::new(&orders, 6);
    let options = AdminOptions::new();
    admin.create_partitions([&more], &options).await.unwrap()[0]
        .as_ref()
        .unwrap();
    let publisher = until("the broker shows them", async || {
        let publisher = ring.publisher().await;
        match publisher.topic_report().extra_partitions.first() {
            Some(extra) => {
                assert_eq!((&extra.topic, extra.found, extra.expected), (&orders, 6, 4));
                Ok(publisher)
            }
            None => Err("4 partitions".to_owned()),
        }
    })
    .await;
    let users: Vec<_> = (0..40).map(user).collect();
    for user in &users {
        let published = publisher
            .publish(&order(*user, "e0", "ord", "created", 0))
            .await
            .unwrap();
        assert_eq!(published.partition, partition_of(&ring.map, *user));
    }
    // A producer that hashes over all partitions that it finds.
    let json = order_json(users[0], "e1", "ord", "updated", 1);
    let key = users[0].to_string();
    let producer = ring.foreign_producer();
    ring.put(
        &producer,
        Source::Orders,
        5,
        Some(key.as_bytes()),
        Some(json.as_bytes()),
    )
    .await;
    let worker = world.start(ring.settings("")).await;
    let counts = until_counts(&worker.stats(), "all records", |counts| counts.done >= 41).await;
    worker.stop().await.unwrap();
    assert_eq!((counts.misrouted, counts.malformed), (1, 0), "{counts:?}");
    // In two partitions, order is not Kafka's: it was the second or too early, and it has not vanished.
    assert_eq!(counts.applied + counts.parked, 41, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_without_a_topic_is_a_sentence() {
    let Some(ring) = Ring::new().await else {
        return;
    };
    let (bootstrap, topics) = (ring.bootstrap.clone(), ring.topics.clone());
    let start = move || MapWatch::start(&bootstrap, &topics, TIMING, None).map(drop);
    let error = tokio::task::spawn_blocking(start)
        .await
        .unwrap()
        .unwrap_err();
    assert!(matches!(error, MapTopicError::NoMap(_)), "{error:?}");
    assert!(
        error.to_string().contains("shardlane topics create"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_frozen_slots_wait_for_the_thaw_but_not_without_bound() {
    let Some(ring) = Ring::new().await else {
        return;
    };
    ring.create_map().await;
    let patient = MapTiming {
        hold_max: PATIENCE,
        ..TIMING
    };
    let (publisher, watch) = ring.follower_with(patient).await;
    let growth = ring.growth(&ring.settings(""));
    assert!(dies_at(&growth, |step| matches!(step, GrowthStep::Frozen { .. })).await);
    watch.newer_than(Epoch(1)).await;
    let user = moving_user(&ring.map, 6);
    let (answers, mut answered) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..300 {
        let (publisher, answers) = (publisher.clone(), answers.clone());
        tokio::spawn(async move {
            let event = order(user, "e0", "ord", "created", 0);
            answers.send(publisher.publish(&event).await)
        });
    }
    // 256 may wait.
    for _ in 0..44 {
        let answer = answered.recv().await.unwrap();
        assert!(
            matches!(answer, Err(PublishError::Frozen { .. })),
            "{answer:?}"
        );
    }
    assert!(answered.is_empty());
    assert_eq!(abort_growth(&growth).await.unwrap(), Some(Epoch(3)));
    for _ in 0..256 {
        let published = answered.recv().await.unwrap().unwrap();
        assert_eq!(published.partition, partition_of(&ring.map, user));
    }
}
