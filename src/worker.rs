//! `shardlane worker`: Kafka to shards, until it is told to stop.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use shardlane_sql::RetentionSettings;
use shardlane_worker::{Relay, RelaySettings, StatsServer, TopicSet, Worker, WorkerSettings};
use tokio::signal::unix::{SignalKind, signal};

use crate::backend::{BackendArgs, MapArgs, ParkArgs, parse_span};
use crate::topics::alignment_note;

const MIB: usize = 1024 * 1024;

/// Take webhooks from Kafka to the shards
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    map: MapArgs,
    #[command(flatten)]
    park: ParkArgs,
    /// Kafka bootstrap servers
    #[arg(long, env = "SHARDLANE_KAFKA", value_name = "HOST:PORT")]
    kafka: String,
    /// Consumer group
    #[arg(long, default_value = "shardlane")]
    group: String,
    /// Prefix of the topics' names
    #[arg(long, default_value = "")]
    prefix: String,
    /// Records a batch
    #[arg(long, default_value_t = 2_000)]
    batch_rows_max: usize,
    /// Do not publish what waits in the outboxes: `shardlane relay` does
    #[arg(long)]
    no_relay: bool,
    /// How long the inbox remembers which events were applied, or off for ever. Longer than the topics keep records
    /// (retention.ms and segment.ms) and the replay window together; the start checks it
    #[arg(long, value_name = "TIME", value_parser = parse_retention, default_value = "7d")]
    inbox_retention: InboxRetention,
    /// How old dead letters are replayed by `dlq replay`, from when their webhooks were accepted
    #[arg(long, value_name = "TIME", value_parser = parse_span, default_value = "2d")]
    replay_window: Duration,
    /// A name that this worker has after each restart, and no other worker of the group: then a restart within the session
    /// timeout moves no partition
    #[arg(long, env = "SHARDLANE_GROUP_INSTANCE_ID", value_name = "NAME")]
    group_instance_id: Option<String>,
    /// Seconds after which a silent worker's partitions go to others; brokers want 6 to 1800
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..))]
    session_timeout_seconds: u64,
    /// MiB of records that are taken from Kafka and not done, over all partitions
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u16).range(1..))]
    in_flight_mib_max: u16,
    /// MiB that the Kafka client may fetch ahead, over all topics
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    fetch_ahead_mib_max: u16,
    /// Seconds for which a partition may give nothing though its log goes on, before its consumer is made anew
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    stall_seconds_max: u64,
    /// Answer GET /livez, /readyz, /metrics, /stats, /lanes and /hot here, and a page of them at /; it names users, so let only
    /// operators reach it
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<SocketAddr>,
}

/// `None` is off.
#[derive(Debug, Clone, Copy)]
struct InboxRetention(Option<Duration>);

fn parse_retention(text: &str) -> Result<InboxRetention, String> {
    if text == "off" {
        return Ok(InboxRetention(None));
    }
    let keep = parse_span(text).map_err(|error| format!("{error}, or off"))?;
    Ok(InboxRetention(Some(keep)))
}

impl WorkerArgs {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let server = match self.listen {
            Some(address) => Some(StatsServer::bind(address).await?),
            None => None,
        };
        let own = self.map.read(self.backend.shards())?;
        let store = self.backend.connect(&own, self.park.limits()).await?;
        let topics = TopicSet::with_prefix(&self.prefix);
        let watch = self.map.follow(&self.kafka, &topics, &own).await?;
        let partitions = watch.snapshot();
        if let Some(note) = alignment_note(partitions.document.map(), &own)? {
            eprintln!("worker: {note}");
        }
        let mut settings = WorkerSettings::new(self.kafka, self.group, topics, watch);
        settings.batch_rows_max = self.batch_rows_max;
        settings.inbox_retention = self.inbox_retention.0.map(RetentionSettings::new);
        settings.replay_window = self.replay_window;
        settings.group_instance_id = self.group_instance_id;
        settings.session_timeout = Duration::from_secs(self.session_timeout_seconds);
        settings.in_flight_bytes_max = usize::from(self.in_flight_mib_max) * MIB;
        settings.fetch_ahead_bytes_max = usize::from(self.fetch_ahead_mib_max) * MIB;
        settings.stall_max = Duration::from_secs(self.stall_seconds_max);
        let (mut interrupt, mut terminate) = (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        );
        let relaying = RelaySettings::new(
            settings.bootstrap.clone(),
            settings.topics.clone(),
            settings.map.clone(),
        );
        let mut worker = Worker::start(settings, Arc::clone(&store)).await?;
        let stats = worker.stats();
        let relay = if self.no_relay {
            None
        } else {
            Some(Relay::start(relaying, Arc::clone(&store)).await?)
        };
        if let Some(mut server) = server {
            if let Some(relay) = &relay {
                server = server.with_relay(relay.stats());
            }
            eprintln!("worker: answers on http://{}", server.address());
            // Ends with the command.
            tokio::spawn(server.run(worker.view()));
        }
        eprintln!("worker: running; Ctrl-C stops it");
        tokio::select! {
            () = worker.failed() => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        let result = worker.stop().await;
        if let Some(relay) = relay {
            let counts = relay.stats().counts();
            relay.stop().await;
            eprintln!(
                "worker: relayed {} events; {} wait",
                counts.published, counts.lag_rows
            );
        }
        let counts = stats.counts();
        eprintln!(
            "worker: {} records done, {} applied, {} duplicates, {} stale, {} parked, {} released, {} dead letters",
            counts.done,
            counts.applied,
            counts.duplicates,
            counts.stale,
            counts.parked,
            counts.released,
            counts.dead_letters()
        );
        result?;
        Ok(ExitCode::SUCCESS)
    }
}
