//! Which letters were replayed: a compacted topic of its own, the letter's id as the key. See decision 11.

use std::collections::HashMap;

use jiff::Timestamp;
use rdkafka::Message;
use rdkafka::admin::{NewTopic, TopicReplication};
use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use serde::{Deserialize, Serialize};
use shardlane_domain::{DeadLetter, LetterState};

use super::DlqError;
use crate::TopicError;
use crate::log_scan::{LogReader, SILENCE_MAX, scan};
use crate::publisher::producer_config;
use crate::topics::{admin, options, partition_count, refusals};

/// What is remembered of a replay: written when it begins, and again with a place when it has ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Mark {
    /// Together with the id this names the letter: a topic that is made anew gives its offsets out again.
    dead_at: Timestamp,
    at: Timestamp,
    to: Option<String>,
}

/// The state that the marks give a letter.
pub(super) fn state_of(marks: &HashMap<String, Mark>, letter: &DeadLetter) -> LetterState {
    let mark = marks.get(&letter.id);
    match mark.filter(|mark| mark.dead_at == letter.dead_at) {
        None => LetterState::Dead,
        Some(Mark { at, to: None, .. }) => LetterState::Replaying { at: *at },
        Some(Mark {
            at, to: Some(to), ..
        }) => LetterState::Replayed {
            at: *at,
            to: to.clone(),
        },
    }
}

/// The newest mark of each letter. No topic: nothing was ever replayed.
pub(super) fn read_marks(
    consumer: &LogReader,
    bootstrap: &str,
    topic: &str,
) -> Result<HashMap<String, Mark>, DlqError> {
    let partitions = match partition_count(consumer.client(), bootstrap, topic) {
        Ok(partitions) => partitions,
        Err(TopicError::Missing(_)) => return Ok(HashMap::new()),
        Err(error) => return Err(error.into()),
    };
    let mut marks = HashMap::new();
    scan(consumer, topic, partitions, None, |message| {
        let id = message.key().and_then(|key| std::str::from_utf8(key).ok());
        let mark = message.payload().map(serde_json::from_slice);
        match (id, mark) {
            (Some(id), Some(Ok(mark))) => {
                marks.insert(id.to_owned(), mark);
            }
            _ => tracing::warn!(topic, offset = message.offset(), "a mark cannot be read"),
        }
    })?;
    Ok(marks)
}

/// Writes marks.
pub(super) struct MarkWriter {
    producer: FutureProducer,
    topic: String,
}

impl MarkWriter {
    /// Makes the topic where it does not exist, with as many replicas as the dead letters have.
    pub(super) async fn open(
        bootstrap: &str,
        topic: String,
        dlq: String,
    ) -> Result<Self, DlqError> {
        let producer: FutureProducer = producer_config(bootstrap, SILENCE_MAX).create()?;
        let asker = producer.clone();
        let replicas = super::blocking(move || {
            let metadata = asker.client().fetch_metadata(Some(&dlq), SILENCE_MAX)?;
            let partitions = metadata.topics().first().map(|topic| topic.partitions());
            let first = partitions.and_then(|partitions| partitions.first());
            Ok(first.map_or(1, |partition| partition.replicas().len()))
        });
        let replicas = i32::try_from(replicas.await?.max(1)).unwrap_or(1);
        let wanted = NewTopic::new(&topic, 1, TopicReplication::Fixed(replicas))
            .set("cleanup.policy", "compact");
        let made = admin(bootstrap)?
            .create_topics([&wanted], &options())
            .await?;
        refusals(made, RDKafkaErrorCode::TopicAlreadyExists)?;
        Ok(MarkWriter { producer, topic })
    }

    /// Returns when all replicas have it.
    pub(super) async fn write(
        &self,
        letter: &DeadLetter,
        at: Timestamp,
        to: Option<String>,
    ) -> Result<(), DlqError> {
        let mark = Mark {
            dead_at: letter.dead_at,
            at,
            to,
        };
        let json = serde_json::to_string(&mark)
            .unwrap_or_else(|error| unreachable!("times and text are JSON: {error}"));
        let record = FutureRecord::to(&self.topic).key(&letter.id).payload(&json);
        let sent = self.producer.send(record, SILENCE_MAX).await;
        sent.map_err(|(error, _)| error)?;
        Ok(())
    }
}
