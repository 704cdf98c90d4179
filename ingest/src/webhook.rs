//! One webhook, from its bytes to its answer.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::LengthLimitError;
use jiff::Timestamp;
use serde::Serialize;
use shardlane_domain::Event;
use shardlane_router::{RouteKey, TokenHash};
use shardlane_worker::{HEADER_TRACEPARENT, HEADER_TRACESTATE, Probe, TraceContext, accepted_now};
use tokio::time::timeout;
use utoipa::ToSchema;

use crate::dead_letter;
use crate::metrics::Metrics;
use crate::problem::Problem;
use crate::signature::NotAuthentic;
use crate::sources::Endpoint;
use crate::{Mode, Sources};

/// What all requests share.
pub(crate) struct Door {
    pub(crate) mode: Mode,
    pub(crate) sources: Sources,
    /// `/openapi.json`.
    pub(crate) document: Bytes,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) body_deadline: Duration,
    /// After this time a failed try is the last.
    pub(crate) retry_budget: Duration,
    pub(crate) probe: Probe,
    /// Whether bytes that are no event become dead letters where nothing is verified, too.
    pub(crate) keep_undecodable: bool,
}

impl Door {
    pub(crate) fn not_found(&self) -> Problem {
        Problem::NotFound {
            paths: self.sources.paths().join(" or "),
        }
    }
}

/// The good answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
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

/// Verifies, validates, stamps with the time of acceptance, and hands over. The order matters: what is cheap and needs
/// no body first, and nothing is parsed before it is authentic.
pub(crate) async fn take(
    source: Arc<Endpoint>,
    State(door): State<Arc<Door>>,
    request: Request,
) -> Result<Answer, Problem> {
    let span = tracing::Span::current();
    span.record("source", &source.name);
    let (head, body) = request.into_parts();
    check_type(&head.headers)?;
    let stranger = |error: NotAuthentic| {
        tracing::info!(source = source.name, reason = %error, "not authentic");
        Problem::NotAuthentic {
            reason: error,
            challenge: source.verifier.challenge(),
        }
    };
    let claim = source
        .verifier
        .claim(&head.headers, Timestamp::now())
        .map_err(stranger)?;
    let payload = read(body, source.body_bytes_max, door.body_deadline).await?;
    source
        .verifier
        .check(claim.as_ref(), &payload)
        .map_err(stranger)?;
    source
        .admit()
        .map_err(|seconds| Problem::TooMany { seconds })?;
    let received_at = accepted_now();
    let event = match source.read(payload.clone(), received_at) {
        Ok(event) => event,
        Err(flaw) if source.verifier.is_on() || door.keep_undecodable => {
            let letter = dead_letter::of_bytes(
                source.kind.source(),
                payload,
                flaw.to_string(),
                received_at,
                &head.headers,
            );
            return Err(door.mode.bury(letter, Problem::from(flaw)).await);
        }
        // Whose sender nobody knows is not kept: anybody could fill the topic or the table.
        Err(flaw) => return Err(Problem::from(flaw)),
    };
    span.record("user_token", token_of(&event))
        .record("event_id", &event.event_id);
    let began = Instant::now();
    let answer = door
        .mode
        .take(event, &head.headers, door.retry_budget)
        .await;
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

/// The body, whole and in time; the bytes that are verified are the bytes that travel on.
async fn read(body: Body, bytes_max: usize, deadline: Duration) -> Result<Bytes, Problem> {
    let too_large = Problem::BodyTooLarge { bytes_max };
    // A length that is too long already by what it says needs no byte of it.
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(too_large);
    }
    match timeout(deadline, to_bytes(body, bytes_max)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_length_limit(&error) => Err(too_large),
        Ok(Err(_)) => Err(Problem::BodyBroken),
        Err(_) => Err(Problem::BodyTooSlow),
    }
}

fn is_length_limit(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<LengthLimitError>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// JSON, and not compressed: a small body could become a large one.
fn check_type(headers: &HeaderMap) -> Result<(), Problem> {
    let plain = |value: &header::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if !headers.get_all(header::CONTENT_ENCODING).iter().all(plain) {
        return Err(Problem::ContentEncoding);
    }
    if is_json(headers) {
        Ok(())
    } else {
        Err(Problem::ContentType)
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
