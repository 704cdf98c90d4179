//! What the front door refuses for good: authentic bytes that are no event become dead letters without ever having been
//! records.

use bytes::Bytes;
use jiff::Timestamp;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::FutureRecord;
use shardlane_domain::Source;

use super::{HandedOver, PublishError, Published, Publisher};

/// The class under which the worker, too, counts what is no event.
const CLASS: &str = "malformed";

/// Bytes that are no event of their source.
#[derive(Debug, Clone)]
pub struct Refused {
    /// Whose they are; it decides the dead-letter topic.
    pub source: Source,
    /// As they came.
    pub payload: Bytes,
    /// When the front door had them.
    pub received_at: Timestamp,
    /// Why they are no event, for people.
    pub reason: String,
}

impl Publisher {
    /// Publishes a dead letter and waits until all replicas have it. It has no key, because nobody knows its user, and
    /// of an origin only the topic for which it was meant.
    ///
    /// # Errors
    /// [`PublishError`]: the broker may or may not have it; the provider should send it again.
    pub async fn bury(&self, refused: &Refused) -> Result<Published, PublishError> {
        let topic = self.topics.of(refused.source);
        let dlq = self.topics.dlq_of(refused.source);
        let record = FutureRecord::<(), [u8]>::to(&dlq)
            .payload(&refused.payload)
            .timestamp(refused.received_at.as_millisecond())
            .headers(headers(&topic, refused));
        let delivery = self
            .producer
            .send_result(record)
            .map_err(|(error, _)| error)?;
        // No map places it, so no lease bounds its acknowledgement.
        let handed_over = HandedOver::Sent {
            delivery,
            in_time_until: None,
        };
        handed_over.acknowledged().await
    }
}

/// As on every dead letter, so far as they are known here.
fn headers(topic: &str, refused: &Refused) -> OwnedHeaders {
    let now = Timestamp::now().to_string();
    [
        ("shardlane-origin-topic", topic),
        ("shardlane-reason", &refused.reason),
        ("shardlane-error-class", CLASS),
        ("shardlane-attempts", "1"),
        ("shardlane-dead-at", &now),
        ("__connect.errors.topic", topic),
        ("__connect.errors.stage", "VALUE_CONVERTER"),
        ("__connect.errors.exception.class.name", CLASS),
        ("__connect.errors.exception.message", &refused.reason),
    ]
    .into_iter()
    .fold(OwnedHeaders::new(), |headers, (key, value)| {
        headers.insert(Header {
            key,
            value: Some(value),
        })
    })
}
