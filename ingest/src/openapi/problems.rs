//! One of each problem, as it is answered, for the contract.

use axum::http::HeaderValue;
use shardlane_domain::PAYLOAD_BYTES_MAX;
use shardlane_sql::RejectReason;

use crate::problem::Problem;
use crate::signature::NotAuthentic;

/// What any route may answer.
pub(super) fn of_any() -> Vec<Problem> {
    vec![Problem::Deadline]
}

/// What a path that is not ours is answered.
pub(super) fn of_names() -> Vec<Problem> {
    vec![Problem::NotFound {
        paths: "/webhooks/payments/orders".into(),
    }]
}

pub(super) fn of_readiness() -> Vec<Problem> {
    vec![Problem::NotReady {
        what: "the Kafka broker does not answer".into(),
    }]
}

/// What another method than `POST` is answered there.
pub(super) fn of_methods() -> Vec<Problem> {
    vec![Problem::MethodNotAllowed]
}

/// What a webhook may be answered, whatever the mode.
pub(super) fn of_webhooks(challenge: Option<HeaderValue>, bytes_max: usize) -> Vec<Problem> {
    let mut problems = vec![
        Problem::Malformed(
            "the body is not JSON: EOF while parsing a value at line 1 column 0".into(),
        ),
        Problem::BodyBroken,
        Problem::BodyTooSlow,
        Problem::BodyTooLarge {
            bytes_max: bytes_max.min(PAYLOAD_BYTES_MAX),
        },
        Problem::ContentType,
        Problem::ContentEncoding,
        Problem::Invalid {
            pointer: "/currency".into(),
            sentence: "currency \"XXZ\" is not an ISO 4217 code such as EUR".into(),
        },
        Problem::TooMany { seconds: 1 },
        Problem::Unavailable {
            what: "Kafka did not acknowledge the event",
        },
        Problem::Internal,
    ];
    if challenge.is_some() {
        problems.push(Problem::NotAuthentic {
            reason: NotAuthentic::NoMatch,
            challenge,
        });
    }
    problems
}

/// What a webhook may be answered where it is applied within its request.
pub(super) fn of_states() -> Vec<Problem> {
    vec![
        Problem::Unstorable,
        Problem::Rejected(RejectReason::Illegal {
            from: "success",
            asked: "failed",
        }),
        Problem::Rejected(RejectReason::TooEarly),
        Problem::Rejected(RejectReason::QueueFull),
        Problem::Rejected(RejectReason::DifferentPayload),
    ]
}
