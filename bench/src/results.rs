//! What an experiment measured, as `results.json` has it. Scripts rely on these names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One experiment with everything that is needed to judge and to repeat it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// `ingest`.
    pub experiment: String,
    /// RFC 3339.
    pub started_at: String,
    /// How long the whole experiment took, in seconds.
    pub took_s: f64,
    /// Where it ran.
    pub machine: Machine,
    /// The commit of the code, with `-dirty` where the tree had changes; `unknown` outside a checkout.
    pub commit: String,
    /// The command line that repeats it.
    pub command: String,
    /// Versions by name: `postgres`, `citus`, `pg_partman`, `kafka`, `shardlane`.
    pub versions: BTreeMap<String, String>,
    /// What was asked for.
    pub settings: Settings,
    /// One row a layout and path.
    pub results: Vec<LayoutResult>,
    /// The same topic read again into the database that has it all.
    pub replays: Vec<Replay>,
    /// How unevenly the stream hits slots and users, as a worker counted it.
    #[serde(default)]
    pub skew: Option<Skew>,
    /// The goals, and what came out.
    pub ratios: Vec<Ratio>,
    /// Layouts that could not run.
    pub skipped: Vec<Skipped>,
}

/// Where an experiment ran.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Logical processors.
    pub cores: usize,
    /// Memory in GiB.
    pub memory_gib: f64,
    /// Kernel release.
    pub kernel: String,
    /// Distribution.
    pub os: String,
}

/// The size of an experiment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    /// Events sent, duplicates included.
    pub events: u64,
    /// Users over whom they are spread.
    pub users: u32,
    /// Zipf exponent of that spread: 0 is uniform.
    pub skew: f64,
    /// Seed of the stream.
    pub seed: u64,
    /// Size that a payload is filled up to, in bytes.
    pub payload_bytes: usize,
    /// Kafka partitions a topic.
    pub partitions: u32,
    /// Records a batch.
    pub batch_rows_max: usize,
    /// Runs a layout and path.
    pub runs: u32,
    /// Connections over all servers of a layout.
    pub connections: u32,
    /// Shards of the Citus tables.
    pub citus_shards: u32,
}

/// What one layout did by one path: medians over the runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LayoutResult {
    /// `single`, `partman`, `shards`, `citus`.
    pub layout: String,
    /// `worker`, `raw-sql`; for shards `aligned`, `modulo`; for citus `coordinator`, `coordinator-grouped`, `owner`.
    pub path: String,
    /// Median.
    pub events_per_s: f64,
    /// Slowest run.
    pub events_per_s_min: f64,
    /// Fastest run.
    pub events_per_s_max: f64,
    /// Median; rows inserted or updated.
    pub rows_per_s: f64,
    /// Median of the runs' median batch latency, in ms.
    pub p50_ms: f64,
    /// Likewise the 95th percentile.
    pub p95_ms: f64,
    /// Likewise the 99th percentile.
    pub p99_ms: f64,
    /// Median CPU time of all database servers of the layout, in us an event.
    pub server_cpu_us_per_event: f64,
    /// Median CPU time of our own process, in us an event.
    pub client_cpu_us_per_event: f64,
    /// Median CPU time of the Kafka broker, in us an event; 0 for raw-sql.
    pub kafka_cpu_us_per_event: f64,
    /// Median write-ahead log written by all servers, in bytes an event.
    pub wal_bytes_per_event: f64,
    /// Rows of `inbox` by shard (or by the one server), from the last run: the balance.
    pub balance: BTreeMap<String, u64>,
    /// Events that the inbox knew, in the last run.
    pub duplicates: u64,
    /// Events without a legal transition, in the last run.
    pub illegal: u64,
    /// Whether the final state equals, row by row, that of the first layout that ran.
    pub equal_state: bool,
    /// Every run.
    pub runs: Vec<Run>,
}

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// Counted from 1.
    pub run: u32,
    /// From the first record consumed to the last one committed.
    pub seconds: f64,
    /// Events a second.
    pub events_per_s: f64,
    /// Rows a second.
    pub rows_per_s: f64,
    /// CPU seconds of the database servers.
    pub server_cpu_s: f64,
    /// CPU seconds of our process.
    pub client_cpu_s: f64,
    /// CPU seconds of the broker.
    pub kafka_cpu_s: f64,
    /// Bytes of write-ahead log.
    pub wal_bytes: u64,
    /// Transactions.
    pub batches: u64,
    /// Outcome -> events.
    pub counts: BTreeMap<String, u64>,
    /// Batch latency in ms at the quantiles 0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.
    pub latency_ms: Vec<(f64, f64)>,
    /// A digest of the business tables after the run, independent of the order of rows.
    pub state_digest: String,
}

/// A topic read a second time, by a new consumer group, into the database that has applied it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Replay {
    /// The layout.
    pub layout: String,
    /// The path.
    pub path: String,
    /// Events a second of the replay.
    pub events_per_s: f64,
    /// Against the fresh rate of the same layout and path.
    pub times_fresh: f64,
    /// Whether any row changed: must be false.
    pub rows_changed: bool,
}

/// How unevenly a stream hits slots and users.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Skew {
    /// The busiest slot's events over the mean of all 4096 slots.
    pub busiest_slot: f64,
    /// The busiest user's share of all events, 0 to 1.
    pub busiest_user: f64,
}

/// A goal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ratio {
    /// In words: `citus owner / citus coordinator`.
    pub name: String,
    /// What was measured.
    pub value: f64,
    /// At least this.
    pub goal: f64,
    /// Whether it was reached.
    pub met: bool,
}

/// A layout that could not run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Skipped {
    /// The layout.
    pub layout: String,
    /// Why.
    pub reason: String,
}
