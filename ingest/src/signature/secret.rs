//! Secrets: where they come from, and that they are never printed.

use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use secrecy::SecretSlice;
use secrecy::zeroize::Zeroizing;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Scheme;

/// An HMAC's key. Its `Debug` hides it, and it is overwritten when it is dropped.
pub(crate) type Secret = SecretSlice<u8>;

/// What a secret of Standard Webhooks begins with.
const PREFIX: &str = "whsec_";
/// Standard Webhooks' own bounds of a key, in bytes.
const STANDARD_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Stripe's secrets are text; below this one could be guessed.
const STRIPE_BYTES_MIN: usize = 16;

/// Where a secret is read at the start. Never in the settings file itself, which is shown and copied around.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SecretFrom {
    File(PathBuf),
    Env(String),
}

/// Why a secret cannot be used. Nothing here quotes it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    #[error("the file {0} cannot be read: {1}")]
    File(PathBuf, std::io::ErrorKind),
    #[error("the environment has no readable {0}; set it")]
    Env(String),
    #[error(
        "{0} holds no whsec_ and base64 of 24 to 64 bytes; copy the secret whole, as the provider shows it"
    )]
    NotStandard(String),
    #[error(
        "{0} holds fewer than {STRIPE_BYTES_MIN} bytes; copy the secret whole, as the provider shows it"
    )]
    TooShort(String),
}

impl SecretFrom {
    /// Reads the secret, and what `scheme` makes of it.
    pub(crate) fn read(&self, scheme: Scheme) -> Result<Secret, SecretError> {
        let (text, place) = match self {
            SecretFrom::File(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| SecretError::File(path.clone(), error.kind()))?;
                (text, format!("the file {}", path.display()))
            }
            SecretFrom::Env(name) => {
                let text = std::env::var(name).map_err(|_| SecretError::Env(name.clone()))?;
                (text, format!("the environment's {name}"))
            }
        };
        let text = Zeroizing::new(text);
        key(scheme, text.trim(), place)
    }
}

pub(super) fn key(scheme: Scheme, text: &str, place: String) -> Result<Secret, SecretError> {
    match scheme {
        Scheme::Standard => text
            .strip_prefix(PREFIX)
            .and_then(|base64| BASE64_STANDARD.decode(base64).ok())
            .filter(|key| STANDARD_BYTES.contains(&key.len()))
            .map(Secret::from)
            .ok_or(SecretError::NotStandard(place)),
        // The whole text is the key, `whsec_` included.
        Scheme::Stripe if text.len() < STRIPE_BYTES_MIN => Err(SecretError::TooShort(place)),
        Scheme::Stripe => Ok(Secret::from(text.as_bytes().to_vec())),
    }
}

/// By hand, because serde quotes a text that it did not expect, and here that text would be the secret.
impl<'de> Deserialize<'de> for SecretFrom {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct From;
        const FIX: &str =
            "a secret is never written here: give { file = \"PATH\" } or { env = \"NAME\" }";
        impl<'de> Visitor<'de> for From {
            type Value = SecretFrom;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("{ file = \"PATH\" } or { env = \"NAME\" }")
            }
            fn visit_str<E: de::Error>(self, _: &str) -> Result<SecretFrom, E> {
                Err(E::custom(FIX))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SecretFrom, A::Error> {
                let from = match map.next_key::<String>()?.as_deref() {
                    Some("file") => SecretFrom::File(map.next_value()?),
                    Some("env") => SecretFrom::Env(map.next_value()?),
                    _ => return Err(de::Error::custom(FIX)),
                };
                match map.next_key::<String>()? {
                    None => Ok(from),
                    Some(_) => Err(de::Error::custom(FIX)),
                }
            }
        }
        deserializer.deserialize_any(From)
    }
}
