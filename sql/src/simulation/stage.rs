//! A transaction up to its commit: what `transaction::write` does, with the same fold, over a snapshot.

use jiff::Timestamp;
use shardlane_domain::{DisputeState, OrderState, Source};
use shardlane_router::Epoch;
use uuid::Uuid;

use super::Defect;
use super::ground::place_of;
use super::shard::{InboxKey, QueueKey, Row, Shard, StateKey};
use crate::fold::{Keys, RejectReason, States};
use crate::outcome::{Counted, EventOutcome, Tally};
use crate::park::{self, Carried, ParkLimits, Parked};
use crate::queue::{Drain, Fold, Rules};
use crate::routes::Target;
use crate::rows::EventRows;
use crate::stage::{EventKey, Record};
use crate::transaction::{FenceMove, Work, fence_moves, first_of_each, may_move, users_of};

/// A transaction that is written and not committed.
pub(super) struct Staged {
    pub(super) target: Target,
    /// The shard's own epoch when it began: what changes a shard's CHECKs waits for its transactions, or ends them.
    pub(super) began_at: Epoch,
    /// How many records of its group it takes.
    pub(super) taken: usize,
    /// What is a dead letter of it: record and class.
    pub(super) letters: Vec<(usize, &'static str)>,
    /// What became of its records.
    pub(super) outcomes: Vec<(usize, EventOutcome)>,
    pub(super) users: Vec<Uuid>,
    pub(super) fences: Vec<FenceMove>,
    pub(super) inserted: Vec<(InboxKey, u128)>,
    pub(super) forgotten: Vec<InboxKey>,
    pub(super) retaken: Vec<(InboxKey, u128)>,
    pub(super) orders: Vec<(StateKey, i64, OrderState)>,
    pub(super) disputes: Vec<(StateKey, i64, DisputeState)>,
    /// With the record that stands there.
    pub(super) unparked: Vec<(QueueKey, usize)>,
    pub(super) park: Vec<(QueueKey, Record, Timestamp)>,
    pub(super) rows: Vec<Row>,
    pub(super) counts: Vec<(usize, [i64; 3])>,
}

impl Shard {
    pub(super) fn stage(
        &self,
        (target, began_at): (Target, Epoch),
        records: &[Record],
        swept: Option<&[Uuid]>,
        now: Timestamp,
        defect: Option<Defect>,
    ) -> Staged {
        let drain = if swept.is_some() {
            Drain::SWEEP
        } else {
            Drain::RELEASE
        };
        let limits = ParkLimits::default();
        let anchor = Uuid::nil();
        let carried = |_: usize| Carried::default();
        let (dead, rules) = (&[][..], Rules { limits, now, drain });
        let work = Work {
            target,
            anchor,
            records,
            dead,
            carried: &carried,
            swept,
            rules,
        };
        let mut seen = first_of_each(records);
        let keys = Keys::of(records.iter().map(addressed));
        let mut fresh = vec![false; records.len()];
        let mut inserted = Vec::new();
        for (key, seen) in &mut seen {
            let known = self
                .inbox
                .get(&owned(*key))
                .filter(|_| defect != Some(Defect::NoInbox));
            fresh[seen.first] = known.is_none();
            let hash = records[seen.first].event.payload_hash;
            seen.hash = Some(*known.unwrap_or(&hash));
            if known.is_none() {
                inserted.push((owned(*key), hash));
            }
        }
        let users = users_of(&work, &keys);
        let unread = defect == Some(Defect::QueueIgnored) && swept.is_none();
        let mut parked = if unread {
            Vec::new()
        } else {
            self.queues(&users)
        };
        let wanted = park::wanted(&parked, may_move(&work, &parked));
        let loaded: Vec<&Record> =
            std::iter::zip(wanted.users.iter().zip(&wanted.sources), &wanted.seqs)
                .map(|((user, source), seq)| {
                    &self.parked[&(*user, Source::from_text(source).unwrap(), *seq)].0
                })
                .collect();
        let moving = wanted.users;
        let mut states = States::default();
        self.hold(&mut states, &keys);
        let more = states.missing(Keys::of(loaded.iter().copied().map(addressed)));
        self.hold(&mut states, &more);
        let mut contents = loaded.iter();
        for it in &mut parked {
            if moving.binary_search(&it.user_id).is_ok()
                && let Some(record) = contents.next()
            {
                it.load(record);
            }
        }
        let mut fold = Fold::new(
            records,
            &parked,
            &mut seen,
            &mut states,
            Tally::new(anchor),
            work.rules,
        );
        fold.take_all(&fresh);
        fold.sweep(swept.unwrap_or_default());
        let mut folded = fold.end();
        let stored = folded.letters.iter().filter_map(|(parked, reason)| {
            let content = parked.content.as_ref()?;
            Some((number(content.event.received_at), reason.class()))
        });
        let rejected = folded.rejected.iter().map(|it| {
            (
                number(records[it.index].event.received_at),
                RejectReason::class(it.reason),
            )
        });
        let place = |key: QueueKey| match defect {
            // It does not see the places that are taken.
            Some(Defect::QueueIgnored) => (key.0, key.1, self.free_place(&key)),
            _ => key,
        };
        Staged {
            target,
            began_at,
            taken: records.len(),
            letters: stored.chain(rejected).collect(),
            outcomes: std::iter::zip(records, &folded.outcomes)
                .map(|(record, outcome)| (number(record.event.received_at), *outcome))
                .collect(),
            users,
            fences: fence_moves(&work),
            inserted,
            forgotten: folded.forgotten.iter().map(|key| owned(*key)).collect(),
            retaken: folded
                .retaken
                .iter()
                .map(|(key, index)| (owned(*key), records[*index].event.payload_hash))
                .collect(),
            unparked: folded
                .unparked
                .iter()
                .filter_map(|it| {
                    let event = &it.content.as_ref()?.event;
                    Some(((it.user_id, it.source, it.seq), number(event.received_at)))
                })
                .collect(),
            park: folded
                .park
                .iter()
                .map(|(index, seq, deadline)| {
                    let event = &records[*index].event;
                    let key = place((event.user_id, event.source, *seq));
                    (key, records[*index].clone(), *deadline)
                })
                .collect(),
            rows: rows(&folded.logs.order_events)
                .chain(rows(&folded.logs.dispute_events))
                .collect(),
            counts: folded.tally.rows().iter().map(counted).collect(),
            orders: states
                .changed_orders()
                .into_iter()
                .map(|((user, order), base, state)| ((user, order.to_owned()), base, state.clone()))
                .collect(),
            disputes: states
                .changed_disputes()
                .into_iter()
                .map(|((user, order), base, state)| ((user, order.to_owned()), base, state.clone()))
                .collect(),
        }
    }

    fn queues(&self, users: &[Uuid]) -> Vec<Parked> {
        let of_batch = |key: &QueueKey| users.binary_search(&key.0).is_ok();
        self.parked
            .iter()
            .filter(|(key, _)| of_batch(key))
            .map(|((_, _, seq), (record, deadline))| Parked::simulated(record, *seq, *deadline))
            .collect()
    }

    fn free_place(&self, key: &QueueKey) -> i64 {
        let same = self
            .parked
            .keys()
            .filter(|it| it.0 == key.0 && it.1 == key.1);
        same.map(|it| it.2).max().unwrap_or(0) + key.2
    }

    fn hold<'a>(&self, states: &mut States<'a>, keys: &Keys<'a>) {
        for key in &keys.orders {
            states.hold_order(*key, self.orders.get(&(key.0, key.1.to_owned())).cloned());
        }
        for key in &keys.disputes {
            states.hold_dispute(*key, self.disputes.get(&(key.0, key.1.to_owned())).cloned());
        }
    }
}

fn addressed(record: &Record) -> (Source, (Uuid, &str)) {
    let event = &record.event;
    (event.source, (event.user_id, &event.order_id))
}

fn owned((user, source, event): EventKey<'_>) -> InboxKey {
    (user, source.to_owned(), event.to_owned())
}

pub(super) fn number(received_at: Timestamp) -> usize {
    usize::try_from(received_at.as_second()).unwrap()
}

fn rows(rows: &EventRows<'_>) -> impl Iterator<Item = Row> {
    (0..rows.user_id.len()).map(|index| Row {
        user: rows.user_id[index],
        number: number(rows.received_at[index]),
        version: rows.version[index],
        stale: rows.outcome[index] == "stale",
    })
}

fn counted(counted: &Counted) -> (usize, [i64; 3]) {
    let place = place_of(&counted.topic, counted.partition);
    (
        place,
        [
            counted.outcomes.iter().sum(),
            counted.released,
            counted.expired,
        ],
    )
}
