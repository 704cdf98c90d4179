//! The thread that polls Kafka and hands records to lanes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::{ClientConfig, Message};
use shardlane_domain::Source;
use shardlane_sql::{RetentionJob, Store};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::dead_letter::DeadLetters;
use crate::error::WorkerError;
use crate::lane::{CHUNK_ROWS_MAX, Lane, Shared};
use crate::record::RawRecord;
use crate::retention;
use crate::settings::WorkerSettings;
use crate::stats::Stats;
use crate::topics::verify_topics;

/// How long one poll waits for a record.
const POLL: Duration = Duration::from_millis(50);
/// How long the poller waits for a full lane before it pauses the lane's partition and goes on with the others.
const FULL_LANE_WAIT: Duration = Duration::from_millis(100);
/// How long a lane that was broken off may take to notice.
const ABORT_MAX: Duration = Duration::from_secs(1);

type Key = (Arc<str>, i32);

struct OpenLane {
    records: mpsc::Sender<Vec<RawRecord>>,
    closing: Arc<AtomicBool>,
    task: JoinHandle<()>,
    /// The records that found the lane full; its partition is paused until they are taken.
    held: Vec<RawRecord>,
}

/// The open lanes, and the run of records that is handed over next.
#[derive(Default)]
struct Lanes {
    open: HashMap<Key, OpenLane>,
    /// The next offset of each partition, behind what was handed over.
    positions: HashMap<Key, i64>,
    /// Records come in runs of one partition. A run is handed over as one, because each hand-over may wake a thread.
    run: Option<(Key, Vec<RawRecord>)>,
    any_held: bool,
}

/// The lanes are shared with the rebalance callback, which runs inside the poll of the same thread.
pub(crate) struct Context {
    lanes: Mutex<Lanes>,
    drain_max: Duration,
}

impl Context {
    fn lanes(&self) -> std::sync::MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes lanes and waits for the batches that they are at.
    fn close(&self, which: impl Fn(&Key) -> bool) {
        let closed: Vec<OpenLane> = {
            let mut lanes = self.lanes();
            // What was not handed over stays for the next owner.
            lanes.run.take_if(|(key, _)| which(key));
            // Assigned again, it begins at the committed offset.
            lanes.positions.retain(|key, _| !which(key));
            let closed = lanes.open.extract_if(|key, _| which(key));
            closed.map(|(_, lane)| lane).collect()
        };
        for lane in &closed {
            lane.closing.store(true, Ordering::Release);
        }
        // Dropping the senders wakes lanes that wait for records.
        let tasks: Vec<JoinHandle<()>> = closed.into_iter().map(|lane| lane.task).collect();
        if !ended_within(&tasks, self.drain_max) {
            tracing::warn!(
                "a batch was still under way at hand-over and is broken off; the fence decides who applies it"
            );
            // A lane that lived on would hold the consumer, and with it the partitions.
            tasks.iter().for_each(JoinHandle::abort);
            ended_within(&tasks, ABORT_MAX);
        }
    }
}

/// Waits for tasks, at most `max`. Looks instead of awaiting: librdkafka calls this from C on whatever thread drops
/// the consumer, and a panic there aborts the process. `block_on` panics inside a runtime, a timer without one.
fn ended_within(tasks: &[JoinHandle<()>], max: Duration) -> bool {
    let deadline = Instant::now() + max;
    while !tasks.iter().all(JoinHandle::is_finished) {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

impl ClientContext for Context {}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(revoked) = rebalance {
            let gone: Vec<(String, i32)> = revoked
                .elements()
                .iter()
                .map(|element| (element.topic().to_owned(), element.partition()))
                .collect();
            tracing::info!(partitions = gone.len(), "partitions revoked");
            self.close(|(topic, partition)| {
                gone.iter()
                    .any(|(name, number)| **name == **topic && number == partition)
            });
            // The lanes' asynchronous commits are on their way; this one waits for them.
            match consumer.commit_consumer_state(rdkafka::consumer::CommitMode::Sync) {
                Ok(()) | Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => {}
                Err(error) => tracing::debug!("commit at hand-over: {error}"),
            }
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(assigned) = rebalance {
            tracing::info!(partitions = assigned.count(), "partitions assigned");
            // librdkafka may remember a pause from an earlier ownership (its issues 1802 and 5591).
            if let Err(error) = consumer.resume(assigned) {
                tracing::warn!("partitions could not be resumed after assignment: {error}");
            }
        }
    }
}

/// A running worker. Dropped, it stops without waiting; [`Worker::stop`] waits.
pub struct Worker {
    stats: Arc<Stats>,
    stop: Arc<AtomicBool>,
    failed: watch::Receiver<bool>,
    thread: Option<std::thread::JoinHandle<Result<(), WorkerError>>>,
    _retention: Option<RetentionJob>,
}

impl Worker {
    /// Checks the topics against the map, subscribes and starts. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// [`WorkerError`] where broker, topics or map do not fit.
    pub async fn start(settings: WorkerSettings, store: Arc<Store>) -> Result<Worker, WorkerError> {
        let runtime = Handle::current();
        let stats = Arc::new(Stats::new());
        let retention = retention::start(&settings, &store, &stats).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let (failing, failed) = watch::channel(false);
        let shared = Arc::new(Shared {
            dead_letters: DeadLetters::new(&settings.bootstrap)?,
            stats: Arc::clone(&stats),
            store,
            settings,
        });
        let consumer = {
            let shared = Arc::clone(&shared);
            tokio::task::spawn_blocking(move || subscribe(&shared.settings))
                .await
                .map_err(|_| WorkerError::Panicked)??
        };
        let poller = Poller {
            consumer: Arc::new(consumer),
            shared,
            runtime,
            stop: Arc::clone(&stop),
            error: Arc::default(),
        };
        let thread = std::thread::Builder::new()
            .name("shardlane-poll".into())
            .spawn(move || {
                let result = poller.run();
                // The receiver may be gone with the worker.
                failing.send_replace(result.is_err());
                result
            })
            .map_err(|_| WorkerError::Panicked)?;
        Ok(Worker {
            stats,
            stop,
            failed,
            thread: Some(thread),
            _retention: retention,
        })
    }

    /// Its counters, which outlive it.
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// Returns when the worker has ended by itself, which it only does for an error: [`Worker::stop`] gives it.
    pub async fn failed(&mut self) {
        // An error means that the thread is gone, which is a failure too.
        self.failed.wait_for(|failed| *failed).await.ok();
    }

    /// Stops: batches under way are finished within the settings' `drain_max`, what is not begun is left to the
    /// next owner.
    ///
    /// # Errors
    /// The error for which the worker had stopped before.
    pub async fn stop(mut self) -> Result<(), WorkerError> {
        self.stop.store(true, Ordering::Release);
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        tokio::task::spawn_blocking(move || thread.join())
            .await
            .ok()
            .and_then(Result::ok)
            .unwrap_or(Err(WorkerError::Panicked))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn subscribe(settings: &WorkerSettings) -> Result<BaseConsumer<Context>, WorkerError> {
    let context = Context {
        lanes: Mutex::default(),
        drain_max: settings.drain_max,
    };
    let consumer: BaseConsumer<Context> = ClientConfig::new()
        .set("bootstrap.servers", &settings.bootstrap)
        .set("client.id", "shardlane")
        .set("group.id", &settings.group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("partition.assignment.strategy", "cooperative-sticky")
        // librdkafka's own queue is bounded too: 64 MiB over all partitions.
        .set("queued.max.messages.kbytes", "65536")
        // Once the queue was full, librdkafka waits a whole second by default before it fetches again.
        .set("fetch.queue.backoff.ms", "10")
        .set("fetch.wait.max.ms", "50")
        .create_with_context(context)?;
    let topics = settings.topics.webhooks();
    verify_topics(
        consumer.client(),
        &settings.bootstrap,
        &topics,
        settings.map.snapshot().document.map(),
    )?;
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    consumer.subscribe(&names)?;
    Ok(consumer)
}

struct Poller {
    consumer: Arc<BaseConsumer<Context>>,
    shared: Arc<Shared>,
    runtime: Handle,
    stop: Arc<AtomicBool>,
    /// What a lane ended with.
    error: Arc<Mutex<Option<WorkerError>>>,
}

impl Poller {
    fn run(self) -> Result<(), WorkerError> {
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
