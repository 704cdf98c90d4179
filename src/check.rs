//! `shardlane check`: does everyone route alike?

use std::process::ExitCode;

use clap::Args;
use shardlane_bench::check::{CheckOptions, run};

/// Ask the router, Postgres, Citus, the slot CHECKs, a Kafka topic and a worker where keys belong
///
/// Exits with 1 if any two disagree.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Keys of each type
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    keys: u32,
    /// Seed of the keys
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Kafka partitions
    #[arg(long, default_value_t = 8)]
    partitions: u32,
    /// Manual shards
    #[arg(long, default_value_t = 2)]
    shards: u32,
    /// Shards of the Citus tables
    #[arg(long, default_value_t = 8)]
    citus_shards: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl CheckArgs {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let options = CheckOptions {
            keys: usize::try_from(self.keys)?,
            seed: self.seed,
            partitions: self.partitions,
            shards: self.shards,
            citus_shards: self.citus_shards,
        };
        let report = run(&options).await?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            print!("{report}");
        }
        Ok(if report.agrees() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(1)
        })
    }
}
