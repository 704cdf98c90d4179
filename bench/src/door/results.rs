//! What the door experiment measured. Scripts rely on these names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::load::results::{LoadResults, render as render_load};
use crate::results::Machine;
use crate::routing::results::Spread;
use crate::table::{align, table};

/// The experiment with everything that is needed to judge and to repeat it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DoorResults {
    /// `door`.
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
    /// Versions by name.
    pub versions: BTreeMap<String, String>,
    /// What was asked for.
    pub settings: DoorSettings,
    /// How many requests each way takes.
    pub capacity: Vec<Capacity>,
    /// What a request costs before the produce, and in it.
    pub steps: Vec<Step>,
    /// Half of the capacity, open loop, to the row.
    pub open: LoadResults,
    /// What others feel of slow sockets; nothing in results from before it was measured.
    #[serde(default)]
    pub slow: Slow,
    /// The goals, and what came out.
    pub goals: Vec<Goal>,
}

/// The size of the experiment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DoorSettings {
    /// Rounds; each measures every way once.
    pub runs: u32,
    /// Length of a capacity run, in seconds, after a warm-up.
    pub seconds: f64,
    /// Length of the open loop, in seconds.
    pub open_seconds: f64,
    /// Share of the capacity that the open loop sends.
    pub open_share: f64,
    /// Keep-alive connections.
    pub connections: u32,
    /// Kafka partitions a topic.
    pub partitions: u32,
    /// Users over whom the orders are spread.
    pub users: u32,
    /// Size that a payload is filled up to.
    pub payload_bytes: usize,
}

/// A way through the front door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The real one: 202 after acks=all.
    Kafka,
    /// The same without the produce: 202 for nothing.
    NoProduce,
    /// The real one, by one connection: a request after the answer to the one before.
    Sequential,
}

impl Way {
    /// In the order of the table.
    pub const ALL: [Way; 3] = [Way::Kafka, Way::NoProduce, Way::Sequential];

    /// As the table names it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Way::Kafka => "kafka",
            Way::NoProduce => "no-produce",
            Way::Sequential => "sequential",
        }
    }
}

/// As many requests as a way takes, from clients that wait for each answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Capacity {
    /// Which way.
    pub way: Way,
    /// Over the rounds.
    pub requests_per_s: Spread,
    /// CPU time of the server's threads and of its Kafka client's, a request.
    pub server_cpu_us: Spread,
    /// Every round.
    pub runs: Vec<CapacityRun>,
}

/// One round of one way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CapacityRun {
    /// Requests a second, all with 202.
    pub requests_per_s: f64,
    /// CPU time of the server's threads, a request.
    pub server_cpu_us: f64,
}

/// The same open loop without and beside sockets that never end their requests.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Slow {
    /// How many of those.
    pub sockets: u32,
    /// Of the others.
    pub requests_per_s: f64,
    /// p99 beside them by p99 without, over the rounds.
    pub ratio: Spread,
    /// Every round.
    pub runs: Vec<SlowRun>,
}

/// One round.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SlowRun {
    /// Without slow sockets.
    pub alone_p99_ms: f64,
    /// Beside them.
    pub beside_p99_ms: f64,
}

/// CPU time of a part of a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Step {
    /// `verification`, `validation`, `routing`, `produce`.
    pub name: String,
    /// Over the rounds.
    pub cpu_us: Spread,
}

/// What we want, and what came out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Goal {
    /// What is measured, with its unit.
    pub name: String,
    /// What came out.
    pub value: f64,
    /// What we want.
    pub goal: f64,
    /// Whether more is better.
    pub at_least: bool,
    /// Whether it was reached.
    pub met: bool,
}

impl Goal {
    pub(super) fn at_least(name: &str, value: f64, goal: f64) -> Goal {
        Goal {
            name: name.to_owned(),
            value,
            goal,
            at_least: true,
            met: value >= goal,
        }
    }

    pub(super) fn at_most(name: &str, value: f64, goal: f64) -> Goal {
        Goal {
            name: name.to_owned(),
            value,
            goal,
            at_least: false,
            met: value <= goal,
        }
    }
}

/// The goals of what was measured.
pub(super) fn goals(
    capacity: &[Capacity],
    steps: &[Step],
    open: &LoadResults,
    slow: &Slow,
) -> Vec<Goal> {
    // Within a round, then over the rounds: what drifts harms both sides alike.
    let ratio = |other: Way| {
        let runs = |way| {
            let found = capacity.iter().find(|capacity| capacity.way == way);
            found.map_or(&[][..], |capacity| &capacity.runs)
        };
        let pairs = runs(Way::Kafka).iter().zip(runs(other));
        Spread::of(pairs.map(|(kafka, other)| kafka.requests_per_s / other.requests_per_s)).median
    };
    let before: f64 = steps
        .iter()
        .filter(|step| step.name != PRODUCE)
        .map(|step| step.cpu_us.median)
        .sum();
    let whole = capacity
        .iter()
        .find(|capacity| capacity.way == Way::NoProduce);
    let whole = whole.map_or(f64::NAN, |capacity| capacity.server_cpu_us.median);
    let ms = &open.measured.latency_ms;
    #[expect(
        clippy::cast_precision_loss,
        reason = "requests of a run are at most millions"
    )]
    let missed = open.measured.missed as f64;
    let rows = open.rows.as_ref();
    vec![
        Goal::at_least("kafka / no-produce, x", ratio(Way::NoProduce), 0.5),
        Goal::at_least("kafka / sequential await, x", ratio(Way::Sequential), 100.0),
        Goal::at_most("verification + validation + routing, CPU us", before, 25.0),
        Goal::at_most(
            "no-produce with HTTP and its system calls, CPU us",
            whole,
            25.0,
        ),
        Goal::at_most("ack p99, ms", ms.p99, 20.0),
        Goal::at_most("ack p99.9, ms", ms.p999, 100.0),
        Goal::at_most(
            "HTTP to row p99, ms",
            rows.map_or(f64::NAN, |rows| rows.latency_ms.p99),
            250.0,
        ),
        Goal::at_most("missed sends", missed, 0.0),
        Goal::at_most(
            &format!("p99 beside {} slow sockets / without, x", slow.sockets),
            slow.ratio.median,
            1.2,
        ),
    ]
}

/// The step that is not before the produce.
pub(super) const PRODUCE: &str = "produce";

/// The results for a terminal.
#[must_use]
pub fn render(results: &DoorResults) -> String {
    let mut ways = table(&["way", "requests/s", "min..max", "server CPU us", "min..max"]);
    for capacity in &results.capacity {
        let (rate, cpu) = (&capacity.requests_per_s, &capacity.server_cpu_us);
        ways.add_row([
            capacity.way.as_str().to_owned(),
            format!("{:.0}", rate.median),
            format!("{:.0}..{:.0}", rate.min, rate.max),
            format!("{:.1}", cpu.median),
            format!("{:.1}..{:.1}", cpu.min, cpu.max),
        ]);
    }
    align(&mut ways, 1);
    let mut steps = table(&["step", "CPU us", "min..max"]);
    for step in &results.steps {
        let cpu = &step.cpu_us;
        steps.add_row([
            step.name.clone(),
            format!("{:.2}", cpu.median),
            format!("{:.2}..{:.2}", cpu.min, cpu.max),
        ]);
    }
    align(&mut steps, 1);
    let mut text = format!(
        "{ways}\n\n{steps}\n\nopen loop at {} of the capacity:\n{}\n",
        results.settings.open_share,
        render_load(&results.open)
    );
    for run in &results.slow.runs {
        text.push_str(&format!(
            "  p99 without slow sockets {:.2} ms, beside them {:.2} ms\n",
            run.alone_p99_ms, run.beside_p99_ms
        ));
    }
    for goal in &results.goals {
        text.push_str(&format!(
            "  {:<50} {:>9.2}  goal {} {:>7.2}  {}\n",
            goal.name,
            goal.value,
            if goal.at_least { ">=" } else { "<=" },
            goal.goal,
            if goal.met { "met" } else { "NOT met" }
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_that_has_no_figure_is_not_met() {
        assert!(Goal::at_least("", 0.5, 0.5).met && Goal::at_most("", 0.5, 0.5).met);
        assert!(!Goal::at_least("", 0.49, 0.5).met && !Goal::at_most("", 0.51, 0.5).met);
        assert!(!Goal::at_least("", f64::NAN, 0.5).met && !Goal::at_most("", f64::NAN, 0.5).met);
    }
}
