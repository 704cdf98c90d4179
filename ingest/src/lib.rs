//! The HTTP front door for payment webhooks: bytes come in, and the answer goes out when the event is durable.
//!
//! One webhook's way: headers (type, encoding, what the signature claims) -> body (size, time) -> signature over the raw
//! bytes -> rate -> strict JSON -> JSON Schema -> [`Event::decode`] -> times -> [`Mode`] (Kafka with acks=all, or one
//! database transaction) -> `webhook::Answer`, or a `problem::Problem`.
//!
//! Invariants:
//! - **Nothing is parsed before it is authentic**, unless the source says `signature = "off"`, of which the start warns.
//! - **Not authentic: 401, and nothing is kept. Authentic and unprocessable: a dead letter**, then 400 or 422 with the
//!   place; sending it again would not help.
//! - **Acknowledged means durable**: 202 after the broker's acks=all, 200 after the database's commit, and 202 after it
//!   where the event waits there for another one. Every other
//!   answer means that the provider should look, or send again; sending again is always safe.
//! - **The body travels as it came**: what was sent is published and stored, byte for byte.
//! - **Direct mode loses nothing either**: what is refused for good is a dead letter before it is answered.
//! - **Every error is an RFC 9457 problem**, also those of the router, the limits and the deadline.
//! - **Everything is bounded**: connections, headers, bodies, requests, probes, retries, the stop.
//! - **No payload, no secret and no user in a log**: spans carry the user's token, logs carry our errors; what a decoder
//!   quotes goes to its sender only.
//! - Absent: routing and SQL, which `shardlane-worker` and `shardlane-sql` have.
//!
//! [`Event::decode`]: shardlane_domain::Event::decode

mod dead_letter;
mod docs;
mod error;
mod health;
mod json;
mod metrics;
mod mode;
mod openapi;
mod parked;
mod problem;
mod request_id;
mod routes;
mod schema;
mod server;
mod settings;
mod settings_file;
mod signature;
mod sources;
mod tls;
mod webhook;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::response::Response;
use shardlane_domain::PAYLOAD_BYTES_MAX;
use shardlane_worker::Probe;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;

pub use dead_letter::replay;
pub use error::IngestError;
pub use mode::Mode;
pub use problem::{PROBLEM_NAMES, RETRY_AFTER_SECONDS};
pub use server::{Server, serve};
pub use settings::{IngestSettings, TlsFiles};
pub use shardlane_worker::PROBLEM_TYPE_PREFIX;
pub use sources::Sources;

/// Everything that the front door answers. The layers stand inside out: the last one sees a request first.
pub fn router(mode: Mode, settings: &IngestSettings) -> Router {
    let metrics = Arc::new(metrics::Metrics::new(&mode));
    let durable = match &mode {
        Mode::Kafka(_) => openapi::Durable::InKafka,
        Mode::Direct(_) => openapi::Durable::InTheDatabase,
    };
    let routes = routes::all(&settings.sources, durable);
    let door = Arc::new(webhook::Door {
        mode,
        sources: settings.sources.clone(),
        document: openapi::document(&routes, &settings.sources).into(),
        metrics: Arc::clone(&metrics),
        body_deadline: settings.body_deadline,
        // Half, so that the last try has time to end, and the answer names the reason.
        retry_budget: settings.request_deadline / 2,
        probe: Probe::new(settings.probe_deadline),
        keep_undecodable: settings.keep_undecodable,
    });
    let secure = secure_headers(settings.tls.is_some());
    routes
        .into_iter()
        .fold(Router::new(), |router, route| {
            router.route(&route.path, route.handler)
        })
        .fallback(not_found)
        .with_state(door)
        .layer(RequestBodyLimitLayer::new(PAYLOAD_BYTES_MAX))
        .layer(TimeoutLayer::with_status_code(
            StatusCode::SERVICE_UNAVAILABLE,
            settings.request_deadline,
        ))
        .layer(map_response(problem::dress))
        .layer(map_response(move |mut response: Response| {
            for (name, value) in &secure {
                // The pages of the documentation have a policy of their own.
                response.headers_mut().entry(name).or_insert(value.clone());
            }
            std::future::ready(response)
        }))
        .layer(from_fn_with_state(metrics, metrics::measure))
        .layer(TraceLayer::new_for_http().make_span_with(span))
        .layer(from_fn(request_id::carry))
}

async fn not_found(State(door): State<Arc<webhook::Door>>) -> problem::Problem {
    door.not_found()
}

/// What every answer says to a browser that should never see it.
fn secure_headers(tls: bool) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; frame-ancestors 'none'",
        ),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if tls {
        let year = HeaderValue::from_static("max-age=31536000");
        headers.insert(header::STRICT_TRANSPORT_SECURITY, year);
    }
    headers
}

/// A query or a header could carry what is nobody's business in a log, so neither is here.
fn span(request: &Request) -> tracing::Span {
    let id = request.headers().get(request_id::REQUEST_ID);
    let span = tracing::info_span!(
        "request",
        otel.kind = "server",
        method = %request.method(),
        path = request.uri().path(),
        request_id = id.and_then(|id| id.to_str().ok()),
        source = tracing::field::Empty,
        user_token = tracing::field::Empty,
        event_id = tracing::field::Empty,
        trace_id = tracing::field::Empty,
    );
    if let Some(trace) = webhook::trace_of(request.headers()) {
        span.record("trace_id", trace.trace_id());
        trace.adopt(&span);
    }
    span
}
