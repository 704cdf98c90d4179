//! Keys of a fixed size as little-endian words, which is how both hashes read them.
//!
//! Each goes through one integer as wide as the key, so that a key which is in registers stays there.
#![expect(
    clippy::cast_possible_truncation,
    reason = "cutting an integer into its words is the point"
)]

use uuid::Uuid;

/// The four words of a uuid's bytes.
#[inline]
pub(super) const fn uuid_words(uuid: &Uuid) -> [u32; 4] {
    let all = u128::from_le_bytes(*uuid.as_bytes());
    [
        all as u32,
        (all >> 32) as u32,
        (all >> 64) as u32,
        (all >> 96) as u32,
    ]
}

/// The low and the high word of an integer.
#[inline]
pub(super) const fn int8_words(value: i64) -> [u32; 2] {
    let all = value.cast_unsigned();
    [all as u32, (all >> 32) as u32]
}

/// Up to three bytes as the low bytes of a word.
#[inline]
pub(super) fn partial_word(bytes: &[u8]) -> u32 {
    match *bytes {
        [x] => u32::from_le_bytes([x, 0, 0, 0]),
        [x, y] => u32::from_le_bytes([x, y, 0, 0]),
        [x, y, z, ..] => u32::from_le_bytes([x, y, z, 0]),
        [] => 0,
    }
}
