//! `shardlane experiment shard-down`: one of two servers goes away under load.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use shardlane_bench::shard_down::{OutageResult, Settings, ShardDownOptions, render, run};
use shardlane_sql::Layout;

use super::{command_line, tell, unless_interrupted, write_json};

#[derive(Debug, Args)]
pub(super) struct ShardDownArgs {
    /// Layouts, comma-separated: shards, citus
    #[arg(long, value_delimiter = ',', default_value = "shards,citus")]
    layouts: Vec<Layout>,
    /// Events a second over both servers: well below what they can take, so that the one that stays is not made faster
    /// by the other's absence
    #[arg(long, value_name = "R", default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: u64,
    /// Users, whose events take turns
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    users: u64,
    /// Kafka partitions a topic, and shards of the Citus tables
    #[arg(long, value_name = "P", default_value_t = 16)]
    partitions: u32,
    /// How long the server is away [default: 60]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=3_600))]
    outage_seconds: Option<u64>,
    /// An outage of 10 s instead, after 5 s of quiet
    #[arg(long)]
    quick: bool,
    /// Folder for shard-down.json
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Also write the results here; `-` prints them instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl ShardDownArgs {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        // Before the measurement, not after it.
        std::fs::create_dir_all(&self.out)
            .with_context(|| format!("the folder {} cannot be made", self.out.display()))?;
        let seconds = self
            .outage_seconds
            .unwrap_or(if self.quick { 10 } else { 60 });
        let options = ShardDownOptions {
            layouts: self.layouts,
            settings: Settings {
                rate: self.rate,
                users: self.users,
                partitions: self.partitions,
                lead_ms: if self.quick { 5_000 } else { 20_000 },
                outage_ms: seconds * 1_000,
            },
            command: command_line(),
        };
        let results = unless_interrupted(run(&options)).await?;
        let json = self.out.join("shard-down.json");
        write_json(&results, &json)?;
        tell(&results, self.json.as_deref(), &render(&results), &json)?;
        // A goal that is not met is told, and is no fault of the run; an event that went wrong is.
        let right = results.results.iter().all(OutageResult::is_right);
        Ok(ExitCode::from(u8::from(!right)))
    }
}
