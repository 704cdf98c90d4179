//! `shardlane experiment window`: events of one kind over some days of a month.

use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, ValueEnum};
use shardlane_bench::report;
use shardlane_bench::window::{WindowSettings, run};
use shardlane_sql::Layout;

use super::study::StudyArgs;

#[derive(Debug, Args)]
pub(super) struct WindowArgs {
    /// Layouts, comma-separated: single, partman, citus
    #[arg(long, value_delimiter = ',', default_value = "single,partman,citus")]
    layouts: Vec<Layout>,
    /// Dispute events over a month of 30 days; the original study had 5000000 [default: 1000000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    events: Option<u64>,
    /// How the rows stand in their table
    #[arg(long, value_enum, default_value_t = Order::Arrival)]
    order: Order,
    /// Days that the query asks for
    #[arg(long, value_name = "D", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=20))]
    days: u32,
    /// Size of an event's payload, about
    #[arg(long, value_name = "B", default_value_t = 200, value_parser = clap::value_parser!(u32).range(32..=1_900))]
    payload_bytes: u32,
    #[command(flatten)]
    study: StudyArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Order {
    /// As a log is written: neighbours in time are neighbours on disk
    Arrival,
    /// Any order, as after a bulk import
    Random,
}

impl WindowArgs {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        if self.layouts.contains(&Layout::Shards) {
            bail!(
                "layout shards has no variant of its own here: choose from single, partman, citus"
            );
        }
        let usual = if self.study.quick { 100_000 } else { 1_000_000 };
        let settings = WindowSettings {
            layouts: self.layouts.clone(),
            events: self.events.unwrap_or(usual),
            in_order: matches!(self.order, Order::Arrival),
            days: self.days,
            payload_bytes: self.payload_bytes,
            runs: self.study.runs_or(5, 3),
        };
        self.study
            .run(report::how_to_read("window"), async |command, stop| {
                run(&settings, command, stop).await
            })
            .await
    }
}
