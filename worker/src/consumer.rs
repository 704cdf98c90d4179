//! One topic's consumer and what its callbacks see: the open lanes, which a rebalance closes.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::{ClientConfig, Statistics};
use shardlane_sql::mutants::{self, Mutant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::flow::{Commits, Due, Progress};
use crate::lag::STATISTICS_INTERVAL_MS;
use crate::lane::Shared;
use crate::record::RawRecord;
use crate::stats::Stats;

/// How long a lane that was broken off may take to notice.
const ABORT_MAX: Duration = Duration::from_secs(1);
/// How long the broker may take for the commit at a hand-over. Without it the next owner begins earlier, and the fence
/// recognises what is done.
const LAST_COMMIT_MAX: Duration = Duration::from_secs(5);

pub(crate) type Key = (Arc<str>, i32);

pub(crate) struct OpenLane {
    pub(crate) records: mpsc::Sender<Vec<RawRecord>>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) closing: Arc<AtomicBool>,
    pub(crate) task: JoinHandle<()>,
    /// The records that found the lane full; its partition is paused until they are taken.
    pub(crate) held: Vec<RawRecord>,
    /// Until when it is not worth waiting for room, and for how long that was last.
    pub(crate) slow: Option<(Instant, Duration)>,
}

/// The open lanes, and the run of records that is handed over next.
#[derive(Default)]
pub(crate) struct Lanes {
    pub(crate) open: HashMap<Key, OpenLane>,
    /// The next offset of each partition, behind what was handed over.
    pub(crate) positions: HashMap<Key, i64>,
    /// Records come in runs of one partition. A run is handed over as one, because each hand-over may wake a thread.
    pub(crate) run: Option<(Key, Vec<RawRecord>)>,
    /// The bytes of the run.
    pub(crate) run_bytes: usize,
    pub(crate) any_held: bool,
    /// The partitions that the group gave to this consumer.
    pub(crate) assigned: BTreeSet<Key>,
    commits: Commits,
}

/// The lanes are shared with the callbacks, which run inside the poll of the same thread.
pub(crate) struct Context {
    lanes: Mutex<Lanes>,
    shared: Arc<Shared>,
    /// For the commit at a hand-over, which has a thread of its own. Gone when the consumer is dropped.
    consumer: OnceLock<Weak<BaseConsumer<Context>>>,
}

impl Context {
    pub(crate) fn lanes(&self) -> std::sync::MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far these partitions were handed over to lanes.
    fn polled(&self, which: &BTreeSet<Key>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for ((topic, partition), next) in &self.lanes().positions {
            if which.contains(&(Arc::clone(topic), *partition)) {
                list.add_partition_offset(topic, *partition, Offset::Offset(*next))
                    .ok();
            }
        }
        list
    }

    /// Closes lanes, waits for the batches that they are at, and commits what they have done.
    pub(crate) fn close(&self, which: impl Fn(&Key) -> bool) {
        let closed: Vec<(Key, OpenLane)> = {
            let mut lanes = self.lanes();
            // What was not handed over stays for the next owner.
            lanes.run.take_if(|(key, _)| which(key));
            // Assigned again, it begins at the committed offset.
            lanes.positions.retain(|key, _| !which(key));
            lanes.open.extract_if(|key, _| which(key)).collect()
        };
        for (_, lane) in &closed {
            lane.closing.store(true, Ordering::Release);
        }
        let mut done = TopicPartitionList::with_capacity(closed.len());
        // Dropping the senders wakes lanes that wait for records.
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
            let mut lanes = self.lanes();
            let before = lanes.assigned.len();
            lanes.assigned.retain(|key| !gone.contains(key));
            self.shared.in_flight.revoked(before - lanes.assigned.len());
            self.shared.stats.revoked(&gone);
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(assigned) = rebalance {
            tracing::info!(partitions = assigned.count(), "partitions assigned");
            let new = keys(assigned);
            self.shared.stats.assigned(&new);
            let mut lanes = self.lanes();
            let before = lanes.assigned.len();
            lanes.assigned.extend(new);
            self.shared
                .in_flight
                .assigned(lanes.assigned.len() - before);
            drop(lanes);
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
) -> Result<Arc<BaseConsumer<Context>>, KafkaError> {
    let settings = &shared.settings;
    let topics = settings.topics.webhooks().len();
    // Half of a topic's part may be fetched while the other half waits.
    let fetch_bytes = (settings.fetch_ahead_bytes_max / topics / 2).max(1024);
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
            (fetch_bytes / 1024).to_string(),
        )
        .set("fetch.max.bytes", fetch_bytes.to_string())
        .set("message.max.bytes", fetch_bytes.min(1_000_000).to_string())
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
        consumer: OnceLock::new(),
    })?);
    let weak = Arc::downgrade(&consumer);
    consumer.context().consumer.get_or_init(|| weak);
    Ok(consumer)
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}
