//! [`SlotMap`]: slot -> Kafka partition and slot -> manual shard, as explicit tables.

mod change;
mod tables;
mod wire;

pub use change::{SlotMapDiff, SlotRunMove};

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use self::tables::{
    check_partition_count, check_shards, check_table, partition_id, partition_ids, partition_table,
    runs, shard_table, sorted_distinct,
};
use crate::{
    Alignment, Epoch, Excerpt, MapError, PartitionId, RouteKey, SLOT_COUNT, ShardId, Slot, Token,
    TokenHash,
};

/// One small number for each slot.
type Table = [u16; SLOT_COUNT];

/// Where each slot goes: to which Kafka partition, and to which manual shard.
///
/// Both are tables of 4096 entries and never a formula over a count: growing from 12 to 13
/// partitions by formula moves at least half of the keys, by table one in thirteen. A map carries an
/// [`Epoch`] and the hash that its slots mean; it does not change, a new one replaces it.
///
/// On Citus the shard table is not used (placement comes from a [`ShardMap`](crate::ShardMap)); give
/// it any one shard.
///
/// # Invariants
///
/// - Every slot has one partition and one shard.
/// - Partitions are numbered 0 to `partition_count() - 1`, and each has at least one slot. A
///   partition that Kafka has and the map has not is never chosen.
/// - Deserializing checks the same things as building.
///
/// # Lookup
///
/// [`SlotMap::partition_for`] is the hash, one shift and one load (1.1 times the bare hash, measured);
/// [`SlotMap::shard_for`] is one load more. Neither allocates, locks or fails.
///
/// # As JSON
///
/// Tables are written as runs `[first_slot, last_slot, value]`:
///
/// ```
/// use shardlane_router::{Epoch, ShardId, SlotMap, TokenHash};
///
/// let map = SlotMap::aligned(Epoch(1), TokenHash::Postgres, 2, &[ShardId(7)])?;
/// assert_eq!(
///     serde_json::to_string(&map).unwrap(),
///     r#"{"epoch":1,"hash":"postgres","partition_count":2,"#.to_owned()
///         + r#""partitions":[[0,2047,0],[2048,4095,1]],"shards":[[0,4095,7]]}"#
/// );
/// # Ok::<(), shardlane_router::MapError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "wire::Wire", into = "wire::Wire")]
pub struct SlotMap {
    epoch: Epoch,
    hash: TokenHash,
    /// The partition of each slot. A partition is below 4096, so its number is its index.
    partition_table: Box<Table>,
    /// The index in `shards` of each slot's shard.
    shard_table: Box<Table>,
    /// Sorted and distinct.
    shards: Box<[ShardId]>,
    /// For each partition the shards that it leads to, sorted. As long as there are partitions.
    shards_of_partition: Box<[Box<[ShardId]>]>,
    /// For each entry of `shards` the partitions that lead to it, sorted.
    partitions_of_shard: Box<[Box<[PartitionId]>]>,
}

/// Where a key goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub struct Route {
    /// The key's token.
    pub token: Token,
    /// The token's slot.
    pub slot: Slot,
    /// The slot's Kafka partition.
    pub partition: PartitionId,
    /// The slot's manual shard.
    pub shard: ShardId,
}

impl SlotMap {
    /// A map in which partitions and shards are contiguous runs of slots of nearly equal length
    /// (loads differ by at most one slot).
    ///
    /// Partition `i` is the `i`-th run; `shards[i]` holds the `i`-th run of shards. When one count
    /// divides the other the result is [aligned](Alignment).
    ///
    /// # Errors
    ///
    /// [`MapError::NoPartitions`], [`MapError::TooManyPartitions`], [`MapError::NoShards`],
    /// [`MapError::TooManyShards`], [`MapError::DuplicateShard`].
    pub fn aligned(
        epoch: Epoch,
        hash: TokenHash,
        partitions: u32,
        shards: &[ShardId],
    ) -> Result<SlotMap, MapError> {
        check_partition_count(partitions)?;
        check_shards(shards)?;
        let partition_of = runs(&partition_ids(partitions));
        SlotMap::from_tables(epoch, hash, &partition_of, &runs(shards))
    }

    /// A map as `hash % partitions` would make it: partition `slot % partitions`, shards contiguous.
    ///
    /// It exists as the counter-example that the lab measures: as long as a shard's run is at least
    /// `partitions` slots long, every partition leads to every shard. Do not use it for anything
    /// else: it is hidden from the documentation, and no version promises it.
    ///
    /// # Errors
    ///
    /// Those of [`SlotMap::aligned`].
    #[doc(hidden)]
    pub fn modulo(
        epoch: Epoch,
        hash: TokenHash,
        partitions: u32,
        shards: &[ShardId],
    ) -> Result<SlotMap, MapError> {
        check_partition_count(partitions)?;
        check_shards(shards)?;
        let ids = partition_ids(partitions);
        let partition_of: Vec<PartitionId> = ids.iter().copied().cycle().take(SLOT_COUNT).collect();
        SlotMap::from_tables(epoch, hash, &partition_of, &runs(shards))
    }

    /// A map with exactly these owners: entry `i` of each table belongs to slot `i`.
    ///
    /// The partition count is the highest partition plus one.
    ///
    /// # Errors
    ///
    /// [`MapError::TableLength`] unless both tables have 4096 entries, [`MapError::UnknownPartition`]
    /// for a negative partition, [`MapError::TooManyPartitions`] for one above 4095,
    /// [`MapError::UnusedPartition`] for a hole in the numbering.
    pub fn from_tables(
        epoch: Epoch,
        hash: TokenHash,
        partition_of: &[PartitionId],
        shard_of: &[ShardId],
    ) -> Result<SlotMap, MapError> {
        check_table("partition", partition_of.len())?;
        check_table("shard", shard_of.len())?;

        let partition_table = partition_table(partition_of)?;
        let partition_count = partition_table.iter().max().map_or(0, |&max| max + 1);
        let shards = sorted_distinct(shard_of.iter().copied());
        let shard_table = shard_table(shard_of, &shards);

        let pairs = || {
            let pairs = partition_table.iter().zip(shard_table.iter());
            pairs.map(|(&partition, &shard)| (usize::from(partition), usize::from(shard)))
        };
        let mut shards_of = vec![Vec::new(); usize::from(partition_count)];
        let mut partitions_of = vec![Vec::new(); shards.len()];
        for (partition, shard) in pairs() {
            shards_of[partition].push(shards[shard]);
            partitions_of[shard].push(partition_id(partition));
        }
        if let Some(unused) = shards_of.iter().position(Vec::is_empty) {
            return Err(MapError::UnusedPartition {
                partition: partition_id(unused),
                partition_count: u32::from(partition_count),
            });
        }
        Ok(SlotMap {
            epoch,
            hash,
            partition_table,
            shard_table,
            shards,
            shards_of_partition: shards_of.into_iter().map(sorted_distinct).collect(),
            partitions_of_shard: partitions_of.into_iter().map(sorted_distinct).collect(),
        })
    }

    /// The map's version.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The hash that this map's slots mean.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        self.hash
    }

    /// How many partitions the map knows.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "at most 4096 partitions, as each holds a slot"
    )]
    pub fn partition_count(&self) -> u32 {
        self.shards_of_partition.len() as u32
    }

    /// All shards, sorted, each once.
    #[must_use]
    pub fn shards(&self) -> &[ShardId] {
        &self.shards
    }

    /// The key's token under this map's hash.
    // Always inlined, as all functions from a key here: see `TokenHash::hash_i32`.
    #[inline(always)]
    #[must_use]
    pub fn token(&self, key: &RouteKey<'_>) -> Token {
        self.hash.token(key)
    }

    /// The Kafka partition of `key`: what a producer puts into its record.
    #[inline(always)]
    #[must_use]
    pub fn partition_for(&self, key: &RouteKey<'_>) -> PartitionId {
        self.partition_of(self.token(key).slot())
    }

    /// The Kafka partition of `slot`.
    #[inline]
    #[must_use]
    pub fn partition_of(&self, slot: Slot) -> PartitionId {
        PartitionId(i32::from(self.partition_table[slot.index()]))
    }

    /// The manual shard of `key`.
    #[inline(always)]
    #[must_use]
    pub fn shard_for(&self, key: &RouteKey<'_>) -> ShardId {
        self.shard_of(self.token(key).slot())
    }

    /// The manual shard of `slot`.
    #[inline]
    #[must_use]
    pub fn shard_of(&self, slot: Slot) -> ShardId {
        self.shards[usize::from(self.shard_table[slot.index()])]
    }

    /// Everything about `key` at once.
    #[inline(always)]
    #[must_use]
    pub fn route(&self, key: &RouteKey<'_>) -> Route {
        let token = self.token(key);
        let slot = token.slot();
        Route {
            token,
            slot,
            partition: self.partition_of(slot),
            shard: self.shard_of(slot),
        }
    }

    /// The shards that `partition` leads to, sorted; none for a partition that the map does not know.
    #[must_use]
    pub fn shards_of(&self, partition: PartitionId) -> &[ShardId] {
        usize::try_from(partition.0)
            .ok()
            .and_then(|index| self.shards_of_partition.get(index))
            .map_or(&[], |shards| shards)
    }

    /// The partitions that lead to `shard`, sorted; none for a shard that the map does not know.
    #[must_use]
    pub fn partitions_of(&self, shard: ShardId) -> &[PartitionId] {
        match self.shards.binary_search(&shard) {
            Ok(index) => &self.partitions_of_shard[index],
            Err(_) => &[],
        }
    }

    /// The slots of `shard` as contiguous runs in order, both ends included: what the CHECK on a
    /// manual shard's tables is written from. None for a shard that the map does not know.
    #[must_use]
    pub fn slot_ranges_of(&self, shard: ShardId) -> Vec<RangeInclusive<u16>> {
        slot_runs(|slot| self.shard_of(slot))
            .filter(|(_, owner)| *owner == shard)
            .map(|(run, _)| run)
            .collect()
    }

    /// The slots of `partition` as contiguous runs in order, both ends included.
    #[must_use]
    pub fn slot_ranges_of_partition(&self, partition: PartitionId) -> Vec<RangeInclusive<u16>> {
        slot_runs(|slot| self.partition_of(slot))
            .filter(|(_, owner)| *owner == partition)
            .map(|(run, _)| run)
            .collect()
    }

    /// Whether partitions and manual shards share their borders.
    #[must_use]
    pub fn alignment(&self) -> Alignment {
        Alignment::of(Slot::all().map(|slot| (self.partition_of(slot), self.shard_of(slot))))
    }

    /// Whether something that was addressed with the hash `hash_id` at `epoch` (another map, a
    /// record's headers, a shard's identity row) may be used beside this map.
    ///
    /// The same epoch and a newer one pass; a newer one means that this map should be reloaded.
    ///
    /// # Errors
    ///
    /// [`MapError::OtherHash`], [`MapError::OlderEpoch`].
    pub fn check_compatible(&self, hash_id: &str, epoch: Epoch) -> Result<(), MapError> {
        check_hash(self.hash, hash_id)?;
        check_epoch(self.epoch, epoch)
    }

    /// Whether `next` may replace this map: the same hash, and a newer epoch or the very same map.
    ///
    /// # Errors
    ///
    /// [`MapError::OtherHash`], [`MapError::OlderEpoch`], and [`MapError::SameEpochOtherMap`] if
    /// the epochs are equal and the tables are not.
    pub fn check_successor(&self, next: &SlotMap) -> Result<(), MapError> {
        self.check_compatible(next.hash.id(), next.epoch)?;
        if self.epoch == next.epoch && self != next {
            return Err(MapError::SameEpochOtherMap { epoch: self.epoch });
        }
        Ok(())
    }
}

/// Short: two tables of 4096 entries help nobody in a log line.
impl fmt::Debug for SlotMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotMap")
            .field("epoch", &self.epoch.0)
            .field("hash", &self.hash)
            .field("partition_count", &self.partition_count())
            .field("shards", &self.shards)
            .finish_non_exhaustive()
    }
}

pub(crate) fn next_epoch(epoch: Epoch) -> Result<Epoch, MapError> {
    let next = epoch.0.checked_add(1);
    next.map(Epoch).ok_or(MapError::EpochExhausted { epoch })
}

pub(crate) fn check_hash(ours: TokenHash, theirs: &str) -> Result<(), MapError> {
    if ours.id() != theirs {
        return Err(MapError::OtherHash {
            ours: ours.id(),
            theirs: Excerpt::of(theirs),
        });
    }
    Ok(())
}

pub(crate) fn check_epoch(ours: Epoch, theirs: Epoch) -> Result<(), MapError> {
    if theirs < ours {
        return Err(MapError::OlderEpoch { ours, theirs });
    }
    Ok(())
}

/// The slots in order, as maximal runs of one owner.
pub(crate) fn slot_runs<T: PartialEq + Copy>(
    owner_of: impl Fn(Slot) -> T,
) -> impl Iterator<Item = (RangeInclusive<u16>, T)> {
    let mut slots = Slot::all().map(move |slot| (slot.number(), owner_of(slot)));
    let mut ahead = slots.next();
    std::iter::from_fn(move || {
        let (first, owner) = ahead?;
        let mut last = first;
        loop {
            ahead = slots.next();
            match ahead {
                Some((slot, next)) if next == owner => last = slot,
                _ => return Some((first..=last, owner)),
            }
        }
    })
}
