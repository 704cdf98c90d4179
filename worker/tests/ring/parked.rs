//! What waits in the database: released, or a dead letter when its time is over.

use std::sync::Arc;
use std::time::Duration;

use shardlane_domain::Source;
use shardlane_sql::{CitusPath, EventOutcome, Layout, ParkLimits, Store, StoreOptions};
use shardlane_worker::Worker;

use crate::events::{dispute, order, users_of};
use crate::poison::is_letter_of;
use crate::world::{World, until_counts, until_done};

async fn start(world: &World, park_max: Duration) -> Worker {
    let park = ParkLimits {
        park_max,
        ..ParkLimits::default()
    };
    let options = StoreOptions {
        park,
        ..StoreOptions::default()
    };
    let backend = world.db.database().backend(CitusPath::Owner);
    let store = Store::connect(backend, options).await.unwrap();
    let mut settings = world.ring.settings("");
    settings.sweep.every = Duration::from_millis(50);
    Worker::start(settings, Arc::new(store)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_too_long_is_a_dead_letter_with_its_own_bytes() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    let users = users_of(&ring.map, 3, 2);
    let events = [
        order(users[0], "early", "never", "updated", 5),
        order(users[0], "behind", "ord", "created", 6),
        order(users[1], "another", "ord", "created", 6),
        // It waits for its order, which comes by another topic and never.
        dispute(users[1], "lost", "gone", "opened", 7),
    ];
    ring.publish(&events).await;
    let worker = start(&world, Duration::from_millis(200)).await;
    let counts = until_counts(&worker.stats(), "both have waited in vain", |counts| {
        counts.too_early == 2 && counts.released == 1
    })
    .await;
    worker.stop().await.unwrap();
    assert_eq!((counts.parked, counts.applied), (3, 1), "{counts:?}");
    assert_eq!(counts.dead_letters(), 2, "{counts:?}");
    for source in [Source::Orders, Source::Chargebacks] {
        let topic = ring.topics.of(source);
        let letters = ring.read(&ring.topics.dlq_of(source));
        let [letter] = &letters[..] else {
            panic!("{letters:?}")
        };
        let origins = ring.read(&topic);
        is_letter_of(letter, &origins[0], &topic, "out_of_order", Some("1"));
    }
    let left = "select count(*) from parked";
    assert_eq!(world.ask(left).await.iter().sum::<i64>(), 0);
    // Each record has one outcome.
    let columns = EventOutcome::ALL.map(EventOutcome::as_str).join(" + ");
    let sum = format!("select coalesce(sum({columns}), 0)::bigint from kafka_outcomes");
    assert_eq!(world.ask(&sum).await.iter().sum::<i64>(), 4);
    let left = "select coalesce(sum(parked - released - expired), 0)::bigint from kafka_outcomes";
    assert_eq!(world.ask(left).await.iter().sum::<i64>(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispute_that_came_first_is_applied_when_its_order_is_there() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    let user = users_of(&ring.map, 3, 1)[0];
    let worker = start(&world, Duration::from_secs(600)).await;
    ring.publish(&[dispute(user, "d1", "ord", "opened", 5)])
        .await;
    let counts = until_done(&worker, 1).await;
    assert_eq!((counts.parked, counts.applied), (1, 0), "{counts:?}");
    ring.publish(&[order(user, "o1", "ord", "created", 1)])
        .await;
    let stats = worker.stats();
    until_counts(&stats, "it is released", |counts| counts.released == 1).await;
    worker.stop().await.unwrap();
    let open = "select count(*) from disputes where status = 'open'";
    assert_eq!(world.ask(open).await.iter().sum::<i64>(), 1);
}
