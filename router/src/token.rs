//! The two numbers between a hash and a place: [`Token`] and [`Slot`].

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{KeyRange, MapError};

/// How many slots there are. Frozen for ever: every stored slot number, every CHECK on a manual
/// shard and every Kafka header depends on it.
pub const SLOT_COUNT: usize = 4096;

/// `token >> SLOT_SHIFT` is the slot: 32 bits of token, 12 bits of slot.
const SLOT_SHIFT: u32 = 20;

/// The largest slot number.
const SLOT_MAX: u16 = 4095;

/// A key's place on the unsigned 32-bit line: the signed hash with its sign bit flipped.
///
/// `Token = (hash as u32) ^ 0x8000_0000`. Flipping the sign bit keeps the order of the signed hash,
/// so Citus's signed ranges become unsigned ranges that can be searched and cut without signs.
#[derive(
    Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Token(u32);

/// One of the 4096 equal pieces of the token line; the unit in which ownership is handed out.
///
/// Every boundary of a power-of-two number of equal Citus shards, up to 4096, is a slot boundary.
#[derive(
    Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "u16", into = "u16")]
pub struct Slot(u16);

impl Token {
    /// The first token, that of the hash `i32::MIN`.
    pub const MIN: Token = Token(0);
    /// The last token, that of the hash `i32::MAX`.
    pub const MAX: Token = Token(u32::MAX);

    /// The token with this value; every `u32` is one.
    #[inline]
    #[must_use]
    pub const fn new(value: u32) -> Token {
        Token(value)
    }

    /// The token of a signed hash, as Postgres's hash support functions return it.
    #[inline]
    #[must_use]
    pub const fn from_hash(hash: i32) -> Token {
        Token(hash.cast_unsigned() ^ 0x8000_0000)
    }

    /// The signed hash of this token: the reverse of [`Token::from_hash`].
    #[inline]
    #[must_use]
    pub const fn hash_i32(self) -> i32 {
        (self.0 ^ 0x8000_0000).cast_signed()
    }

    /// The token as a number from 0 to `u32::MAX`.
    #[inline]
    #[must_use]
    pub const fn value(self) -> u32 {
        self.0
    }

    /// The slot that holds this token.
    #[inline]
    #[must_use]
    pub const fn slot(self) -> Slot {
        Slot((self.0 >> SLOT_SHIFT) as u16)
    }
}

impl Slot {
    /// The slot with this number.
    ///
    /// # Errors
    ///
    /// [`MapError::SlotOutOfRange`] from 4096 on.
    pub const fn new(number: u16) -> Result<Slot, MapError> {
        if number > SLOT_MAX {
            return Err(MapError::SlotOutOfRange { number });
        }
        Ok(Slot(number))
    }

    /// All slots in order.
    #[must_use]
    pub fn all() -> impl ExactSizeIterator<Item = Slot> + DoubleEndedIterator {
        (0..SLOT_MAX + 1).map(Slot)
    }

    /// The slot's number, 0 to 4095.
    #[inline]
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The slot's number as an index into a table of [`SLOT_COUNT`] entries.
    ///
    /// The mask changes nothing, because no slot is above 4095; it tells the compiler so, and the
    /// bounds check of the lookup disappears.
    #[inline]
    #[must_use]
    pub const fn index(self) -> usize {
        (self.0 & SLOT_MAX) as usize
    }

    /// The tokens of this slot, both ends included: 2^20 of them.
    #[must_use]
    pub const fn key_range(self) -> KeyRange {
        let first = (self.0 as u32) << SLOT_SHIFT;
        KeyRange::of_ordered(Token(first), Token(first | ((1 << SLOT_SHIFT) - 1)))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<u16> for Slot {
    type Error = MapError;

    fn try_from(number: u16) -> Result<Slot, MapError> {
        Slot::new(number)
    }
}

impl From<Slot> for u16 {
    fn from(slot: Slot) -> u16 {
        slot.0
    }
}
