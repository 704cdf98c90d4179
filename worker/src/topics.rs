//! The topics of the house: made with the map's partition count, and checked against it.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{Client, ClientContext, DefaultClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use shardlane_domain::Source;

/// What a dead-letter topic's name ends in.
pub const DLQ_SUFFIX: &str = ".DLQ";

/// The longest message of a dead-letter topic. Twice what Kafka takes by default: a dead letter is its record and
/// the headers that say why, and one that its topic refuses would hold up its partition for ever.
pub(crate) const DLQ_MESSAGE_BYTES_MAX: u32 = 2 * 1024 * 1024;

const ADMIN_TIMEOUT: Duration = Duration::from_secs(15);

/// The webhook topics under one prefix: `""` in production, a name of its own for each test or lab run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSet {
    prefix: String,
}

impl TopicSet {
    /// The topics whose names begin with `prefix` and a dot; an empty prefix gives the plain names.
    pub fn with_prefix(prefix: &str) -> Self {
        let prefix = if prefix.is_empty() {
            String::new()
        } else {
            format!("{prefix}.")
        };
        TopicSet { prefix }
    }

    /// The topic of a source.
    pub fn of(&self, source: Source) -> String {
        format!("{}{}", self.prefix, source.topic())
    }

    /// The dead-letter topic of a source.
    pub fn dlq_of(&self, source: Source) -> String {
        format!("{}{DLQ_SUFFIX}", self.of(source))
    }

    /// The topics to consume.
    pub fn webhooks(&self) -> Vec<String> {
        Source::ALL.iter().map(|source| self.of(*source)).collect()
    }

    fn all(&self) -> Vec<String> {
        Source::ALL
            .iter()
            .flat_map(|source| [self.of(*source), self.dlq_of(*source)])
            .collect()
    }
}

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
    /// The topic has another partition count than the map.
    #[error(
        "topic {topic} has {found} partitions, but the map (epoch {epoch}) knows {expected}: users would be read \
         from other partitions than they were written to. Use a map with {found} partitions, or another topic"
    )]
    PartitionCount {
        /// The topic.
        topic: String,
        /// How many it has.
        found: usize,
        /// How many the map has.
        expected: u32,
        /// The map's epoch.
        epoch: u64,
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

/// Makes the topics and their dead-letter topics, where they do not exist. `config` holds topic settings, such as
/// `("retention.ms", "-1")`.
///
/// # Errors
/// [`TopicError`]; topics that exist are left as they are, see [`verify_topics`].
pub async fn create_topics(
    bootstrap: &str,
    topics: &TopicSet,
    partitions: u32,
    replicas: i32,
    config: &[(&str, &str)],
) -> Result<(), TopicError> {
    let broker = |source| TopicError::Broker {
        bootstrap: bootstrap.to_owned(),
        source,
    };
    let names = topics.all();
    let partitions = i32::try_from(partitions).unwrap_or(i32::MAX);
    let dlq_message_bytes_max = DLQ_MESSAGE_BYTES_MAX.to_string();
    let wanted: Vec<NewTopic<'_>> = names
        .iter()
        .map(|name| {
            let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replicas));
            if name.ends_with(DLQ_SUFFIX) {
                topic = topic.set("max.message.bytes", &dlq_message_bytes_max);
                // A dead letter has its record's time, which may be older than what Kafka keeps by default.
                if config.iter().all(|(key, _)| *key != "retention.ms") {
                    topic = topic.set("retention.ms", "-1");
                }
            }
            config
                .iter()
                .fold(topic, |topic, (key, value)| topic.set(key, value))
        })
        .collect();
    let results = admin(bootstrap)?
        .create_topics(&wanted, &options())
        .await
        .map_err(broker)?;
    refusals(results, RDKafkaErrorCode::TopicAlreadyExists)
}

/// Deletes the topics and their dead-letter topics.
///
/// # Errors
/// [`TopicError`]; a topic that does not exist is none.
pub async fn delete_topics(bootstrap: &str, topics: &TopicSet) -> Result<(), TopicError> {
    let broker = |source| TopicError::Broker {
        bootstrap: bootstrap.to_owned(),
        source,
    };
    let names = topics.all();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let results = admin(bootstrap)?
        .delete_topics(&names, &options())
        .await
        .map_err(broker)?;
    refusals(results, RDKafkaErrorCode::UnknownTopicOrPartition)
}

fn refusals(
    results: Vec<Result<String, (String, RDKafkaErrorCode)>>,
    harmless: RDKafkaErrorCode,
) -> Result<(), TopicError> {
    for result in results {
        match result {
            Ok(_) => {}
            Err((_, code)) if code == harmless => {}
            Err((topic, code)) => return Err(TopicError::Refused { topic, code }),
        }
    }
    Ok(())
}

fn admin(bootstrap: &str) -> Result<AdminClient<DefaultClientContext>, TopicError> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()
        .map_err(|source| TopicError::Broker {
            bootstrap: bootstrap.to_owned(),
            source,
        })
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .operation_timeout(Some(ADMIN_TIMEOUT))
        .request_timeout(Some(ADMIN_TIMEOUT))
}

/// Checks that each topic exists and has the map's partition count. Blocks on the broker.
///
/// # Errors
/// [`TopicError`] says which topic and what to do.
pub fn verify_topics<C: ClientContext>(
    client: &Client<C>,
    bootstrap: &str,
    names: &[String],
    map: &shardlane_router::SlotMap,
) -> Result<(), TopicError> {
    for topic in names {
        let metadata = client
            .fetch_metadata(Some(topic), ADMIN_TIMEOUT)
            .map_err(|source| TopicError::Broker {
                bootstrap: bootstrap.to_owned(),
                source,
            })?;
        let found = metadata
            .topics()
            .iter()
            .find(|found| found.name() == topic && found.error().is_none())
            .map_or(0, |found| found.partitions().len());
        if found == 0 {
            return Err(TopicError::Missing(topic.clone()));
        }
        if u32::try_from(found) != Ok(map.partition_count()) {
            return Err(TopicError::PartitionCount {
                topic: topic.clone(),
                found,
                expected: map.partition_count(),
                epoch: map.epoch().0,
            });
        }
    }
    Ok(())
}
