//! What a worker did, for whoever asks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use hdrhistogram::Histogram;
use shardlane_router::TokenHash;
use shardlane_sql::{Record, RejectReason, Report};

use crate::hot::{Hot, HotKeys};

/// Declares counters once, as atomics and as the numbers that a reader gets.
macro_rules! counters {
    ($($(#[$doc:meta])+ $name:ident),+ $(,)?) => {
        /// The counters of a worker, read at one moment.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
        pub struct Counts { $($(#[$doc])+ pub $name: u64),+ }

        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: AtomicU64),+ }

        impl Counters {
            fn read(&self) -> Counts {
                Counts { $($name: self.$name.load(Ordering::Relaxed)),+ }
            }
        }
    };
}

counters!(
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
    /// Events that were parked and are rows now.
    released,
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
    misrouted,
    /// Transactions committed.
    batches,
    /// Rows inserted or updated.
    rows,
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
    /// Times that a partition was paused because its lane was full.
    pauses,
    /// Records that wait now, in their lanes, for a slot that is on its way to another shard. It falls too.
    deferred,
    /// Inbox rows that were older than the retention and were removed by this worker.
    inbox_removed,
    /// Statements that did it.
    inbox_visits,
);

impl Counts {
    /// All dead letters.
    pub fn dead_letters(&self) -> u64 {
        self.illegal + self.too_early + self.queue_full + self.different_payload + self.malformed
    }
}

/// Counters and the batch latency of a worker.
#[derive(Debug)]
pub struct Stats {
    pub(crate) counters: Counters,
    hot: Hot,
    batch_us: Mutex<Histogram<u64>>,
    first_record: OnceLock<Instant>,
}

impl Stats {
    pub(crate) fn new() -> Self {
        // Three digits over a microsecond to ten minutes; values beyond are clamped.
        let histogram = Histogram::new_with_bounds(1, 600_000_000, 3)
            .unwrap_or_else(|error| unreachable!("constant bounds are valid: {error}"));
        Stats {
            counters: Counters::default(),
            hot: Hot::new(),
            batch_us: Mutex::new(histogram),
            first_record: OnceLock::new(),
        }
    }

    /// The counters now.
    pub fn counts(&self) -> Counts {
        self.counters.read()
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
        self.batch_us
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
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
    pub(crate) fn dead_letter(&self, reason: RejectReason) {
        let counter = match reason {
            RejectReason::Illegal { .. } => &self.counters.illegal,
            RejectReason::TooEarly => &self.counters.too_early,
            RejectReason::QueueFull => &self.counters.queue_full,
            RejectReason::DifferentPayload => &self.counters.different_payload,
            RejectReason::Refused => &self.counters.malformed,
        };
        Self::add(counter, 1);
    }

    /// Counts a batch that has committed.
    pub(crate) fn batch(&self, report: &Report, hash: TokenHash, records: &[Record]) {
        let users = records.iter().map(|record| record.event.user_id);
        self.hot.count(hash, users);
        let counters = &self.counters;
        Self::add(&counters.applied, report.applied);
        Self::add(&counters.duplicates, report.duplicates);
        Self::add(&counters.stale, report.stale);
        Self::add(&counters.parked, report.parked);
        Self::add(&counters.released, report.released);
        let parked = report.letters.iter().map(|letter| letter.reason);
        for reason in report.rejected.iter().map(|it| it.reason).chain(parked) {
            self.dead_letter(reason);
        }
        Self::add(&counters.batches, 1);
        counters.rows.fetch_add(report.rows, Ordering::Relaxed);
        let micros = u64::try_from(report.took.as_micros()).unwrap_or(u64::MAX);
        let mut histogram = self
            .batch_us
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        histogram.saturating_record(micros.max(1));
    }
}
