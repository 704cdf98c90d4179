//! What a relay did, and how much waits.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use shardlane_router::ShardId;
use shardlane_sql::{OutboxLag, OutboxRow};

/// The counters of a relay, read at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct RelayCounts {
    /// Events that the broker has.
    pub published: u64,
    /// Records that the broker has: two or three an event.
    pub records: u64,
    /// Batches that the broker has.
    pub batches: u64,
    /// Times that an outbox was begun anew, because the database or the broker failed.
    pub setbacks: u64,
    /// Outboxes whose lock this process has.
    pub leads: u64,
    /// Events that waited when it was looked last, over all outboxes; a million an outbox stands for more too. Each
    /// process sees all of them, whoever has the locks: take the maximum, not the sum.
    pub lag_rows: u64,
    /// How long ago the front door took the oldest of them, in seconds.
    pub oldest_age_seconds: f64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Outbox {
    leads: bool,
    rows: u64,
    /// When the oldest was taken by the front door: it grows older while nobody looks.
    oldest: Option<Timestamp>,
}

#[derive(Debug, Default)]
struct State {
    counts: RelayCounts,
    outboxes: BTreeMap<ShardId, Outbox>,
}

/// Counters of a relay.
#[derive(Debug, Default)]
pub struct RelayStats(Mutex<State>);

impl RelayStats {
    /// The counters now.
    pub fn counts(&self) -> RelayCounts {
        let state = self.state();
        let outboxes = || state.outboxes.values();
        let oldest = outboxes().filter_map(|outbox| outbox.oldest).min();
        RelayCounts {
            leads: outboxes().filter(|outbox| outbox.leads).count() as u64,
            lag_rows: outboxes().map(|outbox| outbox.rows).sum(),
            oldest_age_seconds: oldest.map_or(0.0, |at| {
                Timestamp::now().duration_since(at).as_secs_f64().max(0.0)
            }),
            ..state.counts
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn published(&self, rows: usize, records: usize) {
        let counts = &mut self.state().counts;
        counts.published += rows as u64;
        counts.records += records as u64;
        counts.batches += 1;
    }

    pub(super) fn setback(&self, shard: ShardId) {
        let mut state = self.state();
        state.counts.setbacks += 1;
        state.outboxes.entry(shard).or_default().leads = false;
    }

    /// Somebody else leads.
    pub(super) fn waits(&self, shard: ShardId, lag: OutboxLag) {
        self.set(shard, false, lag);
    }

    pub(super) fn lags(&self, shard: ShardId, lag: OutboxLag) {
        self.set(shard, true, lag);
    }

    fn set(&self, shard: ShardId, leads: bool, lag: OutboxLag) {
        let age = jiff::SignedDuration::try_from(lag.oldest_age).unwrap_or_default();
        let oldest = (lag.rows > 0).then(|| Timestamp::now() - age);
        let outbox = Outbox {
            leads,
            rows: lag.rows,
            oldest,
        };
        self.state().outboxes.insert(shard, outbox);
    }

    /// These are all that wait.
    pub(super) fn leads(&self, shard: ShardId, rows: &[OutboxRow]) {
        let outbox = Outbox {
            leads: true,
            rows: rows.len() as u64,
            oldest: rows.first().map(|row| row.received_at),
        };
        self.state().outboxes.insert(shard, outbox);
    }

    pub(super) fn forget(&self, shard: ShardId) {
        self.state().outboxes.remove(&shard);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_waits_grows_older_and_is_the_sum_of_the_outboxes() {
        let stats = RelayStats::default();
        let lag = |rows, seconds| OutboxLag {
            rows,
            oldest_age: Duration::from_secs(seconds),
        };
        stats.lags(ShardId(0), lag(3, 10));
        stats.waits(ShardId(1), lag(4, 60));
        let counts = stats.counts();
        assert_eq!((counts.leads, counts.lag_rows), (1, 7));
        assert!(
            (60.0..70.0).contains(&counts.oldest_age_seconds),
            "{counts:?}"
        );
        stats.forget(ShardId(1));
        stats.leads(ShardId(0), &[]);
        let counts = stats.counts();
        assert_eq!((counts.leads, counts.lag_rows), (1, 0));
        assert!(counts.oldest_age_seconds < f64::EPSILON);
        stats.setback(ShardId(0));
        assert_eq!(stats.counts().leads, 0);
    }
}
