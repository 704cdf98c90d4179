//! A worker's life: start, failure, stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use shardlane_sql::{RetentionJob, Store};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::breaker::Breakers;
use crate::consumer::{Context, consumer_of};
use crate::dead_letter::DeadLetters;
use crate::error::WorkerError;
use crate::flow::InFlight;
use crate::lane::Shared;
use crate::poller::poll;
use crate::retention;
use crate::settings::WorkerSettings;
use crate::stats::Stats;
use crate::sweep;
use crate::topics::verify_topics;

/// The longest pause between two questions whether a shard is back. Only one lane asks.
const PROBE_DELAY_MAX: Duration = Duration::from_secs(1);

/// What there is to know about a worker, for [`StatsServer`](crate::StatsServer). It outlives it.
#[derive(Clone)]
pub struct WorkerView {
    pub(crate) shared: Arc<Shared>,
}

/// A running worker. Dropped, it stops without waiting; [`Worker::stop`] waits.
pub struct Worker {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    failed: watch::Receiver<bool>,
    sweep: JoinHandle<()>,
    sweep_ends: Arc<Notify>,
    /// One a topic.
    threads: Vec<std::thread::JoinHandle<Result<(), WorkerError>>>,
    #[cfg(feature = "testing")]
    consumers: Vec<std::sync::Weak<BaseConsumer<Context>>>,
    _retention: Option<RetentionJob>,
}

impl Worker {
    /// Checks the topics against the map, subscribes and starts. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// [`WorkerError`] where broker, topics or map do not fit.
    pub async fn start(settings: WorkerSettings, store: Arc<Store>) -> Result<Worker, WorkerError> {
        let runtime = Handle::current();
        let in_flight = Arc::new(InFlight::new(settings.in_flight_bytes_max));
        let stats = Arc::new(Stats::new(Arc::clone(&in_flight)));
        let retention = retention::start(&settings, &store, &stats).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let (failing, failed) = watch::channel(false);
        let shared = Arc::new(Shared {
            dead_letters: DeadLetters::new(&settings.bootstrap)?,
            stats,
            in_flight,
            breakers: Breakers::new(settings.retry_delay_min, PROBE_DELAY_MAX),
            store,
            settings,
        });
        let consumers = {
            let (shared, runtime) = (Arc::clone(&shared), runtime.clone());
            tokio::task::spawn_blocking(move || subscribe_all(&shared, &runtime))
                .await
                .map_err(|_| WorkerError::Panicked)??
        };
        let sweep_ends = Arc::new(Notify::new());
        let sweep = runtime.spawn(sweep::run(Arc::clone(&shared), Arc::clone(&sweep_ends)));
        #[cfg(feature = "testing")]
        let weak = consumers
            .iter()
            .map(|(_, consumer)| Arc::downgrade(consumer))
            .collect();
        let mut threads = Vec::with_capacity(consumers.len());
        for (topic, consumer) in consumers {
            let (shared, runtime) = (Arc::clone(&shared), runtime.clone());
            let (stop, failing) = (Arc::clone(&stop), failing.clone());
            let run = move || {
                let result = poll(consumer, &topic, &shared, &runtime, &stop);
                if result.is_err() {
                    // One topic alone would look like a worker that works.
                    stop.store(true, Ordering::Release);
                    // The receiver may be gone with the worker.
                    failing.send_replace(true);
                }
                result
            };
            let thread = std::thread::Builder::new().name("shardlane-poll".into());
            threads.push(thread.spawn(run).map_err(|_| WorkerError::Panicked)?);
        }
        Ok(Worker {
            shared,
            stop,
            failed,
            sweep,
            sweep_ends,
            threads,
            #[cfg(feature = "testing")]
            consumers: weak,
            _retention: retention,
        })
    }

    /// Pauses partitions as librdkafka's issues do: the worker does not know. A consumer that is made anew later is not
    /// touched.
    ///
    /// # Errors
    /// A partition that is not this worker's.
    #[cfg(feature = "testing")]
    pub fn pause_unnoticed(&self, topic: &str) -> Result<(), rdkafka::error::KafkaError> {
        for consumer in self.consumers.iter().filter_map(std::sync::Weak::upgrade) {
            let mut own = rdkafka::TopicPartitionList::new();
            for element in consumer.assignment()?.elements() {
                if element.topic() == topic {
                    own.add_partition(topic, element.partition());
                }
            }
            consumer.pause(&own)?;
        }
        Ok(())
    }

    /// Its counters, which outlive it.
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.shared.stats)
    }

    /// For a server that answers about it.
    pub fn view(&self) -> WorkerView {
        WorkerView {
            shared: Arc::clone(&self.shared),
        }
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
        self.sweep_ends.notify_one();
        let deadline = Instant::now() + self.shared.settings.drain_max;
        let threads = std::mem::take(&mut self.threads);
        let join = move || {
            let ends = threads.into_iter().map(|thread| {
                let end = thread.join();
                end.unwrap_or(Err(WorkerError::Panicked))
            });
            // All are awaited; the first error is told.
            ends.fold(Ok(()), Result::and)
        };
        let joined = tokio::task::spawn_blocking(join).await;
        // What it moved is counted then.
        timeout_at(deadline, &mut self.sweep).await.ok();
        joined.unwrap_or(Err(WorkerError::Panicked))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Its transaction is rolled back, and the events of it wait on.
        self.sweep.abort();
        self.stop.store(true, Ordering::Release);
    }
}

type Subscribed = (String, Arc<BaseConsumer<Context>>);

/// A consumer for each topic, once they all are as the map says.
fn subscribe_all(shared: &Arc<Shared>, runtime: &Handle) -> Result<Vec<Subscribed>, WorkerError> {
    let settings = &shared.settings;
    let topics = settings.topics.webhooks();
    let mut consumers = Vec::with_capacity(topics.len());
    for topic in &topics {
        consumers.push((topic.clone(), consumer_of(shared, topic, runtime)?));
    }
    if let Some((_, consumer)) = consumers.first() {
        let map = settings.map.snapshot();
        verify_topics(
            consumer.client(),
            &settings.bootstrap,
            &topics,
            map.document.map(),
        )?;
    }
    for (topic, consumer) in &consumers {
        consumer.subscribe(&[topic])?;
    }
    Ok(consumers)
}
