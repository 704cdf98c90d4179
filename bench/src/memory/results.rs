//! What the memory experiment measured. Scripts rely on these names.

use serde::{Deserialize, Serialize};

use crate::results::{Machine, Ratio};
use crate::table::{align, goals, table};

/// What a worker may take at most, in megabytes.
const PEAK_MB_MAX: f64 = 150.0;

/// The experiment with everything that is needed to judge and to repeat it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// `memory`.
    pub experiment: String,
    /// RFC 3339.
    pub started_at: String,
    /// How long the whole experiment took, in seconds.
    pub took_s: f64,
    /// Where it ran.
    pub machine: Machine,
    /// The commit of the code, with `-dirty` where the tree had changes.
    pub commit: String,
    /// The command line that repeats it.
    pub command: String,
    /// What was asked for.
    pub settings: Settings,
    /// One entry.
    pub results: Vec<MemoryResult>,
    /// The goal, and what came out.
    pub ratios: Vec<Ratio>,
}

/// The size of the experiment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    /// Events that wait in Kafka when the worker starts.
    pub events: u64,
    /// Users over whom they are spread.
    pub users: u32,
    /// Size that a payload is filled up to, in bytes.
    pub payload_bytes: usize,
    /// Kafka partitions a topic.
    pub partitions: u32,
    /// How long the database hangs, in ms.
    pub hang_ms: u64,
}

/// What the worker took. A MiB is 2^20 bytes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct MemoryResult {
    /// Events of the backlog, all of them done.
    pub events: u64,
    /// Bytes of their payloads.
    pub records_bytes: u64,
    /// The most that was ever resident, by the kernel (`VmHWM`), in MiB.
    pub peak_mib: u64,
    /// Resident when the database had hung, in MiB.
    pub hanging_resident_mib: u64,
    /// Bytes of records that the lanes held then.
    pub hanging_in_flight_bytes: u64,
    /// The most bytes of records that the lanes ever held.
    pub in_flight_peak_bytes: u64,
    /// Events a second, without the time for which the database hung.
    pub events_per_s: f64,
    /// Resident over the course of the backlog.
    pub points: Vec<Point>,
}

/// A point of the curve.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Point {
    /// Events done.
    pub done: u64,
    /// Resident, in MiB.
    pub resident_mib: u64,
}

impl MemoryResult {
    pub(super) fn ratios(&self) -> Vec<Ratio> {
        #[expect(clippy::cast_precision_loss, reason = "MiB of a process")]
        let value = PEAK_MB_MAX * 1e6 / (self.peak_mib.max(1) * 1024 * 1024) as f64;
        vec![Ratio {
            name: format!("{PEAK_MB_MAX:.0} MB / peak"),
            value,
            goal: 1.0,
            met: value >= 1.0,
        }]
    }
}

/// The results as a table for a terminal.
#[must_use]
pub fn render(results: &Results) -> String {
    let mut table = table(&[
        "events",
        "backlog MB",
        "peak MiB",
        "hanging MiB",
        "in lanes MiB",
        "events/s",
    ]);
    for result in &results.results {
        table.add_row([
            result.events.to_string(),
            (result.records_bytes / 1_000_000).to_string(),
            result.peak_mib.to_string(),
            result.hanging_resident_mib.to_string(),
            (result.hanging_in_flight_bytes >> 20).to_string(),
            format!("{:.0}", result.events_per_s),
        ]);
    }
    align(&mut table, 0);
    format!("{table}\n{}", goals(&results.ratios, &[]))
}
