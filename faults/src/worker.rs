//! The worker process: what `shardlane worker` runs, with bounds that the scenarios choose.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use shardlane_router::{Epoch, ShardId, SlotMap, TokenHash};
use shardlane_sql::{Backend, Store, StoreOptions};
use shardlane_worker::{Relay, RelaySettings, TopicSet, Worker, WorkerSettings};
use tokio::signal::unix::{SignalKind, signal};

/// Arguments of a worker process.
#[derive(Debug, Clone, Args)]
pub struct WorkerArgs {
    /// Kafka bootstrap servers
    #[arg(long)]
    pub kafka: String,
    /// Consumer group
    #[arg(long)]
    pub group: String,
    /// Prefix of the topics' names
    #[arg(long)]
    pub prefix: String,
    /// Partitions of each topic
    #[arg(long)]
    pub partitions: u32,
    /// DSN of a shard; one each
    #[arg(long = "database")]
    pub databases: Vec<String>,
    /// Relay the outboxes, too
    #[arg(long)]
    pub relay: bool,
    /// Records a batch
    #[arg(long)]
    pub batch_rows_max: usize,
    /// How long a batch waits for more, in milliseconds
    #[arg(long)]
    pub linger_ms: u64,
}

/// The map of every world: aligned, one shard a database.
///
/// # Errors
/// Partitions that no map can have.
pub fn map(partitions: u32, shards: usize) -> anyhow::Result<SlotMap> {
    let shards: Vec<ShardId> = (0..i64::try_from(shards)?).map(ShardId).collect();
    Ok(SlotMap::aligned(
        Epoch(1),
        TokenHash::Postgres,
        partitions,
        &shards,
    )?)
}

impl WorkerArgs {
    /// Runs until SIGTERM, an error, or the end of whoever holds this process's stdin.
    ///
    /// # Errors
    /// What the worker ended with.
    pub async fn run(self) -> anyhow::Result<()> {
        std::thread::spawn(end_with_parent);
        let map = map(self.partitions, self.databases.len())?;
        let backend = Backend::Shards {
            urls: self.databases,
            map: map.clone(),
        };
        let options = StoreOptions {
            connect_timeout: Duration::from_secs(2),
            ..StoreOptions::default()
        };
        let store = Arc::new(Store::connect(backend, options).await?);
        let topics = TopicSet::with_prefix(&self.prefix);
        let mut settings = WorkerSettings::new(self.kafka, self.group, topics, map);
        settings.batch_rows_max = self.batch_rows_max;
        settings.batch_linger = Duration::from_millis(self.linger_ms);
        settings.session_timeout = Duration::from_secs(6);
        settings.retry_delay_max = Duration::from_millis(500);
        let mut terminate = signal(SignalKind::terminate())?;
        let relaying = RelaySettings::new(
            settings.bootstrap.clone(),
            settings.topics.clone(),
            settings.map.clone(),
        );
        let mut worker = Worker::start(settings, Arc::clone(&store)).await?;
        let relay = match self.relay {
            true => Some(Relay::start(relaying, store).await?),
            false => None,
        };
        println!("started");
        tokio::select! {
            () = worker.failed() => {}
            _ = terminate.recv() => {}
        }
        let stats = worker.stats();
        let result = worker.stop().await;
        if let Some(relay) = relay {
            relay.stop().await;
        }
        println!("counts {}", serde_json::to_string(&stats.counts())?);
        Ok(result?)
    }
}

/// A harness that is gone leaves no workers behind.
fn end_with_parent() {
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).ok();
    std::process::exit(3);
}
