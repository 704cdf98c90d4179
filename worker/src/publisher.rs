//! Events into Kafka: the partition comes from the map, and the answer only after the broker has the record.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use shardlane_domain::Event;
use shardlane_router::{RouteKey, SlotMap};

use crate::topics::{TopicError, TopicSet, verify_topics};
use crate::{HEADER_EPOCH, HEADER_HASH_ID, HEADER_SLOT};

/// Where a record lies, now that the broker has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The Kafka partition.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
}

/// The broker does not have the record, or has not said so in time.
#[derive(Debug, thiserror::Error)]
#[error("Kafka did not acknowledge the record: {0}")]
pub struct PublishError(#[from] KafkaError);

/// Publishes webhooks by the map.
#[derive(Clone)]
pub struct Publisher {
    producer: FutureProducer,
    topics: TopicSet,
    map: Arc<SlotMap>,
}

/// The settings of every producer of the house: acknowledged by all replicas, no duplicate and no reordering by
/// the client's own retries.
pub(crate) fn producer_config(bootstrap: &str, timeout: Duration) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("client.id", "shardlane")
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "5")
        .set("compression.type", "lz4")
        .set("message.timeout.ms", timeout.as_millis().to_string());
    config
}

impl Publisher {
    /// Connects, and checks that the topics fit the map. `timeout` is how long a record may wait for the broker.
    /// Blocks on the broker.
    ///
    /// # Errors
    /// [`TopicError`].
    pub fn connect(
        bootstrap: &str,
        topics: TopicSet,
        map: Arc<SlotMap>,
        timeout: Duration,
    ) -> Result<Publisher, TopicError> {
        let producer: FutureProducer =
            producer_config(bootstrap, timeout)
                .create()
                .map_err(|source| TopicError::Broker {
                    bootstrap: bootstrap.to_owned(),
                    source,
                })?;
        verify_topics(producer.client(), bootstrap, &topics.webhooks(), &map)?;
        Ok(Publisher {
            producer,
            topics,
            map,
        })
    }

    /// Publishes one event and waits until all replicas have it.
    ///
    /// # Errors
    /// [`PublishError`]: it is unknown whether the broker has the record; the provider should send it again.
    pub async fn publish(&self, event: &Event) -> Result<Published, PublishError> {
        let route = self.map.route(&RouteKey::Uuid(event.user_id));
        let topic = self.topics.of(event.source);
        let key = event.user_id.to_string();
        let record = FutureRecord::to(&topic)
            .key(&key)
            .payload(&event.payload[..])
            .partition(route.partition.0)
            .timestamp(event.received_at.as_millisecond())
            .headers(address_headers(&self.map, route.slot.index()));
        // Zero: a full queue is an answer at once, not a wait without bound.
        match self.producer.send(record, Duration::ZERO).await {
            Ok(delivery) => Ok(Published {
                partition: delivery.partition,
                offset: delivery.offset,
            }),
            Err((error, _)) => Err(PublishError(error)),
        }
    }

    /// Waits until nothing is under way, at most `timeout`.
    ///
    /// # Errors
    /// [`PublishError`] if something still is.
    pub fn flush(&self, timeout: Duration) -> Result<(), PublishError> {
        Ok(self.producer.flush(timeout)?)
    }

    /// Asks the broker for anything at all: is it there?
    ///
    /// # Errors
    /// [`PublishError`] if it does not answer in time. Blocks.
    pub fn ping(&self, timeout: Duration) -> Result<(), PublishError> {
        self.producer.client().fetch_metadata(None, timeout)?;
        Ok(())
    }
}

/// The headers that say by which map a record was placed.
pub(crate) fn address_headers(map: &SlotMap, slot: usize) -> OwnedHeaders {
    OwnedHeaders::new()
        .insert(Header {
            key: HEADER_HASH_ID,
            value: Some(map.hash().id()),
        })
        .insert(Header {
            key: HEADER_EPOCH,
            value: Some(&map.epoch().0.to_string()),
        })
        .insert(Header {
            key: HEADER_SLOT,
            value: Some(&slot.to_string()),
        })
}

/// Now, cut to what a Kafka timestamp holds, so that an event is the same before and after Kafka.
pub fn accepted_now() -> Timestamp {
    Timestamp::from_millisecond(Timestamp::now().as_millisecond()).unwrap_or(Timestamp::UNIX_EPOCH)
}
