//! Stripe's scheme: one header, `t=TIMESTAMP,v1=HEX,v1=HEX`, over `TIMESTAMP.body`.

use axum::http::HeaderMap;

use super::{Claim, Digest, NotAuthentic, SIGNATURES_MAX, once, seconds};

pub(crate) const SIGNATURE: &str = "stripe-signature";

pub(super) fn claim(headers: &HeaderMap) -> Result<Claim, NotAuthentic> {
    let unreadable = NotAuthentic::Unreadable(SIGNATURE);
    let mut at = None;
    let mut signatures = Vec::new();
    for item in once(headers, SIGNATURE)?.split(',') {
        match item.trim().split_once('=') {
            // A second time could be the one that another reader takes.
            Some(("t", text)) if at.replace(text).is_some() => return Err(unreadable),
            Some(("v1", text)) if signatures.len() < SIGNATURES_MAX => {
                signatures.extend(decode(text));
            }
            Some(_) => {}
            None => return Err(unreadable),
        }
    }
    let at = at.ok_or(unreadable)?;
    Ok(Claim {
        timestamp: seconds(at).ok_or(unreadable)?,
        prefix: format!("{at}.").into_bytes(),
        signatures,
    })
}

fn decode(text: &str) -> Option<Digest> {
    hex::decode(text).ok()?.try_into().ok()
}
