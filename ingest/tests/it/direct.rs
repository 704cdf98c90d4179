//! Direct mode against a real Postgres: what is answered is what is committed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use futures_util::future::join_all;
use jiff::Timestamp;
use serde_json::json;
use shardlane_domain::{Event, Source};
use shardlane_ingest::{IngestSettings, Mode, Server, router};
use shardlane_local::{Postgres, PostgresOptions, create_database};
use shardlane_sql::testing::{TestDb, unique};
use shardlane_sql::{Backend, Detail, Layout, Record, Store, StoreOptions, migrate};
use uuid::Uuid;

use crate::support::{CHARGEBACKS, ORDERS, Reply, chargeback, get, order, post, send, unsigned};

struct World {
    app: Router,
    client: tokio_postgres::Client,
}

impl World {
    async fn new() -> Option<World> {
        let db = TestDb::new(Layout::Single).await?;
        let app = router(Mode::Direct(db.store().await), &unsigned());
        Some(World {
            app,
            client: db.client(0).await,
        })
    }

    async fn order(&self, user: Uuid, event_id: &str, status: &str, minute: u8) -> Reply {
        send(
            &self.app,
            post(ORDERS, order(user, event_id, status, minute)),
        )
        .await
    }

    async fn chargeback(&self, user: Uuid, event_id: &str, status: &str, minute: u8) -> Reply {
        send(
            &self.app,
            post(CHARGEBACKS, chargeback(user, event_id, status, minute)),
        )
        .await
    }

    /// A user's rows in inbox, event logs and outbox.
    async fn rows(&self, user: Uuid) -> (i64, i64, i64) {
        let sql = "select (select count(*) from inbox where user_id = $1),
                          (select count(*) from order_events where user_id = $1)
                              + (select count(*) from dispute_events where user_id = $1),
                          (select count(*) from outbox where user_id = $1)";
        let row = self.client.query_one(sql, &[&user]).await.unwrap();
        (row.get(0), row.get(1), row.get(2))
    }

    async fn status_of(&self, user: Uuid) -> (String, i64) {
        let sql = "select status, version from orders where user_id = $1 and order_id = 'o-1'";
        let row = self.client.query_one(sql, &[&user]).await.unwrap();
        (row.get(0), row.get(1))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_says_what_the_commit_did() {
    let Some(world) = World::new().await else {
        return;
    };
    let user = Uuid::now_v7();
    world
        .order(user, "e-1", "created", 10)
        .await
        .is(200, &json!({"status": "applied"}));
    world
        .order(user, "e-1", "created", 10)
        .await
        .is(200, &json!({"status": "duplicate"}));
    world
        .order(user, "e-2", "updated", 20)
        .await
        .is(200, &json!({"status": "applied"}));
    world
        .order(user, "e-3", "updated", 15)
        .await
        .is(200, &json!({"status": "stale"}));
    world
        .order(user, "e-3", "updated", 15)
        .await
        .is(200, &json!({"status": "duplicate"}));
    world
        .chargeback(user, "e-1", "opened", 0)
        .await
        .is(200, &json!({"status": "applied"}));
    world
        .chargeback(user, "e-1", "opened", 0)
        .await
        .is(200, &json!({"status": "duplicate"}));
    assert_eq!(world.status_of(user).await, ("updated".into(), 2));
    assert_eq!(world.rows(user).await, (4, 4, 3), "inbox, events, outbox");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_payload_is_stored_as_it_was_sent() {
    let Some(world) = World::new().await else {
        return;
    };
    let user = Uuid::now_v7();
    let body = order(user, "e-1", "created", 10).replacen('{', "{\"later\":[1e2, \"ü\"], ", 1);
    send(&world.app, post(ORDERS, body.clone()))
        .await
        .is(200, &json!({"status": "applied"}));
    let sql = "select payload::text = $2 from order_events where user_id = $1";
    let row = world.client.query_one(sql, &[&user, &body]).await.unwrap();
    assert!(row.get::<_, bool>(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_illegal_transition_keeps_nothing_and_means_the_same_again() {
    let Some(world) = World::new().await else {
        return;
    };
    let user = Uuid::now_v7();
    world
        .order(user, "e-1", "created", 10)
        .await
        .is(200, &json!({"status": "applied"}));
    world
        .order(user, "e-2", "success", 20)
        .await
        .is(200, &json!({"status": "applied"}));
    let before = world.rows(user).await;
    for _ in 0..2 {
        let reply = world.order(user, "e-3", "failed", 30).await;
        reply.is_problem(409, "illegal-transition");
        let detail = reply.body["detail"].as_str().unwrap();
        assert!(detail.contains("success does not take failed"), "{detail}");
    }
    assert_eq!(world.rows(user).await, before);
    assert_eq!(world.status_of(user).await, ("success".into(), 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_event_waits_and_is_applied_with_the_one_that_it_needs() {
    let Some(world) = World::new().await else {
        return;
    };
    let user = Uuid::now_v7();
    for reply in [
        world.order(user, "e-2", "updated", 20).await,
        world.chargeback(user, "c-1", "opened", 10).await,
        world.chargeback(user, "c-2", "closed", 20).await,
    ] {
        reply.is(202, &json!({"status": "parked"}));
    }
    assert_eq!(
        world.rows(user).await,
        (3, 0, 0),
        "durable, and no event yet"
    );
    world
        .order(user, "e-2", "updated", 20)
        .await
        .is(200, &json!({"status": "duplicate"}));
    world
        .order(user, "e-1", "created", 10)
        .await
        .is(200, &json!({"status": "applied"}));
    assert_eq!(world.status_of(user).await, ("updated".into(), 2));
    assert_eq!(world.rows(user).await, (4, 4, 4));
}

/// It was answered with 202, so nobody hears of it but the table.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_waited_and_is_illegal_is_a_dead_letter() {
    let Some(world) = World::new().await else {
        return;
    };
    let user = Uuid::now_v7();
    for (id, status) in [("e-2", "success"), ("e-3", "failed")] {
        let reply = world.order(user, id, status, 20).await;
        reply.is(202, &json!({"status": "parked"}));
    }
    world
        .order(user, "e-1", "created", 10)
        .await
        .is(200, &json!({"status": "applied"}));
    assert_eq!(world.status_of(user).await, ("success".into(), 2));
    let sql = "select class, payload = convert_to($2, 'UTF8') from dead_letters where user_id = $1";
    let illegal = order(user, "e-3", "failed", 20);
    let row = world.client.query_one(sql, &[&user, &illegal]).await;
    let row = row.unwrap();
    assert_eq!((row.get(0), row.get(1)), ("illegal", true));
    let sql = "select count(*) from parked where user_id = $1";
    let row = world.client.query_one(sql, &[&user]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 0);
}

/// The process that serves direct mode sweeps.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_in_direct_mode_releases_what_a_race_left_behind() {
    let Some(db) = TestDb::new(Layout::Single).await else {
        return;
    };
    let store = db.store().await;
    let user = Uuid::now_v7();
    let record = |source, json: String| {
        let event = Event::decode(source, json.into(), Timestamp::now()).unwrap();
        [Record {
            event,
            origin: None,
        }]
    };
    let opened = record(Source::Chargebacks, chargeback(user, "c-1", "opened", 20));
    let created = record(Source::Orders, order(user, "e-1", "created", 10));
    let target = store.target_of(user).unwrap();
    let parks = store.stage(target, &opened).await.unwrap();
    let creates = store.stage(target, &created).await.unwrap();
    creates.commit().await.unwrap();
    parks.commit().await.unwrap();
    assert!(!store.is_settled(Timestamp::now()).await.unwrap());
    let settings = IngestSettings {
        listen: ([127, 0, 0, 1], 0).into(),
        ..unsigned()
    };
    let mode = Mode::Direct(Arc::clone(&store));
    let server = Server::bind(settings, mode).await.unwrap();
    let released = async {
        while !store.is_settled(Timestamp::now()).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(30), released);
    server
        .run(async { in_time.await.expect("it is released") })
        .await
        .unwrap();
    let rows = "select count(*) from disputes";
    let row = db.client(0).await.query_one(rows, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_with_another_payload_is_no_duplicate() {
    let Some(world) = World::new().await else {
        return;
    };
    let user = Uuid::now_v7();
    world
        .order(user, "e-1", "created", 10)
        .await
        .is(200, &json!({"status": "applied"}));
    let before = world.rows(user).await;
    world
        .order(user, "e-1", "updated", 20)
        .await
        .is_problem(409, "event-id-reused");
    assert_eq!(world.rows(user).await, before);
    // Another user's id is another name space.
    let other = Uuid::now_v7();
    world
        .order(other, "e-1", "created", 30)
        .await
        .is(200, &json!({"status": "applied"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_twenty_deliveries_at_once_one_is_applied() {
    let Some(world) = World::new().await else {
        return;
    };
    let user = Uuid::now_v7();
    let replies = join_all((0..20).map(|_| world.order(user, "e-1", "created", 10))).await;
    let count = |status: &str| {
        replies
            .iter()
            .filter(|reply| reply.status == StatusCode::OK && reply.body["status"] == status)
            .count()
    };
    assert_eq!(
        (count("applied"), count("duplicate")),
        (1, 19),
        "{replies:?}"
    );
    assert_eq!(world.rows(user).await, (1, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_one_order_at_once_are_folded_one_after_another() {
    let Some(world) = World::new().await else {
        return;
    };
    let user = Uuid::now_v7();
    world
        .order(user, "e-0", "created", 10)
        .await
        .is(200, &json!({"status": "applied"}));
    let ids: Vec<String> = (1..=6).map(|number| format!("e-{number}")).collect();
    let replies = join_all(ids.iter().map(|id| world.order(user, id, "updated", 20))).await;
    for reply in &replies {
        reply.is(200, &json!({"status": "applied"}));
    }
    assert_eq!(world.status_of(user).await, ("updated".into(), 7));
}

/// What passes the decoder and not the database must be the sender's error, not ours.
async fn check_not_our_error(fields: &[&[u8]]) {
    let Some(world) = World::new().await else {
        return;
    };
    for field in fields {
        let mut body = order(Uuid::now_v7(), "e-1", "created", 10).into_bytes();
        body.truncate(body.len() - 1);
        body.extend_from_slice(b",\"later\":");
        body.extend_from_slice(field);
        body.push(b'}');
        let reply = send(&world.app, post(ORDERS, body)).await;
        let start = String::from_utf8_lossy(&field[..field.len().min(20)]);
        println!("{start}: {} {}", reply.status, reply.body);
        assert!(
            reply.status == StatusCode::OK || reply.status.is_client_error(),
            "{start}: {reply:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_and_numbers_that_are_none_are_the_senders_error() {
    check_not_our_error(&[b"\"\xff\"", br#""\ud800""#, b"1e400000", b"\"\x7f\""]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nesting_without_end_is_the_senders_error() {
    let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    check_not_our_error(&[&deep]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_away_events_are_refused_and_taken_when_it_is_back() {
    let Some(()) = shardlane_local::require("postgres") else {
        return;
    };
    let postgres = Postgres::start(PostgresOptions::fast()).await.unwrap();
    let name = unique("away");
    create_database(&postgres.url("postgres"), &name)
        .await
        .unwrap();
    let url = postgres.url(&name);
    migrate(&url, Layout::Single, Detail::None).await.unwrap();
    let backend = Backend::One { url };
    let store = Store::connect(
        backend,
        StoreOptions {
            connect_timeout: Duration::from_secs(1),
            ..StoreOptions::default()
        },
    )
    .await
    .unwrap();
    let app = router(Mode::Direct(store.into()), &unsigned());
    let user = Uuid::now_v7();
    send(&app, get("/readyz"))
        .await
        .is(200, &json!({"status": "ready"}));
    let created = order(user, "e-1", "created", 10);
    send(&app, post(ORDERS, created.clone()))
        .await
        .is(200, &json!({"status": "applied"}));

    postgres.kill().await.unwrap();
    let started = Instant::now();
    let reply = send(&app, post(ORDERS, order(user, "e-2", "updated", 20))).await;
    reply.is_problem(503, "unavailable");
    assert!(
        !reply.body["detail"].as_str().unwrap().contains("127.0.0.1"),
        "{reply:?}"
    );
    assert!(started.elapsed() < unsigned().request_deadline);
    send(&app, get("/readyz"))
        .await
        .is_problem(503, "not-ready");
    send(&app, get("/livez"))
        .await
        .is(200, &json!({"status": "alive"}));

    postgres.restart().await.unwrap();
    // The first of the old connections is broken: tried again on another, and nobody outside sees it.
    send(&app, post(ORDERS, created))
        .await
        .is(200, &json!({"status": "duplicate"}));
    send(&app, post(ORDERS, order(user, "e-2", "updated", 20)))
        .await
        .is(200, &json!({"status": "applied"}));
    send(&app, get("/readyz"))
        .await
        .is(200, &json!({"status": "ready"}));
    postgres.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_in_every_string_is_text() {
    let Some(world) = World::new().await else {
        return;
    };
    for (number, text) in [
        "'; drop table orders; --",
        "\" or 1=1; --",
        "$1 %s \\ ' '' ; /* */ \\'",
        "{1,2} (1,2) \\x00",
        "1); select pg_sleep(9); --",
    ]
    .into_iter()
    .enumerate()
    {
        let user = Uuid::now_v7();
        let id = format!("{number}{text}");
        let body = json!({
            "provider_event_id": id, "order_id": text, "user_id": user, "status": "created",
            "created_at": "2026-11-01T10:00:00Z", "updated_at": "2026-11-01T10:00:00Z",
            "meta": {text: text},
        });
        send(&world.app, post(ORDERS, body.to_string()))
            .await
            .is(200, &json!({"status": "applied"}));
        let body = json!({
            "provider_event_id": id, "order_id": text, "user_id": user, "status": "opened",
            "reason": text, "amount": 1, "currency": "EUR", "occurred_at": "2026-11-01T10:00:00Z",
        });
        send(&world.app, post(CHARGEBACKS, body.to_string()))
            .await
            .is(200, &json!({"status": "applied"}));
        let sql = "select o.order_id, d.reason, e.event_id from orders o join disputes d using (user_id, order_id) \
                   join order_events e using (user_id, order_id) where user_id = $1";
        let row = world.client.query_one(sql, &[&user]).await.unwrap();
        let stored: [String; 3] = [row.get(0), row.get(1), row.get(2)];
        assert_eq!(stored, [text, text, &id]);
    }
}
