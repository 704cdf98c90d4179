//! [`KeyRange`]: a stretch of the token line, both ends included.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{MapError, Token};

/// Tokens from `first` to `last`, both included; never empty.
///
/// Citus writes its ranges in `pg_dist_shard` as signed hashes, both ends included:
/// [`KeyRange::from_hash_bounds`] takes those, [`KeyRange::hash_bounds`] gives them back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Wire")]
pub struct KeyRange {
    first: Token,
    last: Token,
}

impl KeyRange {
    /// The whole token line.
    pub const FULL: KeyRange = KeyRange::of_ordered(Token::MIN, Token::MAX);

    /// The tokens from `first` to `last`, both included.
    ///
    /// # Errors
    ///
    /// [`MapError::RangeReversed`] if `first` comes after `last`.
    pub fn new(first: Token, last: Token) -> Result<KeyRange, MapError> {
        if first > last {
            return Err(MapError::RangeReversed { first, last });
        }
        Ok(KeyRange { first, last })
    }

    /// The tokens of the signed hashes from `min` to `max`, both included: `shardminvalue` and
    /// `shardmaxvalue` of `pg_dist_shard`, parsed as `i32`.
    ///
    /// # Errors
    ///
    /// [`MapError::RangeReversed`] if `min` is greater than `max`.
    pub fn from_hash_bounds(min: i32, max: i32) -> Result<KeyRange, MapError> {
        KeyRange::new(Token::from_hash(min), Token::from_hash(max))
    }

    /// For bounds that are in order by construction.
    pub(crate) const fn of_ordered(first: Token, last: Token) -> KeyRange {
        KeyRange { first, last }
    }

    /// The first token of the range.
    #[inline]
    #[must_use]
    pub const fn first(&self) -> Token {
        self.first
    }

    /// The last token of the range, included.
    #[inline]
    #[must_use]
    pub const fn last(&self) -> Token {
        self.last
    }

    /// The signed hashes at both ends, as `pg_dist_shard` writes them.
    #[must_use]
    pub const fn hash_bounds(&self) -> (i32, i32) {
        (self.first.hash_i32(), self.last.hash_i32())
    }

    /// How many tokens the range holds, 1 to 2^32.
    #[must_use]
    pub fn width(&self) -> u64 {
        u64::from(self.last.value()) - u64::from(self.first.value()) + 1
    }

    /// Whether `token` lies in the range.
    #[inline]
    #[must_use]
    pub fn contains(&self, token: Token) -> bool {
        self.first <= token && token <= self.last
    }

    /// Whether the two ranges share a token.
    #[must_use]
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The ranges that come of cutting this one after each of `points`, in order; they tile it.
    ///
    /// The points are the last tokens of all children but the last, as in Citus's
    /// `citus_split_shard_by_split_points`.
    ///
    /// # Errors
    ///
    /// [`MapError::SplitPoint`] if a point is outside the range, is its last token, or does not
    /// come after the point before it.
    pub fn split_after(&self, points: &[Token]) -> Result<Vec<KeyRange>, MapError> {
        let mut children = Vec::with_capacity(points.len() + 1);
        let mut first = self.first;
        for &point in points {
            if point < first || point >= self.last {
                return Err(MapError::SplitPoint {
                    point,
                    range: *self,
                });
            }
            children.push(KeyRange::of_ordered(first, point));
            // No overflow: the point is below `self.last`.
            first = Token::new(point.value() + 1);
        }
        children.push(KeyRange::of_ordered(first, self.last));
        Ok(children)
    }
}

impl fmt::Display for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={}", self.first, self.last)
    }
}

/// What is in the JSON, before it is known to be in order.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    first: Token,
    last: Token,
}

impl TryFrom<Wire> for KeyRange {
    type Error = MapError;

    fn try_from(wire: Wire) -> Result<KeyRange, MapError> {
        KeyRange::new(wire.first, wire.last)
    }
}
