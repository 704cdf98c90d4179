//! What can be swept, and by which values.

use shardlane_sql::Layout;

/// The settings of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usual {
    /// Records a batch.
    pub batch_rows_max: u32,
    /// Connections over all servers.
    pub connections: u32,
    /// Kafka partitions a topic.
    pub partitions: u32,
    /// Shards of the Citus tables.
    pub citus_shards: u32,
    /// Size that a payload is filled up to.
    pub payload_bytes: usize,
    /// Whether partitions are chosen by murmur3 instead of Postgres's hash.
    pub murmur3: bool,
    /// Whether a commit waits for its write-ahead log.
    pub synchronous_commit: bool,
}

impl Default for Usual {
    fn default() -> Usual {
        Usual {
            batch_rows_max: 4_000,
            connections: 4,
            partitions: 16,
            citus_shards: 16,
            payload_bytes: 300,
            murmur3: false,
            synchronous_commit: true,
        }
    }
}

/// One setting that takes several values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knob {
    /// Records a batch.
    BatchRows,
    /// Connections over all servers.
    Connections,
    /// Shards of the Citus tables.
    CitusShards,
    /// Kafka partitions a topic; 100 is not aligned with 16 shards.
    Partitions,
    /// Size of a payload.
    PayloadBytes,
    /// The hash that chooses partitions.
    Hash,
    /// Whether a commit waits for its write-ahead log.
    SynchronousCommit,
}

const BATCH_ROWS: [u32; 5] = [50, 200, 1_000, 4_000, 10_000];
const CONNECTIONS: [u32; 4] = [2, 4, 8, 16];
const CITUS_SHARDS: [u32; 4] = [8, 16, 32, 64];
const PARTITIONS: [u32; 4] = [8, 16, 32, 100];
const PAYLOAD_BYTES: [usize; 4] = [200, 300, 1_000, 4_000];

impl Knob {
    /// Its name on the command line and in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Knob::BatchRows => "batch-rows",
            Knob::Connections => "connections",
            Knob::CitusShards => "citus-shards",
            Knob::Partitions => "partitions",
            Knob::PayloadBytes => "payload-bytes",
            Knob::Hash => "hash",
            Knob::SynchronousCommit => "synchronous-commit",
        }
    }

    pub(super) const fn title(self) -> &'static str {
        match self {
            Knob::BatchRows => "Records a batch",
            Knob::Connections => "Connections",
            Knob::CitusShards => "Shards of the Citus tables",
            Knob::Partitions => "Kafka partitions a topic",
            Knob::PayloadBytes => "Size of a payload",
            Knob::Hash => "The hash that chooses partitions",
            Knob::SynchronousCommit => "Synchronous commit",
        }
    }

    pub(super) const fn what(self) -> &'static str {
        match self {
            Knob::BatchRows => "The most records of a transaction.",
            Knob::Connections => "Over all servers of the layout; a lane waits for a free one.",
            Knob::CitusShards => {
                "More shards than partitions cut a partition's batch into several transactions; fewer put several partitions on one."
            }
            Knob::Partitions => {
                "A power of two is aligned with the shards: a batch has users of one. 100 is not."
            }
            Knob::PayloadBytes => "Random text fills each payload up to this size.",
            Knob::Hash => {
                "Postgres's hash puts a partition's users into few shards. murmur3 knows nothing of Citus's shards, so each \
                 partition has users of all."
            }
            Knob::SynchronousCommit => {
                "Off, a commit does not wait for its write-ahead log: a crash of a server loses what was acknowledged. Never set it so \
                 where money is."
            }
        }
    }

    /// How many values there are.
    pub(super) const fn values(self) -> usize {
        match self {
            Knob::BatchRows => BATCH_ROWS.len(),
            Knob::Connections => CONNECTIONS.len(),
            Knob::CitusShards => CITUS_SHARDS.len(),
            Knob::Partitions => PARTITIONS.len(),
            Knob::PayloadBytes => PAYLOAD_BYTES.len(),
            Knob::Hash | Knob::SynchronousCommit => 2,
        }
    }

    /// The settings with one of the values.
    pub(super) fn applied(self, usual: Usual, value: usize) -> Usual {
        let mut with = usual;
        match self {
            Knob::BatchRows => with.batch_rows_max = BATCH_ROWS[value],
            Knob::Connections => with.connections = CONNECTIONS[value],
            Knob::CitusShards => with.citus_shards = CITUS_SHARDS[value],
            Knob::Partitions => with.partitions = PARTITIONS[value],
            Knob::PayloadBytes => with.payload_bytes = PAYLOAD_BYTES[value],
            Knob::Hash => with.murmur3 = value == 1,
            Knob::SynchronousCommit => with.synchronous_commit = value == 0,
        }
        with
    }

    /// A value as tables name it.
    pub(super) fn label(self, value: usize) -> String {
        let with = self.applied(Usual::default(), value);
        match self {
            Knob::BatchRows => format!("{} rows", with.batch_rows_max),
            Knob::Connections => format!("{} connections", with.connections),
            Knob::CitusShards => format!("{} shards", with.citus_shards),
            Knob::Partitions => format!("{} partitions", with.partitions),
            Knob::PayloadBytes => format!("{} B", with.payload_bytes),
            Knob::Hash => if with.murmur3 { "murmur3" } else { "postgres" }.to_owned(),
            Knob::SynchronousCommit => {
                if with.synchronous_commit { "on" } else { "off" }.to_owned()
            }
        }
    }

    /// Whether a layout has such a thing.
    #[must_use]
    pub fn concerns(self, layout: Layout) -> bool {
        match self {
            Knob::CitusShards => layout == Layout::Citus,
            // A manual shard checks its rows by Postgres's hash.
            Knob::Hash => layout != Layout::Shards,
            _ => true,
        }
    }

    /// Whether each value needs records of its own in Kafka.
    pub(super) const fn has_topics_of_its_own(self) -> bool {
        matches!(self, Knob::Partitions | Knob::PayloadBytes | Knob::Hash)
    }

    /// Whether the rows differ from value to value.
    pub(super) const fn changes_the_rows(self) -> bool {
        matches!(self, Knob::PayloadBytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Knob; 7] = [
        Knob::BatchRows,
        Knob::Connections,
        Knob::CitusShards,
        Knob::Partitions,
        Knob::PayloadBytes,
        Knob::Hash,
        Knob::SynchronousCommit,
    ];

    #[test]
    fn each_knob_changes_its_own_setting_and_one_value_is_the_usual_one() {
        for knob in ALL {
            let settings: Vec<Usual> = (0..knob.values())
                .map(|value| knob.applied(Usual::default(), value))
                .collect();
            let usual = settings
                .iter()
                .filter(|with| **with == Usual::default())
                .count();
            assert_eq!(usual, 1, "{knob:?}");
            let mut labels: Vec<String> =
                (0..knob.values()).map(|value| knob.label(value)).collect();
            labels.dedup();
            assert_eq!(labels.len(), knob.values(), "{labels:?}");
        }
    }
}
