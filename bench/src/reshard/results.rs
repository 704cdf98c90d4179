//! What the reshard experiment measured. Scripts rely on these names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::results::{Machine, Skipped};
use crate::table::{align, table};

/// The experiment with everything that is needed to judge and to repeat it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// `reshard`.
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
    /// One entry a layout and change, in order.
    pub results: Vec<ChangeResult>,
    /// Layout -> events a second and owner hits over time.
    pub samples: BTreeMap<String, Vec<Sample>>,
    /// Layouts that could not run.
    pub skipped: Vec<Skipped>,
}

/// The size of the experiment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    /// Users, whose events take turns.
    pub users: u64,
    /// Kafka partitions a topic.
    pub partitions: u32,
    /// Shards of the Citus tables.
    pub citus_shards: u32,
    /// Records a batch.
    pub batch_rows_max: usize,
    /// Connections over all servers of a layout.
    pub connections: u32,
    /// Events that wait in Kafka at any time: the worker is never idle.
    pub backlog: u64,
    /// Events a second instead, whatever the worker does: below what it can do, what waits shows what a change holds up.
    #[serde(default)]
    pub rate: Option<u64>,
    /// The quiet stretch before and after each change, in ms.
    pub pause_ms: u64,
    /// Fewer changes.
    pub quick: bool,
}

/// What one change did.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ChangeResult {
    /// `shards` or `citus`.
    pub layout: String,
    /// `2->3`, `move`, ...
    pub change: String,
    /// When it began, in seconds on the clock of the samples.
    pub began_s: f64,
    /// When it ended, likewise.
    pub ended_s: f64,
    /// Events that were sent around this change: from the quiet stretch before it to the next one.
    pub events: u64,
    /// Events that were sent around this change and are nowhere.
    pub lost: u64,
    /// Events that stand twice.
    pub twice: u64,
    /// Events that were not applied in their user's order.
    pub out_of_order: u64,
    /// Users with rows on a shard that does not own them, at the end of the layout's run.
    pub misplaced: u64,
    /// Whether the layout's final rows are those of an undisturbed run of the same events.
    pub equal_state: bool,
    /// How long the change took, in seconds.
    pub took_s: f64,
    /// In the 2 s before it.
    pub events_per_s_before: f64,
    /// From its begin to its end.
    pub events_per_s_during: f64,
    /// In the 2 s after it.
    pub events_per_s_after: f64,
    /// The longest time in which one busy slot got no event into the database in the 2 s before: what is normal here.
    pub stall_before_ms: f64,
    /// Likewise from the change's begin to 2 s after its end.
    pub stall_max_ms: f64,
    /// Likewise, of slots that did not move; `None` where all may wait.
    pub stall_unmoved_ms: Option<f64>,
    /// Citus: the lowest share of events that went to their owner, from begin to 2 s after the end.
    pub owner_hit_min: Option<f64>,
    /// Citus: seconds from the change's end until the share was back above 0.99 for good.
    pub owner_hit_recovered_s: Option<f64>,
}

impl ChangeResult {
    /// Whether nothing was lost, doubled, disordered or misplaced.
    #[must_use]
    pub fn is_right(&self) -> bool {
        let wrong = self.lost + self.twice + self.out_of_order + self.misplaced;
        wrong == 0 && self.equal_state
    }
}

/// A point of the curve.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds since the load began.
    pub at_s: f64,
    /// In the quarter of a second before.
    pub events_per_s: f64,
    /// The share of events that went to their owner, as last asked.
    pub owner_hit: Option<f64>,
}

/// The results as a table for a terminal.
#[must_use]
pub fn render(results: &Results) -> String {
    let mut table = table(&[
        "layout",
        "change",
        "took s",
        "ev/s before",
        "during",
        "after",
        "stall ms",
        "unmoved",
        "normal",
        "owner hit",
        "back in s",
        "lost",
        "twice",
        "disorder",
        "state",
    ]);
    for result in &results.results {
        let optional = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        table.add_row([
            result.layout.clone(),
            result.change.clone(),
            format!("{:.1}", result.took_s),
            format!("{:.0}", result.events_per_s_before),
            format!("{:.0}", result.events_per_s_during),
            format!("{:.0}", result.events_per_s_after),
            format!("{:.0}", result.stall_max_ms),
            optional(result.stall_unmoved_ms, 0),
            format!("{:.0}", result.stall_before_ms),
            optional(result.owner_hit_min, 2),
            optional(result.owner_hit_recovered_s, 1),
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
    align(&mut table, 2);
    let mut text = table.to_string();
    text.push('\n');
    for skipped in &results.skipped {
        text.push_str(&format!(
            "  skipped {}: {}\n",
            skipped.layout, skipped.reason
        ));
    }
    text
}
