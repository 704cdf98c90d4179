//! `shardlane experiment memory`: what a worker takes before a backlog.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use shardlane_bench::memory::{MemoryOptions, Settings, render, run};

use super::{command_line, tell, unless_interrupted, write_json};

#[derive(Debug, Args)]
pub(super) struct MemoryArgs {
    /// Events that wait in Kafka when the worker starts [default: 1000000]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    events: Option<u64>,
    /// Users over whom the orders are spread
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..))]
    users: u32,
    /// Size that a payload is filled up to
    #[arg(long, value_name = "B", default_value_t = 300)]
    payload_bytes: usize,
    /// Kafka partitions a topic
    #[arg(long, value_name = "P", default_value_t = 16)]
    partitions: u32,
    /// A backlog of 100,000 events instead
    #[arg(long)]
    quick: bool,
    /// Folder for memory.json
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Also write the results here; `-` prints them instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl MemoryArgs {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        // Before the measurement, not after it.
        std::fs::create_dir_all(&self.out)
            .with_context(|| format!("the folder {} cannot be made", self.out.display()))?;
        let usual = if self.quick { 100_000 } else { 1_000_000 };
        let options = MemoryOptions {
            program: std::env::current_exe()?,
            settings: Settings {
                events: self.events.unwrap_or(usual),
                users: self.users,
                payload_bytes: self.payload_bytes,
                partitions: self.partitions,
                hang_ms: 3_000,
            },
            command: command_line(),
        };
        let results = unless_interrupted(run(&options)).await?;
        let json = self.out.join("memory.json");
        write_json(&results, &json)?;
        tell(&results, self.json.as_deref(), &render(&results), &json)?;
        Ok(ExitCode::SUCCESS)
    }
}
