//! `shardlane worker`: Kafka to shards, until it is told to stop.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use shardlane_worker::{StatsServer, TopicSet, Worker, WorkerSettings};
use tokio::signal::unix::{SignalKind, signal};

use crate::backend::{BackendArgs, MapArgs, ParkArgs};
use crate::topics::alignment_note;

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
        let store = self.backend.connect(&own, &self.park).await?;
        let topics = TopicSet::with_prefix(&self.prefix);
        let watch = self.map.follow(&self.kafka, &topics, &own).await?;
        let partitions = watch.snapshot();
        if let Some(note) = alignment_note(partitions.document.map(), &own)? {
            eprintln!("worker: {note}");
        }
        let mut settings = WorkerSettings::new(self.kafka, self.group, topics, watch);
        let map = partitions.document.map().clone();
        settings.batch_rows_max = self.batch_rows_max;
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
