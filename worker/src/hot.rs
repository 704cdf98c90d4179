//! Which slots and users a worker is busy with.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

// Apache DataSketches' own port: kept by the project that keeps the Java and C++ ones, without dependencies or unsafe
// code. It takes counts and says by how much it may err on any stream; heavykeeper only makes errors unlikely, and it
// and topk are one person's each.
use datasketches::frequencies::{ErrorType, FrequentItemsSketch};
use shardlane_router::{RouteKey, SLOT_COUNT, Slot, TokenHash};
use uuid::Uuid;

/// How many slots and users an answer names.
pub const HOT_MAX: usize = 20;

/// Room for 3,072 users: about 100 KiB. Up to that many users the counts are exact; beyond, none is wrong by more than
/// 0.09 % of all events.
const SKETCH_SIZE: usize = 4096;

/// The busiest slots and users since the worker started.
#[derive(Debug, Clone, PartialEq)]
pub struct HotKeys {
    /// Events whose transaction has committed, duplicates included.
    pub total: u64,
    /// The busiest slots, with their events; at most [`HOT_MAX`].
    pub slots: Vec<(Slot, u64)>,
    /// The busiest users, with their events; at most [`HOT_MAX`].
    pub users: Vec<(Uuid, u64)>,
    /// By how much a user's count may be too high.
    pub users_error_max: u64,
    /// How many times the mean of all 4096 slots the busiest one has: 1 is even, 4096 is all in one; 0 is no event.
    pub skew: f64,
}

/// Counters of all slots, and a sketch of the users.
pub(crate) struct Hot {
    slots: Box<[AtomicU64]>,
    users: Mutex<FrequentItemsSketch<Uuid>>,
}

impl fmt::Debug for Hot {
    /// Users do not go into logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hot").finish_non_exhaustive()
    }
}

impl Hot {
    pub(crate) fn new() -> Hot {
        let sketch = FrequentItemsSketch::new(SKETCH_SIZE)
            .unwrap_or_else(|error| unreachable!("the constant is a power of two: {error}"));
        Hot {
            slots: (0..SLOT_COUNT).map(|_| AtomicU64::new(0)).collect(),
            users: Mutex::new(sketch),
        }
    }

    /// Counts the users of a committed batch: each user is hashed once, and the lock is taken once.
    pub(crate) fn count(&self, hash: TokenHash, users: impl Iterator<Item = Uuid>) {
        let mut users: Vec<Uuid> = users.collect();
        users.sort_unstable();
        for events in users.chunk_by(Uuid::eq) {
            let slot = hash.token(&RouteKey::Uuid(events[0])).slot();
            self.slots[slot.index()].fetch_add(events.len() as u64, Ordering::Relaxed);
        }
        let mut sketch = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        for events in users.chunk_by(Uuid::eq) {
            sketch.update_with_count(events[0], events.len() as u64);
        }
    }

    /// Events of each slot, in order of slots.
    pub(crate) fn slot_counts(&self) -> Vec<u64> {
        let load = |slot: &AtomicU64| slot.load(Ordering::Relaxed);
        self.slots.iter().map(load).collect()
    }

    pub(crate) fn read(&self) -> HotKeys {
        let mut slots: Vec<(Slot, u64)> = Slot::all()
            .map(|slot| (slot, self.slots[slot.index()].load(Ordering::Relaxed)))
            .filter(|(_, events)| *events > 0)
            .collect();
        let total: u64 = slots.iter().map(|(_, events)| events).sum();
        slots.sort_by_key(|(slot, events)| (std::cmp::Reverse(*events), *slot));
        slots.truncate(HOT_MAX);
        let (mut rows, users_error_max) = {
            let sketch = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            (
                sketch.frequent_items(ErrorType::NoFalseNegatives),
                sketch.maximum_error(),
            )
        };
        rows.truncate(HOT_MAX);
        HotKeys {
            total,
            users: rows
                .iter()
                .map(|row| (*row.item(), row.estimate()))
                .collect(),
            users_error_max,
            skew: skew(slots.first().map_or(0, |(_, events)| *events), total),
            slots,
        }
    }
}

/// The busiest slot's events over the mean of all slots.
#[must_use]
pub fn skew(busiest: u64, total: u64) -> f64 {
    if total == 0 {
        return 0.0;
    }
    busiest as f64 * SLOT_COUNT as f64 / total as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(number: u64) -> Uuid {
        Uuid::from_u128(u128::from(number) << 64 | 7)
    }

    #[test]
    fn a_few_users_are_counted_exactly() {
        let hot = Hot::new();
        assert_eq!(hot.read().skew, 0.0);
        for _ in 0..3 {
            let batch = [user(1), user(2), user(1)];
            hot.count(TokenHash::Postgres, batch.into_iter());
        }
        let keys = hot.read();
        assert_eq!(keys.total, 9);
        assert_eq!(keys.users, [(user(1), 6), (user(2), 3)]);
        assert_eq!(keys.users_error_max, 0);
        let slot = TokenHash::Postgres.token(&RouteKey::Uuid(user(1))).slot();
        assert_eq!(keys.slots[0], (slot, 6));
        assert_eq!(keys.skew, 6.0 / (9.0 / 4096.0));
    }

    #[test]
    fn among_more_users_than_it_has_room_for_the_hot_one_stands_out_within_the_bound() {
        let hot = Hot::new();
        for batch in 0..200_u64 {
            let others = (0..700).map(|n| user(10 + batch * 700 + n));
            let same = std::iter::repeat_n(user(1), 300);
            hot.count(TokenHash::Postgres, others.chain(same));
        }
        let keys = hot.read();
        assert_eq!(keys.total, 200_000);
        let (first, events) = keys.users[0];
        assert_eq!(first, user(1));
        assert!(events.abs_diff(60_000) <= keys.users_error_max, "{events}");
        let promised = 200_000.0 * 3.5 / SKETCH_SIZE as f64;
        assert!(keys.users_error_max as f64 <= promised);
        assert!(keys.users.len() <= HOT_MAX && keys.slots.len() == HOT_MAX);
    }

    #[test]
    fn users_do_not_show_in_debug_output() {
        let hot = Hot::new();
        hot.count(TokenHash::Postgres, std::iter::once(user(1)));
        assert!(!format!("{hot:?}").contains(&user(1).to_string()));
    }
}
