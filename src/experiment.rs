//! `shardlane experiment`: measure, print a table, write the report.

mod cost;
mod door;
mod memory;
mod reads;
mod retention;
mod routing;
mod scatter;
mod shard_down;
mod skew;
mod study;
mod sweep;
mod window;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use shardlane_bench::ingest::{IngestOptions, run};
use shardlane_bench::results::Settings;
use shardlane_bench::{report, reshard, table};
use shardlane_sql::Layout;

/// Measure the layouts side by side on servers that start for it
#[derive(Debug, Args)]
pub(crate) struct ExperimentArgs {
    #[command(subcommand)]
    experiment: Experiment,
}

#[derive(Debug, Subcommand)]
enum Experiment {
    /// One seeded stream of webhooks through Kafka into every layout, by every path
    Ingest(IngestArgs),
    /// Shards that grow, shrink, move and split under full load, and an oracle that looks for what was lost
    Reshard(ReshardArgs),
    /// The front door: its capacity with and without Kafka, what a request costs, and how long it takes to its row
    Door(door::DoorArgs),
    /// Citus by the node that owns a user, against its coordinator and any node in turn
    Routing(routing::RoutingArgs),
    /// What an event costs each layout in CPU, write-ahead log, connections and memory, and a model of more nodes
    Cost(cost::CostArgs),
    /// A user's rows, and an order without its user: by which way, at what cost, with how many clients
    Reads(reads::ReadsArgs),
    /// A day leaves a log: DELETE and VACUUM against dropping its partition
    Retention(retention::RetentionArgs),
    /// Users that are not alike, one with half of the traffic, and the cure: isolation, moved slots
    Skew(skew::SkewArgs),
    /// One setting of ingest takes several values: batch rows, connections, shards, partitions, payloads, hash, commit
    Sweep(sweep::SweepArgs),
    /// Questions about all users: one Postgres, Citus, and a scatter-gather over manual shards
    Scatter(scatter::ScatterArgs),
    /// Events of one kind over some days of a month: an index, daily partitions, Citus; cold and warm
    Window(window::WindowArgs),
    /// One of two servers goes away and comes back: what the other one notices, and how fast the backlog drains
    ShardDown(shard_down::ShardDownArgs),
    /// What a worker process takes at most before a backlog of a million events
    Memory(memory::MemoryArgs),
}

#[derive(Debug, Args)]
struct ReshardArgs {
    /// Layouts, comma-separated: shards, citus
    #[arg(long, value_delimiter = ',', default_value = "shards,citus")]
    layouts: Vec<Layout>,
    /// Fewer changes, within a minute
    #[arg(long)]
    quick: bool,
    /// Users, whose events take turns
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    users: u64,
    /// Kafka partitions a topic
    #[arg(long, value_name = "P", default_value_t = 16)]
    partitions: u32,
    /// Shards of the Citus tables
    #[arg(long, value_name = "N", default_value_t = 16)]
    citus_shards: u32,
    /// Records a batch
    #[arg(long, value_name = "R", default_value_t = 500)]
    batch_rows_max: usize,
    /// Connections over all servers of a layout
    #[arg(long, value_name = "C", default_value_t = 4)]
    connections: u32,
    /// Events that wait in Kafka at any time, beside those of slots on their way
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    backlog: u64,
    /// Events a second at a constant rate, instead of a backlog: below what the machine can do, the stalls that are left
    /// are the change's own
    #[arg(long, value_name = "N", conflicts_with = "backlog", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    rate: Option<u64>,
    /// Folder for reshard.json and reshard.html
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Also write the results here; `-` prints them instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl ReshardArgs {
    async fn run(self) -> anyhow::Result<ExitCode> {
        // Before the measurement, not after it.
        std::fs::create_dir_all(&self.out)
            .with_context(|| format!("the folder {} cannot be made", self.out.display()))?;
        let options = reshard::ReshardOptions {
            layouts: self.layouts,
            settings: reshard::Settings {
                users: self.users,
                partitions: self.partitions,
                citus_shards: self.citus_shards,
                batch_rows_max: self.batch_rows_max.max(1),
                connections: self.connections.max(1),
                backlog: self.backlog,
                rate: self.rate,
                pause_ms: if self.quick { 1_000 } else { 5_000 },
                quick: self.quick,
            },
            command: command_line(),
        };
        let results = unless_interrupted(reshard::run(&options)).await?;
        let json = self.out.join("reshard.json");
        let html = self.out.join("reshard.html");
        write_json(&results, &json)?;
        report::reshard::write(&results, &html)?;
        match &self.json {
            Some(path) if path.as_os_str() == "-" => {
                println!("{}", serde_json::to_string_pretty(&results)?);
            }
            path => {
                if let Some(path) = path {
                    write_json(&results, path)?;
                }
                println!("{}", reshard::render(&results));
                println!("results: {}", json.display());
                println!("report:  {}", html.display());
            }
        }
        let right = results.results.iter().all(reshard::ChangeResult::is_right);
        Ok(ExitCode::from(u8::from(!right)))
    }
}

#[derive(Debug, Args)]
struct IngestArgs {
    /// Layouts, comma-separated: single, partman, shards, citus
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "single,partman,shards,citus"
    )]
    layouts: Vec<Layout>,
    /// Events in the stream, duplicates included
    #[arg(long, default_value_t = 60_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    events: u64,
    /// Users over whom the orders are spread
    #[arg(long, default_value_t = 15_000, value_parser = clap::value_parser!(u32).range(1..))]
    users: u32,
    /// Zipf exponent of that spread; 0 is uniform
    #[arg(long, default_value_t = 0.0, value_parser = parse_skew)]
    skew: f64,
    /// Seed of the stream
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Size that a payload is filled up to
    #[arg(long, value_name = "B", default_value_t = 300)]
    payload_bytes: usize,
    /// Kafka partitions a topic
    #[arg(long, value_name = "P", default_value_t = 16)]
    partitions: u32,
    /// Records a batch
    #[arg(long, value_name = "R", default_value_t = 4_000)]
    batch_rows_max: usize,
    /// Runs of each layout and path
    #[arg(long, value_name = "K", default_value_t = 3)]
    runs: u32,
    /// Connections over all servers of a layout
    #[arg(long, value_name = "C", default_value_t = 4)]
    connections: u32,
    /// Primaries of the layout shards
    #[arg(long, value_name = "N", default_value_t = 2)]
    shards: u32,
    /// Shards of the Citus tables; as many as partitions by default
    #[arg(long, value_name = "N")]
    citus_shards: Option<u32>,
    /// Folder for results.json and report.html
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Also write the results here; `-` prints them instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl ExperimentArgs {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        match self.experiment {
            Experiment::Ingest(arguments) => arguments.run().await,
            Experiment::Reshard(arguments) => arguments.run().await,
            Experiment::Routing(arguments) => arguments.run().await,
            Experiment::Door(arguments) => arguments.run().await,
            Experiment::Cost(arguments) => arguments.run().await,
            Experiment::Reads(arguments) => arguments.run().await,
            Experiment::Retention(arguments) => arguments.run().await,
            Experiment::Skew(arguments) => arguments.run().await,
            Experiment::Sweep(arguments) => arguments.run().await,
            Experiment::Scatter(arguments) => arguments.run().await,
            Experiment::Window(arguments) => arguments.run().await,
            Experiment::ShardDown(arguments) => arguments.run().await,
            Experiment::Memory(arguments) => arguments.run().await,
        }
    }
}

impl IngestArgs {
    async fn run(self) -> anyhow::Result<ExitCode> {
        // Before the measurement, not after it.
        std::fs::create_dir_all(&self.out)
            .with_context(|| format!("the folder {} cannot be made", self.out.display()))?;
        let mut layouts: Vec<Layout> = Vec::new();
        for layout in self.layouts {
            if !layouts.contains(&layout) {
                layouts.push(layout);
            }
        }
        let options = IngestOptions {
            layouts,
            shards: self.shards,
            settings: Settings {
                events: self.events,
                users: self.users,
                skew: self.skew,
                seed: self.seed,
                payload_bytes: self.payload_bytes,
                partitions: self.partitions,
                batch_rows_max: self.batch_rows_max,
                runs: self.runs,
                connections: self.connections,
                citus_shards: self.citus_shards.unwrap_or(self.partitions),
            },
            command: command_line(),
        };
        let results = unless_interrupted(run(&options)).await?;
        let json = self.out.join("results.json");
        let html = self.out.join("report.html");
        write_json(&results, &json)?;
        report::write(std::slice::from_ref(&results), &html)?;
        match &self.json {
            Some(path) if path.as_os_str() == "-" => {
                println!("{}", serde_json::to_string_pretty(&results)?);
            }
            Some(path) => write_json(&results, path)?,
            None => {}
        }
        if self
            .json
            .as_ref()
            .is_none_or(|path| path.as_os_str() != "-")
        {
            println!("{}", table::render(&results));
            println!("results: {}", json.display());
            println!("report:  {}", html.display());
        }
        let equal = results.results.iter().all(|result| result.equal_state)
            && results.replays.iter().all(|replay| !replay.rows_changed);
        Ok(if equal {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(1)
        })
    }
}

/// The results of an experiment, unless Ctrl-C comes first.
async fn unless_interrupted<T>(run: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::select! {
        results = run => results,
        signal = tokio::signal::ctrl_c() => {
            signal?;
            anyhow::bail!("interrupted; the servers of the experiment are being stopped");
        }
    }
}

/// Prints the results as JSON if `also` is `-`, and otherwise as a table with the file that has them, and writes them to
/// `also`.
fn tell(
    results: &impl serde::Serialize,
    also: Option<&std::path::Path>,
    table: &str,
    json: &std::path::Path,
) -> anyhow::Result<()> {
    match also {
        Some(path) if path.as_os_str() == "-" => {
            println!("{}", serde_json::to_string_pretty(results)?);
        }
        path => {
            if let Some(path) = path {
                write_json(results, path)?;
            }
            println!("{table}");
            println!("results: {}", json.display());
        }
    }
    Ok(())
}

pub(crate) fn write_json(
    results: &impl serde::Serialize,
    path: &std::path::Path,
) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(results)?;
    text.push('\n');
    std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
}

/// The command line with the program's name alone: a path would name this machine.
fn command_line() -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    format!("shardlane {}", arguments.join(" "))
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.05..=3_600.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds from 0.05 to 3600".to_owned()),
    }
}

fn parse_skew(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(skew) if (0.0..=4.0).contains(&skew) => Ok(skew),
        _ => Err("expected a number from 0 (uniform) to 4".to_owned()),
    }
}
