//! `shardlane experiment routing`: the owner against the coordinator and any node.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use shardlane_bench::report;
use shardlane_bench::routing::results::RoutingSettings;
use shardlane_bench::routing::{run, table};

use super::{command_line, parse_seconds, unless_interrupted, write_json};

#[derive(Debug, Args)]
pub(super) struct RoutingArgs {
    /// Users, each with one order [default: 10000]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    users: Option<u32>,
    /// Length of a cell after its warm-up [default: 2]
    #[arg(long, value_name = "S", value_parser = parse_seconds)]
    seconds: Option<f64>,
    /// Clients that work at once; each number is measured [default: 1,8]
    #[arg(long, value_name = "C", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=64))]
    clients: Option<Vec<u32>>,
    /// Shards of the Citus tables, over two workers [default: 32]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1024))]
    citus_shards: Option<u32>,
    /// Rows a batch [default: 500]
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch_rows: Option<u32>,
    /// Runs of each cell [default: 5]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    runs: Option<u32>,
    /// Small defaults instead: one short run with 4 clients, done within a minute
    #[arg(long)]
    quick: bool,
    /// Folder for results.json and report.html
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Also write the results here; `-` prints them instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl RoutingArgs {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        // Before the measurement, not after it.
        std::fs::create_dir_all(&self.out)
            .with_context(|| format!("the folder {} cannot be made", self.out.display()))?;
        let (settings, command) = (self.settings()?, command_line());
        let results = unless_interrupted(run(&settings, &command)).await?;
        let json = self.out.join("results.json");
        let html = self.out.join("report.html");
        write_json(&results, &json)?;
        report::routing::write(&results, &html)?;
        match &self.json {
            Some(path) if path.as_os_str() == "-" => {
                println!("{}", serde_json::to_string_pretty(&results)?);
                return Ok(ExitCode::SUCCESS);
            }
            Some(path) => write_json(&results, path)?,
            None => {}
        }
        println!("{}", table::render(&results));
        println!("results: {}", json.display());
        println!("report:  {}", html.display());
        Ok(ExitCode::SUCCESS)
    }

    fn settings(&self) -> anyhow::Result<RoutingSettings> {
        let quick = self.quick;
        let or = |given: Option<u32>, small: u32, usual: u32| {
            given.unwrap_or(if quick { small } else { usual })
        };
        let mut clients = self
            .clients
            .clone()
            .unwrap_or(if quick { vec![4] } else { vec![1, 8] });
        clients.sort_unstable();
        clients.dedup();
        Ok(RoutingSettings {
            users: or(self.users, 2_000, 10_000),
            seconds: self.seconds.unwrap_or(if quick { 0.4 } else { 2.0 }),
            clients,
            citus_shards: or(self.citus_shards, 8, 32),
            batch_rows: usize::try_from(or(self.batch_rows, 500, 500))?,
            runs: or(self.runs, 1, 5),
        })
    }
}
