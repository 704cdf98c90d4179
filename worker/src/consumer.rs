//! The consumer and what its callbacks see: the open lanes, which a rebalance closes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{ClientConfig, Offset, Statistics, TopicPartitionList};
use shardlane_sql::mutants::{self, Mutant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::WorkerError;
use crate::lag::{Lags, STATISTICS_INTERVAL_MS};
use crate::lane::Shared;
use crate::record::RawRecord;
use crate::topics::verify_topics;

/// How long a lane that was broken off may take to notice.
const ABORT_MAX: Duration = Duration::from_secs(1);

pub(crate) type Key = (Arc<str>, i32);

pub(crate) struct OpenLane {
    pub(crate) records: mpsc::Sender<Vec<RawRecord>>,
    pub(crate) closing: Arc<AtomicBool>,
    pub(crate) task: JoinHandle<()>,
    /// The records that found the lane full; its partition is paused until they are taken.
    pub(crate) held: Vec<RawRecord>,
}

/// The open lanes, and the run of records that is handed over next.
#[derive(Default)]
pub(crate) struct Lanes {
    pub(crate) open: HashMap<Key, OpenLane>,
    /// The next offset of each partition, behind what was handed over.
    pub(crate) positions: HashMap<Key, i64>,
    /// Records come in runs of one partition. A run is handed over as one, because each hand-over may wake a thread.
    pub(crate) run: Option<(Key, Vec<RawRecord>)>,
    pub(crate) any_held: bool,
}

/// The lanes are shared with the rebalance callback, which runs inside the poll of the same thread.
pub(crate) struct Context {
    lanes: Mutex<Lanes>,
    lags: Arc<Lags>,
    drain_max: Duration,
}

impl Context {
    pub(crate) fn lanes(&self) -> std::sync::MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far these partitions were handed over to lanes.
    fn polled(&self, which: &[(String, i32)]) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for ((topic, partition), next) in &self.lanes().positions {
            if which.contains(&(topic.to_string(), *partition)) {
                list.add_partition_offset(topic, *partition, Offset::Offset(*next))
                    .ok();
            }
        }
        list
    }

    /// Closes lanes and waits for the batches that they are at.
    pub(crate) fn close(&self, which: impl Fn(&Key) -> bool) {
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

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        self.lags.observe(&statistics);
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(revoked) = rebalance {
            let gone: Vec<(String, i32)> = revoked
                .elements()
                .iter()
                .map(|element| (element.topic().to_owned(), element.partition()))
                .collect();
            tracing::info!(partitions = gone.len(), "partitions revoked");
            let polled = mutants::is(Mutant::LostRevokeDrain).then(|| self.polled(&gone));
            self.close(|(topic, partition)| {
                gone.iter()
                    .any(|(name, number)| **name == **topic && number == partition)
            });
            if let Some(polled) = polled {
                consumer
                    .commit(&polled, rdkafka::consumer::CommitMode::Sync)
                    .ok();
            }
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

pub(crate) fn subscribe(shared: &Shared) -> Result<BaseConsumer<Context>, WorkerError> {
    let settings = &shared.settings;
    let context = Context {
        lanes: Mutex::default(),
        lags: Arc::clone(&shared.stats.lags),
        drain_max: settings.drain_max,
    };
    let consumer: BaseConsumer<Context> = ClientConfig::new()
        .set("bootstrap.servers", &settings.bootstrap)
        .set("client.id", "shardlane")
        .set("group.id", &settings.group)
        .set(
            "session.timeout.ms",
            settings.session_timeout.as_millis().to_string(),
        )
        .set(
            "heartbeat.interval.ms",
            (settings.session_timeout / 4).as_millis().to_string(),
        )
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("partition.assignment.strategy", "cooperative-sticky")
        // librdkafka's own queue is bounded too: 64 MiB over all partitions.
        .set("queued.max.messages.kbytes", "65536")
        // Once the queue was full, librdkafka waits a whole second by default before it fetches again.
        .set("fetch.queue.backoff.ms", "10")
        .set("fetch.wait.max.ms", "50")
        .set("statistics.interval.ms", STATISTICS_INTERVAL_MS)
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
