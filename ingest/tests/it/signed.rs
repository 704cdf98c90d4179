//! Signatures at the door: what is not authentic leaves nothing behind.

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, StatusCode, header};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use shardlane_ingest::{Mode, router};
use shardlane_sql::Layout;
use shardlane_sql::testing::TestDb;
use uuid::Uuid;

use crate::support::{
    CHARGEBACKS, FakeBroker, NEW, OLD, ORDERS, Reply, STRANGER, chargeback, get, now, order, post,
    send, sign, signed_settings,
};

fn body() -> String {
    order(Uuid::now_v7(), "e-1", "created", 10)
}

/// Sends to a door that takes `secrets`; expects 401 with a part of the reason, and nothing kept.
async fn check_stranger(secrets: &[&str], request: Request<Body>, expect: &str) {
    let broker = FakeBroker::start();
    let app = broker.router_with(&signed_settings(secrets, ""));
    let reply = send(&app, request).await;
    reply.is_problem(401, "not-authentic");
    let detail = reply.body["detail"].as_str().unwrap();
    assert!(detail.contains(expect), "{detail}");
    assert_eq!(reply.header(header::WWW_AUTHENTICATE), "StandardWebhooks");
    assert_eq!(broker.records(), 0, "something was kept: {expect}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_signed_is_taken_and_what_is_not_leaves_nothing_behind() {
    let broker = FakeBroker::start();
    let app = broker.router_with(&signed_settings(&[OLD], ""));
    let reply = send(&app, sign(OLD, "m-1", now(), body())).await;
    assert_eq!(reply.status, StatusCode::ACCEPTED, "{reply:?}");
    assert_eq!(broker.records(), 1);

    let unsigned = post(ORDERS, body());
    check_stranger(&[OLD], unsigned, "webhook-id is missing").await;
    let foreign = sign(STRANGER, "m-1", now(), body());
    check_stranger(&[OLD], foreign, "no signature fits").await;
    // Not even its JSON is looked at.
    let rubbish = sign(STRANGER, "m-1", now(), "\0 is no JSON");
    check_stranger(&[OLD], rubbish, "no signature fits").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_and_new_timestamps_are_refused_whatever_their_signature() {
    // The door's clock has gone on by a moment when it looks: 301 and -302 are what it takes for more than 300.
    for (age, expect) in [(301, "in the past"), (-303, "in the future")] {
        let request = sign(OLD, "m-1", now() - age, body());
        check_stranger(&[OLD], request, expect).await;
    }
    let broker = FakeBroker::start();
    let app = broker.router_with(&signed_settings(&[OLD], ""));
    for age in [295, -299] {
        let reply = send(&app, sign(OLD, "m-1", now() - age, body())).await;
        assert_eq!(reply.status, StatusCode::ACCEPTED, "{age}: {reply:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_header_must_come_once() {
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        let mut missing = sign(OLD, "m-1", now(), body());
        missing.headers_mut().remove(name);
        check_stranger(&[OLD], missing, &format!("{name} is missing")).await;
        let mut doubled = sign(OLD, "m-1", now(), body());
        let value = doubled.headers()[name].clone();
        doubled.headers_mut().append(name, value);
        check_stranger(&[OLD], doubled, &format!("{name} must come once")).await;
        let mut binary = sign(OLD, "m-1", now(), body());
        let value = HeaderValue::from_bytes(b"\xff").unwrap();
        binary.headers_mut().insert(name, value);
        check_stranger(&[OLD], binary, &format!("{name} cannot be read")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_without_a_gap_and_a_revoked_one_is_refused() {
    let broker = FakeBroker::start();
    let app = broker.router_with(&signed_settings(&[OLD, NEW], ""));
    let mut both = sign(OLD, "m-1", now(), body());
    let new = sign(NEW, "m-1", now(), "").headers()["webhook-signature"].clone();
    let old = both.headers()["webhook-signature"].clone();
    let joined = format!("{} {}", new.to_str().unwrap(), old.to_str().unwrap());
    both.headers_mut()
        .insert("webhook-signature", joined.parse().unwrap());
    for request in [
        sign(OLD, "m-1", now(), body()),
        sign(NEW, "m-2", now(), body()),
        both,
    ] {
        let reply = send(&app, request).await;
        assert_eq!(reply.status, StatusCode::ACCEPTED, "{reply:?}");
    }
    let revoked = sign(OLD, "m-1", now(), body());
    check_stranger(&[NEW], revoked, "no signature fits").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bytes_are_signed_and_not_what_they_mean() {
    let original = body();
    let value: Value = serde_json::from_str(&original).unwrap();
    let pretty = serde_json::to_string_pretty(&value).unwrap();
    let mut request = sign(OLD, "m-1", now(), original);
    *request.body_mut() = Body::from(pretty);
    check_stranger(&[OLD], request, "no signature fits").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_takes_its_own_secrets_and_scheme_only() {
    let broker = FakeBroker::start();
    let stripe = "[sources.acme]\npath = \"/webhooks/acme\"\nkind = \"chargeback\"\nsignature = \"stripe\"\n\
                  secrets = [{secret}]";
    let app = broker.router_with(&signed_settings(&[OLD], stripe));
    let text = chargeback(Uuid::now_v7(), "c-1", "opened", 10);
    let at = |path: &str, mut request: Request<Body>| {
        *request.uri_mut() = path.parse().unwrap();
        request
    };
    let mut request = at("/webhooks/acme", post(ORDERS, text.clone()));
    let seconds = now();
    let mut mac = Hmac::<Sha256>::new_from_slice(OLD.as_bytes()).unwrap();
    mac.update(format!("{seconds}.{text}").as_bytes());
    let digest = hex::encode(mac.finalize().into_bytes());
    let signature = format!("t={seconds},v1={digest}").parse().unwrap();
    request.headers_mut().insert("stripe-signature", signature);
    let reply = send(&app, request).await;
    assert_eq!(reply.status, StatusCode::ACCEPTED, "{reply:?}");

    let reply = send(&app, at("/webhooks/acme", sign(OLD, "m-1", now(), text))).await;
    reply.is_problem(401, "not-authentic");
    assert_eq!(reply.header(header::WWW_AUTHENTICATE), "StripeSignature");
    // A source that the settings do not name has no route, and no way around.
    let text = chargeback(Uuid::now_v7(), "c-1", "opened", 10);
    let reply = send(&app, at(CHARGEBACKS, sign(OLD, "m-1", now(), text))).await;
    reply.is_problem(404, "not-found");
    assert!(
        reply.body["detail"]
            .as_str()
            .unwrap()
            .contains("/webhooks/acme")
    );
    let schema = send(&app, get("/schemas/acme.json")).await;
    assert_eq!(schema.body["title"], "A chargeback's webhook");
    send(&app, get("/schemas/chargebacks.json"))
        .await
        .is_problem(404, "not-found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_within_the_tolerance_changes_nothing() {
    let Some(db) = TestDb::new(Layout::Single).await else {
        return;
    };
    let app = router(Mode::Direct(db.store().await), &signed_settings(&[OLD], ""));
    let user = Uuid::now_v7();
    let (text, at) = (order(user, "e-1", "created", 10), now());
    let deliver =
        async |app: &Router| -> Reply { send(app, sign(OLD, "m-1", at, text.clone())).await };
    deliver(&app).await.is(200, &json!({"status": "applied"}));
    for _ in 0..3 {
        deliver(&app).await.is(200, &json!({"status": "duplicate"}));
    }
    let sql = "select (select version from orders where user_id = $1), (select count(*) from order_events where user_id = $1)";
    let row = db.client(0).await.query_one(sql, &[&user]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (1, 1));
}
