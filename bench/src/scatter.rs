//! The scatter experiment: questions about all users, where no shard knows the answer alone.
//!
//! One Postgres answers them by itself, Citus by its coordinator, and manual shards by a small scatter-gather in the
//! application: the question goes to all shards at once, and the parts are put together here.

mod gather;
mod ground;
mod question;

use std::fmt;
use std::time::Instant;

use shardlane_sql::Layout;

use crate::study::{CellResult, Figure, MainRatio, Part, Rounds, Run, Started, Stop, Study};
use gather::Row;
use ground::Ground;
use question::Question;

/// The size of the experiment.
#[derive(Debug, Clone)]
pub struct ScatterSettings {
    /// Any of single, shards, citus.
    pub layouts: Vec<Layout>,
    /// Orders; a tenth as many disputes.
    pub orders: u64,
    /// Primaries of the layout shards.
    pub shards: u32,
    /// How often a question is asked in a run.
    pub times: u32,
    /// Runs of each cell.
    pub runs: u32,
}

#[derive(Debug, Clone, Copy)]
struct Cell {
    layout: Layout,
    question: Question,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.question.name(), self.layout)
    }
}

/// How a layout is asked.
const fn path(layout: Layout) -> &'static str {
    match layout {
        Layout::Single | Layout::Partman => "one-server",
        Layout::Shards => "scatter-gather",
        Layout::Citus => "coordinator",
    }
}

/// Runs the experiment.
///
/// # Errors
/// Where no layout can run, or a server fails.
pub async fn run(settings: &ScatterSettings, command: &str, stop: Stop) -> anyhow::Result<Study> {
    let started = Started::now();
    let rounds = Rounds::new(settings.runs, stop)?;
    let ground = Ground::prepare(settings, |line| rounds.say(line)).await?;
    let mut study = Study::new("scatter", command, started);
    for question in Question::ALL {
        if rounds.is_stopped() {
            break;
        }
        let mut answers: Vec<(Layout, Vec<Row>)> = Vec::new();
        let cells = ground.layouts().map(|layout| Cell { layout, question });
        let measured = rounds
            .measure(cells.collect(), async |cell, _| {
                let (run, answer) = measure(&ground, *cell, settings.times).await?;
                answers.push((cell.layout, answer));
                Ok(run)
            })
            .await?;
        study
            .results
            .extend(measured.into_iter().map(|(cell, runs)| {
                CellResult::new(
                    question.name(),
                    cell.layout.as_str(),
                    path(cell.layout),
                    runs,
                )
            }));
        study.faults.extend(faults(question, &answers));
    }
    study.took_s = started.seconds();
    study.versions = ground.versions().await?;
    study.settings = describe(settings);
    study.parts = Question::ALL.map(part).to_vec();
    study.skipped = ground.skipped.clone();
    study.is_interrupted = rounds.is_stopped();
    study.findings = findings(&study);
    let [shards, single] = [Layout::Shards, Layout::Single].map(|it| (it.as_str(), path(it)));
    let ratio = study.over(Question::SharedCards.name(), "ms", shards, single);
    study.main_ratio = MainRatio::of("time of shared-cards, shards / single", ratio);
    Ok(study)
}

fn part(question: Question) -> Part {
    Part::new(
        question.name(),
        question.title(),
        question.what(),
        [
            Figure::new("ms", "time ms", "ms", 1),
            Figure::new("server_cpu_ms", "server CPU ms", "ms", 1),
            Figure::new("client_cpu_ms", "our CPU ms", "ms", 1),
            Figure::new("rows", "rows fetched", "rows", 0),
        ],
    )
}

async fn measure(ground: &Ground, cell: Cell, times: u32) -> anyhow::Result<(Run, Vec<Row>)> {
    // Once unmeasured: plans, caches, connections between nodes.
    ground.ask(cell.layout, cell.question).await?;
    let (server, client) = (
        ground.cpu_seconds(cell.layout),
        crate::machine::own_cpu_seconds(),
    );
    let began = Instant::now();
    let mut asked = ground.ask(cell.layout, cell.question).await?;
    for _ in 1..times {
        asked = ground.ask(cell.layout, cell.question).await?;
    }
    let each = |seconds: f64| seconds * 1e3 / f64::from(times);
    let took = began.elapsed().as_secs_f64();
    let run = Run::from(
        [
            ("ms", each(took)),
            (
                "server_cpu_ms",
                each(ground.cpu_seconds(cell.layout) - server),
            ),
            (
                "client_cpu_ms",
                each(crate::machine::own_cpu_seconds() - client),
            ),
            ("rows", asked.fetched),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    Ok((run, asked.answer))
}

fn faults(question: Question, answers: &[(Layout, Vec<Row>)]) -> Vec<String> {
    let Some((_, expected)) = answers.first() else {
        return Vec::new();
    };
    let mut faults: Vec<String> = answers
        .iter()
        .filter(|(_, answer)| answer != expected)
        .map(|(layout, _)| format!("{}: layout {layout} has another answer", question.name()))
        .collect();
    faults.dedup();
    if expected.is_empty() {
        faults.push(format!("{}: nothing was found", question.name()));
    }
    faults
}

fn describe(settings: &ScatterSettings) -> std::collections::BTreeMap<String, String> {
    std::collections::BTreeMap::from(
        [
            ("orders", settings.orders.to_string()),
            (
                "disputes",
                (settings.orders / ground::ORDERS_A_DISPUTE).to_string(),
            ),
            ("primaries of shards", settings.shards.to_string()),
            ("Citus shards", ground::CITUS_SHARDS.to_string()),
            ("asked in a run", settings.times.to_string()),
            ("runs", settings.runs.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    )
}

fn findings(study: &Study) -> Vec<String> {
    let mut findings = Vec::new();
    for (layout, name) in [
        (Layout::Shards, "our own scatter-gather"),
        (Layout::Citus, "Citus"),
    ] {
        let times: Vec<String> = Question::ALL
            .into_iter()
            .filter_map(|question| {
                let one = (layout.as_str(), path(layout));
                let single = (Layout::Single.as_str(), path(Layout::Single));
                let over = study.over(question.name(), "ms", one, single)?;
                Some(format!("{} {:.2}", question.name(), over.median))
            })
            .collect();
        if !times.is_empty() {
            findings.push(format!(
                "Against one Postgres the time of {name} is, question by question: {}.",
                times.join(", ")
            ));
        }
    }
    findings
}
