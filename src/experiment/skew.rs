//! `shardlane experiment skew`: hot users, and what cures them.

use std::process::ExitCode;

use clap::Args;
use shardlane_bench::report;
use shardlane_bench::skew::{SkewSettings, run};
use shardlane_sql::Layout;

use super::parse_skew;
use super::study::StudyArgs;

#[derive(Debug, Args)]
pub(super) struct SkewArgs {
    /// Layouts, comma-separated: single, shards, citus
    #[arg(long, value_delimiter = ',', default_value = "single,shards,citus")]
    layouts: Vec<Layout>,
    /// Zipf exponents, 0 is uniform; one user with half of the traffic comes after them [default: 0,0.5,1,1.5]
    #[arg(long, value_name = "S", value_delimiter = ',', value_parser = parse_skew)]
    zipf: Option<Vec<f64>>,
    /// Events in each stream [default: 40000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1_000..=100_000_000))]
    events: Option<u32>,
    /// Users over whom the orders are spread [default: a quarter of the events]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(10..))]
    users: Option<u32>,
    /// Kafka partitions a topic, and shards of the Citus tables
    #[arg(long, value_name = "P", default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=256))]
    partitions: u32,
    /// Records a batch
    #[arg(long, value_name = "R", default_value_t = 4_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch_rows_max: u32,
    /// Connections over all servers of a layout
    #[arg(long, value_name = "C", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    connections: u32,
    #[command(flatten)]
    study: StudyArgs,
}

impl SkewArgs {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let quick = self.study.quick;
        let usual = if quick {
            vec![0.0, 1.5]
        } else {
            vec![0.0, 0.5, 1.0, 1.5]
        };
        let mut zipf = self.zipf.clone().unwrap_or(usual);
        zipf.sort_by(f64::total_cmp);
        zipf.dedup();
        let events = self.events.unwrap_or(if quick { 8_000 } else { 40_000 });
        let settings = SkewSettings {
            layouts: self.layouts.clone(),
            zipf,
            events: usize::try_from(events)?,
            users: self.users.unwrap_or(events / 4),
            partitions: self.partitions,
            batch_rows_max: usize::try_from(self.batch_rows_max)?,
            connections: self.connections,
            runs: self.study.runs_or(3, 2),
        };
        self.study
            .run(report::how_to_read("skew"), async |command, stop| {
                run(&settings, command, stop).await
            })
            .await
    }
}
