//! The skew experiment: users that are not alike, one that has half of the traffic, and what cures it.

mod cure;
mod findings;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use anyhow::{Context, bail};
use shardlane_router::SlotMap;
use shardlane_sql::servers::LayoutDatabase;
use shardlane_sql::{CitusPath, Layout};
use uuid::Uuid;

use crate::feed::{Fed, Taking, Topic, maps};
use crate::ingest::balance;
use crate::lab::{Lab, connect};
use crate::stream::{Stream, StreamSettings};
use crate::study::{CellResult, Figure, Part, Rounds, Run, Started, Stop, Study};

/// Of the orders, in the last part.
const TENANT_SHARE: f64 = 0.5;
/// Of the stream, taken before a tenant's runs are measured: the rows that a cure has to move.
const WARM_PARTS: usize = 4;

/// The size of the experiment.
#[derive(Debug, Clone)]
pub struct SkewSettings {
    /// Any of single, shards, citus.
    pub layouts: Vec<Layout>,
    /// Zipf exponents; 0 is uniform.
    pub zipf: Vec<f64>,
    /// Events in each stream.
    pub events: usize,
    /// Users over whom they are spread.
    pub users: u32,
    /// Kafka partitions a topic, and shards of the Citus tables.
    pub partitions: u32,
    /// Records a batch.
    pub batch_rows_max: usize,
    /// Connections over all servers of a layout.
    pub connections: u32,
    /// Runs of each cell.
    pub runs: u32,
}

/// How users share the stream.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    Zipf(f64),
    Tenant,
}

impl Shape {
    fn name(self) -> String {
        match self {
            Shape::Zipf(exponent) => format!("zipf-{exponent}"),
            Shape::Tenant => "tenant".to_owned(),
        }
    }
}

/// One stream in Kafka.
struct Streamed {
    shape: Shape,
    tenant: Uuid,
    /// Taken unmeasured before.
    warm: Option<Topic>,
    topic: Topic,
}

#[derive(Debug, Clone, Copy)]
struct Cell {
    /// Its place among the streams.
    stream: usize,
    shape: Shape,
    layout: Layout,
    cured: bool,
}

impl Cell {
    const fn path(self) -> &'static str {
        match (self.layout, self.cured) {
            (Layout::Single | Layout::Partman, _) => "worker",
            (Layout::Shards, false) => "aligned",
            (Layout::Shards, true) => "neighbours-moved",
            (Layout::Citus, false) => "owner",
            (Layout::Citus, true) => "isolated",
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} {}", self.shape.name(), self.layout, self.path())
    }
}

/// What the runs share.
struct Ground<'a> {
    settings: &'a SkewSettings,
    lab: Lab,
    map: SlotMap,
    streams: Vec<Streamed>,
}

/// Runs the experiment.
///
/// # Errors
/// Where the settings make no map, Kafka is missing, no layout can run, or a server fails.
pub async fn run(settings: &SkewSettings, command: &str, stop: Stop) -> anyhow::Result<Study> {
    if settings.layouts.contains(&Layout::Partman) {
        bail!("time partitions do not matter here: choose from single, shards, citus");
    }
    let started = Started::now();
    let rounds = Rounds::new(settings.runs, stop)?;
    rounds.say("starting servers, filling topics");
    let ground = Ground::prepare(settings).await?;
    let mut states: Vec<(Cell, String)> = Vec::new();
    // All of them in each round: shapes are compared with each other too.
    let measured = rounds
        .measure(ground.cells(), async |cell, round| {
            let (run, state) = ground.measure(*cell, round).await?;
            states.push((*cell, state));
            Ok(run)
        })
        .await?;
    let mut study = Study::new("skew", command, started);
    study.results = measured
        .into_iter()
        .map(|(cell, runs)| {
            CellResult::new(&cell.shape.name(), cell.layout.as_str(), cell.path(), runs)
        })
        .collect();
    study.parts = ground
        .streams
        .iter()
        .map(|stream| part(stream.shape))
        .collect();
    study.versions = ground.lab.versions().await?;
    study.settings = describe(settings);
    study.skipped = ground.lab.skipped.clone();
    study.is_interrupted = rounds.is_stopped();
    study.faults = faults(&states);
    study.findings = findings::findings(&study, &settings.zipf);
    study.main_ratio = findings::main_ratio(&study);
    study.took_s = started.seconds();
    Ok(study)
}

impl<'a> Ground<'a> {
    async fn prepare(settings: &'a SkewSettings) -> anyhow::Result<Ground<'a>> {
        let (map, _) = maps(settings.partitions, 2)?;
        let lab = Lab::start(&settings.layouts, 2).await?;
        let mut streams = Vec::new();
        let shapes = settings.zipf.iter().map(|exponent| Shape::Zipf(*exponent));
        for shape in shapes.chain([Shape::Tenant]) {
            streams.push(Streamed::send(&lab, &map, settings, shape).await?);
        }
        Ok(Ground {
            settings,
            lab,
            map,
            streams,
        })
    }

    fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for (stream, streamed) in self.streams.iter().enumerate() {
            for servers in &self.lab.layouts {
                let (shape, layout) = (streamed.shape, servers.layout());
                cells.push(Cell {
                    stream,
                    shape,
                    layout,
                    cured: false,
                });
                if shape == Shape::Tenant && layout != Layout::Single {
                    cells.push(Cell {
                        stream,
                        shape,
                        layout,
                        cured: true,
                    });
                }
            }
        }
        cells
    }

    async fn measure(&self, cell: Cell, round: u32) -> anyhow::Result<(Run, String)> {
        let streamed = &self.streams[cell.stream];
        let servers = self.lab.servers(cell.layout)?;
        let name = format!("skew_{}_{}_{round}", cell.stream, u8::from(cell.cured));
        let database = servers
            .create(&name, &self.map, self.settings.partitions)
            .await?;
        let taking = Taking {
            batch_rows_max: self.settings.batch_rows_max,
            connections: self.settings.connections,
        };
        let take = async |topic: &Topic, what: &str| {
            let to = (&database, database.backend(CitusPath::Owner));
            topic
                .take(
                    &self.lab,
                    servers,
                    to,
                    taking,
                    &format!("{cell}, {round}, {what}"),
                )
                .await
        };
        if let Some(warm) = &streamed.warm {
            take(warm, "warm").await?;
        }
        let began = Instant::now();
        if cell.cured {
            cure::cure(cell.layout, &database, streamed.tenant).await?;
        }
        let cure_s = began.elapsed().as_secs_f64();
        let fed = take(&streamed.topic, "measured").await?;
        let mut run = figures(cell, &fed);
        run.extend(shares(cell.layout, &database).await?);
        if cell.cured {
            run.insert("cure_s".to_owned(), cure_s);
        }
        servers.drop(&name).await?;
        Ok((run, fed.state.to_string()))
    }
}

impl Streamed {
    async fn send(
        lab: &Lab,
        map: &SlotMap,
        settings: &SkewSettings,
        shape: Shape,
    ) -> anyhow::Result<Streamed> {
        let (skew, tenant, warm) = match shape {
            Shape::Zipf(exponent) => (exponent, 0.0, 0),
            Shape::Tenant => (0.0, TENANT_SHARE, settings.events / WARM_PARTS),
        };
        let events = settings.events + warm;
        let mut stream = Stream::new(StreamSettings {
            tenant,
            ..StreamSettings::ingest(events, settings.users, skew, 1, 300)
        });
        let tenant = stream.tenant();
        let prefix = shape.name();
        let warm = match warm {
            0 => None,
            _ => {
                let first = stream.by_ref().take(warm).collect();
                Some(Topic::of(lab, &format!("{prefix}-warm"), map, first).await?)
            }
        };
        let topic = Topic::of(lab, &prefix, map, stream.collect()).await?;
        Ok(Streamed {
            shape,
            tenant,
            warm,
            topic,
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "servers of a layout")]
fn figures(cell: Cell, fed: &Fed) -> Run {
    // The coordinator holds no rows.
    let with_rows = match cell.layout {
        Layout::Citus => fed.server_cpu_s.get(1..).unwrap_or_default(),
        _ => &fed.server_cpu_s[..],
    };
    let busiest = with_rows.iter().copied().fold(0.0, f64::max);
    let mean = with_rows.iter().sum::<f64>() / with_rows.len().max(1) as f64;
    Run::from(
        [
            ("events_per_s", fed.events_per_s()),
            ("p50_ms", fed.outcome.latency_ms(0.5)),
            ("p99_ms", fed.outcome.latency_ms(0.99)),
            ("busiest_cpu", busiest / mean.max(1e-9)),
            ("server_cpu_us", fed.us_per_event(fed.all_servers_cpu_s())),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    )
}

/// Rows of the busiest shard and of the busiest server, as shares of all.
#[expect(
    clippy::cast_precision_loss,
    reason = "rows of an experiment are far below 2^52"
)]
async fn shares(layout: Layout, database: &LayoutDatabase) -> anyhow::Result<Run> {
    let by_shard: Vec<u64> = balance(database, layout).await?.into_values().collect();
    let by_server = match layout {
        Layout::Citus => by_node(database).await?,
        _ => by_shard.clone(),
    };
    let busiest = |rows: &[u64]| {
        let all: u64 = rows.iter().sum();
        rows.iter()
            .max()
            .map_or(0.0, |most| 100.0 * *most as f64 / all.max(1) as f64)
    };
    Ok(Run::from([
        ("busiest_shard".to_owned(), busiest(&by_shard)),
        ("busiest_server".to_owned(), busiest(&by_server)),
    ]))
}

async fn by_node(database: &LayoutDatabase) -> anyhow::Result<Vec<u64>> {
    let url = database.urls().first().context("a coordinator has a DSN")?;
    let rows = connect(url)
        .await?
        .query(include_str!("skew/rows_by_node.sql"), &[])
        .await?;
    Ok(rows
        .iter()
        .map(|row| row.get::<_, i64>(0).unsigned_abs())
        .collect())
}

fn part(shape: Shape) -> Part {
    let (title, question) = match shape {
        Shape::Zipf(0.0) => (
            "All users alike".to_owned(),
            "A user has as many orders as any other.",
        ),
        Shape::Zipf(exponent) => (
            format!("Zipf {exponent}"),
            "The n-th busiest user has orders in proportion to 1/n to the power of this exponent.",
        ),
        Shape::Tenant => (
            "One user has half of the traffic".to_owned(),
            "All events of a user are one after the other, in one Kafka partition and one shard, whatever the layout. Cured: before \
             the measurement all neighbours of the user went to the other server; what that took is in the last column.",
        ),
    };
    Part::new(
        &shape.name(),
        &title,
        question,
        [
            Figure::new("events_per_s", "events/s", "events/s", 0),
            Figure::new("p50_ms", "batch p50 ms", "ms", 1),
            Figure::new("p99_ms", "batch p99 ms", "ms", 1),
            Figure::new("busiest_shard", "rows of the busiest shard %", "%", 1),
            Figure::new("busiest_server", "of the busiest server %", "%", 1),
            Figure::new("busiest_cpu", "CPU of the busiest server / mean", "×", 2),
            Figure::new("server_cpu_us", "server CPU µs/event", "µs", 1),
            Figure::new("cure_s", "cure s", "s", 1),
        ],
    )
}

/// Cells of one stream end with the same rows, cured or not.
fn faults(states: &[(Cell, String)]) -> Vec<String> {
    let mut faults: Vec<String> = states
        .iter()
        .filter(|(cell, state)| {
            let mut others = states.iter();
            let first = others.find(|(other, _)| other.stream == cell.stream);
            first.is_some_and(|(_, expected)| expected != state)
        })
        .map(|(cell, _)| format!("{cell}: other rows than in the first run of this stream"))
        .collect();
    faults.dedup();
    faults
}

fn describe(settings: &SkewSettings) -> BTreeMap<String, String> {
    let zipf: Vec<String> = settings.zipf.iter().map(f64::to_string).collect();
    BTreeMap::from(
        [
            ("Zipf exponents", zipf.join(", ")),
            ("the tenant's share of orders", TENANT_SHARE.to_string()),
            ("events", settings.events.to_string()),
            ("users", settings.users.to_string()),
            (
                "partitions a topic, Citus shards",
                settings.partitions.to_string(),
            ),
            ("records a batch", settings.batch_rows_max.to_string()),
            ("connections", settings.connections.to_string()),
            ("primaries of shards", "2".to_owned()),
            ("runs", settings.runs.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    )
}
