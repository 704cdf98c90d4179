//! The pure middle of a batch: events and the states they address go in, rows to write come out.

use std::collections::{HashMap, HashSet};

use shardlane_domain::{
    Body, DisputeState, DisputeStatus, Event, Money, OrderState, OrderStatus, Outcome,
};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::SqlError;
use crate::outbox::Published;
use crate::rows::{DisputeRows, EventRows, OrderRows, OutboxRows};
use crate::stage::{EventKey, Record, event_key};

/// An order within its user.
pub(crate) type OrderKey<'a> = (Uuid, &'a str);

/// An event that changed nothing and is no row: the caller must keep it elsewhere before the commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Its index in the batch.
    pub index: usize,
    /// Why.
    pub reason: RejectReason,
}

/// Why an event was not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RejectReason {
    /// The state machine has no such transition.
    #[error("illegal transition: {from} does not take {asked}")]
    Illegal {
        /// The status that the state has.
        from: &'static str,
        /// What the event asked for.
        asked: &'static str,
    },
    /// The event that opens the state has not arrived.
    #[error("out of order: the event that opens this order or dispute has not arrived")]
    TooEarly,
    /// The id was used before, with other bytes.
    #[error("the same event id was taken before with another payload")]
    DifferentPayload,
}

impl RejectReason {
    /// The class for headers and counters.
    pub const fn class(self) -> &'static str {
        match self {
            RejectReason::Illegal { .. } => "illegal",
            RejectReason::TooEarly => "out_of_order",
            RejectReason::DifferentPayload => "duplicate_with_different_payload",
        }
    }
}

/// A state with the version under which the database has it: 0 where it has none.
struct Held<S> {
    base: i64,
    state: Option<S>,
}

impl<S> Default for Held<S> {
    fn default() -> Self {
        Held {
            base: 0,
            state: None,
        }
    }
}

/// The states that a batch addresses, as they were read.
#[derive(Default)]
pub(crate) struct States<'a> {
    orders: HashMap<OrderKey<'a>, Held<OrderState>>,
    disputes: HashMap<OrderKey<'a>, Held<DisputeState>>,
}

impl<'a> States<'a> {
    /// Takes the rows of `read_orders.sql` and `read_disputes.sql`; `keys` lends the order ids.
    pub(crate) fn from_rows(
        orders: &[Row],
        disputes: &[Row],
        order_keys: &[OrderKey<'a>],
        dispute_keys: &[OrderKey<'a>],
    ) -> Result<Self, SqlError> {
        Ok(States {
            orders: held(orders, order_keys, order_from_row)?,
            disputes: held(disputes, dispute_keys, dispute_from_row)?,
        })
    }
}

/// One entry a key, with the state that its row holds; both kinds of row begin with user, order, status, version.
fn held<'a, S>(
    rows: &[Row],
    keys: &[OrderKey<'a>],
    state: impl Fn(&Row) -> Result<S, SqlError>,
) -> Result<HashMap<OrderKey<'a>, Held<S>>, SqlError> {
    let rows: HashMap<OrderKey<'_>, &Row> = rows
        .iter()
        .map(|row| ((row.get(0), row.get(1)), row))
        .collect();
    keys.iter()
        .map(|key| {
            let held = match rows.get(key) {
                Some(row) => Held {
                    base: row.get(3),
                    state: Some(state(row)?),
                },
                None => Held::default(),
            };
            Ok((*key, held))
        })
        .collect()
}

/// What a batch came to.
#[derive(Default)]
pub(crate) struct Folded<'a> {
    pub(crate) order_events: EventRows<'a>,
    pub(crate) dispute_events: EventRows<'a>,
    pub(crate) outbox: OutboxRows<'a>,
    pub(crate) rejected: Vec<Rejected>,
    /// Records that were taken although their event had come before in the batch: it was rejected then.
    pub(crate) taken_later: Vec<usize>,
    open: HashSet<EventKey<'a>>,
    pub(crate) applied: usize,
    pub(crate) stale: usize,
}

/// Folds the fresh ones of `records`, in their order, into `states`. An event that was rejected and comes again in the
/// same batch is fresh again, as it would be in the next batch: what becomes of it must not depend on how records fall
/// into batches.
pub(crate) fn fold<'a>(
    records: &'a [Record],
    fresh: &mut [bool],
    states: &mut States<'a>,
) -> Folded<'a> {
    let mut folded = Folded::default();
    for (index, record) in records.iter().enumerate() {
        let event = &record.event;
        let again = !fresh[index] && folded.open.remove(&event_key(event));
        if !fresh[index] && !again {
            continue;
        }
        fresh[index] = true;
        let rejected = folded.rejected.len();
        let key: OrderKey<'a> = (event.user_id, &event.order_id);
        match &event.body {
            Body::Order(change) => {
                let held = states.orders.entry(key).or_default();
                let outcome = OrderState::apply(held.state.as_ref(), change);
                let kind = change.status.as_str();
                let status = |state: &OrderState| (state.status.as_str(), state.version);
                folded.take(index, event, held, outcome, kind, status);
            }
            Body::Dispute(change) => {
                let held = states.disputes.entry(key).or_default();
                let outcome = DisputeState::apply(held.state.as_ref(), change);
                let kind = change.action.as_str();
                let status = |state: &DisputeState| (state.status.as_str(), state.version);
                folded.take(index, event, held, outcome, kind, status);
            }
        }
        if folded.rejected.len() > rejected {
            folded.open.insert(event_key(event));
        } else if again {
            folded.taken_later.push(index);
        }
    }
    folded
}

impl<'a> Folded<'a> {
    fn take<S: Published>(
        &mut self,
        index: usize,
        event: &'a Event,
        held: &mut Held<S>,
        outcome: Outcome<S>,
        kind: &'static str,
        status: impl Fn(&S) -> (&'static str, i64),
    ) {
        let log = match event.body {
            Body::Order(_) => &mut self.order_events,
            Body::Dispute(_) => &mut self.dispute_events,
        };
        match outcome {
            Outcome::Applied(state) => {
                let (_, version) = status(&state);
                log.push(event, kind, "applied", version);
                self.outbox.push(event, kind, &state);
                self.applied += 1;
                held.state = Some(state);
            }
            Outcome::Stale => {
                let version = held.state.as_ref().map_or(0, |state| status(state).1);
                log.push(event, kind, "stale", version);
                self.stale += 1;
            }
            Outcome::TooEarly => {
                self.rejected.push(Rejected {
                    index,
                    reason: RejectReason::TooEarly,
                });
            }
            Outcome::Illegal { from, asked } => {
                self.rejected.push(Rejected {
                    index,
                    reason: RejectReason::Illegal { from, asked },
                });
            }
        }
    }
}

/// The states that changed, sorted by key so that two batches lock rows in one order, and the orders that are new.
pub(crate) struct Changed<'a, 's> {
    pub(crate) orders: OrderRows<'a>,
    pub(crate) disputes: DisputeRows<'s>,
    pub(crate) new_orders: Vec<OrderKey<'a>>,
}

pub(crate) fn changed<'a: 's, 's>(states: &'s States<'a>) -> Changed<'a, 's> {
    let mut changed = Changed {
        orders: OrderRows::default(),
        disputes: DisputeRows::default(),
        new_orders: Vec::new(),
    };
    for (key, base, state) in sorted(&states.orders, |state| state.version) {
        changed.orders.push(key, base, state);
        if base == 0 {
            changed.new_orders.push(key);
        }
    }
    for (key, base, state) in sorted(&states.disputes, |state| state.version) {
        changed.disputes.push(key, base, state);
    }
    changed
}

fn sorted<'a, 's, S>(
    held: &'s HashMap<OrderKey<'a>, Held<S>>,
    version: impl Fn(&S) -> i64,
) -> Vec<(OrderKey<'a>, i64, &'s S)> {
    let mut changed: Vec<_> = held
        .iter()
        .filter_map(|(key, held)| {
            let state = held.state.as_ref()?;
            (version(state) != held.base).then_some((*key, held.base, state))
        })
        .collect();
    changed.sort_unstable_by_key(|(key, ..)| *key);
    changed
}

fn order_from_row(row: &Row) -> Result<OrderState, SqlError> {
    let amount = match (row.get::<_, Option<i64>>(4), row.get::<_, Option<&str>>(5)) {
        (Some(minor), Some(currency)) => Some(money("orders", minor, currency)?),
        _ => None,
    };
    Ok(OrderState {
        status: known("orders", row.get(2), OrderStatus::from_text)?,
        version: row.get(3),
        amount,
        created_at: row.get(6),
        updated_at: row.get(7),
    })
}

fn dispute_from_row(row: &Row) -> Result<DisputeState, SqlError> {
    Ok(DisputeState {
        status: known("disputes", row.get(2), DisputeStatus::from_text)?,
        version: row.get(3),
        reason: row.get(4),
        amount: money("disputes", row.get(5), row.get(6))?,
        opened_at: row.get(7),
        updated_at: row.get(8),
        evidence_due_at: row.get(9),
    })
}

fn money(table: &'static str, minor: i64, currency: &str) -> Result<Money, SqlError> {
    known(table, currency, |currency| {
        Money::from_minor(minor, currency).ok()
    })
}

fn known<T>(
    table: &'static str,
    value: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, SqlError> {
    parse(value).ok_or_else(|| SqlError::UnknownValue {
        table,
        value: value.to_owned(),
    })
}
