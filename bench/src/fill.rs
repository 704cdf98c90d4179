//! The stream into a topic, as fast as the broker takes it: a `ThreadedProducer` that places records by the map.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use shardlane_router::SlotPartitioner;
use shardlane_router::{KeyType, SlotMap};
use shardlane_worker::{HEADER_EPOCH, HEADER_HASH_ID, TopicSet};

use crate::stream::Webhook;

/// How long the broker may take for the whole stream.
const FLUSH_MAX: Duration = Duration::from_secs(120);

struct Deliveries {
    partitioner: SlotPartitioner,
    delivered: AtomicU64,
    failed: AtomicU64,
}

impl ClientContext for Deliveries {}

impl ProducerContext<SlotPartitioner> for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let counter = if result.is_ok() {
            &self.delivered
        } else {
            &self.failed
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn get_custom_partitioner(&self) -> Option<&SlotPartitioner> {
        Some(&self.partitioner)
    }
}

/// Sends the stream, in order, and returns when the broker has acknowledged all of it. Blocks.
pub(crate) fn fill(
    bootstrap: &str,
    topics: &TopicSet,
    map: &SlotMap,
    stream: &[Webhook],
) -> anyhow::Result<()> {
    let context = Deliveries {
        partitioner: SlotPartitioner::new(Arc::new(map.clone()), KeyType::Uuid),
        delivered: AtomicU64::new(0),
        failed: AtomicU64::new(0),
    };
    let producer: ThreadedProducer<Deliveries, SlotPartitioner> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "20")
        .set("compression.type", "lz4")
        // A topic-level property: without any, a custom partitioner crashes the process.
        .set("message.timeout.ms", "60000")
        // A broker that has just started lets a producer wait a moment; a failure comes back from `flush`.
        .set_log_level(RDKafkaLogLevel::Error)
        .create_with_context(context)?;
    let epoch = map.epoch().0.to_string();
    for webhook in stream {
        let topic = topics.of(webhook.source);
        let key = webhook.user_id.to_string();
        let headers = OwnedHeaders::new()
            .insert(Header {
                key: HEADER_HASH_ID,
                value: Some(map.hash().id()),
            })
            .insert(Header {
                key: HEADER_EPOCH,
                value: Some(&epoch),
            });
        let mut record = BaseRecord::to(&topic)
            .key(&key)
            .payload(&webhook.payload[..])
            .timestamp(webhook.received_at.as_millisecond())
            .headers(headers);
        loop {
            match producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err((error, _)) => return Err(error).context("the stream could not be sent"),
            }
        }
    }
    producer
        .flush(FLUSH_MAX)
        .context("the broker did not take the stream in time")?;
    let deliveries = producer.context();
    let (delivered, failed) = (
        deliveries.delivered.load(Ordering::Relaxed),
        deliveries.failed.load(Ordering::Relaxed),
    );
    if failed > 0 || delivered != stream.len() as u64 {
        bail!(
            "the broker took {delivered} of {} records, {failed} failed",
            stream.len()
        );
    }
    Ok(())
}
