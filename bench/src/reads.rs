//! The reads experiment: what it costs to find a user's rows, or an order without its user, and by which way.
//!
//! The tables are the product's own, the rows the same in every layout, and so are the statements; answers are compared
//! with those of the first layout before anything is measured.

mod data;
mod findings;
mod ground;
mod question;
#[cfg(test)]
mod tests;
mod work;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use anyhow::{Context, bail};
use shardlane_sql::Layout;

use crate::closed_loop::drive;
use crate::machine::own_cpu_seconds;
use crate::study::{CellResult, Figure, Part, Rounds, Run, Started, Stop, Study};
use ground::Ground;
use question::{Path, Question};
use work::Work;

/// Keys whose answers are compared between the ways.
const COMPARED: usize = 25;

/// The size of the experiment.
#[derive(Debug, Clone)]
pub struct ReadsSettings {
    /// Any of the four.
    pub layouts: Vec<Layout>,
    /// Users.
    pub users: u32,
    /// Orders of each user.
    pub orders_a_user: u64,
    /// Events of each order.
    pub events_an_order: u64,
    /// Clients that read at once; each number is measured.
    pub clients: Vec<u32>,
    /// Length of a run, in seconds, after a warm-up.
    pub seconds: f64,
    /// Primaries of the layout shards.
    pub shards: u32,
    /// Shards of the Citus tables, over two workers.
    pub citus_shards: u32,
    /// Runs of each cell.
    pub runs: u32,
}

#[derive(Debug, Clone, Copy)]
struct Cell {
    question: Question,
    clients: u32,
    layout: Layout,
    path: Path,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cell {
            question,
            clients,
            layout,
            path,
        } = self;
        write!(
            f,
            "{}, {clients} clients, {layout} {}",
            question.name(),
            path.as_str()
        )
    }
}

/// Runs the experiment.
///
/// # Errors
/// Where no layout can run, a server fails, or an answer has another number of rows than were stored.
pub async fn run(settings: &ReadsSettings, command: &str, stop: Stop) -> anyhow::Result<Study> {
    if settings.clients.is_empty() || settings.clients.contains(&0) {
        bail!("the number of clients must be 1 or more");
    }
    let started = Started::now();
    let rounds = Rounds::new(settings.runs, stop)?;
    let ground = Ground::prepare(settings, |line| rounds.say(line)).await?;
    let mut study = Study::new("reads", command, started);
    for question in Question::ALL {
        if rounds.is_stopped() {
            break;
        }
        rounds.say(&format!("{}: comparing the answers", question.name()));
        study.faults.extend(faults(&ground, question).await?);
        for clients in &settings.clients {
            let cells = cells(&ground, question, *clients);
            let measured = rounds
                .measure(cells, async |cell, round| {
                    measure(&ground, settings, *cell, round).await
                })
                .await?;
            study
                .results
                .extend(measured.into_iter().map(|(cell, runs)| {
                    let part = part_name(question, *clients);
                    CellResult::new(&part, cell.layout.as_str(), cell.path.as_str(), runs)
                }));
        }
    }
    study.took_s = started.seconds();
    study.versions = ground.versions().await?;
    study.settings = describe(settings);
    let parts = Question::ALL.into_iter().flat_map(|question| {
        settings
            .clients
            .iter()
            .map(move |clients| part(question, *clients))
    });
    study.parts = parts.collect();
    study.skipped = ground.skipped.clone();
    study.is_interrupted = rounds.is_stopped();
    study.findings = findings::findings(&study, &settings.clients);
    study.main_ratio = findings::main_ratio(&study, &settings.clients);
    Ok(study)
}

fn ways(ground: &Ground, question: Question) -> impl Iterator<Item = (Layout, Path)> {
    ground.layouts().flat_map(move |layout| {
        question
            .paths(layout)
            .iter()
            .map(move |path| (layout, *path))
    })
}

fn cells(ground: &Ground, question: Question, clients: u32) -> Vec<Cell> {
    ways(ground, question)
        .map(|(layout, path)| Cell {
            question,
            clients,
            layout,
            path,
        })
        .collect()
}

fn part_name(question: Question, clients: u32) -> String {
    format!("{}-{clients}", question.name())
}

fn part(question: Question, clients: u32) -> Part {
    let with = if clients == 1 {
        "1 client".to_owned()
    } else {
        format!("{clients} clients")
    };
    Part::new(
        &part_name(question, clients),
        &format!("{}: {with}", question.title()),
        question.what(),
        [
            Figure::new("reads_per_s", "reads/s", "reads/s", 0),
            Figure::new("p50_us", "p50 µs", "µs", 0),
            Figure::new("p95_us", "p95 µs", "µs", 0),
            Figure::new("p99_us", "p99 µs", "µs", 0),
            Figure::new("server_cpu_us", "server CPU µs/read", "µs", 0),
            Figure::new("client_cpu_us", "our CPU µs/read", "µs", 0),
            Figure::new("failed", "failed", "reads", 0),
        ],
    )
}

#[expect(
    clippy::cast_precision_loss,
    reason = "reads of a run and their microseconds"
)]
async fn measure(
    ground: &Ground,
    settings: &ReadsSettings,
    cell: Cell,
    round: u32,
) -> anyhow::Result<Run> {
    let Cell {
        question,
        clients,
        layout,
        path,
    } = cell;
    let pools = ground.pools(layout, path, question, clients).await?;
    let work = Arc::new(Work {
        question,
        path,
        pools,
        data: Arc::clone(&ground.data),
    });
    // A session has its plans after the fifth use.
    drive(&work, clients, settings.seconds * 0.25, round).await?;
    let (server, client) = (ground.cpu_seconds(layout)?, own_cpu_seconds());
    let tally = drive(&work, clients, settings.seconds, round).await?;
    let (server, client) = (
        ground.cpu_seconds(layout)? - server,
        own_cpu_seconds() - client,
    );
    if tally.ops == 0 {
        bail!("{cell}: no read succeeded");
    }
    let reads = tally.ops as f64;
    let quantile = |quantile| tally.latency_us.value_at_quantile(quantile) as f64;
    Ok(Run::from(
        [
            ("reads_per_s", reads / tally.seconds),
            ("p50_us", quantile(0.5)),
            ("p95_us", quantile(0.95)),
            ("p99_us", quantile(0.99)),
            ("server_cpu_us", server * 1e6 / reads),
            ("client_cpu_us", client * 1e6 / reads),
            ("failed", tally.failed as f64),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    ))
}

/// Each way's answers to the same keys against those of the first way.
async fn faults(ground: &Ground, question: Question) -> anyhow::Result<Vec<String>> {
    let data = &ground.data;
    let mut expected: Option<Vec<Vec<String>>> = None;
    let mut faults = Vec::new();
    for (layout, path) in ways(ground, question) {
        let pools = ground.pools(layout, path, question, 1).await?;
        let work = Work {
            question,
            path,
            pools,
            data: Arc::clone(data),
        };
        let mut answers = Vec::new();
        for number in 0..COMPARED {
            let user = number * data.users.len() / COMPARED;
            let event = number as u64 * data.events_a_user() / COMPARED as u64;
            let key = data.key(question, user, event);
            let asked = work.ask(&key).await;
            answers.push(asked.with_context(|| format!("{layout} {}", path.as_str()))?);
        }
        match &expected {
            None => expected = Some(answers),
            Some(expected) if *expected == answers => {}
            Some(_) => faults.push(format!(
                "{}: {layout} {} has other answers than the first layout",
                question.name(),
                path.as_str()
            )),
        }
    }
    if expected.is_some_and(|answers| answers.iter().all(Vec::is_empty)) {
        faults.push(format!("{}: nothing was found", question.name()));
    }
    Ok(faults)
}

fn describe(settings: &ReadsSettings) -> BTreeMap<String, String> {
    let clients: Vec<String> = settings.clients.iter().map(u32::to_string).collect();
    BTreeMap::from(
        [
            ("users", settings.users.to_string()),
            ("orders a user", settings.orders_a_user.to_string()),
            ("events an order", settings.events_an_order.to_string()),
            ("clients", clients.join(", ")),
            ("seconds a run", settings.seconds.to_string()),
            ("primaries of shards", settings.shards.to_string()),
            ("Citus shards", settings.citus_shards.to_string()),
            ("runs", settings.runs.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    )
}
