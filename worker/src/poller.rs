//! The thread that polls Kafka and hands records to lanes.

use std::collections::hash_map::Entry;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

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

use crate::consumer::{Context, Key, OpenLane};
use crate::error::WorkerError;
use crate::lane::{CHUNK_ROWS_MAX, Lane, Shared};
use crate::record::RawRecord;
use crate::stats::Stats;

/// How long one poll waits for a record.
const POLL: Duration = Duration::from_millis(50);
/// How long the poller waits for a full lane before it pauses the lane's partition and goes on with the others.
const FULL_LANE_WAIT: Duration = Duration::from_millis(100);

pub(crate) struct Poller {
    pub(crate) consumer: Arc<BaseConsumer<Context>>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) runtime: Handle,
    pub(crate) stop: Arc<AtomicBool>,
    /// What a lane ended with.
    pub(crate) error: Arc<Mutex<Option<WorkerError>>>,
}

impl Poller {
    pub(crate) fn run(self) -> Result<(), WorkerError> {
        let mut result = Ok(());
        while !self.stop.load(Ordering::Acquire) {
            let waiting = self.consumer.context().lanes().run.is_some();
            // A run that waits for more waits no longer than librdkafka has some at hand.
            let polled = self
                .consumer
                .poll(if waiting { Duration::ZERO } else { POLL });
            match polled {
                None => {
                    result = self.hand_over();
                    if result.is_err() {
                        break;
                    }
                }
                Some(Ok(message)) => {
                    self.shared.stats.record_polled();
                    result = self.take(&message);
                    if result.is_err() {
                        break;
                    }
                    continue;
                }
                Some(Err(error)) if is_passing(&error) => tracing::warn!("Kafka: {error}"),
                Some(Err(error)) => {
                    result = Err(error.into());
                    break;
                }
            }
            // Not `?`: whatever happens, the lanes are closed, because they hold the consumer.
            result = self.resume_lanes().map_err(WorkerError::from);
            if result.is_ok() {
                result = self.lane_error();
            }
            if result.is_err() {
                break;
            }
        }
        self.consumer.context().close(|_| true);
        // A lane may have failed at its last batch.
        result = result.and(self.lane_error());
        // Leaves the group, so that the next owner need not wait for a session timeout.
        self.consumer.unsubscribe();
        result
    }

    /// What a lane ended with, if one did.
    fn lane_error(&self) -> Result<(), WorkerError> {
        let mut error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        error.take().map_or(Ok(()), Err)
    }

    /// Adds a record to the run; a full run, or one of another partition, is handed over.
    fn take(&self, message: &BorrowedMessage<'_>) -> Result<(), WorkerError> {
        let record = RawRecord::copy(message);
        let (topic, partition) = (message.topic(), message.partition());
        {
            let mut lanes = self.consumer.context().lanes();
            if let Some((key, run)) = &mut lanes.run
                && key.1 == partition
                && *key.0 == *topic
            {
                let next = run.last().map(|last| last.offset + 1);
                self.look_for_hole(key, next, record.offset);
                run.push(record);
                if run.len() < self.chunk_rows() {
                    return Ok(());
                }
                drop(lanes);
                return self.hand_over_and_look();
            }
        }
        self.hand_over_and_look()?;
        let key: Key = (Arc::from(topic), partition);
        let mut lanes = self.consumer.context().lanes();
        self.look_for_hole(&key, lanes.positions.get(&key).copied(), record.offset);
        lanes.run = Some((key, vec![record]));
        Ok(())
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

    fn chunk_rows(&self) -> usize {
        CHUNK_ROWS_MAX.min(self.shared.settings.batch_rows_max)
    }

    /// Hands the run over, and does what has to be done now and then.
    fn hand_over_and_look(&self) -> Result<(), WorkerError> {
        self.hand_over()?;
        self.resume_lanes()?;
        self.lane_error()
    }

    /// Gives the run to its partition's lane. A lane that stays full has its partition paused.
    fn hand_over(&self) -> Result<(), WorkerError> {
        let mut lanes = self.consumer.context().lanes();
        // One borrow of the guard, so that its fields can be borrowed apart.
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
        let Err(full) = lane.records.try_send(run) else {
            return Ok(());
        };
        let mpsc::error::TrySendError::Full(run) = full else {
            // The lane ended with an error, which the loop sees next.
            return Ok(());
        };
        let room = async { tokio::time::timeout(FULL_LANE_WAIT, lane.records.reserve()).await };
        match self.runtime.block_on(room) {
            Ok(Ok(permit)) => permit.send(run),
            Ok(Err(_closed)) => {}
            Err(_) => {
                self.consumer.pause(&partition_list(&key))?;
                Stats::add(&self.shared.stats.counters.pauses, 1);
                tracing::info!(topic = %key.0, partition = key.1, "paused: its lane is full");
                lane.held = run;
                lanes.any_held = true;
            }
        }
        Ok(())
    }

    fn open(&self, key: &Key) -> Result<OpenLane, WorkerError> {
        let source = Source::of_topic(&key.0)?;
        // Two batches: one under way, one that fills.
        let chunks = 2 * self.shared.settings.batch_rows_max / self.chunk_rows();
        let (records, receiver) = mpsc::channel(chunks);
        let closing = Arc::new(AtomicBool::new(false));
        let lane = Lane {
            shared: Arc::clone(&self.shared),
            consumer: Arc::clone(&self.consumer),
            topic: Arc::clone(&key.0),
            partition: key.1,
            source,
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
            closing,
            task,
            held: Vec::new(),
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
            match lane.records.try_send(std::mem::take(&mut lane.held)) {
                Ok(()) => {
                    self.consumer.resume(&partition_list(key))?;
                    tracing::info!(topic = %key.0, partition = key.1, "resumed");
                }
                Err(mpsc::error::TrySendError::Full(held)) => {
                    lane.held = held;
                    any_held = true;
                }
                Err(mpsc::error::TrySendError::Closed(_)) => {}
            }
        }
        lanes.any_held = any_held;
        Ok(())
    }
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
