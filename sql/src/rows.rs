//! What a fold writes, as one array a column: the parameters of the `unnest` statements.

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};
use jiff::Timestamp;
use shardlane_domain::{DisputeState, Event, OrderState};
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use uuid::Uuid;

use crate::outbox::Published;

/// JSON text as it is, for a column of type json.
#[derive(Debug)]
pub(crate) struct RawJson<'a>(pub(crate) Cow<'a, [u8]>);

impl ToSql for RawJson<'_> {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::JSON
    }

    to_sql_checked!();
}

/// Parameters of `insert_inbox.sql`.
#[derive(Default)]
pub(crate) struct InboxRows<'a> {
    pub(crate) user_id: Vec<Uuid>,
    pub(crate) source: Vec<&'static str>,
    pub(crate) event_id: Vec<&'a str>,
    pub(crate) payload_hash: Vec<Uuid>,
    pub(crate) received_at: Vec<Timestamp>,
}

impl<'a> InboxRows<'a> {
    pub(crate) fn push(&mut self, event: &'a Event) {
        self.user_id.push(event.user_id);
        self.source.push(event.source.as_str());
        self.event_id.push(&event.event_id);
        self.payload_hash.push(Uuid::from_u128(event.payload_hash));
        self.received_at.push(event.received_at);
    }

    pub(crate) fn params(&self) -> [&(dyn ToSql + Sync); 5] {
        [
            &self.user_id,
            &self.source,
            &self.event_id,
            &self.payload_hash,
            &self.received_at,
        ]
    }
}

/// Parameters of `upsert_orders.sql`.
#[derive(Default)]
pub(crate) struct OrderRows<'a> {
    pub(crate) user_id: Vec<Uuid>,
    pub(crate) order_id: Vec<&'a str>,
    status: Vec<&'static str>,
    version: Vec<i64>,
    base_version: Vec<i64>,
    amount_minor: Vec<Option<i64>>,
    currency: Vec<Option<&'static str>>,
    created_at: Vec<Timestamp>,
    updated_at: Vec<Timestamp>,
}

impl<'a> OrderRows<'a> {
    pub(crate) fn push(
        &mut self,
        (user_id, order_id): (Uuid, &'a str),
        base: i64,
        state: &OrderState,
    ) {
        self.user_id.push(user_id);
        self.order_id.push(order_id);
        self.status.push(state.status.as_str());
        self.version.push(state.version);
        self.base_version.push(base);
        self.amount_minor
            .push(state.amount.map(|amount| amount.minor));
        self.currency
            .push(state.amount.map(|amount| amount.currency.code()));
        self.created_at.push(state.created_at);
        self.updated_at.push(state.updated_at);
    }

    pub(crate) fn params(&self) -> [&(dyn ToSql + Sync); 9] {
        [
            &self.user_id,
            &self.order_id,
            &self.status,
            &self.version,
            &self.base_version,
            &self.amount_minor,
            &self.currency,
            &self.created_at,
            &self.updated_at,
        ]
    }
}

/// Parameters of `upsert_disputes.sql`.
#[derive(Default)]
pub(crate) struct DisputeRows<'a> {
    pub(crate) user_id: Vec<Uuid>,
    order_id: Vec<&'a str>,
    status: Vec<&'static str>,
    version: Vec<i64>,
    base_version: Vec<i64>,
    reason: Vec<&'a str>,
    amount_minor: Vec<i64>,
    currency: Vec<&'static str>,
    opened_at: Vec<Timestamp>,
    updated_at: Vec<Timestamp>,
    evidence_due_at: Vec<Option<Timestamp>>,
}

impl<'a> DisputeRows<'a> {
    pub(crate) fn push(
        &mut self,
        (user_id, order_id): (Uuid, &'a str),
        base: i64,
        state: &'a DisputeState,
    ) {
        self.user_id.push(user_id);
        self.order_id.push(order_id);
        self.status.push(state.status.as_str());
        self.version.push(state.version);
        self.base_version.push(base);
        self.reason.push(&state.reason);
        self.amount_minor.push(state.amount.minor);
        self.currency.push(state.amount.currency.code());
        self.opened_at.push(state.opened_at);
        self.updated_at.push(state.updated_at);
        self.evidence_due_at.push(state.evidence_due_at);
    }

    pub(crate) fn params(&self) -> [&(dyn ToSql + Sync); 11] {
        [
            &self.user_id,
            &self.order_id,
            &self.status,
            &self.version,
            &self.base_version,
            &self.reason,
            &self.amount_minor,
            &self.currency,
            &self.opened_at,
            &self.updated_at,
            &self.evidence_due_at,
        ]
    }
}

/// Parameters of `insert_order_events.sql` and `insert_dispute_events.sql`.
#[derive(Default)]
pub(crate) struct EventRows<'a> {
    pub(crate) user_id: Vec<Uuid>,
    pub(crate) order_id: Vec<&'a str>,
    pub(crate) event_id: Vec<&'a str>,
    kind: Vec<&'static str>,
    pub(crate) outcome: Vec<&'static str>,
    pub(crate) version: Vec<i64>,
    occurred_at: Vec<Timestamp>,
    pub(crate) received_at: Vec<Timestamp>,
    payload: Vec<RawJson<'a>>,
}

impl<'a> EventRows<'a> {
    pub(crate) fn push(
        &mut self,
        event: &'a Event,
        kind: &'static str,
        outcome: &'static str,
        version: i64,
    ) {
        self.user_id.push(event.user_id);
        self.order_id.push(&event.order_id);
        self.event_id.push(&event.event_id);
        self.kind.push(kind);
        self.outcome.push(outcome);
        self.version.push(version);
        self.occurred_at.push(event.occurred_at());
        self.received_at.push(event.received_at);
        self.payload.push(RawJson(Cow::Borrowed(&event.payload)));
    }

    pub(crate) fn params(&self) -> [&(dyn ToSql + Sync); 9] {
        [
            &self.user_id,
            &self.order_id,
            &self.event_id,
            &self.kind,
            &self.outcome,
            &self.version,
            &self.occurred_at,
            &self.received_at,
            &self.payload,
        ]
    }
}

/// Parameters of `insert_outbox.sql`.
#[derive(Default)]
pub(crate) struct OutboxRows<'a> {
    pub(crate) user_id: Vec<Uuid>,
    source: Vec<&'static str>,
    event_id: Vec<&'a str>,
    order_id: Vec<&'a str>,
    kind: Vec<&'static str>,
    version: Vec<i64>,
    status: Vec<&'static str>,
    state: Vec<RawJson<'static>>,
    received_at: Vec<Timestamp>,
}

impl<'a> OutboxRows<'a> {
    pub(crate) fn push(&mut self, event: &'a Event, kind: &'static str, state: &impl Published) {
        self.user_id.push(event.user_id);
        self.source.push(event.source.as_str());
        self.event_id.push(&event.event_id);
        self.order_id.push(&event.order_id);
        self.kind.push(kind);
        self.version.push(state.version());
        self.status.push(state.status());
        self.state.push(RawJson(Cow::Owned(state.document())));
        self.received_at.push(event.received_at);
    }

    pub(crate) fn params(&self) -> [&(dyn ToSql + Sync); 9] {
        [
            &self.user_id,
            &self.source,
            &self.event_id,
            &self.order_id,
            &self.kind,
            &self.version,
            &self.status,
            &self.state,
            &self.received_at,
        ]
    }
}
