//! A lane: the one task that takes the records of one partition to the database, in order.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures_util::future::try_join_all;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use shardlane_domain::Source;
use shardlane_router::{Epoch, PartitionId, RouteKey, TokenHash};
use shardlane_sql::{ErrorClass, Origin, Record, Report, Routes, SqlError, Store, Target};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::dead_letter::{DeadLetters, MALFORMED, Reason};
use crate::error::WorkerError;
use crate::poller::Context;
use crate::record::RawRecord;
use crate::settings::WorkerSettings;
use crate::stats::Stats;

/// How long the broker may take to say where a log ends. Shorter than the drain at a hand-over.
const LOG_END_MAX: Duration = Duration::from_secs(5);

/// How many records the poller hands over at once. They are not bounded by bytes, so they are few.
pub(crate) const CHUNK_ROWS_MAX: usize = 128;

/// How often a lane looks whether its frozen slots have thawed.
const FROZEN_POLL: Duration = Duration::from_millis(20);
/// How many batches of frozen records a lane keeps before it takes no more from Kafka.
const FROZEN_BATCHES_MAX: usize = 2;

/// How long a shard may refuse what the newest map gives it. A freeze is explained at once; this is a shard that is not
/// what its map says, and somebody has to look.
const UNEXPLAINED_MAX: Duration = Duration::from_secs(30);

/// The longest pause between two batches for a reshard that asks to hold back.
const HOLD_BACK_MAX: Duration = Duration::from_secs(1);

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

/// A decoded record with the raw one that it came from, which a dead letter needs.
type Pair = (Record, RawRecord);

/// What was taken from the lane's channel at once.
#[derive(Default)]
struct Batch {
    records: Vec<RawRecord>,
    /// The offset behind the last record taken, covered ones included; `None` if there was none.
    next: Option<i64>,
}

/// How one target's part of a batch ended.
enum GroupEnd {
    /// All of it is in the database; the target's fence is at this offset.
    Done(Target, i64),
    /// The lane was closed before all of it was done.
    Closed,
    /// The target no longer takes these.
    Rerouted(Vec<Pair>, SqlError),
}

/// What the database says of a target's fence.
enum Fence {
    At(i64),
    /// The lane was closed before an answer came.
    Closed,
    /// The target has taken other slots meanwhile.
    Rerouted(SqlError),
}

impl Lane {
    /// Runs until the lane is closed.
    pub(crate) async fn run(
        self,
        mut records: mpsc::Receiver<Vec<RawRecord>>,
    ) -> Result<(), WorkerError> {
        let mut fences = Fences::new();
        let mut left = Vec::new();
        // Records of slots that are on their way to another shard, in order. The others go on meanwhile; the offset
        // stays at the oldest of these.
        let mut frozen: Vec<Pair> = Vec::new();
        let (mut next, mut seen) = (None, Epoch(0));
        loop {
            let patience = (!frozen.is_empty()).then_some(FROZEN_POLL);
            let room = frozen.len() < FROZEN_BATCHES_MAX * self.shared.settings.batch_rows_max;
            let batch = if room {
                self.next_batch(&mut records, &mut left, &mut fences, patience)
                    .await?
            } else {
                self.pause(FROZEN_POLL).await.then(Batch::default)
            };
            let Some(batch) = batch else { break };
            let epoch = self.shared.store.routes().epoch();
            next = batch.next.or(next);
            if batch.records.is_empty() && !frozen.is_empty() && epoch == seen {
                continue;
            }
            seen = epoch;
            let taken = batch.records.len() + frozen.len();
            let Some(events) = self.decode(batch.records).await? else {
                break;
            };
            frozen.extend(events);
            let Some(waiting) = self.process(frozen, &mut fences).await? else {
                break;
            };
            frozen = waiting;
            let oldest = frozen.first().map(|(_, raw)| raw.offset);
            if let Some(done) = oldest.or(next) {
                self.commit_offset(done)?;
            }
            Stats::add(&self.shared.stats.counters.done, taken - frozen.len());
        }
        Ok(())
    }

    /// Records until the batch is full by rows or bytes, or has lingered; `None` when the lane is closed. What a
    /// fence covers is left out: a replay is recognised by the keys alone, without a look at the payloads. `left` are
    /// the records that the batch before had no room for. With `patience` it may come back empty after that time.
    async fn next_batch(
        &self,
        records: &mut mpsc::Receiver<Vec<RawRecord>>,
        left: &mut Vec<RawRecord>,
        fences: &mut Fences,
        patience: Option<Duration>,
    ) -> Result<Option<Batch>, WorkerError> {
        let (settings, counters) = (&self.shared.settings, &self.shared.stats.counters);
        let mut batch = Batch::default();
        let mut bytes = 0;
        let mut deadline = patience.map(|patience| tokio::time::Instant::now() + patience);
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
            let (received, next) = (chunk.len(), last.offset + 1);
            batch.next = Some(next);
            deadline.get_or_insert_with(|| tokio::time::Instant::now() + settings.batch_linger);
            let routes = self.shared.store.routes();
            let unknown = unknown_targets(&routes, &chunk, fences);
            let read = unknown.iter().map(|target| self.read_fence(*target, next));
            for (target, fence) in unknown.iter().zip(try_join_all(read).await?) {
                match fence {
                    Fence::At(fence) => fences.insert(*target, fence),
                    Fence::Closed => return Ok(None),
                    // Applying finds out where they belong.
                    Fence::Rerouted(_) => fences.insert(*target, 0),
                };
            }
            chunk.retain(|raw| {
                !raw.key_user()
                    .is_some_and(|user| is_covered(&routes, user, raw.offset, fences))
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

    /// Decodes a batch. What is no event is a dead letter before this returns; `None`: closed before that.
    async fn decode(&self, batch: Vec<RawRecord>) -> Result<Option<Vec<Pair>>, WorkerError> {
        let (map, counters) = (&self.shared.settings.map, &self.shared.stats.counters);
        let mut events = Vec::with_capacity(batch.len());
        let mut malformed = Vec::new();
        let mut misrouted = 0;
        for raw in batch {
            let event = match raw.decode(self.source) {
                Ok(event) => event,
                Err(error) => {
                    let sentence = error.to_string();
                    let reason = Reason {
                        class: MALFORMED,
                        sentence,
                        attempts: 1,
                    };
                    malformed.push((raw, reason));
                    continue;
                }
            };
            if map.partition_for(&RouteKey::Uuid(event.user_id)) != PartitionId(self.partition) {
                misrouted += 1;
            }
            let origin = Origin {
                topic: Arc::clone(&self.topic),
                partition: self.partition,
                offset: raw.offset,
            };
            let record = Record {
                event,
                origin: Some(origin),
            };
            events.push((record, raw));
        }
        if !malformed.is_empty() {
            let letters: Vec<(&RawRecord, Reason)> = malformed
                .iter()
                .map(|(raw, reason)| (raw, reason.clone()))
                .collect();
            let mut retry = self.retry();
            while let Err(error) = self.publish_dead(&letters).await {
                if !self.wait(&mut retry, &error).await {
                    return Ok(None);
                }
            }
            Stats::add(&counters.malformed, letters.len());
        }
        Stats::add(&counters.misrouted, misrouted);
        Ok(Some(events))
    }

    /// Takes events to their shards. Back come those whose slot is frozen, in order; `None`: the lane was closed
    /// before all was done.
    ///
    /// All groups of a round are routed by one snapshot, and the next round begins when all have ended: a fence may
    /// then speak for every event that its target's snapshot gave it.
    async fn process(
        &self,
        mut events: Vec<Pair>,
        fences: &mut Fences,
    ) -> Result<Option<Vec<Pair>>, WorkerError> {
        let (store, counters) = (&self.shared.store, &self.shared.stats.counters);
        let (mut retry, began) = (self.retry(), Instant::now());
        loop {
            let (routes, round) = (store.routes(), Instant::now());
            let hold_back = routes.hold_back(events.iter().map(|(record, _)| record.event.user_id));
            let grouped = group(&routes, events, fences);
            let mut rest = grouped.frozen;
            Stats::add(&counters.fenced, grouped.covered);
            let ends = try_join_all(
                grouped
                    .groups
                    .into_iter()
                    .map(|(target, group)| self.apply_group(target, group)),
            );
            let mut refusal = None;
            for end in ends.await? {
                match end {
                    GroupEnd::Done(target, next) => {
                        fences.insert(target, next);
                    }
                    GroupEnd::Closed => return Ok(None),
                    GroupEnd::Rerouted(mut pairs, error) => {
                        refusal = Some(error);
                        rest.append(&mut pairs);
                    }
                }
            }
            rest.sort_unstable_by_key(|(_, raw)| raw.offset);
            if hold_back > 0.0 {
                let pause = round.elapsed().mul_f64(hold_back).min(HOLD_BACK_MAX);
                if !self.pause(pause).await {
                    return Ok(None);
                }
            }
            let Some(refusal) = refusal else {
                return Ok(Some(rest));
            };
            Stats::add(&counters.reroutes, 1);
            store.refresh(routes.epoch()).await;
            let news = store.routes().epoch() > routes.epoch();
            if !news {
                // The shard refuses what the newest map gives it: that is explained soon, or never.
                let delay = retry.next().unwrap_or(self.shared.settings.retry_delay_max);
                if began.elapsed() > UNEXPLAINED_MAX {
                    return Err(refusal.into());
                }
                if !self.pause(delay).await {
                    return Ok(None);
                }
            }
            events = rest;
        }
    }

    /// Applies one target's records, in order: waits out what passes, halves a batch that fails on data until the
    /// guilty record stands alone, drops what another worker has applied.
    async fn apply_group(&self, target: Target, group: Vec<Pair>) -> Result<GroupEnd, WorkerError> {
        let next = group.last().map_or(0, |(_, raw)| raw.offset + 1);
        let (records, raws): (Vec<Record>, Vec<RawRecord>) = group.into_iter().unzip();
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
                    self.shared.stats.batch(&report, TokenHash::Postgres, part);
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
                        return Ok(GroupEnd::Closed);
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
                        &raws[range.start],
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
                                return Ok(GroupEnd::Closed);
                            }
                            work.push(range);
                        }
                    }
                }
                ErrorClass::Fenced => {
                    Stats::add(&counters.zombie_refusals, 1);
                    match self.read_fence(target, next).await? {
                        Fence::At(fence) => {
                            let covered =
                                raws[range.clone()].partition_point(|raw| raw.offset < fence);
                            Stats::add(&counters.fenced, covered);
                            if range.start + covered < range.end {
                                work.push(range.start + covered..range.end);
                            }
                        }
                        Fence::Closed => return Ok(GroupEnd::Closed),
                        Fence::Rerouted(error) => {
                            work.push(range);
                            return Ok(rerouted(records, raws, &work, error));
                        }
                    }
                }
                ErrorClass::Rerouted => match error {
                    Failure::Sql(error) => {
                        tracing::info!(topic = %self.topic, partition = self.partition, "routing anew: {error}");
                        work.push(range);
                        return Ok(rerouted(records, raws, &work, error));
                    }
                    Failure::DeadLetter(_) | Failure::LogEnd(_) => return Err(error.into()),
                },
                ErrorClass::Permanent => return Err(error.into()),
            }
        }
        Ok(GroupEnd::Done(target, next))
    }

    /// One transaction. What it rejects is a dead letter before it commits.
    async fn apply(
        &self,
        target: Target,
        records: &[Record],
        raws: &[RawRecord],
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
                    &raws[rejected.index],
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

    /// How far `target` has applied this partition; waits while its database is away.
    ///
    /// The log is known to reach `seen`; only a fence beyond that asks the broker where it ends.
    async fn read_fence(&self, target: Target, seen: i64) -> Result<Fence, WorkerError> {
        let mut retry = self.retry();
        loop {
            let (store, topic) = (&self.shared.store, &self.topic);
            let failure = match store.fence(target, topic, self.partition).await {
                Ok(None) => return Ok(Fence::At(0)),
                Ok(Some(fence)) if fence <= seen => return Ok(Fence::At(fence)),
                Ok(Some(fence)) => match self.log_end().await {
                    Ok(end) if fence <= end => return Ok(Fence::At(fence)),
                    Ok(end) => {
                        return Err(WorkerError::FenceBeyondLog {
                            topic: self.topic.to_string(),
                            partition: self.partition,
                            fence,
                            end,
                        });
                    }
                    // The broker is away for a moment, which is no reason to end.
                    Err(error) => Failure::LogEnd(error),
                },
                Err(error) => match error.class() {
                    ErrorClass::Transient => Failure::Sql(error),
                    ErrorClass::Rerouted => return Ok(Fence::Rerouted(error)),
                    _ => return Err(error.into()),
                },
            };
            if !self.wait(&mut retry, &failure).await {
                return Ok(Fence::Closed);
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
        self.pause(delay).await
    }

    /// Waits. False: the lane is closing.
    async fn pause(&self, delay: Duration) -> bool {
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

/// The targets that the records' keys lead to and whose fence is not known yet: with aligned partitions one, once.
fn unknown_targets(routes: &Routes, records: &[RawRecord], fences: &Fences) -> Vec<Target> {
    let mut unknown = Vec::new();
    for user in records.iter().filter_map(RawRecord::key_user) {
        if let Some(target) = routes.target_of(user)
            && !fences.contains_key(&target)
            && !unknown.contains(&target)
        {
            unknown.push(target);
        }
    }
    unknown
}

/// Whether the fence of the user's target is past this offset. A frozen slot has no target, and no fence.
fn is_covered(routes: &Routes, user: Uuid, offset: i64, fences: &Fences) -> bool {
    let target = routes.target_of(user);
    target
        .and_then(|target| fences.get(&target))
        .is_some_and(|next| offset < *next)
}

/// Events by target, each group in order.
#[derive(Default)]
struct Grouped {
    groups: Vec<(Target, Vec<Pair>)>,
    /// Those whose slot is frozen.
    frozen: Vec<Pair>,
    /// How many a fence covers.
    covered: usize,
}

fn group(routes: &Routes, events: Vec<Pair>, fences: &Fences) -> Grouped {
    let mut grouped = Grouped::default();
    for (record, raw) in events {
        let user = record.event.user_id;
        let Some(target) = routes.target_of(user) else {
            grouped.frozen.push((record, raw));
            continue;
        };
        // Only a record without a key, or one that was routed anew, can be covered here.
        if is_covered(routes, user, raw.offset, fences) {
            grouped.covered += 1;
            continue;
        }
        let groups = &mut grouped.groups;
        match groups.iter_mut().find(|(known, _)| *known == target) {
            Some((_, group)) => group.push((record, raw)),
            None => groups.push((target, vec![(record, raw)])),
        }
    }
    grouped
}

/// The part of a group that is not done, for the next round.
fn rerouted(
    records: Vec<Record>,
    raws: Vec<RawRecord>,
    work: &[Range<usize>],
    error: SqlError,
) -> GroupEnd {
    let left = |index| work.iter().any(|range| range.contains(&index));
    let pairs = records.into_iter().zip(raws).enumerate();
    GroupEnd::Rerouted(
        pairs
            .filter(|(index, _)| left(*index))
            .map(|(_, pair)| pair)
            .collect(),
        error,
    )
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
