//! `shardlane ingest`: the HTTP front door.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, ValueEnum};
use shardlane_ingest::{IngestSettings, Mode, Server, Sources};
use shardlane_worker::{Publisher, TopicSet};
use tokio::signal::unix::{SignalKind, signal};

use crate::backend::{BackendArgs, MapArgs, ParkArgs};

/// Take webhooks over HTTP, into Kafka or straight into the database
#[derive(Debug, Args)]
pub(crate) struct IngestArgs {
    /// kafka: 202 when the broker has the record; direct: 200 when the database has it
    #[arg(long, value_enum)]
    mode: ModeName,
    /// Who may send, with which secrets, and the server's bounds: TOML, see docs/settings/ingest.toml
    #[arg(long, env = "SHARDLANE_INGEST_SETTINGS", value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Take orders, chargebacks and payments from anybody, without signatures: for development
    #[arg(long, conflicts_with = "settings")]
    unsigned: bool,
    /// Address to listen on, in place of the settings'; without both 127.0.0.1:8080
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Kafka bootstrap servers, for mode kafka
    #[arg(long, env = "SHARDLANE_KAFKA", value_name = "HOST:PORT")]
    kafka: Option<String>,
    /// Prefix of the topics' names
    #[arg(long, default_value = "")]
    prefix: String,
    /// Keep bodies that are no event as dead letters also where signatures are off; only behind something that
    /// authenticates
    #[arg(long)]
    keep_undecodable: bool,
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    map: MapArgs,
    #[command(flatten)]
    park: ParkArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ModeName {
    Kafka,
    Direct,
}

impl IngestArgs {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let settings = self.settings()?;
        let own = self.map.read(self.backend.shards())?;
        let mode = match self.mode {
            ModeName::Direct => Mode::Direct(self.backend.connect(&own, self.park.limits()).await?),
            ModeName::Kafka => {
                let Some(kafka) = self.kafka else {
                    bail!(
                        "mode kafka needs a broker; give --kafka HOST:PORT or set SHARDLANE_KAFKA"
                    );
                };
                let topics = TopicSet::with_prefix(&self.prefix);
                // Frozen slots and Kafka take 8 s at most, less than a request, so that the answer names the reason.
                let watch = self.map.follow(&kafka, &topics, &own).await?;
                let connect = move || Publisher::follow(&kafka, topics, watch);
                Mode::Kafka(tokio::task::spawn_blocking(connect).await??)
            }
        };
        let (mut interrupt, mut terminate) = (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        );
        let shutdown = async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        let scheme = if settings.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let server = Server::bind(settings, mode).await?;
        eprintln!(
            "ingest: listening on {scheme}://{}; Ctrl-C stops it",
            server.address()
        );
        server.run(shutdown).await?;
        Ok(ExitCode::SUCCESS)
    }

    /// There is no default for whose webhooks are taken.
    fn settings(&self) -> anyhow::Result<IngestSettings> {
        let mut settings = match &self.settings {
            Some(path) => IngestSettings::read(path)?,
            None if self.unsigned => IngestSettings::new(Sources::unsigned()),
            None => bail!(
                "nobody's webhooks can be verified without secrets; give --settings FILE with [sources.orders], or, for \
                 development only, --unsigned"
            ),
        };
        settings.listen = self.listen.unwrap_or(settings.listen);
        settings.keep_undecodable |= self.keep_undecodable;
        Ok(settings)
    }
}
