//! The thread that polls Kafka and hands records to lanes.

use std::collections::hash_map::Entry;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::TopicPartitionList;
use shardlane_domain::Source;
use shardlane_sql::mutants::{self, Mutant};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::consumer::{Context, Key, OpenLane, consumer_of};
use crate::error::WorkerError;
use crate::flow::Progress;
use crate::lag::Ends;
use crate::lane::{CHUNK_BYTES_MAX, CHUNK_ROWS_MAX, Lane, Shared};
use crate::record::RawRecord;
use crate::stats::Stats;
use crate::watchdog::{Idle, Watchdog};

/// How long one poll waits for a record.
const POLL: Duration = Duration::from_millis(50);
/// How long the poller waits for a full lane before it pauses the lane's partition and goes on with the others.
const FULL_LANE_WAIT: Duration = Duration::from_millis(10);

/// The longest time for which the poller does not wait for a lane that let it wait in vain.
const SLOW_MAX: Duration = Duration::from_secs(60);
/// How often offsets are committed, at most.
const COMMIT_INTERVAL: Duration = Duration::from_millis(100);

/// One topic's poller.
pub(crate) struct Poller {
    consumer: Arc<BaseConsumer<Context>>,
    shared: Arc<Shared>,
    runtime: Handle,
    stop: Arc<AtomicBool>,
    /// What a lane ended with.
    error: Arc<Mutex<Option<WorkerError>>>,
    next_commit: Instant,
    ends: Ends,
}

/// Why a poller ended.
enum End {
    Stopped,
    /// A partition stood still.
    Stalled,
}

/// Takes one topic's records to lanes until the worker stops. A consumer that has lost a partition is made anew.
pub(crate) fn poll(
    mut consumer: Arc<BaseConsumer<Context>>,
    topic: &str,
    shared: &Arc<Shared>,
    runtime: &Handle,
    stop: &Arc<AtomicBool>,
) -> Result<(), WorkerError> {
    let mut watchdog = Watchdog::new(shared.settings.stall_max);
    loop {
        let poller = Poller {
            consumer,
            shared: Arc::clone(shared),
            runtime: runtime.clone(),
            stop: Arc::clone(stop),
            error: Arc::default(),
            next_commit: Instant::now(),
            ends: Ends::new(),
        };
        match poller.run(&mut watchdog)? {
            End::Stopped => return Ok(()),
            End::Stalled => Stats::add(&shared.stats.counters.rebuilds, 1),
        }
        consumer = consumer_of(shared, topic)?;
        consumer.subscribe(&[topic])?;
    }
}

impl Poller {
    fn run(mut self, watchdog: &mut Watchdog) -> Result<End, WorkerError> {
        let result = self.turn(watchdog);
        // Whatever happened, the lanes are closed, because they hold the consumer.
        self.consumer.context().close(|_| true);
        // A lane may have failed at its last batch.
        let result = result.and_then(|end| self.lane_error().map(|()| end));
        // Leaves the group, so that the next owner need not wait for a session timeout. A static member does not: it
        // comes back under its name.
        if self.shared.settings.group_instance_id.is_none() {
            self.consumer.unsubscribe();
        }
        result
    }

    fn turn(&mut self, watchdog: &mut Watchdog) -> Result<End, WorkerError> {
        while !self.stop.load(Ordering::Acquire) {
            let waiting = self.consumer.context().lanes().run.is_some();
            // A run that waits for more waits no longer than librdkafka has some at hand.
            let polled = self
                .consumer
                .poll(if waiting { Duration::ZERO } else { POLL });
            match polled {
                None => self.hand_over()?,
                Some(Ok(message)) => {
                    self.shared.stats.record_polled();
                    if !self.take(&message)? {
                        continue;
                    }
                }
                Some(Err(error)) if is_passing(&error) => tracing::warn!("Kafka: {error}"),
                Some(Err(error)) => return Err(error.into()),
            }
            self.resume_lanes()?;
            self.ask_ends();
            self.commit_done()?;
            self.lane_error()?;
            if watchdog.is_due() && watchdog.look(&self.idle(), &self.consumer, &self.runtime) {
                return Ok(End::Stalled);
            }
        }
        Ok(End::Stopped)
    }

    fn ask_ends(&mut self) {
        if !self.ends.is_due() {
            return;
        }
        let paused = {
            let lanes = self.consumer.context().lanes();
            let held = lanes.open.iter().filter(|(_, lane)| !lane.held.is_empty());
            held.map(|(key, _)| key.clone()).collect()
        };
        let lags = &self.shared.stats.lags;
        self.ends.ask(paused, &self.consumer, lags, &self.runtime);
    }

    fn commit_done(&mut self) -> Result<(), KafkaError> {
        if Instant::now() < self.next_commit {
            return Ok(());
        }
        self.next_commit = Instant::now() + COMMIT_INTERVAL;
        self.consumer.context().commit_done(&self.consumer)
    }

    /// The partitions whose lanes hold nothing: no database and no frozen slot keeps them from going on.
    fn idle(&self) -> Vec<Idle> {
        let lanes = self.consumer.context().lanes();
        let is_idle = |key: &&Key| {
            let lane = lanes.open.get(*key);
            lane.is_none_or(|lane| lane.held.is_empty() && lane.progress.bytes() == 0)
                && lanes
                    .run
                    .as_ref()
                    .is_none_or(|(running, _)| running != *key)
        };
        let idle = lanes.assigned.iter().filter(is_idle);
        idle.map(|key| (key.clone(), lanes.positions.get(key).copied()))
            .collect()
    }

    /// What a lane ended with, if one did.
    fn lane_error(&self) -> Result<(), WorkerError> {
        let mut error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        error.take().map_or(Ok(()), Err)
    }

    /// Adds a record to the run; a full run, or one of another partition, is handed over, which gives true.
    fn take(&self, message: &BorrowedMessage<'_>) -> Result<bool, WorkerError> {
        let record = RawRecord::copy(message);
        let (topic, partition) = (message.topic(), message.partition());
        let mut lanes = self.consumer.context().lanes();
        // One borrow of the guard, so that its fields can be borrowed apart.
        let open = &mut *lanes;
        if let Some((key, run)) = &mut open.run
            && key.1 == partition
            && *key.0 == *topic
        {
            let next = run.last().map(|last| last.offset + 1);
            self.look_for_hole(key, next, record.offset);
            open.run_bytes += record.bytes();
            run.push(record);
            let full = run.len() >= self.chunk_rows() || open.run_bytes >= self.chunk_bytes();
            drop(lanes);
            if full {
                self.hand_over()?;
            }
            return Ok(full);
        }
        drop(lanes);
        self.hand_over()?;
        let key: Key = (Arc::from(topic), partition);
        let mut lanes = self.consumer.context().lanes();
        self.look_for_hole(&key, lanes.positions.get(&key).copied(), record.offset);
        lanes.run_bytes = record.bytes();
        lanes.run = Some((key, vec![record]));
        Ok(true)
    }

    /// Offsets that are not in the log any more: somebody must hear of it. A topic whose retention is shorter than the
    /// worker's lag loses webhooks, and neither Kafka nor librdkafka says a word.
    fn look_for_hole(&self, (topic, partition): &Key, next: Option<i64>, offset: i64) {
        let Some(next) = next.filter(|next| *next < offset) else {
            return;
        };
        let missing = offset - next;
        tracing::error!(
            %topic,
            partition,
            next,
            missing,
            "offsets are not in the log: deleted by retention before they were read, or markers of a transaction"
        );
        let counter = &self.shared.stats.counters.missing;
        Stats::add(counter, usize::try_from(missing).unwrap_or(usize::MAX));
    }

    /// So much less than a lane's share that it always fits.
    fn chunk_bytes(&self) -> usize {
        CHUNK_BYTES_MAX.min(self.shared.in_flight.share() / 4)
    }

    fn chunk_rows(&self) -> usize {
        CHUNK_ROWS_MAX.min(self.shared.settings.batch_rows_max)
    }

    /// Gives the run to its partition's lane. A lane that stays full has its partition paused.
    fn hand_over(&self) -> Result<(), WorkerError> {
        let mut lanes = self.consumer.context().lanes();
        let lanes = &mut *lanes;
        let Some((key, run)) = lanes.run.take() else {
            return Ok(());
        };
        if let Some(last) = run.last() {
            lanes.positions.insert(key.clone(), last.offset + 1);
        }
        let lane = match lanes.open.entry(key.clone()) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(vacant) => vacant.insert(self.open(&key)?),
        };
        if !lane.held.is_empty() {
            // Paused already: behind those that wait.
            lane.held.extend(run);
            return Ok(());
        }
        let Err(run) = lane.offer(run) else {
            return Ok(());
        };
        let Err(run) = self.wait_for_room(lane, run) else {
            return Ok(());
        };
        self.consumer.pause(&partition_list(&key))?;
        Stats::add(&self.shared.stats.counters.pauses, 1);
        tracing::info!(topic = %key.0, partition = key.1, "paused: its lane is full");
        lane.held = run;
        lanes.any_held = true;
        Ok(())
    }

    /// Waits a moment for a full lane, because a pause throws away what was fetched ahead. All other lanes wait along:
    /// so one that is slow, or waits for its database, is soon not waited for any more.
    fn wait_for_room(
        &self,
        lane: &mut OpenLane,
        run: Vec<RawRecord>,
    ) -> Result<(), Vec<RawRecord>> {
        let now = Instant::now();
        if lane.progress.waits() || lane.slow.is_some_and(|(until, _)| now < until) {
            return Err(run);
        }
        let bytes = bytes(&run);
        let room = async {
            let room = async {
                lane.progress.room(bytes).await;
                lane.records.reserve().await
            };
            tokio::time::timeout(FULL_LANE_WAIT, room).await
        };
        match self.runtime.block_on(room) {
            Ok(Ok(permit)) => {
                lane.progress.took(bytes);
                permit.send(run);
                lane.slow = None;
                Ok(())
            }
            // It ended with an error, which the loop sees next.
            Ok(Err(_closed)) => Ok(()),
            Err(_) => {
                let slow = lane.slow.map_or(10 * FULL_LANE_WAIT, |(_, last)| 2 * last);
                let slow = slow.min(SLOW_MAX);
                lane.slow = Some((now + slow, slow));
                Err(run)
            }
        }
    }

    fn open(&self, key: &Key) -> Result<OpenLane, WorkerError> {
        let source = Source::of_topic(&key.0)?;
        // Two batches: one under way, one that fills.
        let chunks = 2 * self.shared.settings.batch_rows_max / self.chunk_rows();
        let (records, receiver) = mpsc::channel(chunks);
        let closing = Arc::new(AtomicBool::new(false));
        let progress = Arc::new(Progress::new(Arc::clone(&self.shared.in_flight)));
        let lane = Lane {
            shared: Arc::clone(&self.shared),
            consumer: Arc::clone(&self.consumer),
            topic: Arc::clone(&key.0),
            partition: key.1,
            source,
            progress: Arc::clone(&progress),
            closing: Arc::clone(&closing),
        };
        let error = Arc::clone(&self.error);
        let task = self.runtime.spawn(async move {
            // A panic must end the worker too: its partition would stand still, and nobody would know.
            let ended = AssertUnwindSafe(lane.run(receiver)).catch_unwind().await;
            if let Err(failure) = ended.unwrap_or(Err(WorkerError::Panicked)) {
                *error.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
            }
        });
        Ok(OpenLane {
            records,
            progress,
            closing,
            task,
            held: Vec::new(),
            slow: None,
        })
    }

    /// Gives held records to lanes that have room again, and resumes their partitions.
    fn resume_lanes(&self) -> Result<(), KafkaError> {
        let mut lanes = self.consumer.context().lanes();
        let lanes = &mut *lanes;
        if !lanes.any_held {
            return Ok(());
        }
        let mut any_held = false;
        for (key, lane) in &mut lanes.open {
            if lane.held.is_empty() {
                continue;
            }
            if mutants::is(Mutant::StaleResume) {
                lane.held.clear();
                self.consumer.resume(&partition_list(key))?;
                continue;
            }
            // Not for the first free place: a fetch begins anew.
            let half = lane.records.capacity() >= lane.records.max_capacity() / 2;
            if !half || !lane.progress.is_half_empty() {
                any_held = true;
                continue;
            }
            let held = std::mem::take(&mut lane.held);
            match lane.offer(held) {
                Ok(()) => {
                    self.consumer.resume(&partition_list(key))?;
                    tracing::info!(topic = %key.0, partition = key.1, "resumed");
                }
                Err(held) => {
                    lane.held = held;
                    any_held = true;
                }
            }
        }
        lanes.any_held = any_held;
        Ok(())
    }
}

impl OpenLane {
    /// Gives records to the lane, or back if it has no room.
    fn offer(&self, run: Vec<RawRecord>) -> Result<(), Vec<RawRecord>> {
        let bytes = bytes(&run);
        if !self.progress.has_room(bytes) {
            return Err(run);
        }
        // Before they are sent: the lane may be done with them at once.
        self.progress.took(bytes);
        match self.records.try_send(run) {
            Err(mpsc::error::TrySendError::Full(run)) => {
                self.progress.release(bytes);
                Err(run)
            }
            // Closed: the lane ended with an error, which the loop sees next.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        }
    }
}

fn bytes(records: &[RawRecord]) -> usize {
    records.iter().map(RawRecord::bytes).sum()
}

fn partition_list((topic, partition): &Key) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(1);
    list.add_partition(topic, *partition);
    list
}

/// Errors after which librdkafka goes on by itself.
fn is_passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    match error.rdkafka_error_code() {
        Some(
            Code::UnknownTopicOrPartition
            | Code::UnknownTopic
            | Code::UnknownPartition
            | Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::Fatal,
        ) => false,
        Some(_) | None => true,
    }
}
