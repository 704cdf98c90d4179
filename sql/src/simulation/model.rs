//! What must have become of everything, from the webhooks alone: the two machines written anew for one reader who takes
//! one record after the other, all orders before all disputes, because nothing may depend on the borders of batches.

use std::collections::{HashMap, HashSet};

use super::events::Said;
use super::ground::Ground;
use crate::outcome::EventOutcome;

/// Source, user, order.
pub(super) type StateKey = (usize, u128, &'static str);
/// Source, user, id.
pub(super) type EventKey = (usize, u128, String);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    Row {
        stale: bool,
        version: i64,
    },
    Duplicate,
    Dead(&'static str),
    /// Nothing opens its order or dispute.
    Waits,
}

/// Status, version and the newest event's time.
pub(super) type State = (&'static str, i64, i64);

#[derive(Default)]
pub(super) struct Model {
    pub(super) states: HashMap<StateKey, State>,
    /// By record.
    pub(super) fates: HashMap<usize, Fate>,
    /// Under which payload an event is known.
    pub(super) taken: HashMap<EventKey, u128>,
    waiting: HashMap<StateKey, Vec<(usize, Said)>>,
    /// Events that were refused after they had waited: what comes under their ids meanwhile is a duplicate, and what
    /// comes later is judged anew. Which it was depends on the other topic and the clock.
    refused_late: HashSet<EventKey>,
    /// Records whose deadline was over before what they waited for came.
    expired: HashSet<usize>,
}

impl Model {
    pub(super) fn of(ground: &Ground) -> Model {
        let mut model = Model::default();
        if ground.deadlines {
            let rows = ground.shards.iter().flat_map(|shard| &shard.rows);
            let rows: HashSet<usize> = rows.map(|row| row.number).collect();
            let late = ground
                .letters
                .iter()
                .filter(|it| it.1 == "out_of_order")
                .map(|it| it.0);
            // A letter of a worker that died before the commit is none where there is a row.
            let is_letter = |it: &usize| !(ground.doubtful.contains(it) && rows.contains(it));
            model.expired = late.filter(is_letter).collect();
        }
        for entry in ground.logs.iter().flatten() {
            model.take(entry.number, &entry.said, ground);
        }
        let waits: Vec<(usize, Said)> = model.waiting.drain().flat_map(|it| it.1).collect();
        for (number, said) in waits {
            model.fates.insert(number, Fate::Waits);
            model.taken.remove(&event_key(&said));
        }
        model
    }

    fn take(&mut self, number: usize, said: &Said, ground: &Ground) {
        let key = event_key(said);
        let first = ground.outcomes.get(&number).and_then(|it| it.first());
        let other = EventOutcome::DuplicateWithDifferentPayload;
        let fate = match self.taken.get(&key) {
            Some(known) if *known == said.payload => Fate::Duplicate,
            Some(_) => Fate::Dead("duplicate_with_different_payload"),
            None if self.refused_late.contains(&key) && first == Some(&EventOutcome::Duplicate) => {
                Fate::Duplicate
            }
            None if self.refused_late.contains(&key) && first == Some(&other) => {
                Fate::Dead("duplicate_with_different_payload")
            }
            None if self.expired.contains(&number) => {
                self.refused_late.insert(key);
                Fate::Dead("out_of_order")
            }
            None => {
                self.taken.insert(key, said.payload);
                return self.settle(number, said, ground);
            }
        };
        self.fates.insert(number, fate);
    }

    fn settle(&mut self, number: usize, said: &Said, ground: &Ground) {
        let key = state_key(said);
        let fate = match judge(self.states.get(&key), said, self.has_order(said)) {
            Judged::TooEarly => {
                self.waiting
                    .entry(key)
                    .or_default()
                    .push((number, said.clone()));
                return;
            }
            Judged::Stale => Fate::Row {
                stale: true,
                version: self.states[&key].1,
            },
            Judged::Illegal => {
                self.taken.remove(&event_key(said));
                let outcomes = ground.outcomes.get(&number);
                if outcomes.is_some_and(|it| it.contains(&EventOutcome::Parked)) {
                    self.refused_late.insert(event_key(said));
                }
                Fate::Dead("illegal")
            }
            Judged::Applied(state) => {
                self.states.insert(key, state);
                Fate::Row {
                    stale: false,
                    version: state.1,
                }
            }
        };
        self.fates.insert(number, fate);
        if self.states.contains_key(&key) {
            // The one that they waited for.
            for (number, said) in self.waiting.remove(&key).unwrap_or_default() {
                self.settle(number, &said, ground);
            }
        }
    }

    fn has_order(&self, said: &Said) -> bool {
        self.states
            .contains_key(&(0, said.user.as_u128(), said.order))
    }
}

pub(super) fn event_key(said: &Said) -> EventKey {
    (said.source as usize, said.user.as_u128(), said.id.clone())
}

fn state_key(said: &Said) -> StateKey {
    (said.source as usize, said.user.as_u128(), said.order)
}

enum Judged {
    Applied(State),
    Stale,
    TooEarly,
    Illegal,
}

fn judge(state: Option<&State>, said: &Said, has_order: bool) -> Judged {
    let of_disputes = said.source as usize == 1;
    let opens = ["created", "opened"].contains(&said.status);
    let Some((status, version, newest)) = state else {
        if !opens || of_disputes && !has_order {
            return Judged::TooEarly;
        }
        return Judged::Applied((if of_disputes { "open" } else { "created" }, 1, said.at));
    };
    if said.at < *newest {
        return Judged::Stale;
    }
    if opens || ["success", "failed", "won"].contains(status) {
        return Judged::Illegal;
    }
    let next = match (of_disputes, said.status) {
        (true, "updated") => status,
        (true, _) => "won",
        (false, next) => next,
    };
    Judged::Applied((next, version + 1, said.at))
}
