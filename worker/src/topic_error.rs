//! What can be wrong with a topic.

use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::topics::ADMIN_TIMEOUT;

/// A topic that does not fit.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// The broker did not answer or refused.
    #[error("the Kafka broker at {bootstrap} did not answer: {source}; is it running?")]
    Broker {
        /// Where we asked.
        bootstrap: String,
        /// Why not.
        source: KafkaError,
    },
    /// The topic does not exist.
    #[error("topic {0} does not exist; run `shardlane topics create`")]
    Missing(String),
    /// The topic has fewer partitions than the map.
    #[error(
        "topic {topic} has {found} partitions, but the map (epoch {epoch}) places into {expected}: some users would \
         have no partition. Use a map with {found} partitions, or another topic"
    )]
    PartitionCount {
        /// The topic.
        topic: String,
        /// How many it has.
        found: u32,
        /// How many the map has.
        expected: u32,
        /// The map's epoch.
        epoch: u64,
    },
    /// The broker took the new partitions, and does not show them.
    #[error(
        "topic {topic} still has fewer than {wanted} partitions after {ADMIN_TIMEOUT:?}; look at the broker's log, then run it again"
    )]
    NotGrown {
        /// The topic.
        topic: String,
        /// How many it was to have.
        wanted: u32,
    },
    /// The broker took a retention, and does not show it.
    #[error(
        "topic {topic} does not have the retention that was asked for, after {ADMIN_TIMEOUT:?}; look at the broker's log, then run it again"
    )]
    NotKept {
        /// The topic.
        topic: String,
    },
    /// The inbox forgets an event that the topic may still show again.
    #[error(
        "topic {topic} may show a record again for {keeps} (its retention.ms and segment.ms), and dead letters are \
         replayed for {replay_window:?}, but the inbox forgets after {inbox:?}: an event could be applied twice. Keep the \
         inbox for longer with --inbox-retention, shorten retention.ms and segment.ms of the topic, or keep it for ever \
         with --inbox-retention off"
    )]
    OutlivesInbox {
        /// The topic.
        topic: String,
        /// How long, in words.
        keeps: String,
        /// How old letters are replayed.
        replay_window: Duration,
        /// How long the inbox remembers.
        inbox: Duration,
    },
    /// The broker could not make or delete a topic.
    #[error("topic {topic} could not be changed: {code}")]
    Refused {
        /// The topic.
        topic: String,
        /// Kafka's reason.
        code: RDKafkaErrorCode,
    },
}
