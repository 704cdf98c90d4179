//! How a shard map comes to be: from metadata, uniform, from a slot map, by a move or a split.

use std::collections::BTreeMap;

use super::{Node, ShardMap, ShardRange};
use crate::slot_map::{next_epoch, slot_runs};
use crate::{Epoch, KeyRange, KeyType, MapError, ShardId, Slot, SlotMap, Token, TokenHash};

/// Citus's own limit on `shard_count`.
const CITUS_SHARDS_MAX: u32 = 64_000;

impl ShardMap {
    /// The map with these ranges, in any order.
    ///
    /// # Errors
    ///
    /// In this order: [`MapError::NoNodes`], [`MapError::NoShards`], [`MapError::UnknownNode`],
    /// [`MapError::SeveralPlacements`] for a shard on two nodes, [`MapError::Overlap`],
    /// [`MapError::Gap`].
    pub fn new(
        epoch: Epoch,
        hash: TokenHash,
        key_type: KeyType,
        nodes: Vec<Node>,
        mut ranges: Vec<ShardRange>,
    ) -> Result<ShardMap, MapError> {
        if nodes.is_empty() {
            return Err(MapError::NoNodes);
        }
        if ranges.is_empty() {
            return Err(MapError::NoShards);
        }
        check_nodes(nodes.len(), &ranges)?;
        ranges.sort_unstable_by_key(|range| (range.range, range.shard));
        check_tiling(&ranges)?;
        let starts = ranges.iter().map(|r| r.range.first().value()).collect();
        Ok(ShardMap {
            epoch,
            hash,
            key_type,
            nodes,
            ranges,
            starts,
        })
    }

    /// The map that Citus makes for a new table: `count` equal ranges of `2^32 / count` tokens, of
    /// which the last is longer by the remainder, numbered upwards from `first_shard` and dealt
    /// round-robin to `nodes`.
    ///
    /// # Errors
    ///
    /// [`MapError::NoShards`], [`MapError::TooManyShards`] above 64,000 (Citus's limit),
    /// [`MapError::NoNodes`].
    pub fn uniform(
        epoch: Epoch,
        hash: TokenHash,
        key_type: KeyType,
        nodes: Vec<Node>,
        first_shard: ShardId,
        count: u32,
    ) -> Result<ShardMap, MapError> {
        if nodes.is_empty() {
            return Err(MapError::NoNodes);
        }
        if count == 0 {
            return Err(MapError::NoShards);
        }
        if count > CITUS_SHARDS_MAX {
            return Err(MapError::TooManyShards {
                asked: u64::from(count),
                max: u64::from(CITUS_SHARDS_MAX),
            });
        }
        // The last token of each shard but the last; u64, because one shard is 2^32 tokens wide.
        let width = (1_u64 << 32) / u64::from(count);
        let points: Vec<Token> = (1..u64::from(count))
            .map(|ordinal| Token::new(u32::try_from(ordinal * width - 1).unwrap_or(u32::MAX)))
            .collect();
        let ranges = KeyRange::FULL
            .split_after(&points)?
            .into_iter()
            .zip((first_shard.0..).map(ShardId))
            .zip((0..nodes.len()).cycle())
            .map(|((range, shard), node)| ShardRange { shard, range, node })
            .collect();
        ShardMap::new(epoch, hash, key_type, nodes, ranges)
    }

    /// The map of manual shards: `slots`'s shard table as ranges, each shard on the node that
    /// `node_of` names by its index in `nodes`.
    ///
    /// # Errors
    ///
    /// [`MapError::UnknownShard`] where `node_of` answers `None`, and those of [`ShardMap::new`].
    pub fn from_slot_map(
        slots: &SlotMap,
        key_type: KeyType,
        nodes: Vec<Node>,
        mut node_of: impl FnMut(ShardId) -> Option<usize>,
    ) -> Result<ShardMap, MapError> {
        let ranges = slot_runs(|slot| slots.shard_of(slot))
            .map(|(run, shard)| {
                let first = Slot::new(*run.start())?.key_range().first();
                let last = Slot::new(*run.end())?.key_range().last();
                Ok(ShardRange {
                    shard,
                    range: KeyRange::new(first, last)?,
                    node: node_of(shard).ok_or(MapError::UnknownShard { shard })?,
                })
            })
            .collect::<Result<Vec<_>, MapError>>()?;
        ShardMap::new(slots.epoch(), slots.hash(), key_type, nodes, ranges)
    }

    /// The map after `shard` was moved to the node with the index `node`, one epoch later. Its
    /// number and its range stay, as in Citus's `citus_move_shard_placement`.
    ///
    /// # Errors
    ///
    /// [`MapError::UnknownShard`], [`MapError::UnknownNode`], [`MapError::EpochExhausted`].
    pub fn with_shard_moved(&self, shard: ShardId, node: usize) -> Result<ShardMap, MapError> {
        let mut ranges = self.ranges.clone();
        let mut found = false;
        for range in ranges.iter_mut().filter(|range| range.shard == shard) {
            range.node = node;
            found = true;
        }
        if !found {
            return Err(MapError::UnknownShard { shard });
        }
        self.with_ranges(ranges)
    }

    /// The map after `shard` was split after each of `points` into `children` (new shard and node
    /// index, in order of tokens), one epoch later. All other shards stay as they are.
    ///
    /// It is for shards of one range, as Citus has them.
    ///
    /// # Errors
    ///
    /// [`MapError::UnknownShard`], [`MapError::SplitChildren`] unless there is one child more than
    /// points, [`MapError::SplitPoint`], [`MapError::DuplicateShard`] for a child whose number is
    /// taken, and those of [`ShardMap::new`].
    pub fn with_shard_split(
        &self,
        shard: ShardId,
        points: &[Token],
        children: &[(ShardId, usize)],
    ) -> Result<ShardMap, MapError> {
        let at = self.ranges.iter().position(|range| range.shard == shard);
        let at = at.ok_or(MapError::UnknownShard { shard })?;
        if children.len() != points.len() + 1 {
            return Err(MapError::SplitChildren {
                points: points.len(),
                children: children.len(),
            });
        }
        for (index, &(child, _)) in children.iter().enumerate() {
            let twice = children[..index].iter().any(|&(other, _)| other == child);
            if twice || self.ranges.iter().any(|range| range.shard == child) {
                return Err(MapError::DuplicateShard { shard: child });
            }
        }
        let pieces = self.ranges[at].range.split_after(points)?;
        let mut ranges = self.ranges.clone();
        ranges.splice(
            at..=at,
            pieces
                .into_iter()
                .zip(children)
                .map(|(range, &(shard, node))| ShardRange { shard, range, node }),
        );
        self.with_ranges(ranges)
    }

    fn with_ranges(&self, ranges: Vec<ShardRange>) -> Result<ShardMap, MapError> {
        ShardMap::new(
            next_epoch(self.epoch)?,
            self.hash,
            self.key_type,
            self.nodes.clone(),
            ranges,
        )
    }
}

/// Each range names a node that exists, and all ranges of a shard the same one.
fn check_nodes(nodes: usize, ranges: &[ShardRange]) -> Result<(), MapError> {
    let mut node_of: BTreeMap<ShardId, usize> = BTreeMap::new();
    for &ShardRange { shard, node, .. } in ranges {
        if node >= nodes {
            return Err(MapError::UnknownNode { shard, node, nodes });
        }
        let first = *node_of.entry(shard).or_insert(node);
        if first != node {
            return Err(MapError::SeveralPlacements {
                shard,
                first,
                second: node,
            });
        }
    }
    Ok(())
}

/// The sorted, non-empty `ranges` cover each token once.
fn check_tiling(ranges: &[ShardRange]) -> Result<(), MapError> {
    // u64, so that the token after the last one has a number.
    let mut next = 0_u64;
    let mut previous: Option<ShardId> = None;
    for ShardRange { shard, range, .. } in ranges {
        let first = u64::from(range.first().value());
        if first < next {
            return Err(MapError::Overlap {
                first: previous.unwrap_or(*shard),
                second: *shard,
            });
        }
        if first > next {
            return Err(gap(next, first - 1));
        }
        next = u64::from(range.last().value()) + 1;
        previous = Some(*shard);
    }
    if next <= u64::from(u32::MAX) {
        return Err(gap(next, u64::from(u32::MAX)));
    }
    Ok(())
}

fn gap(first: u64, last: u64) -> MapError {
    let token = |value: u64| Token::new(u32::try_from(value).unwrap_or(u32::MAX));
    MapError::Gap {
        range: KeyRange::of_ordered(token(first), token(last)),
    }
}
