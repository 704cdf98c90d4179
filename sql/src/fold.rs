//! States as a batch meets them: read, changed by one event after the other, and written back.

use std::collections::HashMap;

use shardlane_domain::{
    Body, DisputeState, DisputeStatus, Event, Money, OrderState, OrderStatus, Outcome, Source,
};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::SqlError;
use crate::outbox::Published;
use crate::rows::{DisputeRows, EventRows, OrderRows, OutboxRows};

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
    /// The event that it waits for has not arrived in time.
    #[error("out of order: the event that opens this order or dispute has not arrived")]
    TooEarly,
    /// As many events of its user and source wait already as may.
    #[error("the queue is full: as many events of this user and source wait already as may")]
    QueueFull,
    /// It waited, and the database refuses to take it.
    #[error("the database refuses a value of this event, which had waited for another one")]
    Refused,
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
            RejectReason::QueueFull => "queue_full",
            RejectReason::Refused => "data",
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
    pub(crate) fn add(
        &mut self,
        (orders, disputes): &(Vec<Row>, Vec<Row>),
        keys: &Keys<'a>,
    ) -> Result<(), SqlError> {
        self.orders
            .extend(held(orders, &keys.orders, order_from_row)?);
        self.disputes
            .extend(held(disputes, &keys.disputes, dispute_from_row)?);
        Ok(())
    }

    /// Takes what a simulated shard has of an order.
    #[cfg(test)]
    pub(crate) fn hold_order(&mut self, key: OrderKey<'a>, state: Option<OrderState>) {
        let base = state.as_ref().map_or(0, |state| state.version);
        self.orders.insert(key, Held { base, state });
    }

    /// Takes what a simulated shard has of a dispute.
    #[cfg(test)]
    pub(crate) fn hold_dispute(&mut self, key: OrderKey<'a>, state: Option<DisputeState>) {
        let base = state.as_ref().map_or(0, |state| state.version);
        self.disputes.insert(key, Held { base, state });
    }

    /// Orders that changed, with the versions that they are written over.
    #[cfg(test)]
    pub(crate) fn changed_orders(&self) -> Vec<(OrderKey<'a>, i64, &OrderState)> {
        sorted(&self.orders, |state| state.version)
    }

    /// Disputes that changed, with the versions that they are written over.
    #[cfg(test)]
    pub(crate) fn changed_disputes(&self) -> Vec<(OrderKey<'a>, i64, &DisputeState)> {
        sorted(&self.disputes, |state| state.version)
    }

    /// Those of `keys` that are not here yet.
    pub(crate) fn missing(&self, keys: Keys<'a>) -> Keys<'a> {
        let Keys {
            mut orders,
            mut disputes,
        } = keys;
        orders.retain(|key| !self.orders.contains_key(key));
        disputes.retain(|key| !self.disputes.contains_key(key));
        Keys { orders, disputes }
    }
}

/// The orders and disputes that events address, each once.
#[derive(Default)]
pub(crate) struct Keys<'a> {
    pub(crate) orders: Vec<OrderKey<'a>>,
    pub(crate) disputes: Vec<OrderKey<'a>>,
}

impl<'a> Keys<'a> {
    /// A dispute needs its order, too.
    pub(crate) fn of(addressed: impl Iterator<Item = (Source, OrderKey<'a>)>) -> Keys<'a> {
        let mut keys = Keys::default();
        for (source, key) in addressed {
            keys.orders.push(key);
            match source {
                Source::Orders => {}
                Source::Chargebacks => keys.disputes.push(key),
            }
        }
        for keys in [&mut keys.orders, &mut keys.disputes] {
            keys.sort_unstable();
            keys.dedup();
        }
        keys
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

/// Rows that an event leaves.
#[derive(Default)]
pub(crate) struct Logs<'a> {
    pub(crate) order_events: EventRows<'a>,
    pub(crate) dispute_events: EventRows<'a>,
    pub(crate) outbox: OutboxRows<'a>,
}

/// What the state says of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judged {
    Applied,
    /// Applied, and the order or dispute is there now.
    Opened,
    Stale,
    TooEarly,
    Illegal {
        from: &'static str,
        asked: &'static str,
    },
}

impl<'a> States<'a> {
    /// Applies an event to the state that it addresses and writes its rows.
    pub(crate) fn judge(&mut self, event: &'a Event, logs: &mut Logs<'a>) -> Judged {
        let key: OrderKey<'a> = (event.user_id, &event.order_id);
        match &event.body {
            Body::Order(change) => {
                let held = self.orders.entry(key).or_default();
                let outcome = OrderState::apply(held.state.as_ref(), change);
                let kind = change.status.as_str();
                let status = |state: &OrderState| (state.status.as_str(), state.version);
                held.take(
                    event,
                    outcome,
                    kind,
                    status,
                    &mut logs.order_events,
                    &mut logs.outbox,
                )
            }
            Body::Dispute(change) => {
                let order_exists = self.order_exists(key);
                let held = self.disputes.entry(key).or_default();
                let outcome = DisputeState::apply(held.state.as_ref(), order_exists, change);
                let kind = change.action.as_str();
                let status = |state: &DisputeState| (state.status.as_str(), state.version);
                held.take(
                    event,
                    outcome,
                    kind,
                    status,
                    &mut logs.dispute_events,
                    &mut logs.outbox,
                )
            }
        }
    }

    /// Whether this event can open the order or the dispute that it is about.
    pub(crate) fn can_open(&self, event: &Event) -> bool {
        let key: OrderKey<'_> = (event.user_id, &event.order_id);
        event.opens()
            && !self.is_open(event)
            && match event.body {
                Body::Order(_) => true,
                Body::Dispute(_) => self.order_exists(key),
            }
    }

    /// Whether [`States::judge`] would find it too early.
    pub(crate) fn is_too_early(&self, event: &Event) -> bool {
        !self.is_open(event) && !self.can_open(event)
    }

    fn is_open(&self, event: &Event) -> bool {
        let key: OrderKey<'_> = (event.user_id, &event.order_id);
        match event.body {
            Body::Order(_) => self.order_exists(key),
            Body::Dispute(_) => self
                .disputes
                .get(&key)
                .is_some_and(|held| held.state.is_some()),
        }
    }

    fn order_exists(&self, key: OrderKey<'_>) -> bool {
        self.orders
            .get(&key)
            .is_some_and(|held| held.state.is_some())
    }
}

impl<S: Published> Held<S> {
    fn take<'a>(
        &mut self,
        event: &'a Event,
        outcome: Outcome<S>,
        kind: &'static str,
        status: impl Fn(&S) -> (&'static str, i64),
        log: &mut EventRows<'a>,
        outbox: &mut OutboxRows<'a>,
    ) -> Judged {
        match outcome {
            Outcome::Applied(state) => {
                let (_, version) = status(&state);
                log.push(event, kind, "applied", version);
                outbox.push(event, kind, &state);
                let opened = self.state.replace(state).is_none();
                if opened {
                    Judged::Opened
                } else {
                    Judged::Applied
                }
            }
            Outcome::Stale => {
                let version = self.state.as_ref().map_or(0, |state| status(state).1);
                log.push(event, kind, "stale", version);
                Judged::Stale
            }
            Outcome::TooEarly => Judged::TooEarly,
            Outcome::Illegal { from, asked } => Judged::Illegal { from, asked },
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
