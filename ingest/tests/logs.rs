//! What a log holds: ids and our own errors, never what a provider sent, and a user's token instead of the user.
//!
//! A binary of its own: `tracing` caches for the whole process whether anybody listens to a callsite, and a callsite
//! that another test reaches first, in the moment in which this test's subscriber registers, stays mute for ever.

#[path = "it/support.rs"]
#[allow(
    dead_code,
    reason = "shared with the other binary, which uses all of it"
)]
mod support;

use std::io::{Read, Seek};
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use shardlane_ingest::{IngestSettings, Server};
use shardlane_router::{RouteKey, TokenHash};
use tracing_subscriber::filter::LevelFilter;
use uuid::Uuid;

use support::{
    FakeBroker, NEW, OLD, ORDERS, STRANGER, now, order, post, send, sign, signed_settings, unsigned,
};

/// On one thread, because the subscriber is this thread's only.
#[tokio::test]
async fn logs_hold_the_ids_and_the_warning_and_no_payload() {
    let log = Arc::new(tempfile::tempfile().unwrap());
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(Arc::clone(&log))
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let broker = FakeBroker::start();
    let app = broker.router();
    let user = Uuid::now_v7();
    let mut signatures = Vec::new();
    let good = order(user, "e-77", "created", 10);
    let with_secret = good.replace("\"amount\"", "\"secret\":\"4111111111111111\",\"amount\"");
    let reply = send(
        &app,
        post(&format!("{ORDERS}?token=4111111111111111"), with_secret),
    )
    .await;
    assert_eq!(reply.status, StatusCode::ACCEPTED);
    let reply = send(
        &app,
        post(ORDERS, good.replace("created\"", "4111111111111111\"")),
    )
    .await;
    reply.is_problem(422, "invalid-event");
    assert_eq!(reply.body["pointer"], "/status");
    assert!(!reply.body.to_string().contains("41111"), "{reply:?}");
    send(&app, post(ORDERS, "4111111111111111 is no JSON"))
        .await
        .is_problem(400, "malformed-json");

    // A signed source: its secret, what its senders sign with, and what strangers try.
    let signed = signed_settings(&[OLD, NEW], "");
    tracing::info!(?signed, "the settings, as somebody may log them");
    let app = broker.router_with(&signed);
    for (secret, status) in [(OLD, 202), (STRANGER, 401)] {
        let request = sign(secret, "m-1", now(), order(user, "e-78", "created", 10));
        signatures.push(
            request.headers()["webhook-signature"]
                .to_str()
                .unwrap()
                .to_owned(),
        );
        let reply = send(&app, request).await;
        assert_eq!(reply.status.as_u16(), status, "{reply:?}");
    }
    let letter = r#"{"card":"4111111111111111"}"#;
    send(&app, sign(OLD, "m-2", now(), letter))
        .await
        .is_problem(422, "invalid-event");

    let settings = IngestSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        ..unsigned()
    };
    let server = Server::bind(settings, broker.mode(Duration::from_secs(5)))
        .await
        .unwrap();
    server.run(std::future::ready(())).await.unwrap();

    let mut file = &*log;
    file.rewind().unwrap();
    let mut log = String::new();
    file.read_to_string(&mut log).unwrap();
    let token = TokenHash::Postgres.token(&RouteKey::Uuid(user)).value();
    assert!(
        log.contains(&format!("user_token={token}")) && log.contains("e-77"),
        "{log}"
    );
    assert!(!log.contains(&user.to_string()), "{log}");
    assert!(log.contains("WEBHOOK SIGNATURES ARE NOT VERIFIED"), "{log}");
    assert!(
        log.contains("not authentic") && log.contains("a dead letter"),
        "{log}"
    );
    assert!(!log.contains("4111111111111111"), "{log}");
    let keys = [OLD, NEW].map(|secret| &secret["whsec_".len()..]);
    for secret in keys
        .into_iter()
        .chain(signatures.iter().map(|text| &text[3..]))
    {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
    // Nor as a list of bytes, as a derived Debug would print it.
    let bytes = BASE64_STANDARD.decode(keys[0]).unwrap();
    assert!(
        !log.contains(&format!("{:?}", &bytes[..4]).replace(']', "")),
        "{log}"
    );
}
