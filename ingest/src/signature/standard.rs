//! Standard Webhooks (standardwebhooks.com): `webhook-id.webhook-timestamp.body` under `whsec_` secrets.

use axum::http::HeaderMap;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::{Claim, Digest, NotAuthentic, SIGNATURES_MAX, once, seconds};

pub(crate) const ID: &str = "webhook-id";
pub(crate) const TIMESTAMP: &str = "webhook-timestamp";
pub(crate) const SIGNATURE: &str = "webhook-signature";

pub(super) fn claim(headers: &HeaderMap) -> Result<Claim, NotAuthentic> {
    let id = once(headers, ID)?;
    let at = once(headers, TIMESTAMP)?;
    let signatures = once(headers, SIGNATURE)?;
    let timestamp = seconds(at).ok_or(NotAuthentic::Unreadable(TIMESTAMP))?;
    Ok(Claim {
        prefix: format!("{id}.{at}.").into_bytes(),
        timestamp,
        signatures: signatures
            .split(' ')
            .filter_map(decode)
            .take(SIGNATURES_MAX)
            .collect(),
    })
}

/// Other versions than `v1`, such as the asymmetric `v1a`, are somebody else's.
fn decode(signature: &str) -> Option<Digest> {
    let text = signature.strip_prefix("v1,")?;
    BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}
