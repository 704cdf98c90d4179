//! `shardlane experiment reads`: a user's rows, and an order without its user.

use std::process::ExitCode;

use clap::Args;
use shardlane_bench::reads::{ReadsSettings, run};
use shardlane_bench::report;
use shardlane_sql::Layout;

use super::parse_seconds;
use super::study::StudyArgs;

#[derive(Debug, Args)]
pub(super) struct ReadsArgs {
    /// Layouts, comma-separated: single, partman, shards, citus
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "single,partman,shards,citus"
    )]
    layouts: Vec<Layout>,
    /// Users, with ten orders each and four events an order [default: 10000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(50..=10_000_000))]
    users: Option<u32>,
    /// Clients that read at once; each number is measured [default: 1,8,64]
    #[arg(long, value_name = "C", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=64))]
    clients: Option<Vec<u32>>,
    /// Length of a run after its warm-up [default: 1]
    #[arg(long, value_name = "S", value_parser = parse_seconds)]
    seconds: Option<f64>,
    /// Primaries of the layout shards
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=16))]
    shards: u32,
    /// Shards of the Citus tables, over two workers
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..=1_024))]
    citus_shards: u32,
    #[command(flatten)]
    study: StudyArgs,
}

impl ReadsArgs {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let quick = self.study.quick;
        let usual = if quick { vec![1, 16] } else { vec![1, 8, 64] };
        let mut clients = self.clients.clone().unwrap_or(usual);
        clients.sort_unstable();
        clients.dedup();
        let settings = ReadsSettings {
            layouts: self.layouts.clone(),
            users: self.users.unwrap_or(if quick { 2_000 } else { 10_000 }),
            orders_a_user: 10,
            events_an_order: 4,
            clients,
            seconds: self.seconds.unwrap_or(if quick { 0.3 } else { 1.0 }),
            shards: self.shards,
            citus_shards: self.citus_shards,
            runs: self.study.runs_or(5, 2),
        };
        self.study
            .run(report::how_to_read("reads"), async |command, stop| {
                run(&settings, command, stop).await
            })
            .await
    }
}
