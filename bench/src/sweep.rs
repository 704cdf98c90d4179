//! The sweeps of the ingest experiment: one setting at a time takes several values, all else stays as it is.

mod findings;
mod knob;

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{bail, ensure};
use shardlane_router::{Epoch, ShardId, SlotMap, TokenHash};
use shardlane_sql::servers::LayoutServers;
use shardlane_sql::{CitusPath, Layout};

use crate::feed::{Fed, Taking, Topic};
use crate::lab::{Lab, connect};
use crate::stream::{StreamSettings, generate};
use crate::study::{CellResult, Figure, Part, Rounds, Run, Started, Stop, Study};
pub use knob::{Knob, Usual};

const PRIMARIES: u32 = 2;

/// The size of the experiment.
#[derive(Debug, Clone)]
pub struct SweepSettings {
    /// What takes several values.
    pub knob: Knob,
    /// Any of the four.
    pub layouts: Vec<Layout>,
    /// Events in each stream.
    pub events: u64,
    /// What all settings are where they are not swept.
    pub usual: Usual,
    /// Runs of each cell.
    pub runs: u32,
}

#[derive(Debug, Clone, Copy)]
struct Cell {
    layout: Layout,
    /// The place of the value.
    value: usize,
    knob: Knob,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.layout, self.knob.label(self.value))
    }
}

/// What the runs share.
struct Ground<'a> {
    settings: &'a SweepSettings,
    lab: Lab,
    /// One for all values where the stream is the same for all of them.
    topics: Vec<(Topic, SlotMap)>,
}

/// Runs the experiment.
///
/// # Errors
/// Where the settings make no map, Kafka is missing, no layout can run, or a server fails.
pub async fn run(settings: &SweepSettings, command: &str, stop: Stop) -> anyhow::Result<Study> {
    let knob = settings.knob;
    if let Some(layout) = settings
        .layouts
        .iter()
        .find(|layout| !knob.concerns(**layout))
    {
        bail!("{} is nothing that layout {layout} has", knob.name());
    }
    let started = Started::now();
    let rounds = Rounds::new(settings.runs, stop)?;
    rounds.say("starting servers, filling topics");
    let ground = Ground::prepare(settings).await?;
    let layouts = ground.lab.layouts.iter().map(LayoutServers::layout);
    let cells: Vec<Cell> = layouts
        .flat_map(|layout| {
            (0..knob.values()).map(move |value| Cell {
                layout,
                value,
                knob,
            })
        })
        .collect();
    let mut states: Vec<(Cell, String)> = Vec::new();
    let measured = rounds
        .measure(cells, async |cell, round| {
            let fed = ground.feed(*cell, round).await?;
            states.push((*cell, fed.state.to_string()));
            Ok(figures(&fed))
        })
        .await?;
    let mut study = Study::new(&format!("sweep-{}", knob.name()), command, started);
    study.results = measured
        .into_iter()
        .map(|(cell, runs)| {
            let path = knob.label(cell.value);
            CellResult::new(cell.layout.as_str(), cell.layout.as_str(), &path, runs)
        })
        .collect();
    study.parts = settings
        .layouts
        .iter()
        .map(|layout| part(*layout, knob))
        .collect();
    study.versions = ground.lab.versions().await?;
    study.settings = describe(settings);
    study.skipped = ground.lab.skipped.clone();
    study.is_interrupted = rounds.is_stopped();
    study.faults = faults(&states, knob);
    study.findings = findings::findings(&study, knob);
    study.took_s = started.seconds();
    Ok(study)
}

impl<'a> Ground<'a> {
    async fn prepare(settings: &'a SweepSettings) -> anyhow::Result<Ground<'a>> {
        let knob = settings.knob;
        let lab = Lab::start(&settings.layouts, usize::try_from(PRIMARIES)?).await?;
        let mut topics = Vec::new();
        let count = if knob.has_topics_of_its_own() {
            knob.values()
        } else {
            1
        };
        for value in 0..count {
            let with = knob.applied(settings.usual, value);
            let map = map(with)?;
            let stream = generate(&StreamSettings::ingest(
                usize::try_from(settings.events)?,
                u32::try_from(settings.events / 4).unwrap_or(u32::MAX),
                0.0,
                1,
                with.payload_bytes,
            ));
            let topic = Topic::of(&lab, &format!("sweep-{value}"), &map, stream).await?;
            topics.push((topic, map));
        }
        Ok(Ground {
            settings,
            lab,
            topics,
        })
    }

    async fn feed(&self, cell: Cell, round: u32) -> anyhow::Result<Fed> {
        let servers = self.lab.servers(cell.layout)?;
        let with = cell.knob.applied(self.settings.usual, cell.value);
        let (topic, map) = self.topics.get(cell.value).unwrap_or(&self.topics[0]);
        let name = format!("sweep_{}_{round}", cell.value);
        let database = servers.create(&name, map, with.citus_shards).await?;
        if !with.synchronous_commit {
            commit_asynchronously(servers, &name).await?;
        }
        let taking = Taking {
            batch_rows_max: usize::try_from(with.batch_rows_max)?,
            connections: with.connections,
        };
        let to = (&database, database.backend(CitusPath::Owner));
        let fed = topic
            .take(&self.lab, servers, to, taking, &format!("{cell}, {round}"))
            .await?;
        servers.drop(&name).await?;
        Ok(fed)
    }
}

fn map(with: Usual) -> anyhow::Result<SlotMap> {
    let shards: Vec<ShardId> = (0..i64::from(PRIMARIES)).map(ShardId).collect();
    let hash = if with.murmur3 {
        TokenHash::Murmur3
    } else {
        TokenHash::Postgres
    };
    Ok(SlotMap::aligned(Epoch(1), hash, with.partitions, &shards)?)
}

/// For every session of the database from now on, on each server.
async fn commit_asynchronously(servers: &LayoutServers, name: &str) -> anyhow::Result<()> {
    for node in servers.nodes() {
        let client = connect(&node.url("postgres")).await?;
        client
            .batch_execute(&format!(
                "alter database \"{name}\" set synchronous_commit = off"
            ))
            .await?;
        let session = connect(&node.url(name)).await?;
        let row = session.query_one("show synchronous_commit", &[]).await?;
        ensure!(
            row.get::<_, &str>(0) == "off",
            "synchronous_commit stayed on"
        );
    }
    Ok(())
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of an experiment are far below 2^52"
)]
fn figures(fed: &Fed) -> Run {
    Run::from(
        [
            ("events_per_s", fed.events_per_s()),
            ("p50_ms", fed.outcome.latency_ms(0.5)),
            ("p99_ms", fed.outcome.latency_ms(0.99)),
            ("server_cpu_us", fed.us_per_event(fed.all_servers_cpu_s())),
            ("client_cpu_us", fed.us_per_event(fed.client_cpu_s)),
            ("wal_bytes", fed.wal_bytes as f64 / fed.events.max(1) as f64),
            ("connections", fed.connections as f64),
            (
                "batch_events",
                fed.events as f64 / fed.outcome.batches.max(1) as f64,
            ),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    )
}

fn part(layout: Layout, knob: Knob) -> Part {
    Part::new(
        layout.as_str(),
        &format!("{} on layout {layout}", knob.title()),
        knob.what(),
        [
            Figure::new("events_per_s", "events/s", "events/s", 0),
            Figure::new("p50_ms", "batch p50 ms", "ms", 1),
            Figure::new("p99_ms", "batch p99 ms", "ms", 1),
            Figure::new("server_cpu_us", "server CPU µs/event", "µs", 1),
            Figure::new("client_cpu_us", "our CPU µs/event", "µs", 1),
            Figure::new("wal_bytes", "WAL B/event", "B", 0),
            Figure::new("connections", "connections", "connections", 0),
            Figure::new("batch_events", "events a batch", "events", 0),
        ],
    )
}

/// The same stream ends with the same rows, whatever it was taken with.
fn faults(states: &[(Cell, String)], knob: Knob) -> Vec<String> {
    let stream = |cell: &Cell| {
        if knob.changes_the_rows() {
            cell.value
        } else {
            0
        }
    };
    let mut faults: Vec<String> = states
        .iter()
        .filter(|(cell, state)| {
            let first = states
                .iter()
                .find(|(other, _)| stream(other) == stream(cell));
            first.is_some_and(|(_, expected)| expected != state)
        })
        .map(|(cell, _)| format!("{cell}: other rows than in the first run of this stream"))
        .collect();
    faults.dedup();
    faults
}

fn describe(settings: &SweepSettings) -> BTreeMap<String, String> {
    let usual = settings.usual;
    let mut described = BTreeMap::from(
        [
            ("swept", settings.knob.name().to_owned()),
            ("events", settings.events.to_string()),
            ("partitions a topic", usual.partitions.to_string()),
            ("Citus shards", usual.citus_shards.to_string()),
            ("records a batch", usual.batch_rows_max.to_string()),
            ("connections", usual.connections.to_string()),
            ("payload bytes", usual.payload_bytes.to_string()),
            ("runs", settings.runs.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    let values: Vec<String> = (0..settings.knob.values())
        .map(|value| settings.knob.label(value))
        .collect();
    described.insert("values".to_owned(), values.join(", "));
    described
}
