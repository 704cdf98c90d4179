//! What the task of a [`Watch`](super::Watch) and its readers share.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use shardlane_router::ShardMap;
use tokio::sync::Notify;

use super::WatchStats;
use crate::MapDiff;

pub(super) struct Shared {
    pub(super) map: ArcSwap<ShardMap>,
    pub(super) wake: Notify,
    /// How often somebody asked for a refresh.
    pub(super) requests: AtomicU64,
    pub(super) polls: AtomicU64,
    pub(super) refreshes: AtomicU64,
    pub(super) changes: AtomicU64,
    pub(super) failures: AtomicU64,
    confirmed: Mutex<Instant>,
    diffs: Mutex<VecDeque<MapDiff>>,
}

impl Shared {
    pub(super) fn new(map: ShardMap) -> Shared {
        Shared {
            map: ArcSwap::from_pointee(map),
            wake: Notify::new(),
            requests: AtomicU64::new(0),
            polls: AtomicU64::new(0),
            refreshes: AtomicU64::new(1),
            changes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            confirmed: Mutex::new(Instant::now()),
            diffs: Mutex::new(VecDeque::new()),
        }
    }

    pub(super) fn confirm(&self) {
        *self
            .confirmed
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    pub(super) fn remember(&self, diff: MapDiff, kept_max: usize) {
        let mut diffs = self.diffs.lock().unwrap_or_else(PoisonError::into_inner);
        diffs.push_back(diff);
        let surplus = diffs.len().saturating_sub(kept_max);
        diffs.drain(..surplus);
    }

    pub(super) fn diffs(&self) -> Vec<MapDiff> {
        let diffs = self.diffs.lock().unwrap_or_else(PoisonError::into_inner);
        diffs.iter().cloned().collect()
    }

    pub(super) fn stats(&self) -> WatchStats {
        let confirmed = *self
            .confirmed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        WatchStats {
            requests: self.requests.load(Relaxed),
            polls: self.polls.load(Relaxed),
            refreshes: self.refreshes.load(Relaxed),
            changes: self.changes.load(Relaxed),
            failures: self.failures.load(Relaxed),
            confirmed_ago: confirmed.elapsed(),
        }
    }
}
