//! The signature of [Standard Webhooks](https://www.standardwebhooks.com/), symmetric, version 1.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// What a secret's text begins with.
const SECRET_PREFIX: &str = "whsec_";
/// How many bytes the standard allows a secret.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// A text that is no secret; it is not repeated here, for the text may be one that was only mistyped.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a webhook secret is `whsec_` and 24 to 64 bytes in base64, as the provider shows it")]
pub struct SecretError;

/// A secret, ready to sign. Never shown, not by `Debug` either.
#[derive(Clone)]
pub struct SigningKey(Hmac<Sha256>);

impl SigningKey {
    /// Reads a secret such as `whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw`.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn parse(secret: &str) -> Result<SigningKey, SecretError> {
        let text = secret.strip_prefix(SECRET_PREFIX).ok_or(SecretError)?;
        let key = STANDARD.decode(text).map_err(|_| SecretError)?;
        if !SECRET_BYTES.contains(&key.len()) {
            return Err(SecretError);
        }
        let mac = Hmac::new_from_slice(&key).map_err(|_| SecretError)?;
        Ok(SigningKey(mac))
    }

    /// The code of a message, over `id.timestamp.body`. `timestamp` is the header's own text: whoever verifies must
    /// not write it anew.
    pub fn code(&self, id: &str, timestamp: &str, body: &[u8]) -> [u8; 32] {
        let mut mac = self.0.clone();
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    /// The header `webhook-signature` of a message.
    pub fn sign(&self, id: &str, timestamp: &str, body: &[u8]) -> String {
        format!("v1,{}", STANDARD.encode(self.code(id, timestamp, body)))
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn the_published_example_has_its_published_signature() {
        let key = SigningKey::parse(SECRET).unwrap();
        assert_eq!(
            key.sign(
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                "1614265330",
                br#"{"test": 2432232314}"#
            ),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
        assert_eq!(format!("{key:?}"), "SigningKey(..)");
    }

    #[test]
    fn what_is_no_secret_is_refused() {
        let of = |bytes: usize| format!("{SECRET_PREFIX}{}", STANDARD.encode(vec![7; bytes]));
        for good in [of(24), of(64)] {
            SigningKey::parse(&good).unwrap();
        }
        for bad in [&of(23), &of(65), "", "whsec_", &SECRET[6..], "whsec_M?"] {
            assert_eq!(SigningKey::parse(bad).unwrap_err(), SecretError, "{bad}");
        }
    }
}
