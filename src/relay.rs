//! `shardlane relay`: what waits in the outboxes goes to the feed's topics, until it is told to stop.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use shardlane_sql::ParkLimits;
use shardlane_worker::{Relay, RelaySettings, TopicSet};
use tokio::signal::unix::{SignalKind, signal};

use crate::backend::{BackendArgs, MapArgs};

/// Publish what the shards' outboxes hold; workers do it too, unless they have --no-relay
///
/// Any number may run: one relays an outbox at a time, and another takes over when it dies.
#[derive(Debug, Args)]
pub(crate) struct RelayArgs {
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    map: MapArgs,
    /// Kafka bootstrap servers
    #[arg(long, env = "SHARDLANE_KAFKA", value_name = "HOST:PORT")]
    kafka: String,
    /// Prefix of the topics' names
    #[arg(long, default_value = "")]
    prefix: String,
    /// Events a batch
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    batch_rows_max: u32,
    /// Print the counters each so many seconds, one JSON document a line
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    stats_every: Option<u64>,
}

impl RelayArgs {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let own = self.map.read(self.backend.shards())?;
        let store = self.backend.connect(&own, ParkLimits::default()).await?;
        let topics = TopicSet::with_prefix(&self.prefix);
        let watch = self.map.follow(&self.kafka, &topics, &own).await?;
        let mut settings = RelaySettings::new(self.kafka, topics, watch);
        settings.batch_rows_max = self.batch_rows_max;
        let (mut interrupt, mut terminate) = (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        );
        let relay = Relay::start(settings, store).await?;
        let stats = relay.stats();
        eprintln!("relay: running; Ctrl-C stops it");
        let report = async {
            let Some(seconds) = self.stats_every else {
                return std::future::pending().await;
            };
            loop {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                println!("{}", serde_json::to_string(&stats.counts())?);
            }
        };
        let reported: anyhow::Result<()> = tokio::select! {
            reported = report => reported,
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
        };
        relay.stop().await;
        let counts = stats.counts();
        eprintln!(
            "relay: {} events published in {} batches; {} wait",
            counts.published, counts.batches, counts.lag_rows
        );
        reported?;
        Ok(ExitCode::SUCCESS)
    }
}
