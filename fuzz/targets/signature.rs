//! Headers as a stranger may choose them, and a body: nothing panics, and nothing is authentic that was not signed.
//!
//! The first byte chooses the scheme, and whether a true signature is among what comes. Then, up to 255 bytes each with
//! their length in front, the headers; the rest is the body.
#![no_main]

#[allow(
    dead_code,
    unused_imports,
    reason = "the door's own file, of which a target uses a part"
)]
#[path = "../../ingest/src/signature/mod.rs"]
mod signature;

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use shardlane_domain::SigningKey;
use signature::{Scheme, Secret, Verifier};

/// The secret of `SECRET`, as bytes.
const KEY: &[u8] = b"a key of 24 bytes, known";
const SECRET: &str = "whsec_YSBrZXkgb2YgMjQgYnl0ZXMsIGtub3du";
const NOW: i64 = 1_700_000_000;

/// The next field, with its length in front.
fn field<'d>(data: &mut &'d [u8]) -> &'d [u8] {
    let Some((length, rest)) = data.split_first() else {
        return &[];
    };
    let (field, rest) = rest.split_at(rest.len().min(usize::from(*length)));
    *data = rest;
    field
}

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let Some((choice, rest)) = data.split_first() else {
        return;
    };
    data = rest;
    let (scheme, names): (_, &[&'static str]) = if choice & 1 == 0 {
        (
            Scheme::Standard,
            &[
                "webhook-id",
                "webhook-timestamp",
                "webhook-signature",
                "webhook-signature",
            ],
        )
    } else {
        (Scheme::Stripe, &["stripe-signature", "stripe-signature"])
    };
    let mut headers = HeaderMap::new();
    for name in names {
        let value = field(&mut data);
        // An empty one is absent, so that each may also be missing, and come once.
        if let (false, Ok(value)) = (value.is_empty(), HeaderValue::from_bytes(value)) {
            headers.append(HeaderName::from_static(name), value);
        }
    }
    let verifier = Verifier::On {
        scheme,
        secrets: vec![Secret::from(KEY.to_vec())],
        tolerance: Duration::from_secs(300),
    };
    let now = Timestamp::from_second(NOW).unwrap();
    let taken = |headers: &HeaderMap, body: &[u8]| {
        let claim = verifier.claim(headers, now).ok()?;
        verifier.check(claim.as_ref(), body).ok()
    };
    assert!(taken(&headers, data).is_none(), "nobody has signed this");

    // A true signature: taken as it is, and for these bytes only.
    if scheme == Scheme::Standard && choice & 2 != 0 {
        let key = SigningKey::parse(SECRET).unwrap();
        let mut headers = HeaderMap::new();
        let true_one = key.sign("m", &NOW.to_string(), data);
        headers.insert("webhook-id", HeaderValue::from_static("m"));
        headers.insert("webhook-timestamp", NOW.into());
        headers.insert("webhook-signature", true_one.parse().unwrap());
        assert!(taken(&headers, data).is_some(), "it is signed");
        let mut other = data.to_vec();
        other.push(b' ');
        assert!(taken(&headers, &other).is_none(), "other bytes");
    }
});
