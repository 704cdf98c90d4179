//! The map's topic, its watch, and the lease.

use std::sync::Arc;

use rdkafka::producer::FutureRecord;
use shardlane_router::{Epoch, SlotMap};
use shardlane_worker::{MapWatch, PublishError, Publisher, create_map, read_map};

use crate::events::{order, user};
use crate::storm::TIMING;
use crate::world::{PATIENCE, Ring, until};

/// Puts something under the map's key, as no tool of the house would.
async fn put(ring: &Ring, value: &str) {
    let topic = ring.topics.map();
    let record = FutureRecord::to(&topic).key("map").payload(value);
    let sent = ring.foreign_producer().send(record, PATIENCE).await;
    sent.map_err(|(error, _)| error).unwrap();
}

async fn start(ring: &Ring, fallback: Option<SlotMap>) -> (Publisher, Arc<MapWatch>) {
    let (bootstrap, topics) = (ring.bootstrap.clone(), ring.topics.clone());
    let start = move || {
        let watch = MapWatch::start(&bootstrap, &topics, TIMING, fallback.as_ref()).unwrap();
        let watch = Arc::new(watch);
        let publisher = Publisher::follow(&bootstrap, topics, Arc::clone(&watch)).unwrap();
        (publisher, watch)
    };
    tokio::task::spawn_blocking(start).await.unwrap()
}

async fn until_refused(publisher: &Publisher) {
    let event = order(user(1), "e0", "ord", "created", 0);
    until("the lease ends", async || {
        match publisher.publish(&event).await {
            Err(PublishError::LeaseExpired { .. }) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

async fn until_published(publisher: &Publisher) {
    let event = order(user(1), "e0", "ord", "created", 0);
    until("it is published", async || {
        publisher
            .publish(&event)
            .await
            .map_err(|error| error.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_is_made_once_and_kept() {
    let Some(ring) = Ring::new().await else {
        return;
    };
    assert_eq!(read_map(&ring.bootstrap, &ring.topics).await.unwrap(), None);
    let other = ring.map.plan_partitions(3).unwrap().map;
    let make = async |map| {
        create_map(&ring.bootstrap, &ring.topics, map, 1)
            .await
            .unwrap()
    };
    let first = make(&ring.map).await;
    assert_eq!(
        (first.map().epoch(), first.map().partition_count()),
        (Epoch(1), 4)
    );
    assert_eq!(make(&other).await, first);
    assert_eq!(
        read_map(&ring.bootstrap, &ring.topics).await.unwrap(),
        Some(first)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_or_contradicting_map_is_ignored_and_an_unreadable_one_takes_the_lease() {
    let Some(ring) = Ring::new().await else {
        return;
    };
    ring.create_map().await;
    let (publisher, watch) = start(&ring, None).await;
    until_published(&publisher).await;
    let three = ring.map.plan_partitions(3).unwrap().map;
    let document = |map: &SlotMap| {
        format!(
            r#"{{"map":{},"frozen":[]}}"#,
            serde_json::to_string(map).unwrap()
        )
    };
    put(&ring, &document(&three)).await;
    watch.newer_than(Epoch(1)).await;
    for (ignored, stale) in [
        (1, &ring.map),
        (2, &ring.map.plan_partitions(2).unwrap().map),
    ] {
        put(&ring, &document(stale)).await;
        until("it is ignored", async || match watch.ignored() {
            count if count == ignored => Ok(()),
            count => Err(count.to_string()),
        })
        .await;
        assert_eq!(watch.snapshot().document.map().partition_count(), 3);
    }
    until_published(&publisher).await;

    put(&ring, "no map").await;
    until_refused(&publisher).await;
    assert!(publisher.ping(PATIENCE).is_err());
    let newer = three.plan_partitions(4).unwrap().map;
    put(&ring, &document(&newer)).await;
    watch.newer_than(Epoch(2)).await;
    until_published(&publisher).await;
    publisher.ping(PATIENCE).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_started_before_the_map_follows_it_when_it_comes() {
    let Some(ring) = Ring::new().await else {
        return;
    };
    let (same, watch) = start(&ring, Some(ring.map.clone())).await;
    let fewer = SlotMap::modulo(Epoch(1), ring.map.hash(), 4, ring.map.shards()).unwrap();
    let (other, other_watch) = start(&ring, Some(fewer)).await;
    until_published(&same).await;
    until_published(&other).await;
    assert!(!watch.is_in_topic());
    ring.create_map().await;
    until("the topic is followed", async || {
        watch
            .is_in_topic()
            .then_some(())
            .ok_or_else(|| "not yet".to_owned())
    })
    .await;
    until_published(&same).await;
    // By another table, some users would be in two partitions.
    until_refused(&other).await;
    assert!(!other_watch.is_in_topic());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_watch_the_lease_ends() {
    let Some(ring) = Ring::new().await else {
        return;
    };
    ring.create_map().await;
    let (publisher, watch) = start(&ring, None).await;
    until_published(&publisher).await;
    watch.stop();
    until_refused(&publisher).await;
}

/// The record is in the log, and by a map that may be history: who was asleep meanwhile must not say that it counts.
#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_after_the_lease_and_the_message_timeout_is_none() {
    let Some(ring) = Ring::new().await else {
        return;
    };
    ring.create_map().await;
    let (publisher, watch) = start(&ring, None).await;
    until_published(&publisher).await;
    let event = order(user(1), "e1", "ord", "updated", 1);
    let mut publishing = Box::pin(publisher.publish(&event));
    assert!(futures_util::poll!(&mut publishing).is_pending());
    // It was placed under this lease or an older one.
    let placed_by = watch.snapshot().lease_until.unwrap();
    tokio::time::sleep_until((placed_by + TIMING.message_timeout).into()).await;
    let error = publishing.await.unwrap_err();
    assert!(matches!(error, PublishError::Late), "{error:?}");
    publisher.publish(&event).await.unwrap();
}
