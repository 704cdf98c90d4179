//! The tables inside a slot map: what may go in, and how they are filled.

use super::Table;
use crate::{MapError, PartitionId, SLOT_COUNT, ShardId};

pub(super) fn check_partition_count(count: u32) -> Result<(), MapError> {
    match usize::try_from(count) {
        Ok(0) => Err(MapError::NoPartitions),
        Ok(1..=SLOT_COUNT) => Ok(()),
        _ => Err(MapError::TooManyPartitions {
            asked: u64::from(count),
        }),
    }
}

pub(super) fn check_shards(shards: &[ShardId]) -> Result<(), MapError> {
    if shards.is_empty() {
        return Err(MapError::NoShards);
    }
    if shards.len() > SLOT_COUNT {
        return Err(MapError::TooManyShards {
            asked: shards.len() as u64,
            max: SLOT_COUNT as u64,
        });
    }
    let mut sorted = shards.to_vec();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(MapError::DuplicateShard { shard: pair[0] }),
        None => Ok(()),
    }
}

pub(super) fn check_table(table: &'static str, got: usize) -> Result<(), MapError> {
    if got != SLOT_COUNT {
        return Err(MapError::TableLength { table, got });
    }
    Ok(())
}

pub(super) fn partition_table(partition_of: &[PartitionId]) -> Result<Box<Table>, MapError> {
    let mut table = Box::new([0; SLOT_COUNT]);
    for (place, &partition) in table.iter_mut().zip(partition_of) {
        if partition.0 < 0 {
            let highest = partition_of.iter().map(|id| id.0).max().unwrap_or(0);
            return Err(MapError::UnknownPartition {
                partition,
                partition_count: u32::try_from(highest).map_or(0, |max| max + 1),
            });
        }
        *place = u16::try_from(partition.0)
            .ok()
            .filter(|&number| usize::from(number) < SLOT_COUNT)
            .ok_or(MapError::TooManyPartitions {
                asked: u64::from(partition.0.unsigned_abs()) + 1,
            })?;
    }
    Ok(table)
}

/// `shards` is sorted and holds every shard of `shard_of`, at most as many as there are slots.
#[expect(
    clippy::cast_possible_truncation,
    reason = "an index into at most 4096 shards"
)]
pub(super) fn shard_table(shard_of: &[ShardId], shards: &[ShardId]) -> Box<Table> {
    let mut table = Box::new([0; SLOT_COUNT]);
    for (place, shard) in table.iter_mut().zip(shard_of) {
        *place = shards.partition_point(|known| known < shard) as u16;
    }
    table
}

pub(super) fn partition_ids(count: u32) -> Vec<PartitionId> {
    (0..).map(PartitionId).take(count as usize).collect()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "below 4096, as each partition holds a slot"
)]
pub(super) fn partition_id(index: usize) -> PartitionId {
    PartitionId(index as i32)
}

/// One owner a slot: contiguous runs whose lengths differ by at most one. `owners` is not empty.
pub(super) fn runs<T: Copy>(owners: &[T]) -> Vec<T> {
    (0..SLOT_COUNT)
        .map(|slot| owners[slot * owners.len() / SLOT_COUNT])
        .collect()
}

pub(super) fn sorted_distinct<T: Ord>(items: impl IntoIterator<Item = T>) -> Box<[T]> {
    let mut items: Vec<T> = items.into_iter().collect();
    items.sort_unstable();
    items.dedup();
    items.into_boxed_slice()
}
