//! `shardlane experiment cost`: what an event costs each layout, and a model of more nodes.

use std::process::ExitCode;

use clap::Args;
use shardlane_bench::cost::{CostSettings, run};
use shardlane_bench::report;
use shardlane_sql::Layout;

use super::study::StudyArgs;

#[derive(Debug, Args)]
pub(super) struct CostArgs {
    /// Layouts, comma-separated: single, partman, shards, citus
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "single,partman,shards,citus"
    )]
    layouts: Vec<Layout>,
    /// Events in the stream, duplicates included [default: 60000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    events: Option<u64>,
    /// Users over whom the orders are spread [default: a quarter of the events]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    users: Option<u32>,
    /// Size that a payload is filled up to
    #[arg(long, value_name = "B", default_value_t = 300)]
    payload_bytes: usize,
    /// Kafka partitions a topic, and shards of the Citus tables
    #[arg(long, value_name = "P", default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..=1_024))]
    partitions: u32,
    /// Records a batch
    #[arg(long, value_name = "R", default_value_t = 4_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch_rows_max: u32,
    /// Connections over all servers of a layout
    #[arg(long, value_name = "C", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    connections: u32,
    /// Primaries of the layout shards
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=16))]
    shards: u32,
    #[command(flatten)]
    study: StudyArgs,
}

impl CostArgs {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let usual = if self.study.quick { 10_000 } else { 60_000 };
        let events = self.events.unwrap_or(usual);
        let settings = CostSettings {
            layouts: self.layouts.clone(),
            users: self
                .users
                .unwrap_or(u32::try_from(events / 4).unwrap_or(u32::MAX)),
            events,
            payload_bytes: self.payload_bytes,
            partitions: self.partitions,
            batch_rows_max: usize::try_from(self.batch_rows_max)?,
            connections: self.connections,
            shards: self.shards,
            runs: self.study.runs_or(5, 2),
        };
        self.study
            .run(report::how_to_read("cost"), async |command, stop| {
                run(&settings, command, stop).await
            })
            .await
    }
}
