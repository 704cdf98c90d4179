//! Payments: events of their orders, from a provider that names no event and no user of its own.

use std::time::{Duration, Instant};

use serde_json::json;
use shardlane_domain::Source;
use shardlane_ingest::{Mode, router};
use shardlane_sql::Layout;
use shardlane_sql::testing::{TEST_PARTITIONS, TestDb, test_map, unique};
use shardlane_worker::{TopicSet, Worker, WorkerSettings, create_topics};
use uuid::Uuid;

use crate::support::{
    FakeBroker, OLD, ORDERS, PAYMENTS, now, order, payment, post, publisher, send, sign,
    signed_settings, unsigned,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_moves_its_order_once() {
    let Some(db) = TestDb::new(Layout::Single).await else {
        return;
    };
    let app = router(Mode::Direct(db.store().await), &unsigned());
    let user = Uuid::now_v7();
    let pay = async |transaction: &str, status: &str, minute: u8| {
        send(
            &app,
            post(PAYMENTS, payment(user, transaction, status, minute)),
        )
        .await
    };
    let status = |text: &str| json!({"status": text});
    pay("tx-1", "authorized", 10)
        .await
        .is(202, &status("parked"));
    send(&app, post(ORDERS, order(user, "e-1", "created", 0)))
        .await
        .is(200, &status("applied"));
    pay("tx-1", "authorized", 10)
        .await
        .is(200, &status("duplicate"));
    pay("tx-1", "captured", 20)
        .await
        .is(200, &status("applied"));
    pay("tx-1", "captured", 20)
        .await
        .is(200, &status("duplicate"));
    // The same transaction in the same status at another time: not a repetition, and no second capture.
    pay("tx-1", "captured", 21)
        .await
        .is_problem(409, "event-id-reused");
    pay("tx-2", "voided", 30)
        .await
        .is_problem(409, "illegal-transition");

    let sql = "select o.status, o.version, o.amount_minor, array_agg(e.event_id order by e.event_id) from orders o \
               join order_events e using (user_id, order_id) where user_id = $1 group by 1, 2, 3";
    let row = db.client(0).await.query_one(sql, &[&user]).await.unwrap();
    let found: (String, i64, i64, Vec<String>) = (row.get(0), row.get(1), row.get(2), row.get(3));
    let ids = ["e-1", "payment:tx-1:authorized", "payment:tx-1:captured"];
    assert_eq!(
        found,
        ("success".into(), 3, 1234, ids.map(String::from).into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn from_the_door_through_kafka_into_its_row() {
    let (Some(db), Some(bootstrap)) = (
        TestDb::new(Layout::Shards).await,
        shardlane_sql::testing::kafka().await,
    ) else {
        return;
    };
    let prefix = unique("payments");
    let topics = TopicSet::with_prefix(&prefix);
    create_topics(&bootstrap, &topics, TEST_PARTITIONS, 1, &[])
        .await
        .unwrap();
    let patience = Duration::from_secs(20);
    let app = router(publisher(&bootstrap, &prefix, patience), &unsigned());
    let users: Vec<Uuid> = (0..8).map(|_| Uuid::new_v4()).collect();
    for user in &users {
        for (path, body) in [
            (ORDERS, order(*user, "e-1", "created", 0)),
            (PAYMENTS, payment(*user, "tx-1", "authorized", 10)),
            (PAYMENTS, payment(*user, "tx-1", "captured", 20)),
        ] {
            let reply = send(&app, post(path, body)).await;
            assert_eq!(reply.status.as_u16(), 202, "{reply:?}");
        }
    }
    let group = format!("{prefix}-group");
    let settings = WorkerSettings::new(bootstrap, group, topics, test_map());
    let worker = Worker::start(settings, db.store().await).await.unwrap();
    let until = Instant::now() + patience;
    let counts = loop {
        let counts = worker.stats().counts();
        if counts.done >= 24 {
            break counts;
        }
        assert!(Instant::now() < until, "{counts:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    worker.stop().await.unwrap();
    assert_eq!(counts.applied, 24, "{counts:?}");
    let mut paid = 0;
    for shard in 0..db.urls().len() {
        let sql = "select count(*) from orders where status = 'success' and version = 3 and user_id = any($1)";
        let row = db
            .client(shard)
            .await
            .query_one(sql, &[&users])
            .await
            .unwrap();
        paid += row.get::<_, i64>(0);
    }
    assert_eq!(paid, 8);
}

/// A payment with one text replaced, from a signed source: the answer's place, and a dead letter with these bytes.
async fn check(from: &str, to: &str, pointer: &str) {
    let broker = FakeBroker::start();
    let settings = signed_settings(&[OLD], "[sources.silvergate]\nsecrets = [{secret}]");
    let app = broker.router_with(&settings);
    let good = payment(Uuid::now_v7(), "tx-1", "captured", 10);
    assert!(good.contains(from), "the test replaces nothing: {from}");
    let body = good.replacen(from, to, 1);
    let mut request = sign(OLD, "m-1", now(), body.clone());
    *request.uri_mut() = PAYMENTS.parse().unwrap();
    let reply = send(&app, request).await;
    reply.is_problem(422, "invalid-event");
    assert_eq!(reply.body["pointer"], pointer, "{to}: {reply:?}");
    let letters = broker.dead_letters(PAYMENTS);
    assert_eq!(letters.len(), 1, "{to}: one dead letter");
    let kept = rdkafka::Message::payload(&letters[0]).unwrap();
    assert_eq!(kept, body.as_bytes(), "{to}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_without_its_user_or_order_is_a_dead_letter_with_the_place() {
    check("\"user_id\"", "\"user\"", "/metadata").await;
    check("\"metadata\"", "\"meta\"", "").await;
    check("\"order_id\"", "\"order\"", "").await;
    check("\"tx-1\"", "7", "/transaction_id").await;
    check(
        "\"captured\",\"timestamp",
        "\"refunded\",\"timestamp",
        "/status",
    )
    .await;
    check("\"event\"", "\"refund_id\":\"r-1\",\"event\"", "/refund_id").await;
    check("1234", "12.34", "/amount").await;
    check("1234", "-1", "/amount").await;
    check("1234", "9223372036854775808", "/amount").await;
    check("EUR", "XXZ", "/currency").await;
    check("2026-11-01", "1066-11-01", "/timestamp").await;
    check(
        "\"event\"",
        "\"provider_event_id\":\"e-1\",\"event\"",
        "/provider_event_id",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_path_takes_its_own_kind_only() {
    let broker = FakeBroker::start();
    let app = broker.router();
    let user = Uuid::now_v7();
    let paid = payment(user, "tx-1", "captured", 10);
    send(&app, post(ORDERS, paid))
        .await
        .is_problem(422, "invalid-event");
    let created = order(user, "e-1", "created", 10);
    send(&app, post(PAYMENTS, created))
        .await
        .is_problem(422, "invalid-event");
    assert_eq!(broker.records(), 0);
    let topic = TopicSet::with_prefix("").of(Source::Orders);
    let paid = payment(user, "tx-1", "captured", 10);
    let reply = send(&app, post(PAYMENTS, paid)).await;
    assert_eq!(reply.status.as_u16(), 202, "{topic}: {reply:?}");
}
