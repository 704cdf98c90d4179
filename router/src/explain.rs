//! [`explain`]: the way of one key, step by step, for people and scripts.

use std::fmt;

use serde::Serialize;

use crate::slot_map::check_hash;
use crate::{KeyType, MapError, RouteKey, ShardMap, SlotMap, TokenHash};

/// How a key gets to its place. As JSON its field names are stable; shown as text it is a short
/// table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// The key's canonical text.
    pub key: String,
    /// The key's type.
    pub key_type: KeyType,
    /// The stable id of the hash.
    pub hash: &'static str,
    /// The signed hash, as Postgres shows it.
    pub hash_i32: i32,
    /// The token.
    pub token: u32,
    /// The slot, 0 to 4095.
    pub slot: u16,
    /// The Kafka partition, if a slot map was given.
    pub partition: Option<i32>,
    /// The shard: Citus's if a shard map was given, else the slot map's.
    pub shard: Option<i64>,
    /// The shard's node as `host:port`, if a shard map was given.
    pub placement: Option<String>,
}

/// Explains where `key` goes, as far as the given maps tell.
///
/// # Errors
///
/// [`MapError::OtherHash`] if a map hashes with another hash than `hash`,
/// [`MapError::OtherKeyType`] if the shard map is for another type of key.
///
/// ```
/// use shardlane_router::{Epoch, RouteKey, ShardId, SlotMap, TokenHash, explain};
///
/// let hash = TokenHash::Postgres;
/// let slots = SlotMap::aligned(Epoch(1), hash, 8, &[ShardId(0), ShardId(1)])?;
/// let explanation = explain(hash, &RouteKey::Int8(42), Some(&slots), None)?;
/// assert_eq!(explanation.to_string(), "\
/// key        42 (int8)
/// hash       1509752520 (pg-lookup3-1)
/// token      3657236168
/// slot       3487 of 4096
/// partition  6
/// shard      1");
/// # Ok::<(), shardlane_router::MapError>(())
/// ```
pub fn explain(
    hash: TokenHash,
    key: &RouteKey<'_>,
    slots: Option<&SlotMap>,
    shards: Option<&ShardMap>,
) -> Result<Explanation, MapError> {
    if let Some(slots) = slots {
        check_hash(hash, slots.hash().id())?;
    }
    if let Some(shards) = shards {
        check_hash(hash, shards.hash().id())?;
        shards.check_key_type(key.key_type())?;
    }
    let token = hash.token(key);
    let by_slot = slots.map(|map| map.route(key));
    let by_range = shards.map(|map| map.shard_for(token));
    Ok(Explanation {
        key: key.to_string(),
        key_type: key.key_type(),
        hash: hash.id(),
        hash_i32: token.hash_i32(),
        token: token.value(),
        slot: token.slot().number(),
        partition: by_slot.map(|route| route.partition.0),
        shard: by_range
            .map(|range| range.shard.0)
            .or_else(|| by_slot.map(|route| route.shard.0)),
        placement: shards
            .zip(by_range)
            .map(|(map, range)| map.node_of(range).to_string()),
    })
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "key        {} ({})", self.key, self.key_type)?;
        writeln!(f, "hash       {} ({})", self.hash_i32, self.hash)?;
        writeln!(f, "token      {}", self.token)?;
        write!(f, "slot       {} of {}", self.slot, crate::SLOT_COUNT)?;
        if let Some(partition) = self.partition {
            write!(f, "\npartition  {partition}")?;
        }
        if let Some(shard) = self.shard {
            write!(f, "\nshard      {shard}")?;
        }
        if let Some(placement) = &self.placement {
            write!(f, "\nplacement  {placement}")?;
        }
        Ok(())
    }
}
