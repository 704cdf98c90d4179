//! What consumers of the feed get: docs/how-to/consume-the-change-feed.md describes it for them.

use std::sync::Arc;

use jiff::Timestamp;
use rdkafka::message::OwnedHeaders;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shardlane_domain::Source;
use shardlane_sql::OutboxRow;
use uuid::Uuid;

use super::feed::Topics;
use crate::cloud_event::{CloudEvent, entity, id_of};

/// A record to publish.
pub(super) struct Message<'a> {
    pub(super) topic: &'a str,
    pub(super) body: Arc<[u8]>,
    pub(super) headers: Option<OwnedHeaders>,
}

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<&'static str>,
    user_id: Uuid,
    entity: &'static str,
    order_id: &'a str,
    event: &'a str,
    version: i64,
    status: &'a str,
    state: &'a RawValue,
    received_at: Timestamp,
}

impl<'a> Message<'a> {
    /// The records of one applied event: two, or three if somebody gets an email.
    pub(super) fn all_of(row: &OutboxRow, topics: &'a Topics) -> Vec<Message<'a>> {
        let id = id_of(row.source, &row.event_id, row.user_id);
        let state = body(row, &id, None);
        let mut all = vec![
            Message {
                topic: &topics.read,
                body: Arc::clone(&state),
                headers: None,
            },
            Message {
                topic: &topics.events,
                body: state,
                headers: Some(cloud_event(row, &id)),
            },
        ];
        if let Some(template) = template(row) {
            all.push(Message {
                topic: &topics.email,
                body: body(row, &id, Some(template)),
                headers: None,
            });
        }
        all
    }
}

/// The email that a person gets: each of these statuses is reached once.
fn template(row: &OutboxRow) -> Option<&'static str> {
    match (row.source, &row.status[..], row.version) {
        (Source::Orders, "success", _) => Some("order.success"),
        (Source::Orders, "failed", _) => Some("order.failed"),
        (Source::Chargebacks, "open", 1) => Some("dispute.opened"),
        (Source::Chargebacks, "won", _) => Some("dispute.won"),
        (Source::Chargebacks, "lost", _) => Some("dispute.lost"),
        (Source::Chargebacks, "closed", _) => Some("dispute.closed"),
        _ => None,
    }
}

fn body(row: &OutboxRow, id: &str, template: Option<&'static str>) -> Arc<[u8]> {
    let body = serde_json::to_vec(&Body {
        id,
        template,
        user_id: row.user_id,
        entity: entity(row.source),
        order_id: &row.order_id,
        event: &row.kind,
        version: row.version,
        status: &row.status,
        state: &row.state,
        received_at: row.received_at,
    });
    body.unwrap_or_else(|error| unreachable!("texts, numbers and times are JSON: {error}"))
        .into()
}

/// CloudEvents 1.0 in Kafka's binary mode.
fn cloud_event(row: &OutboxRow, id: &str) -> OwnedHeaders {
    #[derive(Deserialize)]
    struct Occurred {
        updated_at: String,
    }
    let occurred = serde_json::from_str(row.state.get())
        .map(|state: Occurred| state.updated_at)
        .unwrap_or_else(|_| row.received_at.to_string());
    CloudEvent {
        id,
        source: &format!("/shardlane/{}", row.source),
        kind: &format!("shardlane.{}.{}", entity(row.source), row.kind),
        time: &occurred,
        subject: &row.order_id,
    }
    .add_to(OwnedHeaders::new())
}
