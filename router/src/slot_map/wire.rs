//! A slot map as it is written: its tables as runs, so that a person can read them.

use serde::{Deserialize, Serialize};

use super::tables::partition_id;
use super::{SlotMap, slot_runs};
use crate::{Epoch, MapError, PartitionId, SLOT_COUNT, ShardId, TokenHash};

/// `[first_slot, last_slot, owner]`, both slots included.
type Run<T> = (u16, u16, T);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wire {
    epoch: Epoch,
    hash: TokenHash,
    partition_count: u32,
    partitions: Vec<Run<PartitionId>>,
    shards: Vec<Run<ShardId>>,
}

impl From<SlotMap> for Wire {
    fn from(map: SlotMap) -> Wire {
        Wire {
            epoch: map.epoch,
            hash: map.hash,
            partition_count: map.partition_count(),
            partitions: slot_runs(|slot| map.partition_of(slot))
                .map(|(run, owner)| (*run.start(), *run.end(), owner))
                .collect(),
            shards: slot_runs(|slot| map.shard_of(slot))
                .map(|(run, owner)| (*run.start(), *run.end(), owner))
                .collect(),
        }
    }
}

impl TryFrom<Wire> for SlotMap {
    type Error = MapError;

    fn try_from(wire: Wire) -> Result<SlotMap, MapError> {
        let partition_of = spread("partition", &wire.partitions)?;
        let shard_of = spread("shard", &wire.shards)?;
        // The count says again what the table says, so that a table cut off or a count edited by
        // hand does not pass.
        let count = i64::from(wire.partition_count);
        if let Some(&partition) = partition_of.iter().find(|id| i64::from(id.0) >= count) {
            return Err(MapError::UnknownPartition {
                partition,
                partition_count: wire.partition_count,
            });
        }
        let map = SlotMap::from_tables(wire.epoch, wire.hash, &partition_of, &shard_of)?;
        if map.partition_count() < wire.partition_count {
            return Err(MapError::UnusedPartition {
                partition: partition_id(map.shards_of_partition.len()),
                partition_count: wire.partition_count,
            });
        }
        Ok(map)
    }
}

/// The runs as one owner a slot. Stops at the first run that is out of place, so that hostile input
/// never makes a table longer than 4096 entries.
fn spread<T: Copy>(table: &'static str, runs: &[Run<T>]) -> Result<Vec<T>, MapError> {
    let mut owners = Vec::with_capacity(SLOT_COUNT);
    for &(first, last, owner) in runs {
        let (found, end) = (usize::from(first), usize::from(last) + 1);
        if found != owners.len() || end <= found {
            return Err(MapError::BrokenRun {
                table,
                expected: owners.len(),
                found,
            });
        }
        if end > SLOT_COUNT {
            return Err(MapError::SlotOutOfRange { number: last });
        }
        owners.resize(end, owner);
    }
    Ok(owners)
}
