//! A producer for one outbox's batches, with one acknowledgement a batch.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseRecord, DeliveryResult, ProducerContext, ThreadedProducer};
use shardlane_router::{RouteKey, SlotMap};
use shardlane_sql::OutboxRow;
use tokio::sync::Notify;

use super::message::Message;
use crate::publisher::producer_config;
use crate::topics::TopicSet;

/// Publishes one batch after the other. A batch that failed makes it useless: only a new one keeps the order.
pub(super) struct Feed {
    producer: ThreadedProducer<Context>,
    topics: Topics,
}

pub(super) struct Topics {
    pub(super) read: String,
    pub(super) email: String,
    pub(super) events: String,
}

struct Context;

impl ClientContext for Context {}

impl ProducerContext for Context {
    type DeliveryOpaque = Arc<Batch>;

    fn delivery(&self, result: &DeliveryResult<'_>, batch: Arc<Batch>) {
        batch.delivered(result.as_ref().err().map(|(error, _)| error.clone()));
    }
}

impl Feed {
    pub(super) fn connect(bootstrap: &str, topics: &TopicSet) -> Result<Feed, KafkaError> {
        // No record times out: one that did would let the next ones overtake it. While the broker is down all wait, and
        // the table grows. What fails all the same, such as a record that is too large, ends the producer.
        let mut config = producer_config(bootstrap, Duration::ZERO);
        config
            .set("enable.gapless.guarantee", "true")
            .set("queue.buffering.max.kbytes", "65536")
            .set("reconnect.backoff.max.ms", "2000");
        Ok(Feed {
            producer: ThreadedProducer::from_config_and_context(&config, Context)?,
            topics: Topics {
                read: topics.read(),
                email: topics.email(),
                events: topics.events(),
            },
        })
    }

    /// Hands all records of `rows` to the client, in order.
    pub(super) fn publish(
        &self,
        rows: &[OutboxRow],
        map: &SlotMap,
    ) -> Result<Arc<Batch>, KafkaError> {
        let batch = Arc::new(Batch::default());
        for row in rows {
            let key = row.user_id.to_string();
            let partition = map.partition_for(&RouteKey::Uuid(row.user_id)).0;
            for message in Message::all_of(row, &self.topics) {
                batch.handed_over();
                let mut record =
                    BaseRecord::<str, [u8], _>::with_opaque_to(message.topic, Arc::clone(&batch))
                        .key(&*key)
                        .payload(&*message.body)
                        .partition(partition)
                        .timestamp(row.received_at.as_millisecond());
                if let Some(headers) = message.headers {
                    record = record.headers(headers);
                }
                self.producer.send(record).map_err(|(error, _)| error)?;
            }
        }
        // The batch's own: until here nobody is told.
        batch.delivered(None);
        Ok(batch)
    }
}

/// The records of a batch that the broker has not acknowledged yet.
pub(super) struct Batch {
    left: AtomicUsize,
    records: AtomicUsize,
    failed: Mutex<Option<KafkaError>>,
    done: Notify,
}

impl Default for Batch {
    fn default() -> Self {
        Batch {
            left: AtomicUsize::new(1),
            records: AtomicUsize::new(0),
            failed: Mutex::new(None),
            done: Notify::new(),
        }
    }
}

impl Batch {
    fn handed_over(&self) {
        self.left.fetch_add(1, Ordering::Relaxed);
        self.records.fetch_add(1, Ordering::Relaxed);
    }

    fn delivered(&self, error: Option<KafkaError>) {
        if error.is_some() {
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = error;
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.notify_one();
        }
    }

    /// Returns when each record has its answer.
    pub(super) async fn all(&self) {
        self.done.notified().await;
    }

    /// Whether the broker has them all.
    pub(super) fn result(&self) -> Result<(), KafkaError> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.clone().map_or(Ok(()), Err)
    }

    pub(super) fn records(&self) -> usize {
        self.records.load(Ordering::Relaxed)
    }
}
