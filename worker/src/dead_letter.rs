//! Dead letters: the record as it was, with the reason, acknowledged before anything moves on.

use std::time::Duration;

use futures_util::future::try_join_all;
use jiff::Timestamp;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};

use crate::publisher::producer_config;
use crate::record::RawRecord;

/// How long the broker may take for a dead letter before its batch is tried again.
const DELIVERY_MAX: Duration = Duration::from_secs(10);

/// The longest reason in a header.
const REASON_BYTES_MAX: usize = 1_000;

/// The class of a record that is no event.
pub(crate) const MALFORMED: &str = "malformed";

/// Why a record became a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reason {
    /// For counting: `malformed`, `illegal`, ...
    pub(crate) class: &'static str,
    /// For people.
    pub(crate) sentence: String,
    pub(crate) attempts: u32,
}

/// Publishes dead letters of one cluster.
#[derive(Clone)]
pub(crate) struct DeadLetters {
    producer: FutureProducer,
}

impl DeadLetters {
    pub(crate) fn new(bootstrap: &str) -> Result<Self, KafkaError> {
        let mut config = producer_config(bootstrap, DELIVERY_MAX);
        config.set(
            "message.max.bytes",
            crate::DLQ_MESSAGE_BYTES_MAX.to_string(),
        );
        Ok(DeadLetters {
            producer: config.create()?,
        })
    }

    /// Asks the broker for anything at all. Blocks.
    pub(crate) fn ping(&self, topic: &str, deadline: Duration) -> Result<(), KafkaError> {
        let client = self.producer.client();
        client.fetch_metadata(Some(topic), deadline).map(drop)
    }

    /// Publishes all, and returns when the broker has them all. Key and value are byte for byte the record's; the
    /// headers are the record's and the reason, also under all ten names of Kafka Connect's
    /// `DeadLetterQueueReporter`, so that existing tools can replay. A record that was dead before has them twice: the
    /// last ones count.
    pub(crate) async fn publish(
        &self,
        topic: &str,
        partition: i32,
        letters: &[(&RawRecord, Reason)],
    ) -> Result<(), KafkaError> {
        let dlq = format!("{topic}{}", crate::DLQ_SUFFIX);
        try_join_all(letters.iter().map(async |(record, reason)| {
            let headers = headers(topic, partition, record, reason);
            let mut message = FutureRecord::to(&dlq)
                .partition(partition)
                .timestamp(record.received_at.as_millisecond())
                .headers(headers);
            if let Some(payload) = &record.payload {
                message = message.payload(&payload[..]);
            }
            if let Some(key) = &record.key {
                message = message.key(&key[..]);
            }
            self.producer
                .send(message, DELIVERY_MAX)
                .await
                .map_err(|(error, _)| error)
        }))
        .await?;
        Ok(())
    }
}

fn headers(topic: &str, partition: i32, record: &RawRecord, reason: &Reason) -> OwnedHeaders {
    let partition = partition.to_string();
    let offset = record.offset.to_string();
    let attempts = reason.attempts.to_string();
    let now = Timestamp::now().to_string();
    // A reason may quote the record, which may be as long as Kafka allows.
    let sentence = &reason.sentence[..reason.sentence.floor_char_boundary(REASON_BYTES_MAX)];
    // What Kafka Connect prints there: the exception's class, its message, and where. There is no stack in ours.
    let trace = format!("{}: {sentence}", reason.class);
    let ours = [
        ("shardlane-origin-topic", topic),
        ("shardlane-origin-partition", &partition),
        ("shardlane-origin-offset", &offset),
        ("shardlane-reason", sentence),
        ("shardlane-error-class", reason.class),
        ("shardlane-attempts", &attempts),
        ("shardlane-dead-at", &now),
        ("__connect.errors.topic", topic),
        ("__connect.errors.partition", &partition),
        ("__connect.errors.offset", &offset),
        ("__connect.errors.connector.name", "shardlane"),
        // A connector's tasks are numbered; ours are the lanes, one a partition.
        ("__connect.errors.task.id", &partition),
        ("__connect.errors.stage", stage(reason.class)),
        ("__connect.errors.class.name", "shardlane_worker::lane"),
        ("__connect.errors.exception.class.name", reason.class),
        ("__connect.errors.exception.message", sentence),
        ("__connect.errors.exception.stacktrace", &trace),
    ];
    let mut headers = record.headers.unpack(ours.len());
    for (key, value) in ours {
        headers = headers.insert(Header {
            key,
            value: Some(value),
        });
    }
    headers
}

/// Kafka Connect's name for where it failed.
fn stage(class: &str) -> &'static str {
    if class == MALFORMED {
        "VALUE_CONVERTER"
    } else {
        "TASK_PUT"
    }
}
