//! [`anchor_uuid`]: a key that lives in a given range.

use uuid::Uuid;

use crate::hash::lookup3::State;
use crate::hash::murmur3;
use crate::{KeyRange, RouteKey, Token, TokenHash};

/// How many small uuids are tried before one is computed. A slot (2^20 tokens) is hit after about
/// 4,096 tries; trying them all takes well under a millisecond.
const TRIES: u32 = 1 << 16;

/// A fixed uuid whose token lies in `range`: the key of a row that must live in that shard, such as
/// the offset fence of a Kafka partition.
///
/// It is `Uuid::from_u128(n)` for the smallest `n` below 65,536 that falls into the range. A range
/// too narrow for that (below about 2^17 tokens it becomes likely; `isolate_tenant_to_new_shard`
/// makes ranges of a single token) gets the uuid that is computed by running the hash backwards from
/// the range's first token. So it always answers, quickly, and always with the same uuid.
///
/// An anchor has the version and variant bits of no user's uuid where `n` is small; a computed one
/// may have any. Keep anchors in tables of their own.
///
/// ```
/// use shardlane_router::{KeyRange, RouteKey, TokenHash, anchor_uuid};
///
/// let range = KeyRange::from_hash_bounds(-2147483648, -1879048193).unwrap();
/// let anchor = anchor_uuid(TokenHash::Postgres, &range);
/// assert!(range.contains(TokenHash::Postgres.token(&anchor.into())));
/// ```
#[must_use]
pub fn anchor_uuid(hash: TokenHash, range: &KeyRange) -> Uuid {
    (0..TRIES)
        .map(|n| Uuid::from_u128(u128::from(n)))
        .find(|uuid| range.contains(hash.token(&RouteKey::Uuid(*uuid))))
        .unwrap_or_else(|| computed(hash, range.first()))
}

/// A uuid that hashes to exactly `token`.
fn computed(hash: TokenHash, token: Token) -> Uuid {
    let target = token.hash_i32().cast_unsigned();
    let words = match hash {
        TokenHash::Postgres => {
            // lookup3's 16 bytes are three words, mix, one word, finish; all of it is reversible.
            // The two words of the end state that are not the hash are free: 0. So is the last
            // word of the key: 0, which leaves the state after mix as it is before finish.
            let end = State {
                a: 0,
                b: 0,
                c: target,
            };
            let first_block = end.unfinish().unmix();
            let start = State::start(16);
            [
                first_block.a.wrapping_sub(start.a),
                first_block.b.wrapping_sub(start.b),
                first_block.c.wrapping_sub(start.c),
                0,
            ]
        }
        TokenHash::Murmur3 => [0, 0, 0, murmur3::last_word_for(target)],
    };
    let mut bytes = [0; 16];
    for (place, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *place = word.to_le_bytes();
    }
    Uuid::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::computed;
    use crate::{RouteKey, Token, TokenHash};

    #[test]
    fn a_computed_uuid_hits_its_token() {
        for hash in [TokenHash::Postgres, TokenHash::Murmur3] {
            for step in 0..10_000_u32 {
                let token = Token::new(step.wrapping_mul(0x9e37_79b1));
                let uuid = computed(hash, token);
                assert_eq!(hash.token(&RouteKey::Uuid(uuid)), token, "{hash} {uuid}");
            }
        }
    }
}
