//! `shardlane up`, `down` and `status`: servers on this machine that outlive the command.

use std::process::ExitCode;

use clap::Args;
use shardlane_local::detached::{self, Layout, Server, UpOptions};

/// Bring up local servers and print where they are
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Layouts, comma-separated: single, partman, shards, citus
    #[arg(
        long,
        alias = "layout",
        value_delimiter = ',',
        default_value = "single",
        value_parser = parse_layout
    )]
    layouts: Vec<Layout>,
    /// Number of primaries of the layout shards
    #[arg(long, value_name = "N", default_value_t = 2)]
    shards: usize,
    /// Also bring up Apache Kafka
    #[arg(long)]
    kafka: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Stop the local servers
#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    /// Remove their data too
    #[arg(long)]
    volumes: bool,
}

/// Show the local servers, or what workers are busy with; exits with 1 unless there are some and all of them run
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Show the busiest slots and users of the worker that answers here (`shardlane worker --listen`); repeatable
    #[arg(long = "worker", value_name = "URL")]
    workers: Vec<String>,
    /// Print the address of the page of the worker that answers here, and show it in a browser
    #[arg(long, value_name = "URL", conflicts_with_all = ["workers", "json"])]
    web: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl UpArgs {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let options = UpOptions {
            layouts: self.layouts,
            shards: self.shards,
            kafka: self.kafka,
        };
        let home = detached::home();
        let servers = detached::up(&home, &options, &|line| eprintln!("{line}")).await?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&servers)?);
            return Ok(ExitCode::SUCCESS);
        }
        let running: Vec<&Server> = servers
            .iter()
            .filter(|server| server.is_running())
            .collect();
        let width = running
            .iter()
            .map(|server| server.name.len())
            .max()
            .unwrap_or_default();
        for server in running {
            println!("{:width$}  {}", server.name, server.url);
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl DownArgs {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let stopped = detached::down(&detached::home(), self.volumes).await?;
        for name in &stopped {
            println!("stopped {name}");
        }
        if stopped.is_empty() {
            println!("nothing was running");
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl StatusArgs {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        if let Some(worker) = self.web {
            return crate::hot::web(worker).await;
        }
        if !self.workers.is_empty() {
            return crate::hot::run(self.workers, self.json).await;
        }
        let rows = detached::status(&detached::home())?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&rows)?);
        } else if rows.is_empty() {
            println!("no servers; `shardlane up` brings some up");
        } else {
            println!("{}", detached::table(&rows));
        }
        let all_run = !rows.is_empty() && rows.iter().all(|row| row.state == "running");
        Ok(if all_run {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

fn parse_layout(name: &str) -> Result<Layout, String> {
    name.parse()
}
