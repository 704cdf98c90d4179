//! One topic's consumer and what its callbacks see: the open lanes, which a rebalance opens and closes.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::{ClientConfig, Statistics};
use shardlane_domain::Source;
use shardlane_sql::mutants::{self, Mutant};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::error::WorkerError;
use crate::flow::{Commits, Due, Progress};
use crate::lag::STATISTICS_INTERVAL_MS;
use crate::lane::{Lane, Shared};
use crate::reader::Reader;
use crate::stats::Stats;

/// How long a lane that was broken off may take to notice.
const ABORT_MAX: Duration = Duration::from_secs(1);
/// How long the broker may take for the commit at a hand-over. Without it the next owner begins earlier, and the fence
/// recognises what is done.
const LAST_COMMIT_MAX: Duration = Duration::from_secs(5);

/// The least that a partition's queue is fetched up to.
const QUEUE_BYTES_MIN: usize = 16 * 1024;

pub(crate) type Key = (Arc<str>, i32);

pub(crate) struct OpenLane {
    pub(crate) progress: Arc<Progress>,
    task: JoinHandle<()>,
}

/// A lane for each partition that the group gave to this consumer.
#[derive(Default)]
pub(crate) struct Lanes {
    pub(crate) open: HashMap<Key, OpenLane>,
    commits: Commits,
}

/// The lanes are shared with the callbacks, which run inside the poll of the same thread.
pub(crate) struct Context {
    lanes: Mutex<Lanes>,
    shared: Arc<Shared>,
    /// Where lanes run.
    runtime: Handle,
    source: Source,
    /// What a lane ended with.
    error: Arc<Mutex<Option<WorkerError>>>,
    /// For lanes, and for commits, which have threads of their own. Gone when the consumer is dropped.
    consumer: OnceLock<Weak<BaseConsumer<Context>>>,
}

impl Context {
    pub(crate) fn lanes(&self) -> std::sync::MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a lane ended with, if one did.
    pub(crate) fn lane_error(&self) -> Result<(), WorkerError> {
        let mut error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        error.take().map_or(Ok(()), Err)
    }

    /// Opens a lane for each of these partitions that has none.
    fn open(&self, which: &BTreeSet<Key>) {
        let Some(consumer) = self.consumer.get().and_then(Weak::upgrade) else {
            return;
        };
        let mut lanes = self.lanes();
        for key in which {
            let Entry::Vacant(vacant) = lanes.open.entry(key.clone()) else {
                continue;
            };
            let shared = &self.shared;
            let progress = Arc::new(Progress::new(Arc::clone(&shared.in_flight)));
            let reader = Reader::split(&consumer, key, &progress, &shared.stats);
            let lane = Lane {
                shared: Arc::clone(shared),
                consumer: Arc::clone(&consumer),
                topic: Arc::clone(&key.0),
                partition: key.1,
                source: self.source,
                progress: Arc::clone(&progress),
            };
            let error = Arc::clone(&self.error);
            let task = self.runtime.spawn(async move {
                let run = async {
                    match reader {
                        Some(reader) => lane.run(reader).await,
                        None => {
                            Err(KafkaError::Subscription("a partition has no queue".into()).into())
                        }
                    }
                };
                // A panic must end the worker too: its partition would stand still, and nobody would know.
                let ended = AssertUnwindSafe(run).catch_unwind().await;
                if let Err(failure) = ended.unwrap_or(Err(WorkerError::Panicked)) {
                    *error.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
                }
            });
            vacant.insert(OpenLane { progress, task });
            shared.in_flight.assigned(1);
        }
    }

    /// How far these partitions were read.
    fn polled(&self, which: &BTreeSet<Key>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (key, lane) in &self.lanes().open {
            if let Some(next) = lane.progress.position().filter(|_| which.contains(key)) {
                list.add_partition_offset(&key.0, key.1, Offset::Offset(next))
                    .ok();
            }
        }
        list
    }

    /// Closes lanes, waits for the batches that they are at, and commits what they have done.
    pub(crate) fn close(&self, which: impl Fn(&Key) -> bool) {
        let closed: Vec<(Key, OpenLane)> = {
            let mut lanes = self.lanes();
            lanes.open.extract_if(|key, _| which(key)).collect()
        };
        for (_, lane) in &closed {
            lane.progress.close();
        }
        self.shared.in_flight.revoked(closed.len());
        let mut done = TopicPartitionList::with_capacity(closed.len());
        let (tasks, ends): (Vec<_>, Vec<_>) = closed
            .into_iter()
            .map(|(key, lane)| (lane.task, (key, lane.progress)))
            .unzip();
        if !ended_within(&tasks, self.shared.settings.drain_max) {
            tracing::warn!(
                "a batch was still under way at hand-over and is broken off; the fence decides who applies it"
            );
            // A lane that lived on would hold the consumer, and with it the partitions.
            tasks.iter().for_each(JoinHandle::abort);
            ended_within(&tasks, ABORT_MAX);
        }
        for (key, progress) in ends {
            add_uncommitted(&mut done, &key, &progress);
        }
        self.commit_ends_within(LAST_COMMIT_MAX);
        self.commit_within(done, LAST_COMMIT_MAX);
    }

    /// Commits and waits for the answer. librdkafka itself waits without bound while the broker is away, so a thread
    /// does it for us.
    fn commit_within(&self, offsets: TopicPartitionList, max: Duration) {
        let consumer = self.consumer.get().and_then(Weak::upgrade);
        let Some(consumer) = consumer.filter(|_| offsets.count() > 0) else {
            return;
        };
        let count = offsets.count();
        let (answer, answered) = sync_channel(1);
        let commit = move || {
            let result = consumer.commit(&offsets, CommitMode::Sync);
            drop(consumer);
            answer.send(result).ok();
        };
        let spawned = std::thread::Builder::new()
            .name("shardlane-commit".into())
            .spawn(commit);
        let error = match spawned.map(|_| answered.recv_timeout(max)) {
            Ok(Ok(Ok(()))) => return,
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(RecvTimeoutError::Timeout)) => "no answer in time".to_owned(),
            Ok(Err(RecvTimeoutError::Disconnected)) => "the commit panicked".to_owned(),
            Err(error) => error.to_string(),
        };
        Stats::add(&self.shared.stats.counters.commit_failures, count);
        tracing::warn!("commit at hand-over: {error}; the next owner begins earlier");
    }

    /// Commits what all lanes have done, in one request, unless one is under way. A thread waits for the answer: that of
    /// [`CommitMode::Async`] goes to a C callback which rust-rdkafka does not set, so nobody would hear of it.
    pub(crate) fn commit_done(&self) {
        let now = Instant::now();
        let mut lanes = self.lanes();
        let due = lanes.commits.due(now, self.shared.settings.commit_repeat);
        if due == Due::No {
            return;
        }
        let mut offsets = TopicPartitionList::new();
        for (key, lane) in &lanes.open {
            add_uncommitted(&mut offsets, key, &lane.progress);
        }
        let consumer = self.consumer.get().and_then(Weak::upgrade);
        let Some(consumer) = consumer.filter(|_| offsets.count() > 0) else {
            return;
        };
        if due == Due::Again {
            Stats::add(&self.shared.stats.counters.commit_repeats, offsets.count());
        }
        lanes.commits.sent();
        drop(lanes);
        let commit = move || {
            let result = consumer.commit(&offsets, CommitMode::Sync);
            consumer.context().answered(&offsets, result);
        };
        let thread = std::thread::Builder::new().name("shardlane-commit".into());
        if let Err(error) = thread.spawn(commit) {
            tracing::warn!("no thread for an offset commit: {error}");
            self.lanes().commits.answered(now, true);
        }
    }

    /// The broker's answer to a commit: an error if one of its partitions was refused.
    fn answered(&self, offsets: &TopicPartitionList, result: KafkaResult<()>) {
        let mut lanes = self.lanes();
        lanes.commits.answered(Instant::now(), result.is_err());
        if let Err(error) = result {
            let counter = &self.shared.stats.counters.commit_failures;
            Stats::add(counter, offsets.count());
            tracing::warn!("offset commits were refused: {error}");
            return;
        }
        for element in offsets.elements() {
            let key = (Arc::from(element.topic()), element.partition());
            // A partition that is not ours any more has no lane.
            if let (Offset::Offset(next), Some(lane)) = (element.offset(), lanes.open.get(&key)) {
                lane.progress.acknowledged(next);
            }
        }
    }

    /// Waits for the commit that is under way: one that is sent later must not come before it.
    fn commit_ends_within(&self, max: Duration) {
        let deadline = Instant::now() + max;
        while self.lanes().commits.is_under_way() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Adds what a lane has done and the broker has not acknowledged.
fn add_uncommitted(
    offsets: &mut TopicPartitionList,
    (topic, partition): &Key,
    progress: &Progress,
) {
    if let Some(next) = progress.uncommitted() {
        // An offset that is not negative is always taken.
        offsets
            .add_partition_offset(topic, *partition, Offset::Offset(next))
            .ok();
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

fn keys(partitions: &TopicPartitionList) -> BTreeSet<Key> {
    let key = |element: rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
        (Arc::from(element.topic()), element.partition())
    };
    partitions.elements().into_iter().map(key).collect()
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        self.shared.stats.lags.observe(&statistics);
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(revoked) = rebalance {
            let gone = keys(revoked);
            tracing::info!(partitions = gone.len(), "partitions revoked");
            let polled = mutants::is(Mutant::LostRevokeDrain).then(|| self.polled(&gone));
            self.close(|key| gone.contains(key));
            if let Some(polled) = polled {
                consumer.commit(&polled, CommitMode::Sync).ok();
            }
            self.shared.stats.revoked(&gone);
        }
        if let Rebalance::Assign(assigned) = rebalance {
            tracing::info!(partitions = assigned.count(), "partitions assigned");
            let new = keys(assigned);
            self.shared.stats.assigned(&new);
            // Before the client begins to fetch.
            self.open(&new);
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(assigned) = rebalance {
            // librdkafka may remember a pause from an earlier ownership (its issues 1802 and 5591).
            if let Err(error) = consumer.resume(assigned) {
                tracing::warn!("partitions could not be resumed after assignment: {error}");
            }
        }
    }
}

/// A consumer for one topic, to be subscribed.
///
/// One for each topic, though all are members of one group: cooperative-sticky counts partitions, not topics, and two
/// workers that subscribe to both topics get one of them each. Half of them would have all the disputes and no order.
pub(crate) fn consumer_of(
    shared: &Arc<Shared>,
    topic: &str,
    runtime: &Handle,
) -> Result<Arc<BaseConsumer<Context>>, WorkerError> {
    let settings = &shared.settings;
    let partitions = settings.map.snapshot().document.map().partition_count() as usize
        * settings.topics.webhooks().len();
    // librdkafka counts a record's value alone. Its key, the front door's headers and the client's own structures are three
    // times as much, and what a fetch brings beyond the limit is compressed.
    let part = settings.fetch_ahead_bytes_max / partitions.max(1);
    let queue_bytes = (part / 4).max(QUEUE_BYTES_MIN);
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &settings.bootstrap)
        .set("client.id", "shardlane")
        .set("group.id", &settings.group)
        .set(
            "heartbeat.interval.ms",
            millis(settings.session_timeout / 12),
        )
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", millis(settings.session_timeout))
        .set(
            "topic.metadata.refresh.interval.ms",
            millis(settings.metadata_refresh),
        )
        .set(
            "queued.max.messages.kbytes",
            (queue_bytes / 1024).to_string(),
        )
        .set("max.partition.fetch.bytes", (queue_bytes / 4).to_string())
        // Once the queue was full, librdkafka waits a whole second by default before it fetches again.
        .set("fetch.queue.backoff.ms", "10")
        .set("fetch.wait.max.ms", "50")
        .set("statistics.interval.ms", STATISTICS_INTERVAL_MS);
    if let Some(name) = &settings.group_instance_id {
        config.set("group.instance.id", format!("{name}.{topic}"));
    }
    let consumer: Arc<BaseConsumer<Context>> = Arc::new(config.create_with_context(Context {
        lanes: Mutex::default(),
        shared: Arc::clone(shared),
        runtime: runtime.clone(),
        source: Source::of_topic(topic)?,
        error: Arc::default(),
        consumer: OnceLock::new(),
    })?);
    let weak = Arc::downgrade(&consumer);
    consumer.context().consumer.get_or_init(|| weak);
    Ok(consumer)
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}
