//! `shardlane experiment sweep`: one setting of ingest at a time.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use shardlane_bench::report;
use shardlane_bench::sweep::{Knob, SweepSettings, Usual, run};
use shardlane_sql::Layout;

use super::study::StudyArgs;

#[derive(Debug, Args)]
pub(super) struct SweepArgs {
    /// The setting that takes several values
    #[arg(long, value_enum, value_name = "NAME")]
    of: Of,
    /// Layouts, comma-separated: single, partman, shards, citus; all that have such a setting by default
    #[arg(long, value_delimiter = ',')]
    layouts: Option<Vec<Layout>>,
    /// Events in each stream [default: 40000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    events: Option<u64>,
    #[command(flatten)]
    study: StudyArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Of {
    /// Records a batch: 50 to 10000
    BatchRows,
    /// Connections over all servers: 2 to 16
    Connections,
    /// Shards of the Citus tables: 8 to 64
    CitusShards,
    /// Kafka partitions a topic: 8, 16, 32 and 100, which is not aligned
    Partitions,
    /// Size of a payload: 200 to 4000 bytes
    PayloadBytes,
    /// Postgres's hash or murmur3
    Hash,
    /// On or off
    SynchronousCommit,
}

impl From<Of> for Knob {
    fn from(of: Of) -> Knob {
        match of {
            Of::BatchRows => Knob::BatchRows,
            Of::Connections => Knob::Connections,
            Of::CitusShards => Knob::CitusShards,
            Of::Partitions => Knob::Partitions,
            Of::PayloadBytes => Knob::PayloadBytes,
            Of::Hash => Knob::Hash,
            Of::SynchronousCommit => Knob::SynchronousCommit,
        }
    }
}

impl SweepArgs {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let knob = Knob::from(self.of);
        let concerned = || {
            Layout::ALL
                .into_iter()
                .filter(|layout| knob.concerns(*layout))
                .collect()
        };
        let usual = if self.study.quick { 8_000 } else { 40_000 };
        let settings = SweepSettings {
            knob,
            layouts: self.layouts.clone().unwrap_or_else(concerned),
            events: self.events.unwrap_or(usual),
            usual: Usual::default(),
            runs: self.study.runs_or(3, 1),
        };
        self.study
            .run(report::how_to_read("sweep"), async |command, stop| {
                run(&settings, command, stop).await
            })
            .await
    }
}
