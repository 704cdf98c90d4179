//! Why a worker stops.

use rdkafka::error::KafkaError;
use shardlane_domain::UnknownSource;
use shardlane_sql::SqlError;

use crate::topics::TopicError;

/// An error that neither waiting nor leaving a record out can cure.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The client could not be made, or the broker refuses us.
    #[error("Kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// A topic is missing or does not fit the map.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// A topic that belongs to no source.
    #[error(transparent)]
    Source(#[from] UnknownSource),
    /// The database refuses for good.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// The topic ends before what the database has applied of it.
    #[error(
        "the database has applied {topic}/{partition} up to offset {fence}, but the topic ends at {end}: it was \
         deleted and made anew. Use another topic name, or delete its rows from kafka_fence"
    )]
    FenceBeyondLog {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The database's next offset.
        fence: i64,
        /// The log's end.
        end: i64,
    },
    /// A thread or task of the worker panicked.
    #[error("a part of the worker panicked; its log says where")]
    Panicked,
}
