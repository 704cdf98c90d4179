//! A stream through Kafka and a worker into a fresh database, with all that it took: what the studies of ingest share.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use shardlane_router::{Epoch, ShardId, SlotMap, TokenHash};
use shardlane_sql::servers::{LayoutDatabase, LayoutServers};
use shardlane_sql::{Backend, Digest, Store, StoreOptions, digest};
use shardlane_worker::{TopicSet, WorkerSettings, create_topics};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::fill::fill;
use crate::ingest::Outcome;
use crate::lab::{Lab, checkpoint, connect, wal_bytes};
use crate::machine::own_cpu_seconds;
use crate::replay::consume;
use crate::stream::Webhook;

/// Between two looks at the connections.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Topics with a stream in them.
pub(crate) struct Topic {
    topics: TopicSet,
    map: SlotMap,
    events: u64,
}

/// How a worker takes a topic.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taking {
    /// Records a batch.
    pub(crate) batch_rows_max: usize,
    /// Connections over all servers.
    pub(crate) connections: u32,
}

/// What it took.
pub(crate) struct Fed {
    pub(crate) outcome: Outcome,
    pub(crate) events: u64,
    /// CPU seconds of each server; on Citus the coordinator's is the first.
    pub(crate) server_cpu_s: Vec<f64>,
    pub(crate) client_cpu_s: f64,
    pub(crate) kafka_cpu_s: f64,
    pub(crate) wal_bytes: u64,
    /// The most client backends on all servers at once, those between nodes included.
    pub(crate) connections: u64,
    /// Of all servers, when the last event was in and all sessions were still there.
    pub(crate) memory_bytes: u64,
    /// Of the business tables afterwards.
    pub(crate) state: Digest,
}

impl Topic {
    /// Makes the topics and sends the stream.
    pub(crate) async fn of(
        lab: &Lab,
        prefix: &str,
        map: &SlotMap,
        stream: Vec<Webhook>,
    ) -> anyhow::Result<Topic> {
        let (bootstrap, topics) = (lab.kafka.bootstrap(), TopicSet::with_prefix(prefix));
        // The stream's times lie in the past, where the default retention would delete them.
        let keep = [("retention.ms", "-1")];
        create_topics(&bootstrap, &topics, map.partition_count(), 1, &keep).await?;
        let events = stream.len() as u64;
        let (to, by) = (topics.clone(), map.clone());
        tokio::task::spawn_blocking(move || fill(&bootstrap, &to, &by, &stream)).await??;
        Ok(Topic {
            topics,
            map: map.clone(),
            events,
        })
    }

    /// A worker of a group of its own takes all of it into `database`.
    pub(crate) async fn take(
        &self,
        lab: &Lab,
        servers: &LayoutServers,
        (database, backend): (&LayoutDatabase, Backend),
        taking: Taking,
        group: &str,
    ) -> anyhow::Result<Fed> {
        let options = StoreOptions {
            connections_max: taking.connections,
            // Every lane waits for its turn; a slow layout's turns are long.
            connect_timeout: Duration::from_secs(60),
            ..StoreOptions::default()
        };
        let store = Arc::new(Store::connect(backend, options).await?);
        let mut settings = WorkerSettings::new(
            lab.kafka.bootstrap(),
            group.to_owned(),
            self.topics.clone(),
            self.map.clone(),
        );
        settings.batch_rows_max = taking.batch_rows_max;
        checkpoint(servers).await?;
        let watched = Connections::watch(servers).await?;

        let wal = wal_bytes(servers).await?;
        let before = Cpu::of(lab, servers);
        let outcome = consume(settings, Arc::clone(&store), self.events, |_| {})
            .await
            .with_context(|| group.to_owned())?;
        let after = Cpu::of(lab, servers);
        let memory_bytes = servers.nodes().iter().map(|node| node.memory_bytes()).sum();
        let wal = wal_bytes(servers).await?.saturating_sub(wal);
        drop(store);
        let servers = after.servers.iter().zip(&before.servers);
        Ok(Fed {
            events: self.events,
            server_cpu_s: servers.map(|(after, before)| after - before).collect(),
            client_cpu_s: after.client - before.client,
            kafka_cpu_s: after.kafka - before.kafka,
            wal_bytes: wal,
            connections: watched.most().await?,
            memory_bytes,
            state: digest(database.urls()).await?,
            outcome,
        })
    }
}

impl Fed {
    /// CPU us an event of some seconds.
    #[expect(
        clippy::cast_precision_loss,
        reason = "counts of an experiment are far below 2^52"
    )]
    pub(crate) fn us_per_event(&self, seconds: f64) -> f64 {
        seconds * 1e6 / self.events.max(1) as f64
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "counts of an experiment are far below 2^52"
    )]
    pub(crate) fn events_per_s(&self) -> f64 {
        self.events as f64 / self.outcome.seconds.max(1e-9)
    }

    pub(crate) fn all_servers_cpu_s(&self) -> f64 {
        self.server_cpu_s.iter().sum()
    }
}

/// A map of so many partitions and manual shards, each partition in one shard, or the modulo one in which a batch has
/// users of all.
pub(crate) fn maps(partitions: u32, shards: u32) -> anyhow::Result<(SlotMap, SlotMap)> {
    let shards: Vec<ShardId> = (0..i64::from(shards)).map(ShardId).collect();
    Ok((
        SlotMap::aligned(Epoch(1), TokenHash::Postgres, partitions, &shards)?,
        SlotMap::modulo(Epoch(1), TokenHash::Postgres, partitions, &shards)?,
    ))
}

/// CPU seconds so far.
struct Cpu {
    servers: Vec<f64>,
    client: f64,
    kafka: f64,
}

impl Cpu {
    fn of(lab: &Lab, servers: &LayoutServers) -> Cpu {
        let nodes = servers.nodes();
        Cpu {
            servers: nodes.iter().map(|node| node.cpu_seconds()).collect(),
            client: own_cpu_seconds(),
            kafka: lab.kafka.cpu_seconds(),
        }
    }
}

/// Counts the sessions of all servers while something else happens.
struct Connections {
    counting: JoinHandle<Result<u64, tokio_postgres::Error>>,
    done: tokio::sync::oneshot::Sender<()>,
}

impl Connections {
    async fn watch(servers: &LayoutServers) -> anyhow::Result<Connections> {
        let mut clients = Vec::new();
        for node in servers.nodes() {
            clients.push(connect(&node.url("postgres")).await?);
        }
        let (done, mut told) = tokio::sync::oneshot::channel();
        let counting = tokio::spawn(async move {
            let mut most = 0;
            loop {
                most = most.max(count(&clients).await?);
                tokio::select! {
                    _ = &mut told => return Ok(most),
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
            }
        });
        Ok(Connections { counting, done })
    }

    async fn most(self) -> anyhow::Result<u64> {
        // A count that has failed says so itself.
        self.done.send(()).ok();
        Ok(self.counting.await??)
    }
}

/// Without the ones that ask.
async fn count(clients: &[Client]) -> Result<u64, tokio_postgres::Error> {
    let query = "select count(*) from pg_stat_activity \
                 where backend_type = 'client backend' and datname <> 'postgres'";
    let mut all = 0;
    for client in clients {
        all += client
            .query_one(query, &[])
            .await?
            .get::<_, i64>(0)
            .unsigned_abs();
    }
    Ok(all)
}
