//! Every error answer, as a problem of RFC 9457.

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use shardlane_domain::PAYLOAD_BYTES_MAX;
use shardlane_sql::RejectReason;
use shardlane_worker::{PROBLEM_TYPE_PREFIX, ProblemDetails};

use crate::json::Flaw;
use crate::signature::NotAuthentic;

/// The names behind the prefix: `docs/problems` has a page for each.
pub const PROBLEM_NAMES: [&str; 20] = [
    "body-incomplete",
    "body-too-large",
    "body-too-slow",
    "content-encoding",
    "content-type",
    "deadline",
    "event-id-reused",
    "illegal-transition",
    "internal",
    "invalid-event",
    "malformed-json",
    "method-not-allowed",
    "not-authentic",
    "not-found",
    "not-ready",
    "out-of-order",
    "queue-full",
    "too-many-requests",
    "unavailable",
    "unstorable-event",
];

/// When to try again after a 503.
pub const RETRY_AFTER_SECONDS: u16 = 5;

/// The name of the problem that an answer tells, for whoever counts them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Refusal(pub(crate) &'static str);

/// What can be wrong with a request, or with us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The sender's request.
    ContentType,
    ContentEncoding,
    BodyTooLarge {
        bytes_max: usize,
    },
    BodyTooSlow,
    BodyBroken,
    /// Nothing of it is kept.
    NotAuthentic {
        reason: NotAuthentic,
        challenge: Option<HeaderValue>,
    },
    /// Authentic, and too many.
    TooMany {
        seconds: u64,
    },
    /// Not JSON; the parser's sentence.
    Malformed(String),
    /// JSON that is not the event: where, and why.
    Invalid {
        pointer: String,
        sentence: String,
    },
    /// The database refuses a value that the decoder let through.
    Unstorable,
    NotFound {
        paths: String,
    },
    MethodNotAllowed,
    /// The event met a state that does not take it; nothing of it was kept.
    Rejected(RejectReason),
    /// Ours, and it passes.
    Unavailable {
        what: &'static str,
    },
    NotReady {
        what: Cow<'static, str>,
    },
    Deadline,
    /// Ours, and somebody must look.
    Internal,
    /// Whatever else the HTTP library answers.
    Other(StatusCode),
}

impl Problem {
    /// Status, name, title, and what to do.
    fn parts(&self) -> (StatusCode, &'static str, &'static str, Cow<'_, str>) {
        use StatusCode as S;
        match self {
            Problem::ContentType => (
                S::UNSUPPORTED_MEDIA_TYPE,
                "content-type",
                "Unsupported content type",
                "send the webhook with `content-type: application/json`".into(),
            ),
            Problem::ContentEncoding => (
                S::UNSUPPORTED_MEDIA_TYPE,
                "content-encoding",
                "Compressed body",
                "send the webhook as it is, without `content-encoding`".into(),
            ),
            Problem::BodyTooLarge { bytes_max } => (
                S::PAYLOAD_TOO_LARGE,
                "body-too-large",
                "Body too large",
                format!("a webhook may have {bytes_max} bytes here; send less").into(),
            ),
            Problem::BodyTooSlow => (
                S::REQUEST_TIMEOUT,
                "body-too-slow",
                "Body too slow",
                "the body did not arrive in time; send it again, at once".into(),
            ),
            Problem::BodyBroken => (
                S::BAD_REQUEST,
                "body-incomplete",
                "Body incomplete",
                "the body ended before its end; send all of it".into(),
            ),
            Problem::NotAuthentic { reason, .. } => (
                S::UNAUTHORIZED,
                "not-authentic",
                "Not authentic",
                format!("{reason}; nothing was kept").into(),
            ),
            Problem::TooMany { seconds } => (
                S::TOO_MANY_REQUESTS,
                "too-many-requests",
                "Too many requests",
                format!(
                    "this source sends more than was agreed; send this webhook again in {seconds} s"
                )
                .into(),
            ),
            Problem::Malformed(sentence) => (
                S::BAD_REQUEST,
                "malformed-json",
                "Malformed JSON",
                sentence.into(),
            ),
            Problem::Invalid { sentence, .. } => (
                S::UNPROCESSABLE_ENTITY,
                "invalid-event",
                "Invalid event",
                sentence.into(),
            ),
            Problem::Unstorable => (
                S::UNPROCESSABLE_ENTITY,
                "unstorable-event",
                "Event cannot be stored",
                "a value of this event cannot be stored; correct it before sending it again".into(),
            ),
            Problem::NotFound { paths } => (
                S::NOT_FOUND,
                "not-found",
                "Not found",
                format!("post to {paths}").into(),
            ),
            Problem::MethodNotAllowed => (
                S::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "Method not allowed",
                "use a method that the header `allow` names".into(),
            ),
            Problem::Rejected(reason) => rejected(*reason),
            Problem::Unavailable { what } => (
                S::SERVICE_UNAVAILABLE,
                "unavailable",
                "Temporarily unavailable",
                format!("{what}; the webhook is not acknowledged: send it again").into(),
            ),
            Problem::NotReady { what } => (
                S::SERVICE_UNAVAILABLE,
                "not-ready",
                "Not ready",
                what.as_ref().into(),
            ),
            Problem::Deadline => (
                S::SERVICE_UNAVAILABLE,
                "deadline",
                "Out of time",
                "the webhook could not be taken in time and is not acknowledged: send it again"
                    .into(),
            ),
            Problem::Internal => (
                S::INTERNAL_SERVER_ERROR,
                "internal",
                "Internal error",
                "the webhook is not acknowledged; the operator's log says why. Send it again later"
                    .into(),
            ),
            Problem::Other(status) => {
                let reason = status.canonical_reason().unwrap_or("Error");
                (*status, "", reason, reason.into())
            }
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.parts().0
    }

    /// The last part of its type, or nothing.
    pub(crate) fn name(&self) -> &'static str {
        self.parts().1
    }

    pub(crate) fn title(&self) -> &'static str {
        self.parts().2
    }

    /// Its body, for the contract.
    pub(crate) fn example(&self) -> serde_json::Value {
        serde_json::to_value(self.details())
            .unwrap_or_else(|error| unreachable!("texts are JSON: {error}"))
    }

    fn details(&self) -> ProblemDetails<'_> {
        let (status, name, title, detail) = self.parts();
        let r#type = match self {
            // RFC 9457, section 4.2.1: nothing to say beyond the status.
            Problem::Other(_) => Cow::Borrowed("about:blank"),
            _ => format!("{PROBLEM_TYPE_PREFIX}{name}").into(),
        };
        ProblemDetails {
            r#type,
            title,
            status: status.as_u16(),
            detail,
            failing: &[],
            pointer: match self {
                Problem::Invalid { pointer, .. } => Some(pointer),
                _ => None,
            },
        }
    }

    /// What is wrong, and what to do.
    pub(crate) fn sentence(&self) -> String {
        self.parts().3.into_owned()
    }

    /// The problem behind an answer that somebody else made: the router, a limit, the deadline.
    fn of(status: StatusCode) -> Problem {
        match status {
            StatusCode::METHOD_NOT_ALLOWED => Problem::MethodNotAllowed,
            StatusCode::PAYLOAD_TOO_LARGE => Problem::BodyTooLarge {
                bytes_max: PAYLOAD_BYTES_MAX,
            },
            // The timeout layer is the only one that answers so without a body.
            StatusCode::SERVICE_UNAVAILABLE => Problem::Deadline,
            StatusCode::INTERNAL_SERVER_ERROR => Problem::Internal,
            other => Problem::Other(other),
        }
    }
}

/// A rejected event changes nothing, so it may come again, and it means the same then; direct mode keeps a dead letter.
fn rejected(reason: RejectReason) -> (StatusCode, &'static str, &'static str, Cow<'static, str>) {
    let (name, title, todo) = match reason {
        RejectReason::Illegal { .. } => (
            "illegal-transition",
            "Illegal transition",
            "look at the order of your events",
        ),
        RejectReason::TooEarly => (
            "out-of-order",
            "Out of order",
            "send the opening event, then this one again",
        ),
        RejectReason::QueueFull => (
            "queue-full",
            "Queue full",
            "send the events that the waiting ones need, then this one again",
        ),
        RejectReason::Refused => (
            "unstorable-event",
            "Event cannot be stored",
            "correct it before sending it again",
        ),
        RejectReason::DifferentPayload => (
            "event-id-reused",
            "Event id reused",
            "give each event its own provider_event_id, and repeat an event byte for byte",
        ),
    };
    (
        StatusCode::CONFLICT,
        name,
        title,
        format!("{reason}; it changed nothing: {todo}").into(),
    )
}

impl From<Flaw> for Problem {
    fn from(Flaw { pointer, sentence }: Flaw) -> Problem {
        match pointer {
            None => Problem::Malformed(sentence),
            Some(pointer) => Problem::Invalid { pointer, sentence },
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, name, ..) = self.parts();
        debug_assert!(
            name.is_empty() || PROBLEM_NAMES.contains(&name),
            "{name} has no page"
        );
        let mut response = self.details().into_response();
        let headers = response.headers_mut();
        match &self {
            Problem::NotAuthentic {
                challenge: Some(challenge),
                ..
            } => {
                headers.insert(header::WWW_AUTHENTICATE, challenge.clone());
            }
            Problem::TooMany { seconds } => {
                headers.insert(header::RETRY_AFTER, (*seconds).into());
            }
            Problem::ContentEncoding => {
                let identity = HeaderValue::from_static("identity");
                headers.insert(header::ACCEPT_ENCODING, identity);
            }
            _ if status == StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS.into());
            }
            _ => {}
        }
        let name = if name.is_empty() { "other" } else { name };
        response.extensions_mut().insert(Refusal(name));
        response
    }
}

/// Turns an error answer that is no problem yet into one, and keeps what the answer says in `allow`.
pub(crate) async fn dress(response: Response) -> Response {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    if !is_error || response.extensions().get::<Refusal>().is_some() {
        return response;
    }
    let mut dressed = Problem::of(status).into_response();
    if let Some(allow) = response.headers().get(header::ALLOW) {
        dressed.headers_mut().insert(header::ALLOW, allow.clone());
    }
    dressed
}
