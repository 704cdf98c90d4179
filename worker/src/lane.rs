//! A lane: the one task that takes the records of one partition to the database, in order.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures_util::future::try_join_all;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use shardlane_domain::Source;
use shardlane_router::{PartitionId, RouteKey};
use shardlane_sql::{ErrorClass, Origin, Record, Report, SqlError, Store, Target};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::dead_letter::{DeadLetters, Reason};
use crate::error::WorkerError;
use crate::poller::Context;
use crate::record::RawRecord;
use crate::settings::WorkerSettings;
use crate::stats::Stats;

/// How long the broker may take to say where a log ends. Shorter than the drain at a hand-over.
const LOG_END_MAX: Duration = Duration::from_secs(5);

/// How many records the poller hands over at once. They are not bounded by bytes, so they are few.
pub(crate) const CHUNK_ROWS_MAX: usize = 128;

/// What all lanes of a worker share.
pub(crate) struct Shared {
    pub(crate) settings: WorkerSettings,
    pub(crate) store: Arc<Store>,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) stats: Arc<Stats>,
}

/// One partition's lane.
pub(crate) struct Lane {
    pub(crate) shared: Arc<Shared>,
    pub(crate) consumer: Arc<BaseConsumer<Context>>,
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) source: Source,
    /// Set when the partition is revoked or the worker stops: what is not begun stays for the next owner.
    pub(crate) closing: Arc<AtomicBool>,
}

/// How far each target has applied the lane's partition: the next offset.
type Fences = HashMap<Target, i64>;

/// What was taken from the lane's channel at once.
#[derive(Default)]
struct Batch {
    records: Vec<RawRecord>,
    /// The offset behind the last record taken, covered ones included.
    next: i64,
}

/// A batch, decoded: the events by target, each in order, and what is no event.
struct Decoded<'a> {
    groups: Vec<(Target, Vec<Pair<'a>>)>,
    malformed: Vec<(&'a RawRecord, Reason)>,
}

/// A decoded record with the raw one that it came from, which a dead letter needs.
type Pair<'a> = (Record, &'a RawRecord);

impl Lane {
    /// Runs until the lane is closed.
    pub(crate) async fn run(
        self,
        mut records: mpsc::Receiver<Vec<RawRecord>>,
    ) -> Result<(), WorkerError> {
        let mut fences = Fences::new();
        let mut left = Vec::new();
        while let Some(batch) = self
            .next_batch(&mut records, &mut left, &mut fences)
            .await?
        {
            if !self.process(&batch.records, &mut fences).await? {
                break;
            }
            self.commit_offset(batch.next)?;
            Stats::add(&self.shared.stats.counters.done, batch.records.len());
        }
        Ok(())
    }

    /// Records until the batch is full by rows or bytes, or has lingered; `None` when the lane is closed. What a
    /// fence covers is left out: a replay is recognised by the keys alone, without a look at the payloads. `left` are
    /// the records that the batch before had no room for.
    async fn next_batch(
        &self,
        records: &mut mpsc::Receiver<Vec<RawRecord>>,
        left: &mut Vec<RawRecord>,
        fences: &mut Fences,
    ) -> Result<Option<Batch>, WorkerError> {
        let (settings, counters) = (&self.shared.settings, &self.shared.stats.counters);
        let mut batch = Batch::default();
        let mut bytes = 0;
        let mut deadline = None;
        while batch.records.len() < settings.batch_rows_max && bytes < settings.batch_bytes_max {
            let mut chunk = match deadline {
                _ if !left.is_empty() => std::mem::take(left),
                None => records.recv().await.unwrap_or_default(),
                // Timed out or closed: what is here is the batch.
                Some(deadline) => tokio::time::timeout_at(deadline, records.recv())
                    .await
                    .ok()
                    .flatten()
                    .unwrap_or_default(),
            };
            let room = settings.batch_rows_max - batch.records.len();
            *left = chunk.split_off(room.min(chunk.len()));
            let Some(last) = chunk.last() else { break };
            let received = chunk.len();
            batch.next = last.offset + 1;
            deadline.get_or_insert_with(|| tokio::time::Instant::now() + settings.batch_linger);
            let unknown = self.unknown_targets(&chunk, fences);
            let read = unknown
                .iter()
                .map(|target| self.read_fence(*target, batch.next));
            for (target, fence) in unknown.iter().zip(try_join_all(read).await?) {
                let Some(fence) = fence else { return Ok(None) };
                fences.insert(*target, fence);
            }
            chunk.retain(|raw| {
                !raw.key_user()
                    .is_some_and(|user| self.is_covered(user, raw.offset, fences))
            });
            let covered = received - chunk.len();
            Stats::add(&counters.fenced, covered);
            Stats::add(&counters.done, covered);
            bytes += chunk.iter().map(RawRecord::bytes).sum::<usize>();
            batch.records.append(&mut chunk);
        }
        let open = deadline.is_some() && !self.closing.load(Ordering::Acquire);
        Ok(open.then_some(batch))
    }

    /// Whether the fence of the user's target is past this offset.
    fn is_covered(&self, user: Uuid, offset: i64, fences: &Fences) -> bool {
        let target = self.shared.store.target_of(user);
        fences.get(&target).is_some_and(|next| offset < *next)
    }

    /// Takes a batch to its shards. False: the lane was closed before all of it was done.
    async fn process(&self, batch: &[RawRecord], fences: &mut Fences) -> Result<bool, WorkerError> {
        let Decoded { groups, malformed } = self.decode(batch, fences);
        if !malformed.is_empty() {
            let mut retry = self.retry();
            while let Err(error) = self.publish_dead(&malformed).await {
                if !self.wait(&mut retry, &error).await {
                    return Ok(false);
                }
            }
            Stats::add(&self.shared.stats.counters.malformed, malformed.len());
        }
        let applied = try_join_all(
            groups
                .into_iter()
                .map(|(target, group)| self.apply_group(target, group)),
        )
        .await?;
        fences.extend(applied.iter().copied().flatten());
        Ok(applied.iter().all(Option::is_some))
    }

    /// The targets that the batch's keys lead to and whose fence is not known yet: with aligned partitions one, once.
    fn unknown_targets(&self, batch: &[RawRecord], fences: &Fences) -> Vec<Target> {
        let mut unknown = Vec::new();
        for user in batch.iter().filter_map(RawRecord::key_user) {
            let target = self.shared.store.target_of(user);
            if !fences.contains_key(&target) && !unknown.contains(&target) {
                unknown.push(target);
            }
        }
        unknown
    }

    /// Decodes a batch and groups it by target, in order. What a fence covers is left out; what is no event comes
    /// back apart.
    fn decode<'a>(&self, batch: &'a [RawRecord], fences: &Fences) -> Decoded<'a> {
        let store = &self.shared.store;
        let map = &self.shared.settings.map;
        let counters = &self.shared.stats.counters;
        let mut groups: Vec<(Target, Vec<Pair<'a>>)> = Vec::new();
        let mut malformed = Vec::new();
        let (mut fenced, mut misrouted) = (0, 0);
        for raw in batch {
            let event = match raw.decode(self.source) {
                Ok(event) => event,
                Err(error) => {
                    let sentence = error.to_string();
                    malformed.push((
                        raw,
                        Reason {
                            class: "malformed",
                            sentence,
                            attempts: 1,
                        },
                    ));
                    continue;
                }
            };
            let target = store.target_of(event.user_id);
            // Only a record without a key can be covered here.
            if self.is_covered(event.user_id, raw.offset, fences) {
                fenced += 1;
                continue;
            }
            if map.partition_for(&RouteKey::Uuid(event.user_id)) != PartitionId(self.partition) {
                misrouted += 1;
            }
            let origin = Origin {
                topic: Arc::clone(&self.topic),
                partition: self.partition,
                offset: raw.offset,
            };
            let pair = (
                Record {
                    event,
                    origin: Some(origin),
                },
                raw,
            );
            match groups.iter_mut().find(|(known, _)| *known == target) {
                Some((_, group)) => group.push(pair),
                None => groups.push((target, vec![pair])),
            }
        }
        Stats::add(&counters.fenced, fenced);
        Stats::add(&counters.misrouted, misrouted);
        Decoded { groups, malformed }
    }

    /// Applies one target's records, in order: waits out what passes, halves a batch that fails on data until the
    /// guilty record stands alone, drops what another worker has applied. `None`: closed before the end.
    async fn apply_group(
        &self,
        target: Target,
        group: Vec<Pair<'_>>,
    ) -> Result<Option<(Target, i64)>, WorkerError> {
        let next = group.last().map_or(0, |(_, raw)| raw.offset + 1);
        let (records, raws): (Vec<Record>, Vec<&RawRecord>) = group.into_iter().unzip();
        let counters = &self.shared.stats.counters;
        let mut retry = self.retry();
        let mut attempts = 1;
        // The next range is at the end.
        let mut work = Vec::new();
        work.push(0..records.len());
        while let Some(range) = work.pop() {
            let (part, raw_part) = (&records[range.clone()], &raws[range.clone()]);
            let error = match self.apply(target, part, raw_part, attempts).await {
                Ok(report) => {
                    self.shared.stats.batch(&report);
                    retry = self.retry();
                    attempts = 1;
                    continue;
                }
                Err(error) => error,
            };
            match error.class() {
                ErrorClass::Transient => {
                    Stats::add(&counters.retries, 1);
                    attempts += 1;
                    if !self.wait(&mut retry, &error).await {
                        return Ok(None);
                    }
                    work.push(range);
                }
                ErrorClass::Data if range.len() > 1 => {
                    let middle = range.start + range.len() / 2;
                    work.push(middle..range.end);
                    work.push(range.start..middle);
                }
                ErrorClass::Data => {
                    let sentence = error.to_string();
                    let letter = (
                        raws[range.start],
                        Reason {
                            class: "data",
                            sentence,
                            attempts,
                        },
                    );
                    match self.publish_dead(&[letter]).await {
                        Ok(()) => Stats::add(&counters.malformed, 1),
                        Err(error) => {
                            if !self.wait(&mut retry, &error).await {
                                return Ok(None);
                            }
                            work.push(range);
                        }
                    }
                }
                ErrorClass::Fenced => {
                    Stats::add(&counters.zombie_refusals, 1);
                    let Some(fence) = self.read_fence(target, next).await? else {
                        return Ok(None);
                    };
                    let covered = raws[range.clone()].partition_point(|raw| raw.offset < fence);
                    Stats::add(&counters.fenced, covered);
                    if range.start + covered < range.end {
                        work.push(range.start + covered..range.end);
                    }
                }
                ErrorClass::Permanent => return Err(error.into()),
            }
        }
        Ok(Some((target, next)))
    }

    /// One transaction. What it rejects is a dead letter before it commits.
    async fn apply(
        &self,
        target: Target,
        records: &[Record],
        raws: &[&RawRecord],
        attempts: u32,
    ) -> Result<Report, Failure> {
        let staged = self.shared.store.stage(target, records).await?;
        let letters: Vec<(&RawRecord, Reason)> = staged
            .report()
            .rejected
            .iter()
            .map(|rejected| {
                let (class, sentence) = (rejected.reason.class(), rejected.reason.to_string());
                (
                    raws[rejected.index],
                    Reason {
                        class,
                        sentence,
                        attempts,
                    },
                )
            })
            .collect();
        self.publish_dead(&letters).await?;
        Ok(staged.commit().await?)
    }

    async fn publish_dead(&self, letters: &[(&RawRecord, Reason)]) -> Result<(), Failure> {
        if letters.is_empty() {
            return Ok(());
        }
        Ok(self
            .shared
            .dead_letters
            .publish(&self.topic, self.partition, letters)
            .await?)
    }

    /// How far `target` has applied this partition; waits while its database is away. `None`: closed meanwhile.
    ///
    /// The log is known to reach `seen`; only a fence beyond that asks the broker where it ends.
    async fn read_fence(&self, target: Target, seen: i64) -> Result<Option<i64>, WorkerError> {
        let mut retry = self.retry();
        loop {
            match self
                .shared
                .store
                .fence(target, &self.topic, self.partition)
                .await
            {
                Ok(None) => return Ok(Some(0)),
                Ok(Some(fence)) if fence <= seen => return Ok(Some(fence)),
                Ok(Some(fence)) => {
                    let end = match self.log_end().await {
                        Ok(end) => end,
                        // The broker is away for a moment, which is no reason to end.
                        Err(error) => {
                            if !self.wait(&mut retry, &Failure::LogEnd(error)).await {
                                return Ok(None);
                            }
                            continue;
                        }
                    };
                    if fence > end {
                        return Err(WorkerError::FenceBeyondLog {
                            topic: self.topic.to_string(),
                            partition: self.partition,
                            fence,
                            end,
                        });
                    }
                    return Ok(Some(fence));
                }
                Err(error) if error.class() == ErrorClass::Transient => {
                    if !self.wait(&mut retry, &Failure::Sql(error)).await {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn log_end(&self) -> Result<i64, KafkaError> {
        let consumer = Arc::clone(&self.consumer);
        let (topic, partition) = (Arc::clone(&self.topic), self.partition);
        let watermarks = tokio::task::spawn_blocking(move || {
            consumer.fetch_watermarks(&topic, partition, LOG_END_MAX)
        });
        let (_, end) = watermarks.await.map_err(|_| KafkaError::Canceled)??;
        Ok(end)
    }

    fn commit_offset(&self, next: i64) -> Result<(), KafkaError> {
        let mut offsets = TopicPartitionList::with_capacity(1);
        offsets.add_partition_offset(&self.topic, self.partition, Offset::Offset(next))?;
        // Asynchronous: a commit that is lost costs a replay, which the fence recognises.
        self.consumer.commit(&offsets, CommitMode::Async)
    }

    fn retry(&self) -> ExponentialBackoff {
        let settings = &self.shared.settings;
        ExponentialBuilder::default()
            .with_min_delay(settings.retry_delay_min)
            .with_max_delay(settings.retry_delay_max)
            .without_max_times()
            .with_jitter()
            .build()
    }

    /// Waits before another try. False: the lane is closing, so there is none.
    async fn wait(&self, retry: &mut ExponentialBackoff, error: &Failure) -> bool {
        let delay = retry.next().unwrap_or(self.shared.settings.retry_delay_max);
        tracing::warn!(topic = %self.topic, partition = self.partition, ?delay, "waiting: {error}");
        let until = Instant::now() + delay;
        while Instant::now() < until {
            if self.closing.load(Ordering::Acquire) {
                return false;
            }
            let left = until.saturating_duration_since(Instant::now());
            tokio::time::sleep(left.min(Duration::from_millis(50))).await;
        }
        !self.closing.load(Ordering::Acquire)
    }
}

/// Why one try failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error("a dead letter was not acknowledged: {0}")]
    DeadLetter(#[from] KafkaError),
    #[error("the broker did not say where the log ends: {0}")]
    LogEnd(#[source] KafkaError),
}

impl Failure {
    fn class(&self) -> ErrorClass {
        match self {
            Failure::Sql(error) => error.class(),
            Failure::DeadLetter(_) | Failure::LogEnd(_) => ErrorClass::Transient,
        }
    }
}

impl From<Failure> for WorkerError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Sql(error) => WorkerError::Sql(error),
            Failure::DeadLetter(error) | Failure::LogEnd(error) => WorkerError::Kafka(error),
        }
    }
}
