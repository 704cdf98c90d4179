//! What consumers of the feed see, and what the relay does while Kafka is down.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use shardlane_local::{Kafka, KafkaOptions};
use shardlane_sql::testing::{TestDb, test_map, unique};
use shardlane_sql::{Layout, Record};
use shardlane_worker::{Relay, RelayCounts, RelaySettings, TopicError, TopicSet};

use crate::events::{at, dispute, order, partition_of, user, walks};
use crate::world::{Found, Ring, World, until};

fn settings(ring: &Ring) -> RelaySettings {
    let mut settings = RelaySettings::new(
        ring.bootstrap.clone(),
        ring.topics.clone(),
        ring.map.clone(),
    );
    settings.batch_rows_max = 50;
    settings
}

async fn until_relayed(relay: &Relay, events: u64) -> RelayCounts {
    until("the events are published", async || {
        let counts = relay.stats().counts();
        if counts.published >= events && counts.lag_rows == 0 {
            Ok(counts)
        } else {
            Err(format!("{counts:?}"))
        }
    })
    .await
}

impl World {
    async fn apply(&self, events: &[shardlane_domain::Event]) {
        let store = self.db.store().await;
        for event in events {
            let target = store.target_of(event.user_id).unwrap();
            let record = Record {
                event: event.clone(),
                origin: None,
            };
            let staged = store.stage(target, &[record]).await.unwrap();
            assert_eq!(staged.commit().await.unwrap().applied, 1);
        }
    }
}

fn body(found: &Found) -> Value {
    serde_json::from_slice(found.value.as_ref().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_applied_event_is_a_state_an_event_and_perhaps_an_email() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let user = user(1);
    let mut lost: Value =
        serde_json::from_slice(&dispute(user, "d4", "lost", "closed", 6).payload).unwrap();
    lost["meta"] = json!({"resolution": "lost"});
    let mut events = walks([user]);
    events.extend([
        order(user, "o4", "lost", "created", 1),
        order(user, "o5", "lost", "failed", 2),
        dispute(user, "d5", "lost", "opened", 5),
        crate::events::decoded(shardlane_domain::Source::Chargebacks, lost.to_string()),
    ]);
    world.apply(&events).await;
    let ring = &world.ring;
    let relay = Relay::start(settings(ring), world.db.store().await)
        .await
        .unwrap();
    let counts = until_relayed(&relay, 10).await;
    assert_eq!((counts.records, counts.leads), (26, 2), "{counts:?}");
    relay.stop().await;

    let found = ring.read(&ring.topics.events());
    for (found, event) in found.iter().zip(&events) {
        assert_eq!(found.partition, partition_of(&ring.map, user));
        assert_eq!(found.key.as_deref(), Some(user.to_string().as_bytes()));
        assert_eq!(found.timestamp, Some(event.received_at.as_millisecond()));
        let source = event.source.as_str();
        let id = format!("{source}/{}/{user}", event.event_id);
        assert_eq!(found.header("ce_id"), id);
        assert_eq!(found.header("ce_source"), format!("/shardlane/{source}"));
        assert_eq!(found.header("ce_specversion"), "1.0");
        assert_eq!(found.header("ce_subject"), event.order_id);
        assert_eq!(found.header("ce_time"), event.occurred_at().to_string());
        assert_eq!(found.header("content-type"), "application/json");
        assert_eq!(body(found)["id"], id);
    }
    let types: Vec<&str> = found.iter().map(|it| it.header("ce_type")).collect();
    let expected = [
        "shardlane.order.created",
        "shardlane.order.updated",
        "shardlane.order.success",
        "shardlane.dispute.opened",
        "shardlane.dispute.updated",
        "shardlane.dispute.closed",
        "shardlane.order.created",
        "shardlane.order.failed",
        "shardlane.dispute.opened",
        "shardlane.dispute.closed_lost",
    ];
    assert_eq!(types, expected);

    let states = ring.read(&ring.topics.read());
    let bodies = |found: &[Found]| -> Vec<Value> { found.iter().map(body).collect() };
    assert_eq!(bodies(&states), bodies(&found));
    let order = json!({
        "id": format!("orders/o2/{user}"), "user_id": user, "entity": "order", "order_id": "ord",
        "event": "updated", "version": 2, "status": "updated",
        "state": {"amount_minor": 1234, "currency": "EUR", "created_at": at(0), "updated_at": at(2)},
        "received_at": events[1].received_at,
    });
    assert_eq!(body(&states[1]), order);
    let dispute = json!({
        "reason": "fraud", "amount_minor": 1234, "currency": "EUR", "opened_at": at(4), "updated_at": at(5),
        "evidence_due_at": null,
    });
    assert_eq!(body(&states[4])["state"], dispute);

    let emails = bodies(&ring.read(&ring.topics.email()));
    let told: Vec<(&Value, &Value)> = emails
        .iter()
        .map(|email| (&email["template"], &email["id"]))
        .collect();
    let expected = [
        ("order.success", "orders/o3"),
        ("dispute.opened", "chargebacks/d1"),
        ("dispute.closed", "chargebacks/d3"),
        ("order.failed", "orders/o5"),
        ("dispute.opened", "chargebacks/d5"),
        ("dispute.lost", "chargebacks/d4"),
    ]
    .map(|(template, id)| (json!(template), json!(format!("{id}/{user}"))));
    let expected: Vec<(&Value, &Value)> = expected.iter().map(|(a, b)| (a, b)).collect();
    assert_eq!(told, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_without_topics_is_refused() {
    let Some(world) = World::new(Layout::Single).await else {
        return;
    };
    let mut settings = settings(&world.ring);
    settings.topics = TopicSet::with_prefix(&unique("missing"));
    let topic = settings.topics.read();
    match Relay::start(settings, world.db.store().await).await {
        Err(TopicError::Missing(missing)) => assert_eq!(missing, topic),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it started"),
    }
}

/// It takes seconds: a broker of its own is stopped and started again.
#[tokio::test(flavor = "multi_thread")]
async fn while_kafka_is_down_the_table_grows_and_afterwards_all_is_published() {
    let Some(db) = TestDb::new(Layout::Single).await else {
        return;
    };
    if shardlane_local::require("kafka").is_none() {
        return;
    }
    let broker = Kafka::start(KafkaOptions::default()).await.unwrap();
    let ring = Ring {
        bootstrap: broker.bootstrap(),
        topics: TopicSet::with_prefix(&unique("down")),
        map: test_map(),
    };
    ring.create(ring.map.partition_count()).await;
    let world = World { db, ring };
    let relay = Relay::start(settings(&world.ring), world.db.store().await)
        .await
        .unwrap();
    world.apply(&walks((0..20).map(user))).await;
    until_relayed(&relay, 120).await;

    broker.kill().await.unwrap();
    world.apply(&walks((20..40).map(user))).await;
    let stats = relay.stats();
    let counts = until("it is behind", async || {
        let counts = stats.counts();
        if counts.lag_rows > 0 && counts.oldest_age_seconds > 1.0 {
            Ok(counts)
        } else {
            Err(format!("{counts:?}"))
        }
    })
    .await;
    assert_eq!(counts.published, 120);
    assert_eq!(world.ask("select count(*) from outbox").await, [120]);

    broker.restart().await.unwrap();
    until_relayed(&relay, 240).await;
    until("the table is empty", async || {
        match world.ask("select count(*) from outbox").await[..] {
            [0] => Ok(()),
            ref left => Err(format!("{left:?}")),
        }
    })
    .await;
    relay.stop().await;
    let found = world.ring.read(&world.ring.topics.events());
    let ids: BTreeSet<&str> = found.iter().map(|it| it.header("ce_id")).collect();
    assert_eq!(ids.len(), 240);
    let mut newest = std::collections::HashMap::new();
    for found in &found {
        let body = body(found);
        let key = (found.key.clone(), body["entity"].to_string());
        let (version, newest) = (body["version"].as_u64(), newest.entry(key).or_insert(0));
        assert_eq!(version, Some(*newest + 1), "out of order");
        *newest += 1;
    }
    tokio::time::timeout(Duration::from_secs(30), broker.stop())
        .await
        .expect("the broker stops")
        .unwrap();
}
