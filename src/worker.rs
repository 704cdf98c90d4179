//! `shardlane worker`: Kafka to shards, until it is told to stop.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use shardlane_worker::{StatsServer, TopicSet, Worker, WorkerSettings};
use tokio::signal::unix::{SignalKind, signal};

use crate::backend::{BackendArgs, MapArgs};
use crate::topics::alignment_note;

const MIB: usize = 1024 * 1024;

/// Take webhooks from Kafka to the shards
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    map: MapArgs,
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
    /// A name that this worker has after each restart, and no other worker of the group: then a restart within the session
    /// timeout moves no partition
    #[arg(long, env = "SHARDLANE_GROUP_INSTANCE_ID", value_name = "NAME")]
    group_instance_id: Option<String>,
    /// Seconds after which a silent worker's partitions go to others; brokers want 6 to 1800
    #[arg(long, default_value_t = 45, value_parser = clap::value_parser!(u64).range(1..))]
    session_timeout_seconds: u64,
    /// MiB of records that are taken from Kafka and not done, over all partitions
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    in_flight_mib_max: u16,
    /// MiB that the Kafka client may fetch ahead, over all topics
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    fetch_ahead_mib_max: u16,
    /// Seconds for which a partition may give nothing though its log goes on, before its consumer is made anew
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    stall_seconds_max: u64,
    /// Answer GET /livez, /stats and /hot here; /hot names users, so let only operators reach it
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<SocketAddr>,
}

impl WorkerArgs {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let server = match self.listen {
            Some(address) => Some(StatsServer::bind(address).await?),
            None => None,
        };
        let own = self.map.read(self.backend.shards())?;
        let store = self.backend.connect(&own).await?;
        let topics = TopicSet::with_prefix(&self.prefix);
        let watch = self.map.follow(&self.kafka, &topics, &own).await?;
        let partitions = watch.snapshot();
        if let Some(note) = alignment_note(partitions.document.map(), &own)? {
            eprintln!("worker: {note}");
        }
        let mut settings = WorkerSettings::new(self.kafka, self.group, topics, watch);
        let map = partitions.document.map().clone();
        settings.batch_rows_max = self.batch_rows_max;
        settings.group_instance_id = self.group_instance_id;
        settings.session_timeout = Duration::from_secs(self.session_timeout_seconds);
        settings.in_flight_bytes_max = usize::from(self.in_flight_mib_max) * MIB;
        settings.fetch_ahead_bytes_max = usize::from(self.fetch_ahead_mib_max) * MIB;
        settings.stall_max = Duration::from_secs(self.stall_seconds_max);
        let (mut interrupt, mut terminate) = (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        );
        let mut worker = Worker::start(settings, Arc::clone(&store)).await?;
        let stats = worker.stats();
        if let Some(server) = server {
            eprintln!("worker: answers on http://{}", server.address());
            // Ends with the command.
            tokio::spawn(server.run(Arc::clone(&stats), store, map));
        }
        eprintln!("worker: running; Ctrl-C stops it");
        tokio::select! {
            () = worker.failed() => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        let result = worker.stop().await;
        let counts = stats.counts();
        eprintln!(
            "worker: {} records done, {} applied, {} duplicates, {} stale, {} dead letters",
            counts.done,
            counts.applied,
            counts.duplicates,
            counts.stale,
            counts.illegal + counts.too_early + counts.different_payload + counts.malformed
        );
        result?;
        Ok(ExitCode::SUCCESS)
    }
}
