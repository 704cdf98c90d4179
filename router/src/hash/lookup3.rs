//! Bob Jenkins's lookup3 as PostgreSQL has it (`src/common/hashfn.c`, little-endian machines).
//!
//! These are the *standard 32-bit* hash support functions, which Citus distributes by. They are not
//! the seeded 64-bit functions behind `PARTITION BY HASH`: the two never agree.
//!
//! The fixed-size functions have no branch and no loop and are inlined into the caller.
//!
//! # A known weakness of `hashint8`
//!
//! It folds the two halves of the integer before it hashes, so that an `int8` hashes like the equal
//! `int4`. Every non-negative `k << 32 | k` therefore has one and the same hash, and ids of the form
//! `tenant << 32 | sequence` crowd onto few slots. `uuid_hash` reads all 16 bytes and is sound.

use uuid::Uuid;

use super::words::{int8_words, partial_word, uuid_words};

/// Where the state starts, before the key's length is added: Jenkins's golden ratio, and the
/// constant that PostgreSQL adds to it.
const START: u32 = 0x9e37_79b9_u32.wrapping_add(3_923_095);

/// The three words of lookup3's state. `pub(crate)` so that an anchor can run it backwards.
#[derive(Clone, Copy)]
pub(crate) struct State {
    pub(crate) a: u32,
    pub(crate) b: u32,
    pub(crate) c: u32,
}

impl State {
    /// The state for a key of `len` bytes.
    #[inline]
    pub(crate) const fn start(len: u32) -> State {
        let word = START.wrapping_add(len);
        State {
            a: word,
            b: word,
            c: word,
        }
    }

    /// Adds 12 bytes of key, as three words.
    #[inline]
    pub(crate) const fn add(self, x: u32, y: u32, z: u32) -> State {
        State {
            a: self.a.wrapping_add(x),
            b: self.b.wrapping_add(y),
            c: self.c.wrapping_add(z),
        }
    }

    /// `mix` of hashfn.c: after each whole block of 12 bytes.
    #[inline]
    const fn mix(self) -> State {
        let State {
            mut a,
            mut b,
            mut c,
        } = self;
        a = a.wrapping_sub(c) ^ c.rotate_left(4);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(6);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(8);
        b = b.wrapping_add(a);
        a = a.wrapping_sub(c) ^ c.rotate_left(16);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(19);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(4);
        b = b.wrapping_add(a);
        State { a, b, c }
    }

    /// `final` of hashfn.c; the hash is its `c`.
    #[inline]
    const fn finish(self) -> State {
        let State {
            mut a,
            mut b,
            mut c,
        } = self;
        c = (c ^ b).wrapping_sub(b.rotate_left(14));
        a = (a ^ c).wrapping_sub(c.rotate_left(11));
        b = (b ^ a).wrapping_sub(a.rotate_left(25));
        c = (c ^ b).wrapping_sub(b.rotate_left(16));
        a = (a ^ c).wrapping_sub(c.rotate_left(4));
        b = (b ^ a).wrapping_sub(a.rotate_left(14));
        c = (c ^ b).wrapping_sub(b.rotate_left(24));
        State { a, b, c }
    }

    /// The state before [`State::mix`] made this one of it: each step undone, last first.
    pub(crate) const fn unmix(self) -> State {
        let State {
            mut a,
            mut b,
            mut c,
        } = self;
        b = b.wrapping_sub(a);
        c = (c ^ b.rotate_left(4)).wrapping_add(b);
        a = a.wrapping_sub(c);
        b = (b ^ a.rotate_left(19)).wrapping_add(a);
        c = c.wrapping_sub(b);
        a = (a ^ c.rotate_left(16)).wrapping_add(c);
        b = b.wrapping_sub(a);
        c = (c ^ b.rotate_left(8)).wrapping_add(b);
        a = a.wrapping_sub(c);
        b = (b ^ a.rotate_left(6)).wrapping_add(a);
        c = c.wrapping_sub(b);
        a = (a ^ c.rotate_left(4)).wrapping_add(c);
        State { a, b, c }
    }

    /// The state before [`State::finish`] made this one of it.
    pub(crate) const fn unfinish(self) -> State {
        let State {
            mut a,
            mut b,
            mut c,
        } = self;
        c = c.wrapping_add(b.rotate_left(24)) ^ b;
        b = b.wrapping_add(a.rotate_left(14)) ^ a;
        a = a.wrapping_add(c.rotate_left(4)) ^ c;
        c = c.wrapping_add(b.rotate_left(16)) ^ b;
        b = b.wrapping_add(a.rotate_left(25)) ^ a;
        a = a.wrapping_add(c.rotate_left(11)) ^ c;
        c = c.wrapping_add(b.rotate_left(14)) ^ b;
        State { a, b, c }
    }
}

/// `hashint8(value)`, and for values that fit also `hashint4` and `hashint2`.
#[inline]
#[must_use]
pub const fn hash_int8(value: i64) -> i32 {
    let [low, high] = int8_words(value);
    // All ones for a negative value: xor with it is "not", without a branch.
    let [sign, _] = int8_words(value >> 63);
    let folded = low ^ high ^ sign;
    State::start(4).add(folded, 0, 0).finish().c.cast_signed()
}

/// `uuid_hash(uuid)`: over the 16 bytes in network order.
#[inline]
#[must_use]
pub const fn hash_uuid(uuid: &Uuid) -> i32 {
    let [x, y, z, tail] = uuid_words(uuid);
    State::start(16)
        .add(x, y, z)
        .mix()
        .add(tail, 0, 0)
        .finish()
        .c
        .cast_signed()
}

/// `hashtext(text)` under a deterministic collation: over the UTF-8 bytes.
#[inline]
#[must_use]
pub fn hash_text(text: &str) -> i32 {
    hash_bytes(text.as_bytes()).cast_signed()
}

/// `hash_any` of hashfn.c over any bytes; empty ones too.
///
/// Each block of 12 bytes is added as three words and mixed. Of the rest, bytes 0-3 go into `a`,
/// 4-7 into `b` and 8-10 into `c`, those shifted left by 8, because the lowest byte of `c` belongs
/// to the length in Jenkins's original. Then the final mix, always.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the length wraps as in hashfn.c, whose lengths are 32-bit; Postgres text ends at 1 GB"
)]
pub fn hash_bytes(bytes: &[u8]) -> u32 {
    let mut state = State::start(bytes.len() as u32);
    let (blocks, tail) = bytes.as_chunks::<12>();
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        state = state
            .add(
                u32::from_le_bytes(words[0]),
                u32::from_le_bytes(words[1]),
                u32::from_le_bytes(words[2]),
            )
            .mix();
    }
    let (words, rest) = tail.as_chunks::<4>();
    let last = partial_word(rest);
    state = match *words {
        [] => state.add(last, 0, 0),
        [x] => state.add(u32::from_le_bytes(x), last, 0),
        [x, y, ..] => state.add(u32::from_le_bytes(x), u32::from_le_bytes(y), last << 8),
    };
    state.finish().c
}

#[cfg(test)]
mod tests {
    use super::State;

    #[test]
    fn mix_and_finish_run_backwards() {
        let state = State {
            a: 0x0123_4567,
            b: 0x89ab_cdef,
            c: 0xdead_beef,
        };
        for back in [state.mix().unmix(), state.finish().unfinish()] {
            assert_eq!((back.a, back.b, back.c), (state.a, state.b, state.c));
        }
    }
}
