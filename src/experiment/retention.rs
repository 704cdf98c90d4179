//! `shardlane experiment retention`: a day leaves a log.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use shardlane_bench::report;
use shardlane_bench::retention::{RetentionSettings, run};
use shardlane_sql::Layout;

use super::study::StudyArgs;

#[derive(Debug, Args)]
pub(super) struct RetentionArgs {
    /// Layouts, comma-separated: single, partman, citus
    #[arg(long, value_delimiter = ',', default_value = "single,partman,citus")]
    layouts: Vec<Layout>,
    /// Rows of the log [default: 1000000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1_000..=1_000_000_000))]
    rows: Option<u64>,
    /// Days in the log; one leaves
    #[arg(long, value_name = "D", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=100))]
    days: u32,
    /// Rows that one more session writes each second meanwhile
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    writes_per_s: u32,
    /// Size of a row's payload, about
    #[arg(long, value_name = "B", default_value_t = 200, value_parser = clap::value_parser!(u32).range(32..=1_900))]
    payload_bytes: u32,
    #[command(flatten)]
    study: StudyArgs,
}

impl RetentionArgs {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        if self.layouts.contains(&Layout::Shards) {
            bail!(
                "each manual shard does what one Postgres does: choose from single, partman, citus"
            );
        }
        let usual = if self.study.quick { 100_000 } else { 1_000_000 };
        let settings = RetentionSettings {
            layouts: self.layouts.clone(),
            rows: self.rows.unwrap_or(usual),
            days: self.days,
            writes_per_s: self.writes_per_s,
            payload_bytes: self.payload_bytes,
            runs: self.study.runs_or(5, 2),
        };
        self.study
            .run(report::how_to_read("retention"), async |command, stop| {
                run(&settings, command, stop).await
            })
            .await
    }
}
