//! The relay: what waits in the outboxes goes to the feed's topics, in order and at least once.
//!
//! One task an outbox. It waits until it has the outbox's lock, then reads a batch, publishes it, waits until the broker
//! has all of it, and deletes it with the next read. Killed anywhere in between it has deleted nothing that the broker
//! does not have; who takes over publishes the same rows again, in the same order. There is no read ahead: what is read
//! while another batch is under way could overtake a row that becomes visible late (see [`shardlane_sql::Outbox`]).

mod feed;
mod message;
mod stats;

use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use rdkafka::error::KafkaError;
use shardlane_sql::mutants::{self, Point};
use shardlane_sql::{Outbox, OutboxSession, SqlError, Store};
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::feed::Feed;
pub use self::stats::{RelayCounts, RelayStats};
use crate::map_watch::{MapSource, Snapshot};
use crate::topics::{TopicError, TopicSet, admin, verify_topics};

/// How often a waiting relay asks for the lock, and new outboxes are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// How often is counted what waits, where a batch is not all of it: a long queue takes a while.
const LAG_LOOK: Duration = Duration::from_secs(5);
/// How often a session says that it is there while the broker takes its time.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long a relay that is to stop waits for the batch that is under way.
const STOP_MAX: Duration = Duration::from_secs(2);

/// Settings of a relay.
#[derive(Debug, Clone)]
pub struct RelaySettings {
    /// `host:port`, comma-separated.
    pub bootstrap: String,
    /// Where to publish.
    pub topics: TopicSet,
    /// The map by which records are placed.
    pub map: MapSource,
    /// Events a batch: three records each at most.
    pub batch_rows_max: u32,
    /// The first pause after a look at an empty outbox; doubled each time.
    pub poll_min: Duration,
    /// The longest such pause.
    pub poll_max: Duration,
    /// The first delay after an error; doubled each time, with full jitter.
    pub retry_delay_min: Duration,
    /// The longest such delay.
    pub retry_delay_max: Duration,
}

impl RelaySettings {
    /// Settings with the defaults of a small machine.
    pub fn new(bootstrap: String, topics: TopicSet, map: impl Into<MapSource>) -> Self {
        RelaySettings {
            bootstrap,
            topics,
            map: map.into(),
            batch_rows_max: 2_000,
            poll_min: Duration::from_millis(5),
            poll_max: Duration::from_millis(200),
            retry_delay_min: Duration::from_millis(50),
            retry_delay_max: Duration::from_secs(5),
        }
    }
}

/// Why a relay goes back to waiting for the lock.
#[derive(Debug, thiserror::Error)]
enum Setback {
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error("Kafka: {0}")]
    Kafka(#[from] KafkaError),
}

/// A running relay. Dropped without [`Relay::stop`], it ends at once; what it has not deleted is published again.
pub struct Relay {
    stop: watch::Sender<bool>,
    stats: Arc<RelayStats>,
    supervisor: tokio::task::JoinHandle<()>,
}

impl Relay {
    /// Checks the feed's topics and starts to relay every outbox of the store, also of shards that join later.
    ///
    /// # Errors
    /// [`TopicError`]: a topic is missing or has too few partitions, or the broker does not answer.
    pub async fn start(settings: RelaySettings, store: Arc<Store>) -> Result<Relay, TopicError> {
        let (bootstrap, names) = (settings.bootstrap.clone(), settings.topics.feed());
        let map = settings.map.snapshot();
        let check = move || {
            let admin = admin(&bootstrap)?;
            verify_topics(admin.inner(), &bootstrap, &names, map.document.map())
        };
        let canceled = TopicError::Broker {
            bootstrap: settings.bootstrap.clone(),
            source: KafkaError::Canceled,
        };
        tokio::task::spawn_blocking(check)
            .await
            .unwrap_or(Err(canceled))?;
        let (stop, stopped) = watch::channel(false);
        let stats = Arc::new(RelayStats::default());
        let supervisor = tokio::spawn(supervise(settings, store, Arc::clone(&stats), stopped));
        Ok(Relay {
            stop,
            stats,
            supervisor,
        })
    }

    /// What it did, and how much waits.
    pub fn stats(&self) -> Arc<RelayStats> {
        Arc::clone(&self.stats)
    }

    /// Finishes the batches under way, if the broker takes them soon, and gives the locks back.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        // A panic has been logged.
        (&mut self.supervisor).await.ok();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

/// One task an outbox, for as long as the store has it.
async fn supervise(
    settings: RelaySettings,
    store: Arc<Store>,
    stats: Arc<RelayStats>,
    stopped: watch::Receiver<bool>,
) {
    let mut tasks = JoinSet::new();
    let mut running: Vec<(Outbox, tokio::task::AbortHandle)> = Vec::new();
    loop {
        let outboxes = store.outboxes();
        running.retain(|(outbox, task)| {
            let stays = outboxes.contains(outbox) && !task.is_finished();
            if !stays {
                // Also after a panic: the outbox is relayed anew.
                task.abort();
                stats.forget(outbox.shard());
            }
            stays
        });
        for outbox in outboxes {
            if running.iter().all(|(known, _)| *known != outbox) {
                let one = One {
                    settings: settings.clone(),
                    outbox: outbox.clone(),
                    stats: Arc::clone(&stats),
                    stopped: stopped.clone(),
                };
                running.push((outbox, tasks.spawn(one.run())));
            }
        }
        if pause(&stopped, LOOK).await {
            break;
        }
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
}

/// Waits for that long, or until the relay is to stop; whether it is.
async fn pause(stopped: &watch::Receiver<bool>, duration: Duration) -> bool {
    let mut stopped = stopped.clone();
    let stop = stopped.wait_for(|stopped| *stopped);
    tokio::time::timeout(duration, stop).await.is_ok()
}

/// The relay of one outbox.
struct One {
    settings: RelaySettings,
    outbox: Outbox,
    stats: Arc<RelayStats>,
    stopped: watch::Receiver<bool>,
}

impl One {
    async fn run(self) {
        let shard = self.outbox.shard();
        let mut retry = self.retry();
        loop {
            let published = self.stats.counts().published;
            let Err(setback) = self.lead().await else {
                return;
            };
            self.stats.setback(shard);
            if self.stats.counts().published > published {
                retry = self.retry();
            }
            let delay = retry.next().unwrap_or(self.settings.retry_delay_max);
            tracing::warn!(%shard, "the relay begins anew in {delay:?}: {setback}");
            if self.pause(delay).await {
                return;
            }
        }
    }

    fn retry(&self) -> backon::ExponentialBackoff {
        ExponentialBuilder::new()
            .with_min_delay(self.settings.retry_delay_min)
            .with_max_delay(self.settings.retry_delay_max)
            .with_jitter()
            .without_max_times()
            .build()
    }

    async fn pause(&self, duration: Duration) -> bool {
        pause(&self.stopped, duration).await
    }

    /// Waits for the lock and relays until it is to stop.
    async fn lead(&self) -> Result<(), Setback> {
        let shard = self.outbox.shard();
        let mut session = self.outbox.connect().await?;
        let mut lag_seen: Option<Instant> = None;
        while !session.try_lead().await? {
            if lag_seen.is_none_or(|at| at.elapsed() > LAG_LOOK) {
                self.stats.waits(shard, session.lag().await?);
                lag_seen = Some(Instant::now());
            }
            if self.pause(LOOK).await {
                return Ok(());
            }
        }
        let feed = Feed::connect(&self.settings.bootstrap, &self.settings.topics)?;
        tracing::info!(%shard, "relays");
        let mut published = Vec::new();
        let mut poll = self.settings.poll_min;
        loop {
            let rows = session
                .take(&published, self.settings.batch_rows_max)
                .await?;
            let full = rows.len() >= self.settings.batch_rows_max as usize;
            if !full {
                self.stats.leads(shard, &rows);
            } else if lag_seen.is_none_or(|at| at.elapsed() > LAG_LOOK) {
                self.stats.lags(shard, session.lag().await?);
                lag_seen = Some(Instant::now());
            }
            if rows.is_empty() {
                published.clear();
                if self.pause(poll).await {
                    return Ok(());
                }
                poll = (poll * 2).min(self.settings.poll_max);
                continue;
            }
            poll = self.settings.poll_min;
            let Some(map) = self.placeable(&session).await? else {
                return Ok(());
            };
            let acknowledged = feed.publish(&rows, map.document.map())?;
            let done = acknowledged.all();
            if !self.beating(&session, done).await? {
                return Ok(());
            }
            acknowledged.result()?;
            mutants::reached(Point::Relayed).await;
            self.stats.published(rows.len(), acknowledged.records());
            published = rows;
            if *self.stopped.borrow() {
                session.take(&published, 0).await?;
                return Ok(());
            }
        }
    }

    /// The map, while it may be used for every slot: somebody who cannot ask whether it is the newest, or who sees that
    /// partitions are being added, waits. `None`: it is to stop.
    async fn placeable(&self, session: &OutboxSession) -> Result<Option<Arc<Snapshot>>, SqlError> {
        let mut beat = Instant::now();
        loop {
            let map = self.settings.map.snapshot();
            let leased = map.lease_until.is_none_or(|until| Instant::now() < until);
            if leased && map.document.next().is_none() {
                return Ok(Some(map));
            }
            if self.pause(self.settings.poll_max).await {
                return Ok(None);
            }
            if beat.elapsed() > HEARTBEAT {
                session.heartbeat().await?;
                beat = Instant::now();
            }
        }
    }

    /// Waits for the broker and keeps the session alive meanwhile. False: it is to stop, and the broker takes too long.
    async fn beating(
        &self,
        session: &OutboxSession,
        done: impl Future<Output = ()>,
    ) -> Result<bool, SqlError> {
        tokio::pin!(done);
        let mut stopped = self.stopped.clone();
        let stop = async {
            // The sender lives as long as the relay.
            stopped.wait_for(|stopped| *stopped).await.ok();
            tokio::time::sleep(STOP_MAX).await;
        };
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut done => return Ok(true),
                () = &mut stop => return Ok(false),
                () = tokio::time::sleep(HEARTBEAT) => {
                    session.heartbeat().await?;
                    self.stats.lags(self.outbox.shard(), session.lag().await?);
                }
            }
        }
    }
}
