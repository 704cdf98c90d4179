//! `shardlane experiment door`: what the front door takes and costs.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use shardlane_bench::door::results::{DoorSettings, render};
use shardlane_bench::door::run;
use shardlane_bench::report;

use super::{command_line, unless_interrupted, write_json};

#[derive(Debug, Args)]
pub(super) struct DoorArgs {
    /// Rounds; each measures every way once [default: 5]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    runs: Option<u32>,
    /// Length of a capacity run after its warm-up [default: 5]
    #[arg(long, value_name = "S", value_parser = parse_seconds)]
    seconds: Option<f64>,
    /// Length of the open loop [default: 300]
    #[arg(long, value_name = "S", value_parser = parse_seconds)]
    open_seconds: Option<f64>,
    /// Keep-alive connections
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    connections: u32,
    /// Kafka partitions a topic
    #[arg(long, value_name = "P", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    partitions: u32,
    /// Small defaults instead: one short round and five seconds of open loop
    #[arg(long)]
    quick: bool,
    /// Folder for door.json and door.html
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Also write the results here; `-` prints them instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl DoorArgs {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        // Before the measurement, not after it.
        std::fs::create_dir_all(&self.out)
            .with_context(|| format!("the folder {} cannot be made", self.out.display()))?;
        let or = |given: Option<f64>, small, usual| {
            given.unwrap_or(if self.quick { small } else { usual })
        };
        let settings = DoorSettings {
            runs: self.runs.unwrap_or(if self.quick { 1 } else { 5 }),
            seconds: or(self.seconds, 1.0, 5.0),
            open_seconds: or(self.open_seconds, 5.0, 300.0),
            open_share: 0.5,
            connections: self.connections,
            partitions: self.partitions,
            users: 10_000,
            payload_bytes: 300,
        };
        let command = command_line();
        let results = unless_interrupted(run(&settings, &command)).await?;
        let json = self.out.join("door.json");
        // The page shows the open loop; the rest is in the table and in the JSON.
        let html = self.out.join("door.html");
        write_json(&results, &json)?;
        report::load::write(&results.open, &html)?;
        match &self.json {
            Some(path) if path.as_os_str() == "-" => {
                println!("{}", serde_json::to_string_pretty(&results)?);
            }
            path => {
                if let Some(path) = path {
                    write_json(&results, path)?;
                }
                println!("{}", render(&results));
                println!("results: {}", json.display());
                println!("open loop: {}", html.display());
            }
        }
        // A goal that is not met is told, and is no fault of the run; a request that went wrong is.
        Ok(ExitCode::from(u8::from(!results.open.is_good())))
    }
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3_600.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds from 0.1 to 3600".to_owned()),
    }
}
