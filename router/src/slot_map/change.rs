//! How one slot map becomes the next: plans, moves, and what differs afterwards.

use std::fmt;

use serde::Serialize;

use super::tables::{check_partition_count, check_shards, partition_ids};
use super::{SlotMap, check_hash, next_epoch, slot_runs};
use crate::growth::rebalance;
use crate::{Epoch, GrowthPlan, MapError, PartitionId, ShardId, Slot};

/// What differs between two slot maps: see [`SlotMap::diff`].
///
/// Shown as text it has one line a run; nothing at all if no slot changes its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SlotMapDiff {
    /// The epoch of the map that was asked.
    pub from_epoch: Epoch,
    /// The epoch of the other map.
    pub to_epoch: Epoch,
    /// The runs whose Kafka partition changes, in order of slots.
    pub partitions: Vec<SlotRunMove<PartitionId>>,
    /// The runs whose manual shard changes, in order of slots.
    pub shards: Vec<SlotRunMove<ShardId>>,
}

/// Neighbouring slots that all go from one owner to one other. Runs are as long as they can be.
///
/// `T` is what owns slots: [`ShardId`] or [`PartitionId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub struct SlotRunMove<T = ShardId> {
    /// The first slot of the run.
    pub first: Slot,
    /// The last slot of the run, included.
    pub last: Slot,
    /// Who owns the run in the map that was asked.
    pub from: T,
    /// Who owns it in the other map.
    pub to: T,
}

impl SlotMap {
    /// How to get to `new_count` partitions with the fewest slots moved.
    ///
    /// From a balanced map (loads differ by at most one slot) that is: growing, slots move only to
    /// new partitions; shrinking, only from removed ones. From any other map slots also leave the
    /// partitions that hold too many. Afterwards the map is balanced. Doubling a map of contiguous
    /// runs halves each run, so that an aligned map stays aligned.
    ///
    /// The plan moves users between partitions, so order per user holds only if the old partitions
    /// are drained first, or the events go to a new topic.
    ///
    /// # Errors
    ///
    /// [`MapError::NoPartitions`], [`MapError::TooManyPartitions`], [`MapError::EpochExhausted`].
    pub fn plan_partitions(&self, new_count: u32) -> Result<GrowthPlan<PartitionId>, MapError> {
        check_partition_count(new_count)?;
        let mut partition_of = self.partition_list();
        let moves = rebalance(&mut partition_of, &partition_ids(new_count));
        let epoch = self.next_epoch()?;
        let map = SlotMap::from_tables(epoch, self.hash, &partition_of, &self.shard_list())?;
        Ok(GrowthPlan { moves, map })
    }

    /// How to get to exactly the shards `new` with the fewest slots moved.
    ///
    /// Shards may be added, removed or both. From a balanced map slots move only from old shards to
    /// new ones when growing, and only from removed shards to the remaining ones when shrinking;
    /// from any other map they also leave the shards that hold too many. Afterwards the map is
    /// balanced.
    ///
    /// # Errors
    ///
    /// [`MapError::NoShards`], [`MapError::TooManyShards`], [`MapError::DuplicateShard`],
    /// [`MapError::EpochExhausted`].
    pub fn plan_shards(&self, new: &[ShardId]) -> Result<GrowthPlan<ShardId>, MapError> {
        check_shards(new)?;
        let mut shard_of = self.shard_list();
        let moves = rebalance(&mut shard_of, new);
        let epoch = self.next_epoch()?;
        let map = SlotMap::from_tables(epoch, self.hash, &self.partition_list(), &shard_of)?;
        Ok(GrowthPlan { moves, map })
    }

    /// The map after `slots` were given to the shard `to`, one epoch later (also when nothing
    /// changes). Partitions stay as they are.
    ///
    /// `to` may be a shard that the map does not have yet; a shard that loses its last slot is no
    /// longer in [`SlotMap::shards`]. Slots are numbers, so that runs of
    /// [`SlotMap::slot_ranges_of`] and of an operator's command fit; their order does not matter,
    /// nor does naming one twice.
    ///
    /// # Errors
    ///
    /// [`MapError::SlotOutOfRange`] for a number above 4095, [`MapError::EpochExhausted`].
    ///
    /// ```
    /// use shardlane_router::{Epoch, ShardId, SlotMap, TokenHash};
    ///
    /// let map = SlotMap::aligned(Epoch(1), TokenHash::Postgres, 8, &[ShardId(0), ShardId(1)])?;
    /// let next = map.with_slots_moved(3072..=4095, ShardId(2))?;
    /// assert_eq!(next.slot_ranges_of(ShardId(2)), [3072..=4095]);
    /// assert_eq!(map.diff(&next)?.to_string(), "slots 3072-4095: shard 1 -> 2\n");
    /// # Ok::<(), shardlane_router::MapError>(())
    /// ```
    pub fn with_slots_moved(
        &self,
        slots: impl IntoIterator<Item = u16>,
        to: ShardId,
    ) -> Result<SlotMap, MapError> {
        let mut shard_of = self.shard_list();
        for number in slots {
            shard_of[Slot::new(number)?.index()] = to;
        }
        let epoch = self.next_epoch()?;
        SlotMap::from_tables(epoch, self.hash, &self.partition_list(), &shard_of)
    }

    /// Which slots have another owner in `next`, as runs.
    ///
    /// The epochs are told and not judged, so that two maps can be compared either way round; see
    /// [`SlotMap::check_successor`] for whether `next` may replace this map.
    ///
    /// # Errors
    ///
    /// [`MapError::OtherHash`] if the maps hash differently: then slots of one number hold
    /// different keys, and there is nothing to compare.
    pub fn diff(&self, next: &SlotMap) -> Result<SlotMapDiff, MapError> {
        check_hash(self.hash, next.hash.id())?;
        Ok(SlotMapDiff {
            from_epoch: self.epoch,
            to_epoch: next.epoch,
            partitions: run_moves(|slot| (self.partition_of(slot), next.partition_of(slot)))?,
            shards: run_moves(|slot| (self.shard_of(slot), next.shard_of(slot)))?,
        })
    }

    fn next_epoch(&self) -> Result<Epoch, MapError> {
        next_epoch(self.epoch)
    }

    fn partition_list(&self) -> Vec<PartitionId> {
        Slot::all().map(|slot| self.partition_of(slot)).collect()
    }

    fn shard_list(&self) -> Vec<ShardId> {
        Slot::all().map(|slot| self.shard_of(slot)).collect()
    }
}

impl SlotMapDiff {
    /// Whether no slot changes its owner. The epochs may differ all the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.partitions.is_empty() && self.shards.is_empty()
    }
}

impl<T> SlotRunMove<T> {
    /// How many slots the run has, 1 to 4096.
    #[must_use]
    pub fn slot_count(&self) -> u16 {
        self.last.number() - self.first.number() + 1
    }
}

fn run_moves<T: Copy + PartialEq>(
    owners_of: impl Fn(Slot) -> (T, T),
) -> Result<Vec<SlotRunMove<T>>, MapError> {
    slot_runs(owners_of)
        .filter(|(_, (from, to))| from != to)
        .map(|(run, (from, to))| {
            Ok(SlotRunMove {
                first: Slot::new(*run.start())?,
                last: Slot::new(*run.end())?,
                from,
                to,
            })
        })
        .collect()
}

/// One line a run, each ended: the partitions' runs, then the shards'.
impl fmt::Display for SlotMapDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.partitions {
            writeln!(f, "{step}")?;
        }
        for step in &self.shards {
            writeln!(f, "{step}")?;
        }
        Ok(())
    }
}

/// `slots 2048-4095: partition 3 -> 7`
impl fmt::Display for SlotRunMove<PartitionId> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show_move(f, "partition", self)
    }
}

/// `slots 2048-4095: shard 0 -> 1`
impl fmt::Display for SlotRunMove<ShardId> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show_move(f, "shard", self)
    }
}

fn show_move<T: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    owner: &str,
    step: &SlotRunMove<T>,
) -> fmt::Result {
    let SlotRunMove {
        first,
        last,
        from,
        to,
    } = step;
    if first == last {
        write!(f, "slot {first}: {owner} {from} -> {to}")
    } else {
        write!(f, "slots {first}-{last}: {owner} {from} -> {to}")
    }
}
