//! What lies in the topics.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Headers as _;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

/// How long the broker may take for one answer.
pub const BROKER_MAX: Duration = Duration::from_secs(30);

/// A record as it lies in a topic.
#[derive(Debug, Clone)]
pub struct LogRecord {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Milliseconds since 1970.
    pub timestamp: Option<i64>,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value.
    pub value: Option<Bytes>,
    /// Its headers, as text.
    pub headers: Vec<(String, String)>,
}

impl LogRecord {
    /// The first header of this name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// A consumer for questions about a group, which it never joins.
///
/// # Errors
/// The client cannot be made.
pub fn asker(bootstrap: &str, group: &str) -> anyhow::Result<BaseConsumer> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .create()?)
}

/// Everything in a topic, by partition and offset. Blocks.
///
/// # Errors
/// A broker that does not answer.
pub fn read(bootstrap: &str, topic: &str, partitions: i32) -> anyhow::Result<Vec<LogRecord>> {
    let consumer = asker(bootstrap, "oracle")?;
    let mut list = TopicPartitionList::new();
    let mut ends: HashMap<i32, i64> = HashMap::new();
    for partition in 0..partitions {
        let (start, end) = consumer.fetch_watermarks(topic, partition, BROKER_MAX)?;
        if end > start {
            list.add_partition_offset(topic, partition, Offset::Beginning)?;
            ends.insert(partition, end);
        }
    }
    consumer.assign(&list)?;
    let mut found = Vec::new();
    while !ends.is_empty() {
        let Some(message) = consumer.poll(BROKER_MAX) else {
            bail!("{topic} ends before its end");
        };
        let message = message.with_context(|| format!("reading {topic}"))?;
        if ends.get(&message.partition()) == Some(&(message.offset() + 1)) {
            ends.remove(&message.partition());
        }
        let headers = message.headers().map_or_else(Vec::new, |headers| {
            let text =
                |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or(b"")).into_owned();
            headers
                .iter()
                .map(|it| (it.key.to_owned(), text(it.value)))
                .collect()
        });
        found.push(LogRecord {
            partition: message.partition(),
            offset: message.offset(),
            timestamp: message.timestamp().to_millis(),
            key: message.key().map(Bytes::copy_from_slice),
            value: message.payload().map(Bytes::copy_from_slice),
            headers,
        });
    }
    found.sort_by_key(|record| (record.partition, record.offset));
    Ok(found)
}
