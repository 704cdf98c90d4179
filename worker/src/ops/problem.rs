//! Error answers.

use std::borrow::Cow;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// What each problem's type begins with; the name after it never changes its meaning. The `problem_details` crate
/// keeps a type as `http::Uri`, which cannot hold a URN.
pub const PROBLEM_TYPE_PREFIX: &str = "urn:shardlane:problem:";

const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

/// The members of RFC 9457, section 3.1.
#[derive(Debug, Serialize)]
pub struct ProblemDetails<'a> {
    /// [`PROBLEM_TYPE_PREFIX`] and a name, or `about:blank`.
    pub r#type: Cow<'a, str>,
    /// The same for all problems of the type.
    pub title: &'a str,
    /// The HTTP status.
    pub status: u16,
    /// What to do.
    pub detail: Cow<'a, str>,
    /// What is not there, for programs; an extension of ours.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub failing: &'a [String],
    /// Where in the payload, as a JSON pointer; an extension of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pointer: Option<&'a str>,
}

impl IntoResponse for ProblemDetails<'_> {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], Json(self)).into_response()
    }
}

/// What `/readyz` answers where something does not.
#[must_use]
pub fn not_ready<'a>(detail: Cow<'a, str>, failing: &'a [String]) -> ProblemDetails<'a> {
    ProblemDetails {
        r#type: format!("{PROBLEM_TYPE_PREFIX}not-ready").into(),
        title: "Not ready",
        status: StatusCode::SERVICE_UNAVAILABLE.as_u16(),
        detail,
        failing,
        pointer: None,
    }
}
