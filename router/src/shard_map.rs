//! [`ShardMap`]: token -> shard -> node, by ranges, as Citus has it.

mod build;
mod wire;

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::slot_map::{check_epoch, check_hash};
use crate::{
    Alignment, Epoch, KeyRange, KeyType, MapError, PartitionId, RouteKey, ShardId, Slot, SlotMap,
    Token, TokenHash,
};

/// A server that holds shards.
///
/// Two nodes may have one address: manual shards can be two databases of one server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Citus's `groupid`, or a number of the operator's own.
    pub group: i32,
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// One shard's stretch of the token line, and the node that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardRange {
    /// The shard.
    pub shard: ShardId,
    /// Its tokens.
    pub range: KeyRange,
    /// Its node, as an index into [`ShardMap::nodes`].
    pub node: usize,
}

/// Where a key's rows live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub struct ShardRoute {
    /// The key's token.
    pub token: Token,
    /// The token's slot.
    pub slot: Slot,
    /// The shard that holds the token.
    pub shard: ShardId,
    /// The shard's node, as an index into [`ShardMap::nodes`].
    pub node: usize,
}

/// Which shard holds a token, and which node holds the shard: what a client of Citus needs to send a
/// statement straight to the owner.
///
/// A shard is found by searching the sorted ranges, never by a formula over the shard count: after a
/// split or a tenant isolation the ranges are not equal any more, and Citus searches them too.
///
/// # Invariants
///
/// - The ranges tile the token line: each token has exactly one shard.
/// - A shard has one node. On Citus it has one range; a manual shard may have several.
/// - Each node index is known; there is at least one shard.
/// - Deserializing checks the same things as building.
///
/// Routing by this map is a *hint* on Citus: always write the logical table, never the physical
/// shard table. Then a stale map costs one hop and no row.
///
/// ```
/// use shardlane_router::{Epoch, KeyType, Node, ShardId, ShardMap, TokenHash};
///
/// let nodes = (1..=2)
///     .map(|group| Node { group, host: format!("worker-{group}"), port: 5432 })
///     .collect();
/// let map = ShardMap::uniform(
///     Epoch(1), TokenHash::Postgres, KeyType::Int8, nodes, ShardId(102008), 32,
/// )?;
/// let route = map.route(&42_i64.into());
/// assert_eq!(route.shard, ShardId(102035));
/// assert_eq!(map.nodes()[route.node].host, "worker-2");
/// # Ok::<(), shardlane_router::MapError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "wire::Wire", into = "wire::Wire")]
pub struct ShardMap {
    epoch: Epoch,
    hash: TokenHash,
    key_type: KeyType,
    nodes: Vec<Node>,
    /// Sorted, without gap or overlap.
    ranges: Vec<ShardRange>,
    /// The first token of each range, beside each other so that a search stays in few cache lines.
    starts: Box<[u32]>,
}

impl ShardMap {
    /// The map's version.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The hash that this map's tokens mean.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        self.hash
    }

    /// The type of the distribution column.
    #[must_use]
    pub fn key_type(&self) -> KeyType {
        self.key_type
    }

    /// The ranges in order of tokens; on Citus one a shard.
    #[must_use]
    pub fn shards(&self) -> &[ShardRange] {
        &self.ranges
    }

    /// The nodes, which [`ShardRange::node`] and [`ShardRoute::node`] count from 0.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The range that holds `token`.
    #[inline]
    #[must_use]
    pub fn shard_for(&self, token: Token) -> &ShardRange {
        // The first range starts at token 0, so at least one start is not above any token.
        let after = self.starts.partition_point(|&first| first <= token.value());
        &self.ranges[after - 1]
    }

    /// The node of a range of this map.
    ///
    /// # Panics
    ///
    /// If `range` was made by hand or comes from a map with more nodes. For ranges that this map
    /// gave out it never does.
    #[inline]
    #[must_use]
    pub fn node_of(&self, range: &ShardRange) -> &Node {
        &self.nodes[range.node]
    }

    /// Where `key` lives.
    ///
    /// The key's type is not compared with the map's, to keep this path short; keys are read with
    /// [`RouteKey::parse`] and the map's own [`key_type`](ShardMap::key_type).
    #[inline(always)] // see `TokenHash::hash_i32`
    #[must_use]
    pub fn route(&self, key: &RouteKey<'_>) -> ShardRoute {
        let token = self.hash.token(key);
        let found = self.shard_for(token);
        ShardRoute {
            token,
            slot: token.slot(),
            shard: found.shard,
            node: found.node,
        }
    }

    /// The ranges that hold the tokens from `first` to `last`, both included, in order; none if
    /// `first` is after `last`.
    #[must_use]
    pub fn shards_of_range(&self, first: Token, last: Token) -> &[ShardRange] {
        if first > last {
            return &[];
        }
        let from = self.starts.partition_point(|&s| s <= first.value()) - 1;
        let to = self.starts.partition_point(|&s| s <= last.value());
        &self.ranges[from..to]
    }

    /// The ranges of `shard` in order: one on Citus, none for a shard that the map does not know.
    pub fn ranges_of(&self, shard: ShardId) -> impl Iterator<Item = &ShardRange> {
        self.ranges.iter().filter(move |range| range.shard == shard)
    }

    /// The shards that a Kafka partition leads to, sorted, each once; none for a partition that
    /// `slots` does not know.
    ///
    /// It depends on ranges alone, so moving shards between nodes does not change it.
    ///
    /// # Errors
    ///
    /// [`MapError::OtherHash`] if the two maps hash differently.
    pub fn shards_of_partition(
        &self,
        slots: &SlotMap,
        partition: PartitionId,
    ) -> Result<Vec<ShardId>, MapError> {
        check_hash(self.hash, slots.hash().id())?;
        let mut shards = BTreeSet::new();
        for run in slots.slot_ranges_of_partition(partition) {
            let first = Slot::new(*run.start())?.key_range().first();
            let last = Slot::new(*run.end())?.key_range().last();
            shards.extend(self.shards_of_range(first, last).iter().map(|r| r.shard));
        }
        Ok(shards.into_iter().collect())
    }

    /// Whether the partitions of `slots` and the shards of this map share their borders.
    ///
    /// # Errors
    ///
    /// [`MapError::OtherHash`] if the two maps hash differently.
    pub fn alignment_with(&self, slots: &SlotMap) -> Result<Alignment, MapError> {
        check_hash(self.hash, slots.hash().id())?;
        Ok(Alignment::of(Slot::all().flat_map(|slot| {
            let range = slot.key_range();
            let partition = slots.partition_of(slot);
            let shards = self.shards_of_range(range.first(), range.last());
            shards.iter().map(move |shard| (partition, shard.shard))
        })))
    }

    /// Whether something that was addressed with the hash `hash_id` at `epoch` may be used beside
    /// this map; see [`SlotMap::check_compatible`].
    ///
    /// # Errors
    ///
    /// [`MapError::OtherHash`], [`MapError::OlderEpoch`].
    pub fn check_compatible(&self, hash_id: &str, epoch: Epoch) -> Result<(), MapError> {
        check_hash(self.hash, hash_id)?;
        check_epoch(self.epoch, epoch)
    }

    /// Whether `next` may replace this map: the same hash and key type, and a newer epoch or the
    /// very same map.
    ///
    /// # Errors
    ///
    /// [`MapError::OtherHash`], [`MapError::OtherKeyType`], [`MapError::OlderEpoch`], and
    /// [`MapError::SameEpochOtherMap`] if the epochs are equal and the maps are not.
    pub fn check_successor(&self, next: &ShardMap) -> Result<(), MapError> {
        check_hash(self.hash, next.hash.id())?;
        self.check_key_type(next.key_type)?;
        check_epoch(self.epoch, next.epoch)?;
        if self.epoch == next.epoch && self != next {
            return Err(MapError::SameEpochOtherMap { epoch: self.epoch });
        }
        Ok(())
    }

    /// Whether keys or a colocated table of type `theirs` may be routed by this map.
    ///
    /// # Errors
    ///
    /// [`MapError::OtherKeyType`].
    pub fn check_key_type(&self, theirs: KeyType) -> Result<(), MapError> {
        if self.key_type != theirs {
            return Err(MapError::OtherKeyType {
                ours: self.key_type,
                theirs,
            });
        }
        Ok(())
    }
}

/// Short: a Citus table can have thousands of shards.
impl fmt::Debug for ShardMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardMap")
            .field("epoch", &self.epoch.0)
            .field("hash", &self.hash)
            .field("key_type", &self.key_type)
            .field("nodes", &self.nodes)
            .field("ranges", &self.ranges.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Node {
    /// `host:port`, an IPv6 address in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}
