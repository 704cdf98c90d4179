//! `shardlane up`, `down` and `status`: servers on this machine that outlive the command, or containers.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use shardlane_local::detached::{self, Layout, Server, UpOptions};

use crate::backend::parse_span;
use crate::compose::Compose;

/// Where the containers are described.
#[derive(Debug, Args)]
struct ComposeArgs {
    /// Containers instead, by docker compose
    #[arg(long)]
    compose: bool,
    /// The folder with compose.yaml
    #[arg(long, value_name = "FOLDER", default_value = "compose")]
    compose_folder: PathBuf,
}

/// Bring up local servers, or the cluster in containers, and print where they are
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
    #[command(flatten)]
    compose: ComposeArgs,
    /// Profiles of compose.yaml, such as shards or observe; repeatable. The layouts without it
    #[arg(long = "profile", value_name = "NAME", requires = "compose")]
    profiles: Vec<String>,
    /// How long the containers may take to be well
    #[arg(long, value_name = "TIME", value_parser = parse_span, default_value = "10m")]
    wait_max: Duration,
    /// Print JSON
    #[arg(long, conflicts_with = "compose")]
    json: bool,
}

/// Stop the local servers, or the containers
#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    #[command(flatten)]
    compose: ComposeArgs,
    /// Remove their data too
    #[arg(long)]
    volumes: bool,
}

/// Show the local servers, the containers, or what workers are busy with; exits with 1 unless there are some and all of them run
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    compose: ComposeArgs,
    /// Show the busiest slots and users of the worker that answers here (`shardlane worker --listen`); repeatable
    #[arg(long = "worker", value_name = "URL")]
    workers: Vec<String>,
    /// Print the address of the page of the worker that answers here, and show it in a browser
    #[arg(long, value_name = "URL", conflicts_with_all = ["workers", "json", "compose"])]
    web: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl ComposeArgs {
    /// Every container, if containers are meant.
    async fn all(&self) -> anyhow::Result<Option<Compose>> {
        if !self.compose {
            return Ok(None);
        }
        Compose::find(&self.compose_folder, Vec::new())
            .await
            .map(Some)
    }
}

impl UpArgs {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        if self.compose.compose {
            let layouts = self.layouts.iter().map(ToString::to_string).collect();
            let profiles = if self.profiles.is_empty() {
                layouts
            } else {
                self.profiles
            };
            let compose = Compose::find(&self.compose.compose_folder, profiles).await?;
            return compose.up(self.wait_max).await;
        }
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
        if let Some(compose) = self.compose.all().await? {
            return compose.down(self.volumes).await;
        }
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
        if let Some(compose) = self.compose.all().await? {
            return compose.status(self.json).await;
        }
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
