//! What several test files need: names for a test's inputs, and numbers that look random and are not.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file compiles this module and uses a part of it"
)]

use shardlane_router::{Node, PartitionId, SLOT_COUNT, ShardId, Slot, SlotMap};

pub fn shards(count: i64) -> Vec<ShardId> {
    (0..count).map(ShardId).collect()
}

pub fn nodes(count: i32) -> Vec<Node> {
    (0..count)
        .map(|group| Node {
            group,
            host: format!("node-{group}"),
            port: 5432,
        })
        .collect()
}

pub fn partition_list(map: &SlotMap) -> Vec<PartitionId> {
    Slot::all().map(|slot| map.partition_of(slot)).collect()
}

pub fn shard_list(map: &SlotMap) -> Vec<ShardId> {
    Slot::all().map(|slot| map.shard_of(slot)).collect()
}

/// The smallest and the greatest number of slots that one owner holds.
pub fn load_bounds<T: Ord + Copy>(owner_of: &[T]) -> (usize, usize) {
    let mut loads = std::collections::BTreeMap::new();
    for owner in owner_of {
        *loads.entry(*owner).or_insert(0_usize) += 1;
    }
    (
        loads.values().copied().min().unwrap_or(0),
        loads.values().copied().max().unwrap_or(0),
    )
}

/// splitmix64: a sequence that passes for random and is the same in every run.
pub struct Sequence(pub u64);

impl Sequence {
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn next_u32(&mut self) -> u32 {
        u32::try_from(self.next_u64() >> 32).unwrap()
    }

    pub fn next_bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next_u64().to_le_bytes()[7])
    }
}

/// Pearson's chi-square of the slots' loads against an even spread.
pub fn chi_square(slots: impl IntoIterator<Item = Slot>) -> f64 {
    let mut loads = vec![0_u32; SLOT_COUNT];
    let mut total = 0_u32;
    for slot in slots {
        loads[slot.index()] += 1;
        total += 1;
    }
    let expected = f64::from(total) / 4096.0;
    loads
        .into_iter()
        .map(|load| (f64::from(load) - expected).powi(2) / expected)
        .sum()
}
