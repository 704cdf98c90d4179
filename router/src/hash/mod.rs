//! [`TokenHash`]: which hash a map uses, as a closed set.

pub mod lookup3;
pub(crate) mod murmur3;
mod words;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Excerpt, MapError, RouteKey, Token};

/// The hash that turns a key into a token.
///
/// Postgres's is the default, because then the database can check it (a CHECK on a manual shard, a
/// row filter of a publication) and because Citus uses it. Murmur3 is for those who share keys with
/// systems that use murmur3 already.
///
/// [`TokenHash::id`] is stable: it is written to Kafka headers and to identity rows, and a hash that
/// computed anything else would need another id.
#[derive(
    Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum TokenHash {
    /// Postgres's standard 32-bit hash support functions: `hashint8`, `uuid_hash`, `hashtext`.
    #[default]
    Postgres,
    /// `murmur3_x86_32` with seed 0, over a uuid's 16 bytes, an integer's 8 little-endian bytes or
    /// a text's UTF-8 bytes.
    Murmur3,
}

impl TokenHash {
    /// The signed 32-bit hash of `key`.
    ///
    /// For [`TokenHash::Postgres`] it is what `select uuid_hash(...)`, `hashint8(...)` or
    /// `hashtext(...)` answers.
    ///
    /// ```
    /// use shardlane_router::{RouteKey, TokenHash};
    ///
    /// assert_eq!(TokenHash::Postgres.hash_i32(&RouteKey::Int8(42)), 1509752520);
    /// assert_eq!(TokenHash::Postgres.hash_i32(&RouteKey::Text("kafka")), -1712114907);
    /// ```
    // Always: only where this is inlined does the compiler know which of the six arms it is. Called,
    // it costs as much again as the hash itself, because the key goes through memory (measured).
    #[inline(always)]
    #[must_use]
    pub fn hash_i32(self, key: &RouteKey<'_>) -> i32 {
        match (self, key) {
            (TokenHash::Postgres, RouteKey::Uuid(uuid)) => lookup3::hash_uuid(uuid),
            (TokenHash::Postgres, RouteKey::Int8(number)) => lookup3::hash_int8(*number),
            (TokenHash::Postgres, RouteKey::Text(text)) => lookup3::hash_text(text),
            (TokenHash::Murmur3, RouteKey::Uuid(uuid)) => murmur3::hash_uuid(uuid).cast_signed(),
            (TokenHash::Murmur3, RouteKey::Int8(number)) => {
                murmur3::hash_int8(*number).cast_signed()
            }
            (TokenHash::Murmur3, RouteKey::Text(text)) => {
                murmur3::hash_bytes(text.as_bytes()).cast_signed()
            }
        }
    }

    /// The token of `key`: [`TokenHash::hash_i32`] with the sign bit flipped.
    #[inline(always)]
    #[must_use]
    pub fn token(self, key: &RouteKey<'_>) -> Token {
        Token::from_hash(self.hash_i32(key))
    }

    /// The stable id that goes into the Kafka header `shardlane-hash-id` and into identity rows.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            TokenHash::Postgres => "pg-lookup3-1",
            TokenHash::Murmur3 => "murmur3-x86-32-seed0-1",
        }
    }

    /// The hash with this stable id.
    ///
    /// # Errors
    ///
    /// [`MapError::UnknownHash`] for any other text.
    pub fn from_id(id: &str) -> Result<TokenHash, MapError> {
        [TokenHash::Postgres, TokenHash::Murmur3]
            .into_iter()
            .find(|hash| hash.id() == id)
            .ok_or_else(|| MapError::UnknownHash {
                name: Excerpt::of(id),
            })
    }

    /// The name in settings: `postgres` or `murmur3`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            TokenHash::Postgres => "postgres",
            TokenHash::Murmur3 => "murmur3",
        }
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for TokenHash {
    type Err = MapError;

    fn from_str(name: &str) -> Result<TokenHash, MapError> {
        match name {
            "postgres" => Ok(TokenHash::Postgres),
            "murmur3" => Ok(TokenHash::Murmur3),
            _ => Err(MapError::UnknownHash {
                name: Excerpt::of(name),
            }),
        }
    }
}
