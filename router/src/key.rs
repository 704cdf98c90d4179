//! [`RouteKey`]: what is hashed, and [`KeyType`]: how it is read.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Excerpt, KeyError};

/// The type of the column that rows are distributed by, and so of the key that is hashed.
///
/// Equal values of different types hash differently: `42` as `int8` and `"42"` as `text` are two
/// keys on two shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyType {
    /// Postgres `uuid`.
    Uuid,
    /// Postgres `bigint`. `int4` and `int2` hash equal values equally, so they are routed as this.
    Int8,
    /// Postgres `text` or `varchar` under a deterministic collation.
    Text,
}

/// A key that a row, a record and a request are routed by: in Shardlane, the user's id.
///
/// The variants may be built directly. [`RouteKey::parse`] and [`RouteKey::from_bytes`] are the
/// doors for what comes from outside: they refuse what would silently be another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteKey<'a> {
    /// A uuid, hashed over its 16 bytes whatever its spelling was.
    Uuid(Uuid),
    /// A 64-bit integer.
    Int8(i64),
    /// A text, hashed over its UTF-8 bytes.
    Text(&'a str),
}

impl<'a> RouteKey<'a> {
    /// Reads a key of type `kind` from text.
    ///
    /// - uuid: hyphenated, 36 characters, in either case; the case does not change the key.
    /// - int8: decimal as Postgres prints it. No plus sign, no leading zeros, no blanks, no `-0`:
    ///   where ids also travel as text those would be other keys.
    /// - text: anything but the empty text and NUL, taken as it is.
    ///
    /// # Errors
    ///
    /// A [`KeyError`] that says what to write instead. No error allocates.
    ///
    /// ```
    /// use shardlane_router::{KeyError, KeyType, RouteKey};
    ///
    /// assert_eq!(RouteKey::parse(KeyType::Int8, "42"), Ok(RouteKey::Int8(42)));
    /// assert!(matches!(
    ///     RouteKey::parse(KeyType::Int8, "007"),
    ///     Err(KeyError::NotCanonicalInteger { .. })
    /// ));
    /// let lower = RouteKey::parse(KeyType::Uuid, "550e8400-e29b-41d4-a716-446655440000");
    /// let upper = RouteKey::parse(KeyType::Uuid, "550E8400-E29B-41D4-A716-446655440000");
    /// assert_eq!(lower, upper);
    /// ```
    pub fn parse(kind: KeyType, text: &'a str) -> Result<RouteKey<'a>, KeyError> {
        if text.is_empty() {
            return Err(KeyError::Empty);
        }
        match kind {
            KeyType::Uuid => parse_uuid(text).map(RouteKey::Uuid),
            KeyType::Int8 => parse_int8(text).map(RouteKey::Int8),
            KeyType::Text => match text.bytes().position(|byte| byte == 0) {
                Some(at) => Err(KeyError::NulByte {
                    key: Excerpt::of(text),
                    at,
                }),
                None => Ok(RouteKey::Text(text)),
            },
        }
    }

    /// Reads a key of type `kind` from the bytes of a Kafka key, which hold it as text.
    ///
    /// # Errors
    ///
    /// [`KeyError::NotUtf8`], and all those of [`RouteKey::parse`].
    pub fn from_bytes(kind: KeyType, bytes: &'a [u8]) -> Result<RouteKey<'a>, KeyError> {
        let text = std::str::from_utf8(bytes).map_err(|error| KeyError::NotUtf8 {
            expected: kind,
            valid_bytes: error.valid_up_to(),
        })?;
        RouteKey::parse(kind, text)
    }

    /// [`RouteKey::from_bytes`] for a Kafka record's key, which may be absent.
    ///
    /// # Errors
    ///
    /// [`KeyError::Missing`] for no key, and all those of [`RouteKey::from_bytes`].
    pub fn from_kafka_key(
        kind: KeyType,
        bytes: Option<&'a [u8]>,
    ) -> Result<RouteKey<'a>, KeyError> {
        RouteKey::from_bytes(kind, bytes.ok_or(KeyError::Missing)?)
    }

    /// The type of this key.
    #[inline]
    #[must_use]
    pub fn key_type(&self) -> KeyType {
        match self {
            RouteKey::Uuid(_) => KeyType::Uuid,
            RouteKey::Int8(_) => KeyType::Int8,
            RouteKey::Text(_) => KeyType::Text,
        }
    }
}

/// The canonical text of the key, which is what goes into a Kafka key.
impl fmt::Display for RouteKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RouteKey::Uuid(uuid) => uuid.fmt(f),
            RouteKey::Int8(number) => number.fmt(f),
            RouteKey::Text(text) => text.fmt(f),
        }
    }
}

impl From<Uuid> for RouteKey<'_> {
    #[inline]
    fn from(uuid: Uuid) -> Self {
        RouteKey::Uuid(uuid)
    }
}

impl From<i64> for RouteKey<'_> {
    #[inline]
    fn from(number: i64) -> Self {
        RouteKey::Int8(number)
    }
}

impl KeyType {
    /// The key type of a distribution column.
    ///
    /// `column_type` is the type's name as `format_type` or `pg_type.typname` gives it, with or
    /// without a length; `deterministic_collation` is `pg_collation.collisdeterministic` of the
    /// column's collation, and true for types that have none.
    ///
    /// # Errors
    ///
    /// [`KeyError::PaddedColumn`] for `char(n)`, [`KeyError::NondeterministicCollation`], and
    /// [`KeyError::UnsupportedColumnType`] for every other type.
    ///
    /// ```
    /// use shardlane_router::{KeyError, KeyType};
    ///
    /// assert_eq!(KeyType::from_column("uuid", true), Ok(KeyType::Uuid));
    /// assert_eq!(KeyType::from_column("character varying(64)", true), Ok(KeyType::Text));
    /// assert_eq!(KeyType::from_column("character(8)", true), Err(KeyError::PaddedColumn));
    /// assert_eq!(KeyType::from_column("text", false), Err(KeyError::NondeterministicCollation));
    /// ```
    pub fn from_column(
        column_type: &str,
        deterministic_collation: bool,
    ) -> Result<KeyType, KeyError> {
        let name = column_type.split('(').next().unwrap_or_default().trim();
        match name {
            "uuid" => Ok(KeyType::Uuid),
            "int8" | "bigint" | "int4" | "integer" | "int2" | "smallint" => Ok(KeyType::Int8),
            "text" | "varchar" | "character varying" if deterministic_collation => {
                Ok(KeyType::Text)
            }
            "text" | "varchar" | "character varying" => Err(KeyError::NondeterministicCollation),
            "bpchar" | "character" | "char" => Err(KeyError::PaddedColumn),
            _ => Err(KeyError::UnsupportedColumnType {
                column_type: Excerpt::of(column_type),
            }),
        }
    }

    /// `uuid`, `int8` or `text`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            KeyType::Uuid => "uuid",
            KeyType::Int8 => "int8",
            KeyType::Text => "text",
        }
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for KeyType {
    type Err = KeyError;

    fn from_str(name: &str) -> Result<KeyType, KeyError> {
        match name {
            "uuid" => Ok(KeyType::Uuid),
            "int8" => Ok(KeyType::Int8),
            "text" => Ok(KeyType::Text),
            _ => Err(KeyError::UnknownKeyType {
                name: Excerpt::of(name),
            }),
        }
    }
}

/// Length of a hyphenated uuid.
const UUID_TEXT_LEN: usize = 36;

fn parse_uuid(text: &str) -> Result<Uuid, KeyError> {
    // The uuid crate also reads braces, urn: and the form without hyphens. One spelling (in either
    // case) is enough, and keeps Kafka keys of one user comparable by other people's tools.
    let parsed = (text.len() == UUID_TEXT_LEN)
        .then(|| Uuid::try_parse(text).ok())
        .flatten();
    parsed.ok_or_else(|| KeyError::NotUuid {
        key: Excerpt::of(text),
    })
}

fn parse_int8(text: &str) -> Result<i64, KeyError> {
    let key = Excerpt::of(text);
    let signless = text.strip_prefix(['+', '-']).unwrap_or(text);
    if signless.is_empty() || !signless.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(KeyError::NotInteger { key });
    }
    let leading_zero = signless.starts_with('0') && signless.len() > 1;
    if text.starts_with('+') || leading_zero || text == "-0" {
        return Err(KeyError::NotCanonicalInteger { key });
    }
    text.parse().map_err(|_| KeyError::IntegerOverflow { key })
}
