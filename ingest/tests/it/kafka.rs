//! Kafka mode: acknowledged is what the broker has, where the map says.

use std::time::{Duration, Instant};

use axum::http::{StatusCode, header};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::json;
use shardlane_domain::Source;
use shardlane_ingest::{IngestSettings, Mode, router};
use shardlane_local::{Kafka, KafkaOptions};
use shardlane_router::RouteKey;
use shardlane_sql::testing::{TEST_PARTITIONS, test_map, unique};
use shardlane_worker::{
    GrowthSettings, GrowthStep, HEADER_EPOCH, HEADER_HASH_ID, HEADER_SLOT, MapTiming, MapWatch,
    Publisher, TopicSet, accepted_now, create_map, create_topics, grow,
};
use uuid::Uuid;

use crate::support::{
    CHARGEBACKS, FakeBroker, ORDERS, chargeback, get, order, post, publisher, send, unsigned,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// The record at one place.
fn read(
    bootstrap: &str,
    topic: &str,
    partition: i32,
    offset: i64,
) -> rdkafka::message::OwnedMessage {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "test")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let mut place = TopicPartitionList::new();
    place
        .add_partition_offset(topic, partition, Offset::Offset(offset))
        .unwrap();
    consumer.assign(&place).unwrap();
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(200)) {
            return message.detach();
        }
    }
    panic!("{topic}/{partition} has nothing at {offset} after {PATIENCE:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_event_is_in_the_partition_that_the_map_names() {
    let Some(bootstrap) = shardlane_sql::testing::kafka().await else {
        return;
    };
    let prefix = unique("ingest");
    let topics = TopicSet::with_prefix(&prefix);
    create_topics(&bootstrap, &topics, TEST_PARTITIONS, 1, &[])
        .await
        .unwrap();
    let app = router(
        publisher(&bootstrap, &prefix, Duration::from_secs(5)),
        &unsigned(),
    );
    send(&app, get("/readyz"))
        .await
        .is(200, &json!({"status": "ready"}));
    let map = test_map();
    for source in Source::ALL {
        for _ in 0..6 {
            let user = Uuid::new_v4();
            let (path, body) = match source {
                Source::Orders => (ORDERS, order(user, "e-1", "created", 10)),
                Source::Chargebacks => (CHARGEBACKS, chargeback(user, "c-1", "opened", 10)),
            };
            let before = accepted_now().as_millisecond();
            let reply = send(&app, post(path, body.clone())).await;
            let after = accepted_now().as_millisecond();
            assert_eq!(reply.status, StatusCode::ACCEPTED, "{reply:?}");
            assert_eq!(reply.body["status"], "accepted");
            let route = map.route(&RouteKey::Uuid(user));
            assert_eq!(reply.body["partition"], route.partition.0);

            let offset = reply.body["offset"].as_i64().unwrap();
            let record = read(&bootstrap, &topics.of(*source), route.partition.0, offset);
            assert_eq!(record.key().unwrap(), user.to_string().as_bytes());
            assert_eq!(record.payload().unwrap(), body.as_bytes(), "byte for byte");
            let accepted_at = record.timestamp().to_millis().unwrap();
            assert!(
                (before..=after).contains(&accepted_at),
                "{before} {accepted_at} {after}"
            );
            let headers: Vec<(&str, &str)> = record
                .headers()
                .unwrap()
                .iter()
                .map(|header| {
                    (
                        header.key,
                        std::str::from_utf8(header.value.unwrap()).unwrap(),
                    )
                })
                .collect();
            let slot = route.slot.index().to_string();
            let (id, kind, time) = match source {
                Source::Orders => ("e-1", "order.created", "2026-11-01T10:10:00Z"),
                Source::Chargebacks => ("c-1", "dispute.opened", "2026-11-02T10:10:00Z"),
            };
            for expected in [
                (HEADER_HASH_ID, map.hash().id()),
                (HEADER_EPOCH, "1"),
                (HEADER_SLOT, &slot),
                ("ce_specversion", "1.0"),
                ("ce_id", &format!("{source}/{id}/{user}")),
                ("ce_source", &format!("/shardlane/webhooks/{source}")),
                ("ce_type", &format!("shardlane.webhook.{kind}")),
                ("ce_time", time),
                ("ce_subject", "o-1"),
                ("content-type", "application/json"),
            ] {
                let found: Vec<_> = headers
                    .iter()
                    .filter(|(name, _)| *name == expected.0)
                    .collect();
                assert_eq!(found, [&expected], "{headers:?}");
            }
        }
    }
}

/// Nobody exports spans in this process.
#[tokio::test(flavor = "multi_thread")]
async fn a_valid_trace_context_travels_on_as_it_came_and_no_other() {
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let Some(bootstrap) = shardlane_sql::testing::kafka().await else {
        return;
    };
    let prefix = unique("ingest");
    let topics = TopicSet::with_prefix(&prefix);
    create_topics(&bootstrap, &topics, TEST_PARTITIONS, 1, &[])
        .await
        .unwrap();
    let app = router(
        publisher(&bootstrap, &prefix, Duration::from_secs(5)),
        &unsigned(),
    );
    let broken = PARENT.to_uppercase();
    for (sent, kept) in [
        (
            &[("traceparent", PARENT)][..],
            &[("traceparent", PARENT)][..],
        ),
        (
            &[
                ("traceparent", PARENT),
                ("tracestate", "a=1"),
                ("tracestate", "b=2"),
            ],
            &[("traceparent", PARENT), ("tracestate", "a=1,b=2")],
        ),
        (&[("traceparent", PARENT), ("traceparent", PARENT)], &[]),
        (&[("traceparent", &broken), ("tracestate", "a=1")], &[]),
        (&[("tracestate", "a=1")], &[]),
        (&[], &[]),
    ] {
        let mut request = post(ORDERS, order(Uuid::new_v4(), "e-1", "created", 10));
        for (name, value) in sent {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        let reply = send(&app, request).await;
        let number = |name: &str| reply.body[name].as_i64().unwrap();
        let partition = i32::try_from(number("partition")).unwrap();
        let topic = topics.of(Source::Orders);
        let record = read(&bootstrap, &topic, partition, number("offset"));
        let headers = record.headers().unwrap().iter();
        let found: Vec<(&str, &str)> = headers
            .map(|header| {
                (
                    header.key,
                    std::str::from_utf8(header.value.unwrap()).unwrap(),
                )
            })
            .filter(|(key, _)| key.starts_with("trace"))
            .collect();
        assert_eq!(found, kept, "{sent:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_broker_is_away_events_are_refused_and_taken_when_it_is_back() {
    let Some(()) = shardlane_local::require("kafka") else {
        return;
    };
    let broker = Kafka::start(KafkaOptions::default()).await.unwrap();
    let bootstrap = broker.bootstrap();
    create_topics(
        &bootstrap,
        &TopicSet::with_prefix(""),
        TEST_PARTITIONS,
        1,
        &[],
    )
    .await
    .unwrap();
    // On a busy machine the publisher's two seconds may come late; the request's end must come later all the same.
    let mut settings = unsigned();
    settings.request_deadline = 3 * PATIENCE;
    let app = router(publisher(&bootstrap, "", Duration::from_secs(2)), &settings);
    let user = Uuid::now_v7();
    let body = order(user, "e-1", "created", 10);
    assert_eq!(
        send(&app, post(ORDERS, body.clone())).await.status,
        StatusCode::ACCEPTED
    );

    broker.kill().await.unwrap();
    let started = Instant::now();
    send(&app, post(ORDERS, body.clone()))
        .await
        .is_problem(503, "unavailable");
    assert!(
        started.elapsed() < settings.request_deadline,
        "{:?}",
        started.elapsed()
    );
    send(&app, get("/readyz"))
        .await
        .is_problem(503, "not-ready");
    send(&app, get("/livez"))
        .await
        .is(200, &json!({"status": "alive"}));

    broker.restart().await.unwrap();
    // The client notices within its reconnect delay; until then the answer stays 503.
    let until = Instant::now() + PATIENCE;
    loop {
        let reply = send(&app, post(ORDERS, body.clone())).await;
        if reply.status == StatusCode::ACCEPTED {
            break;
        }
        reply.is_problem(503, "unavailable");
        assert!(
            Instant::now() < until,
            "the broker is back since {PATIENCE:?}: {reply:?}"
        );
    }
    broker.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deadline_answers_when_the_publisher_is_more_patient() {
    let broker = FakeBroker::start();
    let settings = IngestSettings {
        request_deadline: Duration::from_millis(400),
        body_deadline: Duration::from_millis(200),
        probe_deadline: Duration::from_millis(200),
        ..unsigned()
    };
    let app = router(broker.mode(Duration::from_secs(30)), &settings);
    broker.go_away();
    let started = Instant::now();
    let body = order(Uuid::now_v7(), "e-1", "created", 10);
    let reply = send(&app, post(ORDERS, body)).await;
    reply.is_problem(503, "deadline");
    assert_eq!(
        reply.header(header::CONTENT_TYPE),
        "application/problem+json"
    );
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_lease_and_for_a_frozen_slot_events_are_refused_with_the_reason() {
    let Some(bootstrap) = shardlane_sql::testing::kafka().await else {
        return;
    };
    let topics = TopicSet::with_prefix(&unique("ingest"));
    let map = test_map();
    create_topics(&bootstrap, &topics, TEST_PARTITIONS, 1, &[])
        .await
        .unwrap();
    create_map(&bootstrap, &topics, &map, 1).await.unwrap();
    let timing = MapTiming {
        lease: Duration::from_millis(800),
        message_timeout: Duration::from_secs(2),
        hold_max: Duration::from_millis(100),
    };
    let follow = {
        let (bootstrap, topics) = (bootstrap.clone(), topics.clone());
        move || {
            let watch = MapWatch::start(&bootstrap, &topics, timing, None).unwrap();
            let watch = std::sync::Arc::new(watch);
            (Publisher::follow(&bootstrap, topics, watch.clone()), watch)
        }
    };
    let (publisher, watch) = tokio::task::spawn_blocking(follow).await.unwrap();
    let mode = Mode::Kafka(publisher.unwrap());
    let app = router(mode, &unsigned());
    let next = map.plan_partitions(6).unwrap().map;
    let moves = |user: &Uuid| {
        let key = RouteKey::Uuid(*user);
        map.partition_for(&key) != next.partition_for(&key)
    };
    let user = std::iter::repeat_with(Uuid::new_v4).find(moves).unwrap();
    let body = order(user, "e-1", "created", 10);
    let reason = async |reason: &str| {
        let until = Instant::now() + PATIENCE;
        loop {
            let reply = send(&app, post(ORDERS, body.clone())).await;
            if reply.status == StatusCode::SERVICE_UNAVAILABLE {
                reply.is_problem(503, "unavailable");
                if reply.body["detail"].as_str().unwrap().contains(reason) {
                    return;
                }
            }
            assert!(Instant::now() < until, "{reason}: {reply:?}");
        }
    };
    let settings = GrowthSettings {
        bootstrap: bootstrap.clone(),
        topics,
        groups: vec![unique("group")],
        timing,
        drain_max: PATIENCE,
    };
    let growth = tokio::spawn(async move {
        let mut progress =
            |step: &GrowthStep| assert!(!matches!(step, GrowthStep::Frozen { .. }), "killed");
        grow(&settings, 6, &mut progress).await.map(drop)
    });
    assert!(growth.await.is_err());
    reason("partitions are being added").await;
    watch.stop();
    reason("the map's lease has expired").await;
    send(&app, get("/readyz"))
        .await
        .is_problem(503, "not-ready");
}
