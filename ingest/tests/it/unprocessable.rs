//! Authentic and no event: the answer names the place, and a dead letter keeps the bytes.

use std::time::Duration;

use rdkafka::message::{Headers, Message};
use shardlane_ingest::{IngestSettings, router};
use uuid::Uuid;

use crate::support::{
    CHARGEBACKS, FakeBroker, OLD, ORDERS, chargeback, now, order, post, send, sign,
    signed_settings, unsigned,
};

/// Sends a body, and expects this problem, its place, and one dead letter with these bytes and the reason.
async fn check(path: &str, body: &[u8], status: u16, name: &str, pointer: Option<&str>) {
    let broker = FakeBroker::start();
    let settings = IngestSettings {
        keep_undecodable: true,
        ..unsigned()
    };
    let reply = send(&broker.router_with(&settings), post(path, body.to_vec())).await;
    reply.is_problem(status, name);
    let start = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
    assert_eq!(
        reply.body["pointer"].as_str(),
        pointer,
        "{start}: {reply:?}"
    );
    let letters = broker.dead_letters(path);
    assert_eq!(letters.len(), 1, "{start}: one dead letter");
    assert_eq!(letters[0].payload().unwrap(), body, "{start}");
    let reason = header(&letters[0], "shardlane-reason");
    let detail = reply.body["detail"].as_str().unwrap();
    assert!(
        reason.contains(&detail[..detail.len().min(80)]),
        "{reason} / {detail}"
    );
    assert_eq!(header(&letters[0], "shardlane-error-class"), "malformed");
}

fn header(letter: &impl Message, name: &str) -> String {
    letter
        .headers()
        .unwrap()
        .iter()
        .find(|header| header.key == name)
        .map(|header| String::from_utf8(header.value.unwrap().to_vec()).unwrap())
        .unwrap()
}

/// An order with one text replaced.
async fn check_order(from: &str, to: &str, pointer: &str) {
    let good = order(Uuid::now_v7(), "e-1", "created", 10);
    assert!(good.contains(from), "the test replaces nothing: {from}");
    let body = good.replacen(from, to, 1);
    check(ORDERS, body.as_bytes(), 422, "invalid-event", Some(pointer)).await;
}

async fn check_chargeback(from: &str, to: &str, pointer: &str) {
    let good = chargeback(Uuid::now_v7(), "c-1", "opened", 10);
    assert!(good.contains(from), "the test replaces nothing: {from}");
    let body = good.replacen(from, to, 1);
    check(
        CHARGEBACKS,
        body.as_bytes(),
        422,
        "invalid-event",
        Some(pointer),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_names_the_place() {
    check_order("\"created\"", "\"paid\"", "/status").await;
    check_order("\"order_id\"", "\"order\"", "").await;
    check_order("\"o-1\"", "7", "/order_id").await;
    check_order("\"12.34\"", "12.34", "/meta/amount").await;
    check_order("\"12.34\"", "\"1e2\"", "/meta/amount").await;
    check_order("2026-11-01T10:00:00Z", "2026-11-01 10:00", "/created_at").await;
    check_chargeback("12.34", "\"12.34\"", "/amount").await;
    check_chargeback("12.34", "-12.34", "/amount").await;
    check_chargeback("EUR", "eur", "/currency").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_schema_can_say_names_the_place_too() {
    check_order("\"12.34\"", "\"12.345\"", "/meta/amount").await;
    check_order("EUR", "XXZ", "/meta/currency").await;
    check_order("\"o-1\"", "\"a\\nb\"", "/order_id").await;
    check_order("2026-11-01", "1066-11-01", "/created_at").await;
    check_order("T10:10:00Z", "T10:10:00-99:00", "/updated_at").await;
    check_chargeback("2026-11-02", "2126-11-02", "/occurred_at").await;
    check_chargeback("12.34", "99999999999999999999999", "/amount").await;
    check_chargeback("12.34", "92233720368547758.08", "/amount").await;
    check_chargeback(
        "12.34",
        "0.1000000000000000000000000000000000001",
        "/amount",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_two_readers_understand_differently_is_refused() {
    check_order("\"o-1\"", "\"o-1\",\"order_id\":\"o-2\"", "/order_id").await;
    check_order("\"EUR\"", "\"EUR\",\"currency\":\"USD\"", "/meta/currency").await;
    check_order(
        "\"EUR\"",
        "\"EUR\",\"curr\\u0065ncy\":\"USD\"",
        "/meta/currency",
    )
    .await;
    check_order("\"o-1\"", "\"\\u0000\"", "/order_id").await;
    check_order("\"o-1\"", "\"\\ud800\"", "/order_id").await;
    check_order("\"meta\"", "\"later\":[1e400],\"meta\"", "/later/0").await;
    let long = format!("\"later\":\"{}\",\"meta\"", "x".repeat(16 * 1024 + 1));
    check_order("\"meta\"", &long, "/later").await;
    let deep = format!(
        "\"later\":{}1{},\"meta\"",
        "[".repeat(10_000),
        "]".repeat(10_000)
    );
    let pointer = format!("/later{}", "/0".repeat(31));
    check_order("\"meta\"", &deep, &pointer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_json_has_no_place() {
    let good = order(Uuid::now_v7(), "e-1", "created", 10);
    let not_utf8 = good.replacen("o-1", "\u{1}", 1).into_bytes();
    let not_utf8: Vec<u8> = not_utf8
        .into_iter()
        .map(|byte| if byte == 1 { 0xff } else { byte })
        .collect();
    for body in [
        b"{".as_slice(),
        b"order",
        &not_utf8,
        "\u{feff}{}".as_bytes(),
    ] {
        check(ORDERS, body, 400, "malformed-json", None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_cannot_be_kept_is_not_refused_for_good() {
    let broker = FakeBroker::start();
    let app = router(
        broker.mode(Duration::from_millis(500)),
        &signed_settings(&[OLD], ""),
    );
    broker.go_away();
    let request = sign(OLD, "m-1", now(), "{}");
    send(&app, request).await.is_problem(503, "unavailable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_letter_is_kept_and_one_from_anybody_is_not() {
    let broker = FakeBroker::start();
    let signed = broker.router_with(&signed_settings(&[OLD], ""));
    let reply = send(&signed, sign(OLD, "m-1", now(), "{}")).await;
    reply.is_problem(422, "invalid-event");
    assert_eq!(broker.dead_letters(ORDERS).len(), 1);
    let reply = send(&broker.router(), post(ORDERS, "{}")).await;
    reply.is_problem(422, "invalid-event");
    assert_eq!(broker.records(), 1, "anybody could fill the topic");
}
