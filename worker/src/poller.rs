//! The thread that serves a topic's consumer: rebalances, commits, and what the broker is asked. Records go to lanes by
//! queues of their own.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::runtime::Handle;

use crate::consumer::{Context, Key, consumer_of};
use crate::error::WorkerError;
use crate::lag::Ends;
use crate::lane::Shared;
use crate::reader::is_passing;
use crate::stats::Stats;
use crate::watchdog::{Idle, Watchdog};

/// How long one poll waits for something to do. Nothing wakes it for an offset commit or a lane that failed.
const POLL: Duration = Duration::from_millis(20);
/// How often offsets are committed, at most.
const COMMIT_INTERVAL: Duration = Duration::from_millis(100);

/// One topic's poller.
pub(crate) struct Poller {
    consumer: Arc<BaseConsumer<Context>>,
    shared: Arc<Shared>,
    runtime: Handle,
    stop: Arc<AtomicBool>,
    next_commit: Instant,
    ends: Ends,
    /// Where the lanes stood when the ends of their logs were asked for last.
    stood: HashMap<Key, i64>,
}

/// Why a poller ended.
enum End {
    Stopped,
    /// A partition stood still.
    Stalled,
}

/// Serves one topic's consumer until the worker stops. A consumer that has lost a partition is made anew.
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
            next_commit: Instant::now(),
            ends: Ends::new(),
            stood: HashMap::new(),
        };
        match poller.run(&mut watchdog)? {
            End::Stopped => return Ok(()),
            End::Stalled => Stats::add(&shared.stats.counters.rebuilds, 1),
        }
        consumer = consumer_of(shared, topic, runtime)?;
        consumer.subscribe(&[topic])?;
    }
}

impl Poller {
    fn run(mut self, watchdog: &mut Watchdog) -> Result<End, WorkerError> {
        let result = self.turn(watchdog);
        // Whatever happened, the lanes are closed, because they hold the consumer.
        self.consumer.context().close(|_| true);
        // A lane may have failed at its last batch.
        let result = result.and_then(|end| self.consumer.context().lane_error().map(|()| end));
        // Leaves the group, so that the next owner need not wait for a session timeout. A static member does not: it
        // comes back under its name.
        if self.shared.settings.group_instance_id.is_none() {
            self.consumer.unsubscribe();
        }
        result
    }

    fn turn(&mut self, watchdog: &mut Watchdog) -> Result<End, WorkerError> {
        while !self.stop.load(Ordering::Acquire) {
            match self.consumer.poll(POLL) {
                None => {}
                // Its lane would go on behind it; a new consumer begins before it.
                Some(Ok(message)) => {
                    let (partition, offset) = (message.partition(), message.offset());
                    tracing::error!(
                        partition,
                        offset,
                        "a record came past its partition's queue"
                    );
                    return Ok(End::Stalled);
                }
                Some(Err(error)) if is_passing(&error) => tracing::warn!("Kafka: {error}"),
                Some(Err(error)) => return Err(error.into()),
            }
            self.ask_ends();
            self.commit_done();
            self.consumer.context().lane_error()?;
            if watchdog.is_due() && watchdog.look(&self.idle(), &self.consumer, &self.runtime) {
                return Ok(End::Stalled);
            }
        }
        Ok(End::Stopped)
    }

    /// Asks where the logs end whose lanes have records and took none since the last question: the client fetches nothing
    /// for them, so it hears of no end.
    fn ask_ends(&mut self) {
        if !self.ends.is_due() {
            return;
        }
        let mut stands = Vec::new();
        let mut now = HashMap::new();
        for (key, lane) in &self.consumer.context().lanes().open {
            let Some(position) = lane.progress.position() else {
                continue;
            };
            if lane.progress.bytes() > 0 && self.stood.get(key) == Some(&position) {
                stands.push(key.clone());
            }
            now.insert(key.clone(), position);
        }
        self.stood = now;
        let lags = &self.shared.stats.lags;
        self.ends.ask(stands, &self.consumer, lags, &self.runtime);
    }

    fn commit_done(&mut self) {
        if Instant::now() < self.next_commit {
            return;
        }
        self.next_commit = Instant::now() + COMMIT_INTERVAL;
        self.consumer.context().commit_done();
    }

    /// The partitions whose lanes hold nothing: no database and no frozen slot keeps them from going on.
    fn idle(&self) -> Vec<Idle> {
        let lanes = self.consumer.context().lanes();
        let idle = lanes
            .open
            .iter()
            .filter(|(_, lane)| lane.progress.bytes() == 0);
        idle.map(|(key, lane)| (key.clone(), lane.progress.position()))
            .collect()
    }
}
