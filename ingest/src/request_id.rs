//! `x-request-id`: the caller's, or one of ours, in the answer and in the log.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use uuid::Uuid;

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest id that is taken over.
const BYTES_MAX: usize = 128;

/// Gives the request an id, and the answer the same.
pub(crate) async fn carry(mut request: Request, next: Next) -> Response {
    let id = match given(request.headers()) {
        Some(id) => id,
        None => HeaderValue::try_from(Uuid::now_v7().to_string())
            .unwrap_or_else(|_| HeaderValue::from_static("none")),
    };
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let mut response = next.run(request).await;
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// An id that comes once, is short, and can stand in a log line without ending or forging one.
fn given(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut ids = headers.get_all(&REQUEST_ID).iter();
    let id = ids.next().filter(|_| ids.next().is_none())?;
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte);
    let good = (1..=BYTES_MAX).contains(&id.len()) && id.as_bytes().iter().all(plain);
    good.then(|| id.clone())
}
