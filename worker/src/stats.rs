//! What a worker did, for whoever asks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use hdrhistogram::Histogram;
use shardlane_domain::Source;
use shardlane_router::TokenHash;
use shardlane_sql::{Record, RejectReason, Report, Way};

use crate::consumer::Key;
use crate::flow::InFlight;
use crate::hot::{Hot, HotKeys};
use crate::lag::{Lag, Lags};

/// Declares counters once, as atomics and as the numbers that a reader gets: those of each topic, and the worker's.
macro_rules! counters {
    (topic: $($(#[$topic_doc:meta])+ $topic:ident),+; worker: $($(#[$doc:meta])+ $name:ident),+ $(,)?) => {
        /// The counters of a worker, read at one moment, over all topics.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
        pub struct Counts {
            $($(#[$topic_doc])+ pub $topic: u64,)+
            $($(#[$doc])+ pub $name: u64),+
        }

        /// What became of one topic's records.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct TopicCounts { $($(#[$topic_doc])+ pub $topic: u64),+ }

        #[derive(Debug, Default)]
        pub(crate) struct TopicCounters { $(pub(crate) $topic: AtomicU64),+ }

        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: AtomicU64),+ }

        impl TopicCounters {
            fn read(&self) -> TopicCounts {
                TopicCounts { $($topic: self.$topic.load(Ordering::Relaxed)),+ }
            }
        }

        impl Counters {
            fn read(&self, topics: &[TopicCounters]) -> Counts {
                Counts {
                    $($topic: topics.iter().map(|topic| topic.$topic.load(Ordering::Relaxed)).sum(),)+
                    $($name: self.$name.load(Ordering::Relaxed)),+
                }
            }
        }
    };
}

counters!(
    topic:
    /// Records that came to an end: as a row, a duplicate, a dead letter or skipped.
    done,
    /// Events that changed a state.
    applied,
    /// Events that the inbox knew.
    duplicates,
    /// Events older than their state.
    stale,
    /// Events without a legal transition: dead letters.
    illegal,
    /// Events that came before one that they need, or behind such an event, and were parked.
    parked,
    /// Events that waited in vain for the one that they need: dead letters.
    too_early,
    /// Events that found as many waiting before them as may: dead letters.
    queue_full,
    /// Known ids with another payload: dead letters.
    different_payload,
    /// Records that are no event, or that the database refuses: dead letters.
    malformed,
    /// Records that the fence covered: a replay.
    fenced,
    /// Records that stood in another partition than the map gives their user.
    misrouted;
    worker:
    /// Transactions committed.
    batches,
    /// Those of them that went to a server which, as the newest map has it, owned their users no longer.
    batches_to_former_owner,
    /// Those of them that went to the Citus coordinator.
    batches_by_coordinator,
    /// Rows inserted or updated.
    rows,
    /// Events that were parked and are rows now.
    released,
    /// Batches tried again after a transient error.
    retries,
    /// Rounds that were routed anew because a shard had taken other slots.
    reroutes,
    /// Batches that another worker had applied.
    zombie_refusals,
    /// Offsets that were not in the log any more when the worker came to them: records that retention deleted, or markers
    /// of a producer's transaction.
    missing,
    /// Records before the group's offset that the database had not applied.
    caught_up,
    /// Times that a lane paused: a database was away, or its slots were frozen and it held enough of their records.
    pauses,
    /// Records that wait now, in their lanes, for a slot that is on its way to another shard. It falls too.
    deferred,
    /// Inbox rows that were older than the retention and were removed by this worker.
    inbox_removed,
    /// Statements that did it.
    inbox_visits,
    /// Offset commits that the broker refused, a partition.
    commit_failures,
    /// Offset commits that were repeated because they were refused, a partition.
    commit_repeats,
    /// Times that partitions were given to this worker or taken from it.
    rebalances,
    /// Consumers that were made anew because a partition stood still.
    rebuilds,
    /// Times that a shard was found to be away.
    outages,
);

impl Counts {
    /// All dead letters.
    pub fn dead_letters(&self) -> u64 {
        self.illegal + self.too_early + self.queue_full + self.different_payload + self.malformed
    }
}

/// Counters, the lag and the sizes of a worker's batches.
#[derive(Debug)]
pub struct Stats {
    pub(crate) counters: Counters,
    topics: [TopicCounters; Source::ALL.len()],
    pub(crate) lags: Arc<Lags>,
    hot: Hot,
    batches: Mutex<Batches>,
    first_record: OnceLock<Instant>,
    in_flight: Arc<InFlight>,
    assigned: Mutex<BTreeSet<Key>>,
}

/// Batches that have committed.
#[derive(Debug, Clone)]
pub(crate) struct Batches {
    pub(crate) micros: Histogram<u64>,
    pub(crate) rows: Histogram<u64>,
}

/// Three digits; values beyond `max` are clamped.
fn histogram(max: u64) -> Histogram<u64> {
    Histogram::new_with_bounds(1, max, 3)
        .unwrap_or_else(|error| unreachable!("constant bounds are valid: {error}"))
}

impl Stats {
    pub(crate) fn new(in_flight: Arc<InFlight>) -> Self {
        Stats {
            counters: Counters::default(),
            topics: Default::default(),
            lags: Arc::default(),
            hot: Hot::new(),
            // Up to ten minutes.
            batches: Mutex::new(Batches {
                micros: histogram(600_000_000),
                rows: histogram(1_000_000),
            }),
            first_record: OnceLock::new(),
            in_flight,
            assigned: Mutex::default(),
        }
    }

    /// The counters now.
    pub fn counts(&self) -> Counts {
        self.counters.read(&self.topics)
    }

    /// The counters of one topic now.
    pub fn topic_counts(&self, source: Source) -> TopicCounts {
        self.topic(source).read()
    }

    pub(crate) fn topic(&self, source: Source) -> &TopicCounters {
        &self.topics[source as usize]
    }

    /// How far the worker is behind each partition that it has.
    pub fn lags(&self) -> Vec<Lag> {
        self.lags.read()
    }

    /// The bytes of records that were taken from Kafka and are not done: now, and at most so far.
    pub fn in_flight_bytes(&self) -> (usize, usize) {
        self.in_flight.bytes()
    }

    /// The partitions that the group gave to this worker, by topic.
    pub fn assignment(&self) -> BTreeMap<String, Vec<i32>> {
        let mut topics: BTreeMap<String, Vec<i32>> = BTreeMap::new();
        for (topic, partition) in &*self.assigned_mut() {
            topics
                .entry(topic.to_string())
                .or_default()
                .push(*partition);
        }
        topics
    }

    fn assigned_mut(&self) -> std::sync::MutexGuard<'_, BTreeSet<Key>> {
        self.assigned
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn assigned(&self, new: &BTreeSet<Key>) {
        Self::add(&self.counters.rebalances, usize::from(!new.is_empty()));
        self.assigned_mut().extend(new.iter().cloned());
    }

    pub(crate) fn revoked(&self, gone: &BTreeSet<Key>) {
        Self::add(&self.counters.rebalances, usize::from(!gone.is_empty()));
        self.assigned_mut().retain(|key| !gone.contains(key));
    }

    /// The busiest slots and users since the worker started.
    pub fn hot(&self) -> HotKeys {
        self.hot.read()
    }

    /// When the first record came from Kafka, if one has.
    pub fn first_record_at(&self) -> Option<Instant> {
        self.first_record.get().copied()
    }

    /// Events of each slot that came to the database, as they are now.
    pub fn slot_counts(&self) -> Vec<u64> {
        self.hot.slot_counts()
    }

    pub(crate) fn record_polled(&self) {
        self.first_record.get_or_init(Instant::now);
    }

    /// A copy of the histogram of batch latencies in microseconds: one transaction, from `begin` to `commit`.
    pub fn batch_latency_us(&self) -> Histogram<u64> {
        self.batches_now().micros.clone()
    }

    pub(crate) fn batches(&self) -> Batches {
        self.batches_now().clone()
    }

    fn batches_now(&self) -> MutexGuard<'_, Batches> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }

    /// Moves a gauge from what it was to what it is.
    pub(crate) fn shift(gauge: &AtomicU64, from: usize, to: usize) {
        if to >= from {
            gauge.fetch_add((to - from) as u64, Ordering::Relaxed);
        } else {
            gauge.fetch_sub((from - to) as u64, Ordering::Relaxed);
        }
    }

    /// Counts a dead letter that is acknowledged.
    pub(crate) fn dead_letter(&self, source: Source, reason: RejectReason) {
        let topic = self.topic(source);
        let counter = match reason {
            RejectReason::Illegal { .. } => &topic.illegal,
            RejectReason::TooEarly => &topic.too_early,
            RejectReason::QueueFull => &topic.queue_full,
            RejectReason::DifferentPayload => &topic.different_payload,
            RejectReason::Refused => &topic.malformed,
        };
        Self::add(counter, 1);
    }

    /// Counts a batch that has committed.
    pub(crate) fn batch(&self, source: Source, way: Way, report: &Report, records: &[Record]) {
        let users = records.iter().map(|record| record.event.user_id);
        self.hot.count(TokenHash::Postgres, users);
        let (topic, counters) = (self.topic(source), &self.counters);
        Self::add(&topic.applied, report.applied);
        Self::add(&topic.duplicates, report.duplicates);
        Self::add(&topic.stale, report.stale);
        Self::add(&topic.parked, report.parked);
        for rejected in &report.rejected {
            self.dead_letter(source, rejected.reason);
        }
        // What waited may have come from another topic.
        Self::add(&counters.released, report.released);
        for letter in &report.letters {
            self.dead_letter(letter.event.source, letter.reason);
        }
        Self::add(&counters.batches, 1);
        match way {
            Way::Owner => {}
            Way::FormerOwner => Self::add(&counters.batches_to_former_owner, 1),
            Way::Coordinator => Self::add(&counters.batches_by_coordinator, 1),
        }
        counters.rows.fetch_add(report.rows, Ordering::Relaxed);
        let micros = u64::try_from(report.took.as_micros()).unwrap_or(u64::MAX);
        let mut batches = self.batches_now();
        batches.micros.saturating_record(micros.max(1));
        batches.rows.saturating_record(records.len() as u64);
    }
}
