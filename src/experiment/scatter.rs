//! `shardlane experiment scatter`: questions about all users.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use shardlane_bench::report;
use shardlane_bench::scatter::{ScatterSettings, run};
use shardlane_sql::Layout;

use super::study::StudyArgs;

#[derive(Debug, Args)]
pub(super) struct ScatterArgs {
    /// Layouts, comma-separated: single, shards, citus
    #[arg(long, value_delimiter = ',', default_value = "single,shards,citus")]
    layouts: Vec<Layout>,
    /// Orders; a tenth as many disputes [default: 1000000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    orders: Option<u64>,
    /// Primaries of the layout shards
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=16))]
    shards: u32,
    /// How often a question is asked in a run
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    times: u32,
    #[command(flatten)]
    study: StudyArgs,
}

impl ScatterArgs {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        if self.layouts.contains(&Layout::Partman) {
            bail!("time partitions do not matter here: choose from single, shards, citus");
        }
        let usual = if self.study.quick { 100_000 } else { 1_000_000 };
        let settings = ScatterSettings {
            layouts: self.layouts.clone(),
            orders: self.orders.unwrap_or(usual),
            shards: self.shards,
            times: self.times,
            runs: self.study.runs_or(5, 3),
        };
        self.study
            .run(report::how_to_read("scatter"), async |command, stop| {
                run(&settings, command, stop).await
            })
            .await
    }
}
