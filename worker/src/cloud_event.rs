//! CloudEvents 1.0 in Kafka's binary mode: the attributes are headers, the record's value stays as it is.

use jiff::Timestamp;
use rdkafka::message::{Header, OwnedHeaders};
use shardlane_domain::{Body, Event, Source};
use uuid::Uuid;

const NAMES: [&str; 7] = [
    "ce_specversion",
    "ce_id",
    "ce_source",
    "ce_type",
    "ce_time",
    "ce_subject",
    "content-type",
];

/// The attributes of one record.
pub(crate) struct CloudEvent<'a> {
    pub(crate) id: &'a str,
    /// With the id unique, whatever becomes of the event on its way.
    pub(crate) source: &'a str,
    pub(crate) kind: &'a str,
    /// RFC 3339.
    pub(crate) time: &'a str,
    pub(crate) subject: &'a str,
}

impl CloudEvent<'_> {
    /// Adds the attributes, and the type of what they describe.
    pub(crate) fn add_to(&self, headers: OwnedHeaders) -> OwnedHeaders {
        let values = [
            "1.0",
            self.id,
            self.source,
            self.kind,
            self.time,
            self.subject,
            "application/json",
        ];
        NAMES
            .into_iter()
            .zip(values)
            .fold(headers, |headers, (key, value)| {
                headers.insert(Header {
                    key,
                    value: Some(value),
                })
            })
    }
}

/// Whether a header is one of those that [`CloudEvent::add_to`] writes.
pub(crate) fn is_attribute(key: &str) -> bool {
    NAMES.contains(&key)
}

/// The same for each time that an event is published. A source has no slash and a user's text is 36 bytes, so no two
/// events share one, whatever the provider's id contains.
pub(crate) fn id_of(source: Source, event_id: &str, user_id: Uuid) -> String {
    format!("{source}/{event_id}/{user_id}")
}

/// What is told of: an order or a dispute.
pub(crate) const fn entity(source: Source) -> &'static str {
    match source {
        Source::Orders => "order",
        Source::Chargebacks => "dispute",
    }
}

/// An accepted webhook, which is another event than what becomes of it: it has a source of its own.
pub(crate) fn with_webhook(event: &Event, headers: OwnedHeaders) -> OwnedHeaders {
    let said = match &event.body {
        Body::Order(change) => change.status.as_str(),
        Body::Dispute(change) => change.action.as_str(),
    };
    let occurred: Timestamp = event.occurred_at();
    CloudEvent {
        id: &id_of(event.source, &event.event_id, event.user_id),
        source: &format!("/shardlane/webhooks/{}", event.source),
        kind: &format!("shardlane.webhook.{}.{said}", entity(event.source)),
        time: &occurred.to_string(),
        subject: &event.order_id,
    }
    .add_to(headers)
}
