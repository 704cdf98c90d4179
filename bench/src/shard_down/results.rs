//! What the shard-down experiment measured. Scripts rely on these names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::results::{Machine, Ratio, Skipped};
use crate::table::{align, goals, table};

/// The healthy server's rate during the outage against before.
const HEALTHY_GOAL: f64 = 0.95;
/// The outage against the time until its backlog is drained.
const DRAIN_GOAL: f64 = 3.0;

/// The experiment with everything that is needed to judge and to repeat it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// `shard-down`.
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
    /// One entry a layout.
    pub results: Vec<OutageResult>,
    /// Layout -> events a second over time.
    pub samples: BTreeMap<String, Vec<Sample>>,
    /// The goals, and what came out.
    pub ratios: Vec<Ratio>,
    /// Layouts that could not run.
    pub skipped: Vec<Skipped>,
}

/// The size of the experiment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    /// Events a second over both servers, whatever happens to them.
    pub rate: u64,
    /// Users, whose events take turns.
    pub users: u64,
    /// Kafka partitions a topic, and shards of the Citus tables.
    pub partitions: u32,
    /// The quiet stretch before the outage, in ms.
    pub lead_ms: u64,
    /// How long the server is away before it is started again, in ms.
    pub outage_ms: u64,
}

/// What one outage did.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct OutageResult {
    /// `shards`: one of two primaries goes away. `citus`: one of two worker nodes.
    pub layout: String,
    /// Events that were sent in the whole run.
    pub events: u64,
    /// Seconds from when the server was told to go (immediate shutdown) until it accepted connections again.
    pub outage_s: f64,
    /// Events a second on the server that stays, in the quiet stretch before.
    pub healthy_events_per_s_before: f64,
    /// Likewise during the outage.
    pub healthy_events_per_s_during: f64,
    /// Likewise while the backlog was drained.
    pub healthy_events_per_s_drain: f64,
    /// Events a second on the server that goes away, before.
    pub victim_events_per_s_before: f64,
    /// Likewise from its return until its backlog was drained.
    pub victim_events_per_s_drain: f64,
    /// The longest time in which the server that stays got no event, before, in ms.
    pub healthy_stall_before_ms: f64,
    /// Likewise during the outage.
    pub healthy_stall_during_ms: f64,
    /// The most events that waited in Kafka and in the worker.
    pub waiting_max: u64,
    /// Seconds from the server's return until the first event was committed there.
    pub first_commit_s: f64,
    /// Seconds from the server's return until no more events waited than at most before the outage.
    pub drained_s: f64,
    /// Events that were sent and are nowhere.
    pub lost: u64,
    /// Events that stand twice.
    pub twice: u64,
    /// Events that were not applied in their user's order.
    pub out_of_order: u64,
    /// Whether the final rows are those of an undisturbed run of the same events.
    pub equal_state: bool,
}

impl OutageResult {
    /// Whether nothing was lost, doubled or disordered.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.lost + self.twice + self.out_of_order == 0 && self.equal_state
    }

    pub(super) fn ratios(&self) -> [Ratio; 2] {
        let ratio = |name: &str, value: f64, goal: f64| Ratio {
            name: format!("{} {name}", self.layout),
            value,
            goal,
            met: value >= goal,
        };
        let healthy = self.healthy_events_per_s_during / self.healthy_events_per_s_before.max(1e-9);
        let drain = self.outage_s / self.drained_s.max(1e-9);
        [
            ratio("healthy during / before", healthy, HEALTHY_GOAL),
            ratio("outage / drain", drain, DRAIN_GOAL),
        ]
    }
}

/// A point of the curve.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds since the load began.
    pub at_s: f64,
    /// On the server that stays, in the quarter of a second before.
    pub healthy_events_per_s: f64,
    /// On the server that goes away, likewise.
    pub victim_events_per_s: f64,
    /// Events that were sent and not done.
    pub waiting: u64,
}

/// The results as a table for a terminal.
#[must_use]
pub fn render(results: &Results) -> String {
    let mut table = table(&[
        "layout",
        "outage s",
        "healthy ev/s before",
        "during",
        "stall ms before",
        "during",
        "waiting",
        "first commit s",
        "drained s",
        "drain ev/s",
        "lost",
        "twice",
        "disorder",
        "state",
    ]);
    for result in &results.results {
        table.add_row([
            result.layout.clone(),
            format!("{:.1}", result.outage_s),
            format!("{:.0}", result.healthy_events_per_s_before),
            format!("{:.0}", result.healthy_events_per_s_during),
            format!("{:.0}", result.healthy_stall_before_ms),
            format!("{:.0}", result.healthy_stall_during_ms),
            result.waiting_max.to_string(),
            format!("{:.2}", result.first_commit_s),
            format!("{:.1}", result.drained_s),
            format!("{:.0}", result.victim_events_per_s_drain),
            result.lost.to_string(),
            result.twice.to_string(),
            result.out_of_order.to_string(),
            if result.equal_state {
                "equal"
            } else {
                "DIFFERENT"
            }
            .to_owned(),
        ]);
    }
    align(&mut table, 1);
    let mut text = table.to_string();
    text.push('\n');
    text + &goals(&results.ratios, &results.skipped)
}
