//! The HTTP front door for payment webhooks: bytes come in, and the answer goes out when the event is durable.
//!
//! One webhook's way: `webhook::Payload` (content type, size, time) -> [`Event::decode`] (validation) ->
//! [`Mode`] (Kafka with acks=all, or one database transaction) -> `webhook::Answer`, or a `problem::Problem`.
//!
//! Invariants:
//! - **Acknowledged means durable**: 202 after the broker's acks=all, 200 after the database's commit, and 202 after it
//!   where the event waits there for another one. Every other
//!   answer means that the provider should look, or send again; sending again is always safe.
//! - **The body travels as it came**: what was sent is published and stored, byte for byte.
//! - **Direct mode loses nothing either**: what is refused for good is a dead letter before it is answered.
//! - **Every error is an RFC 9457 problem**, also those of the router, the limits and the deadline.
//! - **Everything is bounded**: connections, headers, bodies, requests, probes, retries, the stop.
//! - **No payload in a log, and no user**: spans carry the user's token, logs carry our errors; what a decoder quotes goes to
//!   its sender only.
//! - Absent: signature verification (the start says so), rate limits, TLS; routing and SQL, which `shardlane-worker`
//!   and `shardlane-sql` have.
//!
//! [`Event::decode`]: shardlane_domain::Event::decode

mod dead_letter;
mod error;
mod health;
mod metrics;
mod mode;
mod parked;
mod problem;
mod server;
mod settings;
mod webhook;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{from_fn_with_state, map_response};
use axum::routing::{get, post};
use shardlane_domain::{PAYLOAD_BYTES_MAX, Source};
use shardlane_worker::Probe;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;

pub use dead_letter::replay;
pub use error::IngestError;
pub use mode::Mode;
pub use problem::RETRY_AFTER_SECONDS;
pub use server::{Server, serve};
pub use settings::IngestSettings;
pub use shardlane_worker::PROBLEM_TYPE_PREFIX;

/// Everything that the front door answers. The layers stand inside out: the last one sees a request first.
pub fn router(mode: Mode, settings: &IngestSettings) -> Router {
    let metrics = Arc::new(metrics::Metrics::new(&mode));
    let door = Arc::new(webhook::Door {
        mode,
        metrics: Arc::clone(&metrics),
        body_deadline: settings.body_deadline,
        // Half, so that the last try has time to end, and the answer names the reason.
        retry_budget: settings.request_deadline / 2,
        probe: Probe::new(settings.probe_deadline),
        keep_undecodable: settings.keep_undecodable,
    });
    Router::new()
        .route(
            "/webhooks/payments/orders",
            post(|door, headers, body| webhook::take(Source::Orders, door, headers, body)),
        )
        .route(
            "/webhooks/payments/chargebacks",
            post(|door, headers, body| webhook::take(Source::Chargebacks, door, headers, body)),
        )
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .with_state(door)
        .route(
            "/metrics",
            get(metrics::answer).with_state(Arc::clone(&metrics)),
        )
        .layer(RequestBodyLimitLayer::new(PAYLOAD_BYTES_MAX))
        .layer(TimeoutLayer::with_status_code(
            StatusCode::SERVICE_UNAVAILABLE,
            settings.request_deadline,
        ))
        .layer(map_response(problem::dress))
        .layer(from_fn_with_state(metrics, metrics::measure))
        .layer(TraceLayer::new_for_http().make_span_with(span))
}

/// A query or a header could carry what is nobody's business in a log, so neither is here.
fn span(request: &Request) -> tracing::Span {
    let span = tracing::info_span!(
        "request",
        otel.kind = "server",
        method = %request.method(),
        path = request.uri().path(),
        user_token = tracing::field::Empty,
        event_id = tracing::field::Empty,
    );
    if let Some(trace) = webhook::trace_of(request.headers()) {
        trace.adopt(&span);
    }
    span
}
