//! A shard in memory. A transaction is staged over a snapshot, see `stage.rs`, and what the statements check is checked
//! when it commits, all at once: the fence, versions, places and keys. Locks that Postgres would hold until then are so
//! much shorter here, and what would wait for one is refused.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use shardlane_domain::{DisputeState, OrderState, Source};
use shardlane_router::Epoch;
use uuid::Uuid;

use super::Defect;
use super::ground::{LANES, place_of};
use super::places::PLACES;
use super::stage::{Staged, number};
use crate::routes::Target;
use crate::stage::Record;
use crate::transaction::FenceMove;

pub(super) type InboxKey = (Uuid, String, String);
pub(super) type StateKey = (Uuid, String);
pub(super) type QueueKey = (Uuid, Source, i64);

/// A row of an event log.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) user: Uuid,
    pub(super) number: usize,
    pub(super) version: i64,
    pub(super) stale: bool,
}

#[derive(Default)]
pub(super) struct Shard {
    pub(super) inbox: HashMap<InboxKey, u128>,
    pub(super) orders: HashMap<StateKey, OrderState>,
    pub(super) disputes: HashMap<StateKey, DisputeState>,
    pub(super) parked: BTreeMap<QueueKey, (Record, Timestamp)>,
    pub(super) rows: Vec<Row>,
    /// Epoch and next offset.
    fences: [Option<(Epoch, i64)>; LANES],
    /// What fences of older epochs said, here and where the slot came from. Users stand for slots.
    past: [HashMap<Uuid, i64>; LANES],
    /// Outcomes, released, expired.
    pub(super) counts: [[i64; 3]; LANES],
}

/// As the crate's own, with users for slots.
#[derive(Clone, Default)]
pub(super) struct Applied {
    pub(super) fence: Option<i64>,
    pub(super) past: HashMap<Uuid, i64>,
}

impl Applied {
    /// The next offset of a user; `takes`: its slot is not frozen.
    pub(super) fn of(&self, user: Uuid, takes: bool) -> Option<i64> {
        self.fence
            .filter(|_| takes)
            .max(self.past.get(&user).copied())
    }
}

/// Why a transaction did not commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    Fenced,
    Conflict,
    Rerouted,
}

impl Shard {
    /// `takes` is the shard's CHECK.
    pub(super) fn refusal(
        &self,
        staged: &Staged,
        takes: impl Fn(Uuid) -> bool,
        defect: Option<Defect>,
    ) -> Option<Refused> {
        if !staged.users.iter().all(|user| takes(*user)) {
            return Some(Refused::Rerouted);
        }
        // As move_fence.sql.
        let epoch = staged.target.epoch;
        let is_refused = |moved: &FenceMove| {
            let fence = self.fences[place_of(&moved.topic, moved.partition)];
            fence.is_some_and(|(known, next)| {
                let known = if defect == Some(Defect::EpochIgnored) {
                    epoch
                } else {
                    known
                };
                !(known < epoch || known == epoch && next <= moved.first)
            })
        };
        if defect != Some(Defect::FenceIgnored) && staged.fences.iter().any(is_refused) {
            return Some(Refused::Fenced);
        }
        let version = |state: Option<i64>| state.unwrap_or(0);
        let is_conflict = staged
            .inserted
            .iter()
            .any(|(key, _)| self.inbox.contains_key(key))
            || staged
                .unparked
                .iter()
                .any(|(key, number)| !self.stands_there(key, *number, defect))
            || staged
                .park
                .iter()
                .any(|(key, ..)| self.parked.contains_key(key))
            || staged
                .orders
                .iter()
                .any(|(key, base, _)| version(self.orders.get(key).map(|it| it.version)) != *base)
            || staged.disputes.iter().any(|(key, base, _)| {
                version(self.disputes.get(key).map(|it| it.version)) != *base
            });
        let unchecked = matches!(defect, Some(Defect::ConflictUnchecked | Defect::NoInbox));
        (is_conflict && !unchecked).then_some(Refused::Conflict)
    }

    /// What [`Shard::refusal`] does not refuse.
    pub(super) fn install(&mut self, staged: Staged, defect: Option<Defect>) {
        for moved in &staged.fences {
            let place = place_of(&moved.topic, moved.partition);
            self.fences[place] = Some((staged.target.epoch, moved.next));
        }
        self.inbox.extend(staged.inserted);
        if defect != Some(Defect::DeadLetterKeptInInbox) {
            for key in &staged.forgotten {
                self.inbox.remove(key);
            }
        }
        for (key, hash) in staged.retaken {
            self.inbox.entry(key).or_insert(hash);
        }
        for (key, _) in &staged.unparked {
            self.parked.remove(key);
        }
        let park = staged.park.into_iter();
        self.parked
            .extend(park.map(|(key, record, deadline)| (key, (record, deadline))));
        self.orders.extend(
            staged
                .orders
                .into_iter()
                .map(|(key, _, state)| (key, state)),
        );
        self.disputes.extend(
            staged
                .disputes
                .into_iter()
                .map(|(key, _, state)| (key, state)),
        );
        self.rows.extend(staged.rows);
        for (place, more) in staged.counts {
            for (count, more) in self.counts[place].iter_mut().zip(more) {
                *count += more;
            }
        }
    }

    /// As `Store::applied`.
    pub(super) fn applied(&self, target: Target, place: usize) -> Result<Applied, Refused> {
        let fence = match self.fences[place] {
            Some((epoch, _)) if epoch > target.epoch => return Err(Refused::Rerouted),
            Some((epoch, next)) if epoch == target.epoch => Some(next),
            Some(_) | None => None,
        };
        let past = self.past[place].clone();
        Ok(Applied { fence, past })
    }

    /// As `past::carry`: what the fences say of the users that the shard `took`.
    pub(super) fn carry(&mut self, old: Target, took: impl Fn(Uuid) -> bool) {
        for (past, fence) in self.past.iter_mut().zip(&self.fences) {
            if let Some((epoch, next)) = fence
                && *epoch == old.epoch
            {
                for (user, _) in PLACES.users.iter().filter(|(user, _)| took(*user)) {
                    let known = past.entry(*user).or_default();
                    *known = (*known).max(*next);
                }
            }
        }
    }

    /// Takes the rows of these users over, and what is known of their past; fences and counts stay.
    pub(super) fn take_over(&mut self, other: &mut Shard, moves: impl Fn(Uuid) -> bool) {
        self.inbox
            .extend(other.inbox.extract_if(|key, _| moves(key.0)));
        self.orders
            .extend(other.orders.extract_if(|key, _| moves(key.0)));
        self.disputes
            .extend(other.disputes.extract_if(|key, _| moves(key.0)));
        self.parked
            .extend(other.parked.extract_if(.., |key, _| moves(key.0)));
        self.rows
            .extend(other.rows.extract_if(.., |row| moves(row.user)));
        for (ours, theirs) in self.past.iter_mut().zip(&other.past) {
            for (user, next) in theirs.iter().filter(|(user, _)| moves(**user)) {
                let known = ours.entry(*user).or_default();
                *known = (*known).max(*next);
            }
        }
    }

    /// As delete_parked.sql should have it: a place alone may be another event's by now.
    fn stands_there(&self, key: &QueueKey, wanted: usize, defect: Option<Defect>) -> bool {
        let found = self
            .parked
            .get(key)
            .map(|(record, _)| number(record.event.received_at));
        found.is_some_and(|found| found == wanted || defect == Some(Defect::PlaceAlone))
    }
}
