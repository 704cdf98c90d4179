//! The cost experiment: what an event costs each layout, and what that says of more nodes.

mod findings;
mod model;

use std::collections::BTreeMap;
use std::fmt;

use anyhow::bail;
use shardlane_router::SlotMap;
use shardlane_sql::{CitusPath, Layout};

use crate::feed::{Fed, Taking, Topic, maps};
use crate::lab::Lab;
use crate::stream::{StreamSettings, generate};
use crate::study::{CellResult, Figure, Part, Rounds, Run, Started, Stop, Study};
use model::{Checked, Costs};

const MEASURED: &str = "cost";
const MODEL: &str = "model";
const PUBLISHED: &str = "published";
/// Nodes with data of the model's clusters, the widest first: it is the one that is plotted.
const NODES: [u32; 5] = [16, 8, 4, 2, 1];
/// Cores of each node of the model.
const NODE_CORES: f64 = 4.0;

/// The size of the experiment.
#[derive(Debug, Clone)]
pub struct CostSettings {
    /// Any of the four.
    pub layouts: Vec<Layout>,
    /// Events in the stream.
    pub events: u64,
    /// Users over whom they are spread.
    pub users: u32,
    /// Size that a payload is filled up to.
    pub payload_bytes: usize,
    /// Kafka partitions a topic, and shards of the Citus tables.
    pub partitions: u32,
    /// Records a batch.
    pub batch_rows_max: usize,
    /// Connections over all servers of a layout.
    pub connections: u32,
    /// Primaries of the layout shards.
    pub shards: u32,
    /// Runs of each cell.
    pub runs: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cell {
    layout: Layout,
    path: Path,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    Worker,
    Aligned,
    Citus(CitusPath),
}

impl Path {
    const fn as_str(self) -> &'static str {
        match self {
            Path::Worker => "worker",
            Path::Aligned => "aligned",
            Path::Citus(path) => path.as_str(),
        }
    }

    const fn of(layout: Layout) -> &'static [Path] {
        match layout {
            Layout::Single | Layout::Partman => &[Path::Worker],
            Layout::Shards => &[Path::Aligned],
            Layout::Citus => &[
                Path::Citus(CitusPath::Owner),
                Path::Citus(CitusPath::CoordinatorGrouped),
                Path::Citus(CitusPath::Coordinator),
            ],
        }
    }

    const fn citus(self) -> CitusPath {
        match self {
            Path::Citus(path) => path,
            Path::Worker | Path::Aligned => CitusPath::Owner,
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.layout, self.path.as_str())
    }
}

/// What the runs share.
struct Ground<'a> {
    settings: &'a CostSettings,
    lab: Lab,
    map: SlotMap,
    aligned: Topic,
    mixed: Topic,
}

/// Runs the experiment.
///
/// # Errors
/// Where the settings make no map, Kafka is missing, no layout can run, or a server fails.
pub async fn run(settings: &CostSettings, command: &str, stop: Stop) -> anyhow::Result<Study> {
    let started = Started::now();
    let rounds = Rounds::new(settings.runs, stop)?;
    rounds.say("starting servers, filling topics");
    let ground = Ground::prepare(settings).await?;
    let cells: Vec<Cell> = ground
        .lab
        .layouts
        .iter()
        .map(|servers| servers.layout())
        .flat_map(|layout| {
            Path::of(layout).iter().map(move |path| Cell {
                layout,
                path: *path,
            })
        })
        .collect();
    let mut states: Vec<(Cell, String)> = Vec::new();
    let measured = rounds
        .measure(cells, async |cell, round| {
            let fed = ground.feed(*cell, round).await?;
            states.push((*cell, fed.state.to_string()));
            Ok(figures(*cell, &fed))
        })
        .await?;
    let mut study = Study::new("cost", command, started);
    for (cell, runs) in measured {
        let (layout, path) = (cell.layout.as_str(), cell.path.as_str());
        let modelled: Vec<Run> = runs.iter().map(|run| scaled(cell, run)).collect();
        study
            .results
            .push(CellResult::new(MEASURED, layout, path, runs));
        study
            .results
            .push(CellResult::new(MODEL, layout, path, modelled));
    }
    let batches = findings::batch_costs(&study, f64::from(settings.partitions));
    let checked = [
        model::check_form(),
        batches.map(model::check_batches).unwrap_or_default(),
    ];
    study
        .results
        .extend(checked.iter().flatten().map(published));
    study.parts = parts();
    study.took_s = started.seconds();
    study.versions = ground.lab.versions().await?;
    study.settings = describe(settings);
    study.skipped = ground.lab.skipped.clone();
    study.is_interrupted = rounds.is_stopped();
    study.faults = faults(&states);
    study.findings = findings::findings(&study, &checked.concat());
    study.main_ratio = findings::main_ratio(&study);
    Ok(study)
}

impl<'a> Ground<'a> {
    async fn prepare(settings: &'a CostSettings) -> anyhow::Result<Ground<'a>> {
        if settings.events == 0 || settings.batch_rows_max == 0 {
            bail!("events and batch rows must be 1 or more");
        }
        let (map, mixed) = maps(settings.partitions, settings.shards)?;
        let lab = Lab::start(&settings.layouts, usize::try_from(settings.shards)?).await?;
        let stream = generate(&StreamSettings::ingest(
            usize::try_from(settings.events)?,
            settings.users,
            0.0,
            1,
            settings.payload_bytes,
        ));
        let aligned = Topic::of(&lab, "aligned", &map, stream.clone()).await?;
        let mixed = Topic::of(&lab, "mixed", &mixed, stream).await?;
        Ok(Ground {
            settings,
            lab,
            map,
            aligned,
            mixed,
        })
    }

    async fn feed(&self, cell: Cell, round: u32) -> anyhow::Result<Fed> {
        let servers = self.lab.servers(cell.layout)?;
        let name = format!("cost_{}_{round}", cell.path.as_str().replace('-', "_"));
        let database = servers
            .create(&name, &self.map, self.settings.partitions)
            .await?;
        // What the coordinator is sent by those who know nothing of shards.
        let topic = match cell.path {
            Path::Citus(CitusPath::Coordinator) => &self.mixed,
            _ => &self.aligned,
        };
        let taking = Taking {
            batch_rows_max: self.settings.batch_rows_max,
            connections: self.settings.connections,
        };
        let to = (&database, database.backend(cell.path.citus()));
        let fed = topic
            .take(&self.lab, servers, to, taking, &format!("{cell} {round}"))
            .await?;
        servers.drop(&name).await?;
        Ok(fed)
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of an experiment are far below 2^52"
)]
fn figures(cell: Cell, fed: &Fed) -> Run {
    let coordinator = match cell.layout {
        Layout::Citus => fed.server_cpu_s.first().copied().unwrap_or(0.0),
        _ => 0.0,
    };
    let servers = fed.all_servers_cpu_s();
    Run::from(
        [
            ("server_cpu_us", fed.us_per_event(servers)),
            ("coordinator_cpu_us", fed.us_per_event(coordinator)),
            ("client_cpu_us", fed.us_per_event(fed.client_cpu_s)),
            ("kafka_cpu_us", fed.us_per_event(fed.kafka_cpu_s)),
            ("wal_bytes", fed.wal_bytes as f64 / fed.events.max(1) as f64),
            ("connections", fed.connections as f64),
            ("memory_mib", fed.memory_bytes as f64 / f64::from(1 << 20)),
            ("events_per_s", fed.events_per_s()),
            (
                "batch_events",
                fed.events as f64 / fed.outcome.batches.max(1) as f64,
            ),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    )
}

/// What the costs of a run say of more nodes.
fn scaled(cell: Cell, run: &Run) -> Run {
    let coordinator_us = match cell.path {
        Path::Citus(CitusPath::Owner) | Path::Worker | Path::Aligned => 0.0,
        Path::Citus(_) => run["coordinator_cpu_us"],
    };
    let costs = Costs {
        // The coordinator's part stays its own; what it does beside an owner's way is no event's.
        data_us: run["server_cpu_us"] - run["coordinator_cpu_us"],
        coordinator_us,
    };
    let rate = |nodes: u32| {
        // One server stays one.
        let nodes = match cell.layout {
            Layout::Single | Layout::Partman => 1,
            Layout::Shards | Layout::Citus => nodes,
        };
        costs.events_per_s(f64::from(nodes) * NODE_CORES, NODE_CORES)
    };
    let rates = NODES.map(|nodes| (format!("nodes_{nodes}"), rate(nodes)));
    let full = costs
        .nodes_of_a_coordinator()
        .map(|nodes| ("full_at".to_owned(), nodes));
    rates.into_iter().chain(full).collect()
}

fn published(checked: &Checked) -> CellResult {
    let run = Run::from(
        [
            ("off", checked.predicted / checked.published),
            ("predicted", checked.predicted),
            ("published", checked.published),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    CellResult::new(PUBLISHED, "citus", &checked.name, vec![run])
}

fn parts() -> Vec<Part> {
    let nodes = NODES.map(|nodes| {
        let title = format!(
            "events/s, {nodes} node{}",
            if nodes == 1 { "" } else { "s" }
        );
        Figure::new(&format!("nodes_{nodes}"), &title, "events/s", 0)
    });
    let full = Figure::new("full_at", "coordinator full at nodes", "nodes", 1);
    vec![
        Part::new(
            MEASURED,
            "What an event costs",
            "The same stream by the worker into each layout: CPU time of all database servers, of their coordinator, of our own \
             process and of Kafka, write-ahead log, the most connections on all servers, and their memory (PSS) at the end.",
            [
                Figure::new("server_cpu_us", "server CPU µs/event", "µs", 1),
                Figure::new("coordinator_cpu_us", "of it coordinator", "µs", 1),
                Figure::new("client_cpu_us", "our CPU µs/event", "µs", 1),
                Figure::new("kafka_cpu_us", "Kafka CPU µs/event", "µs", 1),
                Figure::new("wal_bytes", "WAL B/event", "B", 0),
                Figure::new("connections", "connections", "connections", 0),
                Figure::new("memory_mib", "memory MiB", "MiB", 0),
                Figure::new("events_per_s", "events/s", "events/s", 0),
                Figure::new("batch_events", "events a batch", "events", 0),
            ],
        ),
        Part::new(
            MODEL,
            "More nodes: a model",
            "Computed, not measured. Each node has 4 cores that do nothing else; an event costs what it cost here; users are even, \
             batches as large as here; a coordinator has 4 cores too. No network, disk or lock limits anything: real clusters do \
             less. A mixed batch (coordinator) would touch more nodes and cost more than the model says.",
            nodes.into_iter().chain([full]),
        ),
        Part::new(
            PUBLISHED,
            "The model against published figures",
            "INSERTs of one row: the form of the model, with costs from two of the four clusters of Citus's manual (v7.0, Scaling Out \
             Data Ingestion), predicts the other two. INSERTs of 100 rows over several shards: the costs of an event and of a shard \
             measured here predict the fall from the published rate for one shard (citus issue 1604).",
            [
                Figure::new("off", "predicted / published", "×", 2),
                Figure::new("predicted", "predicted /s", "/s", 0),
                Figure::new("published", "published /s", "/s", 0),
            ],
        ),
    ]
}

/// All runs have the rows of the first.
fn faults(states: &[(Cell, String)]) -> Vec<String> {
    let expected = states.first().map(|(_, state)| state);
    let mut faults: Vec<String> = states
        .iter()
        .filter(|(_, state)| Some(state) != expected)
        .map(|(cell, _)| format!("{cell}: other rows than in the first run"))
        .collect();
    faults.dedup();
    faults
}

fn describe(settings: &CostSettings) -> BTreeMap<String, String> {
    BTreeMap::from(
        [
            ("events", settings.events.to_string()),
            ("users", settings.users.to_string()),
            ("payload bytes", settings.payload_bytes.to_string()),
            (
                "partitions a topic, Citus shards",
                settings.partitions.to_string(),
            ),
            ("records a batch", settings.batch_rows_max.to_string()),
            ("connections", settings.connections.to_string()),
            ("primaries of shards", settings.shards.to_string()),
            ("runs", settings.runs.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    )
}
