//! One webhook, from its bytes to its answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use shardlane_domain::{Event, Source};
use shardlane_router::{RouteKey, TokenHash};
use shardlane_worker::{HEADER_TRACEPARENT, HEADER_TRACESTATE, Probe, TraceContext, accepted_now};
use tokio::time::timeout;

use crate::Mode;
use crate::dead_letter;
use crate::metrics::Metrics;
use crate::problem::Problem;

/// What all requests share.
pub(crate) struct Door {
    pub(crate) mode: Mode,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) body_deadline: Duration,
    /// After this time a failed try is the last.
    pub(crate) retry_budget: Duration,
    pub(crate) probe: Probe,
    /// Whether bytes that are no event become dead letters of direct mode.
    pub(crate) keep_undecodable: bool,
}

/// The good answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub(crate) enum Answer {
    /// All replicas of the broker have it; a worker will apply it.
    Accepted { partition: i32, offset: i64 },
    /// It changed the state, and that is committed.
    Applied,
    /// It was taken before, with the same payload.
    Duplicate,
    /// The state knows something newer; it is in the log and changed nothing.
    Stale,
    /// It waits in the database for an event that it needs.
    Parked,
}

/// Validates, stamps with the time of acceptance, and hands over.
pub(crate) async fn take(
    source: Source,
    State(door): State<Arc<Door>>,
    headers: HeaderMap,
    Payload(payload): Payload,
) -> Result<Answer, Problem> {
    let accepted = accepted_now();
    let event = match Event::decode(source, payload.clone(), accepted) {
        Ok(event) => event,
        Err(error) => {
            let letter = dead_letter::of_bytes(source, payload.clone(), &error, accepted, &headers);
            let problem = Problem::refused(error, &payload);
            return Err(match &door.mode {
                Mode::Direct(store) if door.keep_undecodable => {
                    dead_letter::bury(store, &letter, problem).await
                }
                Mode::Direct(_) | Mode::Kafka(_) => problem,
            });
        }
    };
    tracing::Span::current()
        .record("user_token", token_of(&event))
        .record("event_id", &event.event_id);
    let began = Instant::now();
    let answer = door.mode.take(event, &headers, door.retry_budget).await;
    door.metrics
        .handed_over(&door.mode, began.elapsed(), answer.is_ok());
    answer
}

/// The user as traces and logs may know it: `shardlane route USER` gives the same number, which does not lead back.
fn token_of(event: &Event) -> u32 {
    let key = RouteKey::Uuid(event.user_id);
    TokenHash::Postgres.token(&key).value()
}

/// The trace to which the sender says that the request belongs: of one parent; states are one list, however many headers
/// it came in.
pub(crate) fn trace_of(headers: &HeaderMap) -> Option<TraceContext> {
    let texts = |name| {
        let values = headers.get_all(name).iter();
        values
            .map(|value| value.to_str().ok())
            .collect::<Option<Vec<_>>>()
    };
    let [parent] = texts(HEADER_TRACEPARENT)?[..] else {
        return None;
    };
    TraceContext::parse(parent, &texts(HEADER_TRACESTATE)?.join(","))
}

impl Answer {
    /// As the answer's `status` says it.
    pub(crate) const fn as_str(&self) -> &'static str {
        match self {
            Answer::Accepted { .. } => "accepted",
            Answer::Applied => "applied",
            Answer::Parked => "parked",
            Answer::Duplicate => "duplicate",
            Answer::Stale => "stale",
        }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let status = match self {
            Answer::Accepted { .. } | Answer::Parked => StatusCode::ACCEPTED,
            Answer::Applied | Answer::Duplicate | Answer::Stale => StatusCode::OK,
        };
        (status, Json(self)).into_response()
    }
}

/// A body that claims to be JSON, whole and in time. Not axum's `Json`, because the bytes must travel on.
pub(crate) struct Payload(Bytes);

impl FromRequest<Arc<Door>> for Payload {
    type Rejection = Problem;

    async fn from_request(request: Request, door: &Arc<Door>) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::ContentType);
        }
        match timeout(door.body_deadline, Bytes::from_request(request, door)).await {
            Ok(Ok(bytes)) => Ok(Payload(bytes)),
            Ok(Err(BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(
                _,
            )))) => Err(Problem::BodyTooLarge),
            Ok(Err(_)) => Err(Problem::BodyBroken),
            Err(_) => Err(Problem::BodyTooSlow),
        }
    }
}

/// `application/json`, in any case, with or without parameters; JSON has no other encoding than UTF-8 anyway.
fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}
