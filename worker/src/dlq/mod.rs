//! The dead-letter topics as an operator sees them: listed, shown, and replayed through the front door.
//!
//! A letter's id is its place, `topic/partition/offset`. One death may have left several copies, because a try whose
//! answer was late is tried again: the first copy is the letter, the others are not shown.

mod marks;
mod replay;

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use jiff::Timestamp;
use rdkafka::Message;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _};
use rdkafka::{Offset, TopicPartitionList};
use shardlane_domain::{
    DeadLetter, Event, LetterFilter, LetterOrigin, LetterState, Listing, Source,
};
use uuid::Uuid;

use crate::log_scan::{LogReader, SILENCE_MAX, log_reader, scan, watermarks};
use crate::record::time_of;
use crate::topics::partition_count;
use crate::{TopicError, TopicSet};
use marks::{Mark, read_marks, state_of};

/// How many bytes of payloads one command holds.
const HELD_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Why dead letters cannot be read or replayed.
#[derive(Debug, thiserror::Error)]
pub enum DlqError {
    /// A topic is missing, or cannot be made.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The broker did not answer or refused.
    #[error("the dead letters cannot be read or marked: {0}; is the broker running?")]
    Kafka(#[from] KafkaError),
    /// A text that is no id of these topics.
    #[error(
        "{id:?} is no id of a dead letter; expected TOPIC/PARTITION/OFFSET as `dlq list` shows it, such as {example}/0/17"
    )]
    BadId {
        /// What was given.
        id: String,
        /// One of the dead-letter topics.
        example: String,
    },
    /// An id that no letter has.
    #[error("there is no dead letter {0}: it is not in the log, or not any more")]
    Missing(String),
    /// More than a command can hold.
    #[error(
        "the payloads of the letters that match are over {HELD_BYTES_MAX} bytes; take fewer with --limit, or narrow --where"
    )]
    TooMuch,
    /// A task of ours panicked.
    #[error("the reader of the dead letters ended early; the log says why")]
    Panicked,
}

/// The dead-letter topics under one prefix.
#[derive(Debug, Clone)]
pub struct DeadLetterLog {
    bootstrap: String,
    topics: TopicSet,
}

impl DeadLetterLog {
    /// Asks nobody yet.
    pub fn new(bootstrap: String, topics: TopicSet) -> DeadLetterLog {
        DeadLetterLog { bootstrap, topics }
    }

    /// Reads the topics from their beginning to the end that they have now, and keeps what matches, `limit` letters at
    /// most.
    ///
    /// # Errors
    /// [`DlqError`].
    pub async fn list(&self, filter: &LetterFilter, limit: usize) -> Result<Listing, DlqError> {
        let (log, filter) = (self.clone(), filter.clone());
        blocking(move || log.read(&filter, limit)).await
    }

    /// The letter with this id.
    ///
    /// # Errors
    /// [`DlqError::BadId`], [`DlqError::Missing`], [`DlqError::Kafka`].
    pub async fn letter(&self, id: &str) -> Result<DeadLetter, DlqError> {
        let (log, id) = (self.clone(), id.to_owned());
        blocking(move || log.read_one(&id)).await
    }

    fn read(&self, filter: &LetterFilter, limit: usize) -> Result<Listing, DlqError> {
        let consumer = log_reader(&self.bootstrap)?;
        let marks = self.marks(&consumer)?;
        let mut listing = Listing::default();
        let (mut held, mut seen) = (0, HashSet::new());
        for source in Source::ALL {
            let topic = self.topics.dlq_of(*source);
            let partitions = partition_count(consumer.client(), &self.bootstrap, &topic)?;
            scan(&consumer, &topic, partitions, None, |message| {
                let mut letter = letter_of(message, *source);
                let copy = letter
                    .fingerprint()
                    .is_some_and(|print| !seen.insert(print));
                letter.state = state_of(&marks, &letter);
                if copy || !filter.takes(&letter) {
                    return;
                }
                listing.matching += 1;
                if listing.letters.len() < limit && held <= HELD_BYTES_MAX {
                    held += message.payload_len();
                    listing.letters.push(letter);
                }
            })?;
        }
        if held > HELD_BYTES_MAX {
            return Err(DlqError::TooMuch);
        }
        Ok(listing)
    }

    fn read_one(&self, id: &str) -> Result<DeadLetter, DlqError> {
        let (source, topic, partition, offset) = self.place_of(id)?;
        let consumer = log_reader(&self.bootstrap)?;
        let missing = || DlqError::Missing(id.to_owned());
        let partitions = partition_count(consumer.client(), &self.bootstrap, &topic)?;
        if !u32::try_from(partition).is_ok_and(|partition| partition < partitions) {
            return Err(missing());
        }
        let (low, high) = watermarks(&consumer, &topic, partition)?;
        if !(low..high).contains(&offset) {
            return Err(missing());
        }
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&topic, partition, Offset::Offset(offset))?;
        consumer.assign(&list)?;
        let message = match consumer.poll(SILENCE_MAX) {
            Some(Ok(message)) if message.offset() == offset => message,
            // Behind a record that is gone comes the next one, or the end.
            Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Err(missing()),
            Some(Err(error)) => return Err(error.into()),
            None => {
                let silent = rdkafka::error::RDKafkaErrorCode::OperationTimedOut;
                return Err(KafkaError::MessageConsumption(silent).into());
            }
        };
        let mut letter = letter_of(&message, source);
        drop(message);
        letter.state = state_of(&self.marks(&consumer)?, &letter);
        Ok(letter)
    }

    fn marks(&self, consumer: &LogReader) -> Result<HashMap<String, Mark>, DlqError> {
        read_marks(consumer, &self.bootstrap, &self.topics.replays())
    }

    fn place_of(&self, id: &str) -> Result<(Source, String, i32, i64), DlqError> {
        let mut parts = id.rsplitn(3, '/');
        let offset = parts.next().and_then(|offset| offset.parse().ok());
        let partition = parts.next().and_then(|partition| partition.parse().ok());
        let topic = parts.next().unwrap_or_default();
        let source = Source::ALL
            .iter()
            .find(|source| self.topics.dlq_of(**source) == topic);
        match (source, partition, offset) {
            (Some(source), Some(partition), Some(offset)) => {
                Ok((*source, topic.to_owned(), partition, offset))
            }
            _ => Err(DlqError::BadId {
                id: id.to_owned(),
                example: self.topics.dlq_of(Source::Orders),
            }),
        }
    }
}

/// Runs what blocks where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DlqError> + Send + 'static,
) -> Result<T, DlqError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or(Err(DlqError::Panicked))
}

/// Our own headers say what they say; a letter that another tool wrote has Kafka Connect's at best.
fn letter_of(message: &BorrowedMessage<'_>, source: Source) -> DeadLetter {
    let headers: Vec<(String, Option<Bytes>)> = message
        .headers()
        .map(|headers| {
            let owned = headers.iter().map(|header| {
                let value = header.value.map(Bytes::copy_from_slice);
                (header.key.to_owned(), value)
            });
            owned.collect()
        })
        .unwrap_or_default();
    // A record that was dead before has them twice: the last ones are this death's.
    let header = |name: &str| {
        let (_, value) = headers.iter().rev().find(|(key, _)| key == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    };
    let either = |ours: &str, connect: &str| {
        header(&format!("shardlane-{ours}"))
            .or_else(|| header(&format!("__connect.errors.{connect}")))
    };
    let origin = || {
        Some(LetterOrigin {
            topic: either("origin-topic", "topic")?.to_owned(),
            partition: either("origin-partition", "partition")?.parse().ok()?,
            offset: either("origin-offset", "offset")?.parse().ok()?,
        })
    };
    let key = message.key().map(Bytes::copy_from_slice);
    let payload = message.payload().map(Bytes::copy_from_slice);
    let received_at = time_of(message).unwrap_or(Timestamp::UNIX_EPOCH);
    let in_key = key
        .as_deref()
        .and_then(|key| Uuid::try_parse_ascii(key).ok());
    let in_payload = || {
        let event = Event::decode(source, payload.clone()?, received_at).ok()?;
        Some(event.user_id)
    };
    DeadLetter {
        id: format!(
            "{}/{}/{}",
            message.topic(),
            message.partition(),
            message.offset()
        ),
        source,
        user_id: in_key.or_else(in_payload),
        class: either("error-class", "exception.class.name")
            .unwrap_or("unknown")
            .to_owned(),
        reason: either("reason", "exception.message")
            .unwrap_or_default()
            .to_owned(),
        attempts: header("shardlane-attempts")
            .and_then(|n| n.parse().ok())
            .unwrap_or(1),
        received_at,
        dead_at: header("shardlane-dead-at")
            .and_then(|at| at.parse().ok())
            .unwrap_or(received_at),
        origin: origin(),
        key,
        payload,
        state: LetterState::Dead,
        headers,
    }
}
