//! `murmur3_x86_32` with seed 0.
//!
//! Chosen by measurement (`benches/route.rs`): the reader-based function of the `murmur3` crate takes
//! four to five times as long, because it asks a reader for each word. The `murmurhash32` crate, over
//! slices, is as fast as this to within the noise. This one is kept because it also runs backwards,
//! which [`anchor_uuid`](crate::anchor_uuid) needs, and shares its constants with that; both crates
//! stay as judges, in the bench and in the tests.

use uuid::Uuid;

use super::words::{int8_words, partial_word, uuid_words};

const WORD_1: u32 = 0xcc9e_2d51;
const WORD_2: u32 = 0x1b87_3593;
const ADD: u32 = 0xe654_6b64;
const FINISH_1: u32 = 0x85eb_ca6b;
const FINISH_2: u32 = 0xc2b2_ae35;

/// The hash of a uuid's 16 bytes.
#[inline]
pub(crate) const fn hash_uuid(uuid: &Uuid) -> u32 {
    let [x, y, z, w] = uuid_words(uuid);
    finish(block(block(block(block(0, x), y), z), w), 16)
}

/// The hash of an integer's 8 little-endian bytes.
#[inline]
pub(crate) const fn hash_int8(value: i64) -> u32 {
    let [low, high] = int8_words(value);
    finish(block(block(0, low), high), 8)
}

/// The hash of any bytes.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the length wraps as in the original, whose lengths are 32-bit"
)]
pub(crate) fn hash_bytes(bytes: &[u8]) -> u32 {
    let (words, tail) = bytes.as_chunks::<4>();
    let hash = words
        .iter()
        .fold(0, |hash, word| block(hash, u32::from_le_bytes(*word)));
    // An absent tail is the word 0, which scrambles to 0 and changes nothing.
    finish(hash ^ scramble(partial_word(tail)), bytes.len() as u32)
}

#[inline]
const fn scramble(word: u32) -> u32 {
    word.wrapping_mul(WORD_1)
        .rotate_left(15)
        .wrapping_mul(WORD_2)
}

#[inline]
const fn block(hash: u32, word: u32) -> u32 {
    (hash ^ scramble(word))
        .rotate_left(13)
        .wrapping_mul(5)
        .wrapping_add(ADD)
}

#[inline]
const fn finish(hash: u32, len: u32) -> u32 {
    let mut hash = hash ^ len;
    hash = (hash ^ (hash >> 16)).wrapping_mul(FINISH_1);
    hash = (hash ^ (hash >> 13)).wrapping_mul(FINISH_2);
    hash ^ (hash >> 16)
}

/// The word that, as the fourth and last after three zero words, gives 16 bytes the hash `target`.
///
/// Each step of murmur3 can be undone: the multiplications by their inverses modulo 2^32, the
/// shifts by themselves, the rotations by turning back.
pub(crate) const fn last_word_for(target: u32) -> u32 {
    // The state after three zero words.
    let before = block(block(block(0, 0), 0), 0);
    // `finish` backwards. x ^= x >> 16 is its own inverse; x ^= x >> 13 needs a second step.
    let mut hash = target;
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(inverse(FINISH_2));
    hash ^= (hash >> 13) ^ (hash >> 26);
    hash = hash.wrapping_mul(inverse(FINISH_1));
    hash ^= hash >> 16;
    hash ^= 16; // the length
    hash = hash
        .wrapping_sub(ADD)
        .wrapping_mul(inverse(5))
        .rotate_right(13);
    (hash ^ before)
        .wrapping_mul(inverse(WORD_2))
        .rotate_right(15)
        .wrapping_mul(inverse(WORD_1))
}

/// The inverse of an odd number modulo 2^32, by Newton's iteration: each round doubles the number of
/// correct low bits, and `odd * odd == 1` modulo 8 starts it with three.
const fn inverse(odd: u32) -> u32 {
    let mut guess = odd;
    let mut round = 0;
    while round < 4 {
        guess = guess.wrapping_mul(2_u32.wrapping_sub(odd.wrapping_mul(guess)));
        round += 1;
    }
    guess
}
