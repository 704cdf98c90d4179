//! [`Alignment`]: whether partitions and shards share their borders.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

/// How Kafka's partitions lie over the shards.
///
/// Aligned means that each partition holds whole shards, or each shard holds whole partitions: then
/// a consumer of one partition writes to as few shards as there can be. Judged by what the maps
/// hold, not by their counts. With contiguous runs it is so whenever the one count divides the
/// other; with Citus's equal ranges the counts must be powers of two besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Alignment {
    /// Borders are shared.
    Aligned {
        /// The most shards that one partition leads to; 1 when shards hold whole partitions.
        shards_per_partition: usize,
        /// The most partitions that lead to one shard; 1 when partitions hold whole shards.
        partitions_per_shard: usize,
    },
    /// Some partition covers parts of several shards.
    NotAligned {
        /// The most shards that one partition leads to, so the most transactions a batch needs.
        max_shards_per_partition: usize,
    },
}

impl Alignment {
    /// Whether borders are shared.
    #[must_use]
    pub fn is_aligned(&self) -> bool {
        matches!(self, Alignment::Aligned { .. })
    }

    /// The most shards that one partition leads to.
    #[must_use]
    pub fn max_shards_per_partition(&self) -> usize {
        match *self {
            Alignment::Aligned {
                shards_per_partition,
                ..
            } => shards_per_partition,
            Alignment::NotAligned {
                max_shards_per_partition,
            } => max_shards_per_partition,
        }
    }

    /// The alignment of a relation between partitions and shards.
    pub(crate) fn of<P: Ord + Copy, S: Ord + Copy>(
        pairs: impl IntoIterator<Item = (P, S)>,
    ) -> Alignment {
        let mut shards_of: BTreeMap<P, BTreeSet<S>> = BTreeMap::new();
        let mut partitions_of: BTreeMap<S, BTreeSet<P>> = BTreeMap::new();
        for (partition, shard) in pairs {
            shards_of.entry(partition).or_default().insert(shard);
            partitions_of.entry(shard).or_default().insert(partition);
        }
        let shards_max = shards_of.values().map(BTreeSet::len).max().unwrap_or(0);
        let partitions_max = partitions_of.values().map(BTreeSet::len).max().unwrap_or(0);
        if shards_max == 1 || partitions_max == 1 {
            Alignment::Aligned {
                shards_per_partition: shards_max,
                partitions_per_shard: partitions_max,
            }
        } else {
            Alignment::NotAligned {
                max_shards_per_partition: shards_max,
            }
        }
    }
}
