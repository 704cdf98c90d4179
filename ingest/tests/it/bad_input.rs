//! What is refused before anything is kept, and under which name.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, header};
use futures_util::stream;
use shardlane_domain::PAYLOAD_BYTES_MAX;
use shardlane_ingest::{IngestSettings, router};
use uuid::Uuid;

use crate::support::{
    CHARGEBACKS, FakeBroker, JSON, ORDERS, chargeback, get, order, post, send, unsigned,
};

/// Sends one request, and expects this problem; the name "" is an acceptance.
async fn check(app: &Router, request: Request<Body>, status: u16, name: &str) {
    let reply = send(app, request).await;
    if name.is_empty() {
        assert_eq!(reply.status.as_u16(), status, "{reply:?}");
    } else {
        reply.is_problem(status, name);
    }
}

/// A body of unknown length, in pieces.
fn in_pieces(body: Vec<u8>) -> Body {
    let pieces: Vec<_> = body
        .chunks(16 * 1024)
        .map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece)))
        .collect();
    Body::from_stream(stream::iter(pieces))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_content_type_must_be_json_with_or_without_parameters() {
    let broker = FakeBroker::start();
    let app = broker.router();
    for (content_type, status, name) in [
        (Some(JSON), 202, ""),
        (Some("application/json; charset=utf-8"), 202, ""),
        (Some("Application/JSON ;charset=utf-8"), 202, ""),
        (Some("text/plain"), 415, "content-type"),
        (Some("application/json-seq"), 415, "content-type"),
        (Some("application/problem+json"), 415, "content-type"),
        (
            Some("application/x-www-form-urlencoded"),
            415,
            "content-type",
        ),
        (Some(""), 415, "content-type"),
        (None, 415, "content-type"),
    ] {
        let mut request = post(ORDERS, order(Uuid::now_v7(), "e-1", "created", 0));
        request.headers_mut().remove(header::CONTENT_TYPE);
        if let Some(content_type) = content_type {
            request
                .headers_mut()
                .insert(header::CONTENT_TYPE, content_type.parse().unwrap());
        }
        check(&app, request, status, name).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_bounded_whether_or_not_it_says_its_length() {
    let broker = FakeBroker::start();
    let app = broker.router();
    for (bytes, status, name) in [
        (PAYLOAD_BYTES_MAX, 202, ""),
        (PAYLOAD_BYTES_MAX + 1, 413, "body-too-large"),
    ] {
        let mut body = order(Uuid::now_v7(), "e-1", "created", 0).into_bytes();
        body.resize(bytes, b' ');
        let mut sized = post(ORDERS, body.clone());
        sized
            .headers_mut()
            .insert(header::CONTENT_LENGTH, bytes.into());
        check(&app, sized, status, name).await;
        check(&app, post(ORDERS, in_pieces(body)), status, name).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_json_is_malformed() {
    let broker = FakeBroker::start();
    let app = broker.router();
    let whole = order(Uuid::now_v7(), "e-1", "created", 0);
    let cut = &whole[..whole.len() - 1];
    let twice = format!("{whole}{whole}");
    let comma = whole.replacen(",", ",,", 1);
    for body in ["", " ", "{", "order", cut, &twice, &comma] {
        check(&app, post(ORDERS, body.to_owned()), 400, "malformed-json").await;
    }
    let mut not_utf8 = whole.clone().into_bytes();
    let at = whole.find("o-1").unwrap();
    not_utf8[at] = 0xff;
    check(&app, post(ORDERS, not_utf8), 400, "malformed-json").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_that_is_not_the_event_is_invalid() {
    let broker = FakeBroker::start();
    let app = broker.router();
    for body in ["{}", "[]", "null", "7", "\"order\""] {
        for path in [ORDERS, CHARGEBACKS] {
            check(&app, post(path, body), 422, "invalid-event").await;
        }
    }
    let user = Uuid::now_v7();
    let good_order = order(user, "e-1", "created", 0);
    for (from, to) in [
        ("\"created\"", "\"paid\""),
        ("\"created\"", "1"),
        ("\"e-1\"", "\"\""),
        ("\"o-1\"", "\"a\\u0000b\""),
        ("\"o-1\"", "\"a\\nb\""),
        ("\"12.34\"", "\"12.345\""),
        ("EUR", "euro"),
        ("2026-11-01T10:00:00Z", "yesterday"),
        ("order_id", "order"),
    ] {
        assert!(
            good_order.contains(from),
            "the test replaces nothing: {from}"
        );
        check(
            &app,
            post(ORDERS, good_order.replacen(from, to, 1)),
            422,
            "invalid-event",
        )
        .await;
    }
    let good_chargeback = chargeback(user, "c-1", "opened", 0);
    check(&app, post(CHARGEBACKS, good_chargeback.clone()), 202, "").await;
    for (from, to) in [
        ("12.34", "\"12.34\""),
        ("12.34", "-12.34"),
        ("\"opened\"", "\"won\""),
    ] {
        assert!(
            good_chargeback.contains(from),
            "the test replaces nothing: {from}"
        );
        let body = good_chargeback.replacen(from, to, 1);
        check(&app, post(CHARGEBACKS, body), 422, "invalid-event").await;
    }
    // Each source has its own fields.
    check(&app, post(CHARGEBACKS, good_order), 422, "invalid-event").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_names_the_field() {
    let broker = FakeBroker::start();
    let body = order(Uuid::now_v7(), "e-1", "created", 0).replace("\"o-1\"", "\"\"");
    let reply = send(&broker.router(), post(ORDERS, body)).await;
    reply.is_problem(422, "invalid-event");
    assert_eq!(reply.body["pointer"], "/order_id");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_path_and_a_wrong_method_are_problems_too() {
    let broker = FakeBroker::start();
    let app = broker.router();
    check(&app, get("/"), 404, "not-found").await;
    check(
        &app,
        post("/webhooks/payments/refunds", "{}"),
        404,
        "not-found",
    )
    .await;
    check(
        &app,
        post("/webhooks/payments/orders/", "{}"),
        404,
        "not-found",
    )
    .await;
    for (request, allow) in [
        (get(ORDERS), "POST"),
        (get(CHARGEBACKS), "POST"),
        (post("/livez", ""), "GET,HEAD"),
    ] {
        let reply = send(&app, request).await;
        reply.is_problem(405, "method-not-allowed");
        assert_eq!(reply.header(header::ALLOW), allow);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_or_does_not_come_is_the_senders_fault() {
    let broker = FakeBroker::start();
    let settings = IngestSettings {
        body_deadline: Duration::from_millis(100),
        ..unsigned()
    };
    let app = router(broker.mode(Duration::from_secs(5)), &settings);
    let broken = Body::from_stream(stream::iter([
        Ok(Bytes::from_static(b"{")),
        Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)),
    ]));
    check(&app, post(ORDERS, broken), 400, "body-incomplete").await;
    let silent = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
    check(&app, post(ORDERS, silent), 408, "body-too-slow").await;
}
