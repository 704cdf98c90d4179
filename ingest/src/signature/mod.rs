//! Who sent it: signatures over the raw bytes, checked before anything is parsed.
//!
//! A scheme turns headers into a [`Claim`]: what was signed in front of the body, and the signatures. The check is the
//! same for all: HMAC-SHA256 with each secret, compared with each signature in constant time.

mod secret;
mod standard;
mod stripe;

use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue};
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use secrecy::ExposeSecret;
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};

pub(crate) use secret::{Secret, SecretFrom};

/// How many signatures of a request are looked at: more than any rotation needs.
const SIGNATURES_MAX: usize = 16;
/// The longest header of a signature that is read, in bytes.
const HEADER_BYTES_MAX: usize = 4096;

/// An HMAC-SHA256.
type Digest = [u8; 32];

/// How a provider signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scheme {
    /// Standard Webhooks: `webhook-id`, `webhook-timestamp`, `webhook-signature`.
    Standard,
    /// Stripe's: `stripe-signature: t=...,v1=...`.
    Stripe,
}

/// What a source asks of a request.
#[derive(Debug)]
pub(crate) enum Verifier {
    /// Nothing: whoever reaches the door may send.
    Off,
    /// One of `secrets`, within `tolerance` of now.
    On {
        scheme: Scheme,
        secrets: Vec<Secret>,
        tolerance: Duration,
    },
}

/// What a request's headers claim. Nothing of it is true until the body is checked.
#[derive(Debug)]
pub(crate) struct Claim {
    /// What was signed in front of the body.
    prefix: Vec<u8>,
    /// Unix seconds.
    timestamp: i64,
    signatures: Vec<Digest>,
}

/// Why a request is not authentic. The sentence goes to its sender, and tells nothing of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAuthentic {
    #[error("the header {0} is missing")]
    Missing(&'static str),
    #[error("the header {0} must come once")]
    Doubled(&'static str),
    #[error("the header {0} cannot be read")]
    Unreadable(&'static str),
    #[error(
        "the timestamp is more than {seconds} s in the past; check your clock, and sign each attempt anew"
    )]
    TooOld { seconds: u64 },
    #[error("the timestamp is more than {seconds} s in the future; check your clock")]
    TooNew { seconds: u64 },
    #[error("no signature fits a secret of this source and the bytes of the body")]
    NoMatch,
}

impl Scheme {
    fn claim(self, headers: &HeaderMap) -> Result<Claim, NotAuthentic> {
        match self {
            Scheme::Standard => standard::claim(headers),
            Scheme::Stripe => stripe::claim(headers),
        }
    }

    /// What `www-authenticate` says, which a 401 must have, and what the contract calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Scheme::Standard => "StandardWebhooks",
            Scheme::Stripe => "StripeSignature",
        }
    }

    /// The header that holds the signatures.
    pub(crate) const fn header(self) -> &'static str {
        match self {
            Scheme::Standard => standard::SIGNATURE,
            Scheme::Stripe => stripe::SIGNATURE,
        }
    }
}

impl Verifier {
    /// Reads the headers, before the body is. `None`: this source is not verified.
    pub(crate) fn claim(
        &self,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Result<Option<Claim>, NotAuthentic> {
        let Verifier::On {
            scheme, tolerance, ..
        } = self
        else {
            return Ok(None);
        };
        let claim = scheme.claim(headers)?;
        let seconds = tolerance.as_secs();
        let age = now.as_second().saturating_sub(claim.timestamp);
        if age.unsigned_abs() <= seconds {
            Ok(Some(claim))
        } else if age > 0 {
            Err(NotAuthentic::TooOld { seconds })
        } else {
            Err(NotAuthentic::TooNew { seconds })
        }
    }

    /// Checks the bytes as they came against what the headers claim.
    pub(crate) fn check(&self, claim: Option<&Claim>, body: &[u8]) -> Result<(), NotAuthentic> {
        match (self, claim) {
            (Verifier::Off, _) => Ok(()),
            (Verifier::On { secrets, .. }, Some(claim)) => {
                // Every pair is compared, so that time does not tell which secret or signature fits.
                let mut fits = Choice::from(0);
                for secret in secrets {
                    let digest = digest(secret, &claim.prefix, body);
                    for signature in &claim.signatures {
                        fits |= digest.ct_eq(signature);
                    }
                }
                if fits.into() {
                    Ok(())
                } else {
                    Err(NotAuthentic::NoMatch)
                }
            }
            (Verifier::On { .. }, None) => Err(NotAuthentic::NoMatch),
        }
    }

    pub(crate) const fn is_on(&self) -> bool {
        matches!(self, Verifier::On { .. })
    }

    /// What `www-authenticate` says.
    pub(crate) fn challenge(&self) -> Option<HeaderValue> {
        match self {
            Verifier::Off => None,
            Verifier::On { scheme, .. } => Some(HeaderValue::from_static(scheme.name())),
        }
    }
}

fn digest(secret: &Secret, prefix: &[u8], body: &[u8]) -> Digest {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret())
        .unwrap_or_else(|_| unreachable!("HMAC takes a key of any length"));
    mac.update(prefix);
    mac.update(body);
    mac.finalize().into_bytes().into()
}

/// The one value of a header that must come once: a second one could be what another reader takes.
fn once<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<&'h str, NotAuthentic> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().ok_or(NotAuthentic::Missing(name))?;
    if values.next().is_some() {
        return Err(NotAuthentic::Doubled(name));
    }
    value
        .to_str()
        .ok()
        .filter(|text| !text.is_empty() && text.len() <= HEADER_BYTES_MAX)
        .ok_or(NotAuthentic::Unreadable(name))
}

/// Unix seconds, in digits only: `+5` and ` 5` are signed as other bytes than `5`.
fn seconds(text: &str) -> Option<i64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests;
