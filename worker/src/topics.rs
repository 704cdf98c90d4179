//! The topics of the house: made with the map's partition count, and checked against it.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::{Client, ClientContext, DefaultClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use shardlane_domain::Source;
use shardlane_router::SlotMap;

pub use crate::topic_error::TopicError;

/// What a dead-letter topic's name ends in.
pub const DLQ_SUFFIX: &str = ".DLQ";

/// The longest message of a dead-letter topic. Twice what Kafka takes by default: a dead letter is its record and
/// the headers that say why, and one that its topic refuses would hold up its partition for ever.
pub(crate) const DLQ_MESSAGE_BYTES_MAX: u32 = 2 * 1024 * 1024;

/// How long the webhook topics keep records: 3 days.
const WEBHOOKS_RETENTION_MS: &str = "259200000";
/// Kafka deletes whole segments, so a record may stay for the length of a segment longer: 1 day.
const WEBHOOKS_SEGMENT_MS: &str = "86400000";

/// What the map's topic is called, behind the prefix.
const MAP_TOPIC: &str = "shardlane.map";

/// What the topic of the replays' marks is called, behind the prefix.
const REPLAYS_TOPIC: &str = "shardlane.dlq.replays";

pub(crate) const ADMIN_TIMEOUT: Duration = Duration::from_secs(15);
/// How often the broker is asked whether it has heard of new topics.
const VISIBLE_LOOK: Duration = Duration::from_millis(20);

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

    /// The topic that holds the map.
    pub fn map(&self) -> String {
        format!("{}{MAP_TOPIC}", self.prefix)
    }

    /// The topic of states after each event, for read models.
    pub fn read(&self) -> String {
        format!("{}payments.read", self.prefix)
    }

    /// The topic of events for which a person gets an email.
    pub fn email(&self) -> String {
        format!("{}payments.email", self.prefix)
    }

    /// The topic of all applied events.
    pub fn events(&self) -> String {
        format!("{}domain.events", self.prefix)
    }

    /// The topics that the relay publishes to.
    pub fn feed(&self) -> Vec<String> {
        vec![self.read(), self.email(), self.events()]
    }

    /// The topic that remembers which dead letters were replayed.
    pub fn replays(&self) -> String {
        format!("{}{REPLAYS_TOPIC}", self.prefix)
    }

    /// The topics that have the map's partitions: the webhooks', their dead letters' and the feed's.
    fn partitioned(&self) -> Vec<String> {
        Source::ALL
            .iter()
            .flat_map(|source| [self.of(*source), self.dlq_of(*source)])
            .chain(self.feed())
            .collect()
    }
}

/// Makes the webhook topics, their dead-letter topics and the feed's, where they do not exist, and waits until the broker
/// shows them. `config` holds topic settings, such as
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
    let names = topics.partitioned();
    let partitions = i32::try_from(partitions).unwrap_or(i32::MAX);
    let dlq_message_bytes_max = DLQ_MESSAGE_BYTES_MAX.to_string();
    let is_unsaid = |setting| config.iter().all(|(key, _)| *key != setting);
    let wanted: Vec<NewTopic<'_>> = names
        .iter()
        .map(|name| {
            let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replicas));
            if name.ends_with(DLQ_SUFFIX) {
                topic = topic.set("max.message.bytes", &dlq_message_bytes_max);
                // A dead letter has its record's time, which may be older than what Kafka keeps by default.
                if is_unsaid("retention.ms") {
                    topic = topic.set("retention.ms", "-1");
                }
            } else if is_unsaid("retention.ms") && is_unsaid("segment.ms") {
                // With the replay window less than the inbox's 7 days; Kafka's own defaults would be 14.
                topic = topic.set("retention.ms", WEBHOOKS_RETENTION_MS);
                topic = topic.set("segment.ms", WEBHOOKS_SEGMENT_MS);
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
    refusals(results, RDKafkaErrorCode::TopicAlreadyExists)?;
    // The controller has made them; the broker that is asked next may not have heard of them.
    let deadline = Instant::now() + ADMIN_TIMEOUT;
    loop {
        match smaller_topics(bootstrap, topics, 1).await {
            Err(TopicError::Missing(_)) if Instant::now() < deadline => {
                tokio::time::sleep(VISIBLE_LOOK).await;
            }
            looked => return looked.map(drop),
        }
    }
}

/// Deletes the webhook topics, their dead-letter topics, the feed's, and those of the map and of the replays.
///
/// # Errors
/// [`TopicError`]; a topic that does not exist is none.
pub async fn delete_topics(bootstrap: &str, topics: &TopicSet) -> Result<(), TopicError> {
    let broker = |source| TopicError::Broker {
        bootstrap: bootstrap.to_owned(),
        source,
    };
    let mut names = topics.partitioned();
    names.extend([topics.map(), topics.replays()]);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let results = admin(bootstrap)?
        .delete_topics(&names, &options())
        .await
        .map_err(broker)?;
    refusals(results, RDKafkaErrorCode::UnknownTopicOrPartition)
}

pub(crate) fn refusals(
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

pub(crate) fn admin(bootstrap: &str) -> Result<AdminClient<DefaultClientContext>, TopicError> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()
        .map_err(|source| TopicError::Broker {
            bootstrap: bootstrap.to_owned(),
            source,
        })
}

pub(crate) fn options() -> AdminOptions {
    AdminOptions::new()
        .operation_timeout(Some(ADMIN_TIMEOUT))
        .request_timeout(Some(ADMIN_TIMEOUT))
}

/// A topic that has more partitions than the map places into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraPartitions {
    /// The topic.
    pub topic: String,
    /// How many it has.
    pub found: u32,
    /// How many the map has.
    pub expected: u32,
}

/// What [`verify_topics`] found that is no error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TopicReport {
    /// Topics with partitions that the map does not know: a growth is under way, or somebody else added them.
    pub extra_partitions: Vec<ExtraPartitions>,
}

/// Checks that each topic exists and has all partitions of the map. More partitions are logged and reported; they are
/// left empty by our publishers, and read by our workers should somebody else write to them. Blocks on the broker.
///
/// # Errors
/// [`TopicError`] says which topic and what to do.
pub fn verify_topics<C: ClientContext>(
    client: &Client<C>,
    bootstrap: &str,
    names: &[String],
    map: &SlotMap,
) -> Result<TopicReport, TopicError> {
    let mut report = TopicReport::default();
    let expected = map.partition_count();
    for topic in names {
        let found = partition_count(client, bootstrap, topic)?;
        if found < expected {
            return Err(TopicError::PartitionCount {
                topic: topic.clone(),
                found,
                expected,
                epoch: map.epoch().0,
            });
        }
        if found > expected {
            report.extra_partitions.push(ExtraPartitions {
                topic: topic.clone(),
                found,
                expected,
            });
        }
    }
    if let Some(extra) = report.extra_partitions.first() {
        tracing::warn!(
            topics = report.extra_partitions.len(),
            "topic {} has {} partitions, but the map places into {expected}: the others stay empty until \
             `shardlane topics grow --partitions {}`",
            extra.topic,
            extra.found,
            extra.found,
        );
    }
    Ok(report)
}

/// How many partitions an existing topic has.
pub(crate) fn partition_count<C: ClientContext>(
    client: &Client<C>,
    bootstrap: &str,
    topic: &str,
) -> Result<u32, TopicError> {
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
    match u32::try_from(found).unwrap_or(u32::MAX) {
        0 => Err(TopicError::Missing(topic.to_owned())),
        found => Ok(found),
    }
}

/// Gives the webhook topics, their dead-letter topics and the feed's `partitions` partitions, and waits until the broker shows
/// them. A topic that has so many or more is left alone.
pub(crate) async fn add_partitions(
    bootstrap: &str,
    topics: &TopicSet,
    partitions: u32,
) -> Result<(), TopicError> {
    let deadline = Instant::now() + ADMIN_TIMEOUT;
    let mut asked = false;
    loop {
        let smaller = smaller_topics(bootstrap, topics, partitions).await?;
        let Some(first) = smaller.first() else {
            return Ok(());
        };
        if !asked {
            let wanted: Vec<NewPartitions<'_>> = smaller
                .iter()
                .map(|topic| NewPartitions::new(topic, partitions as usize))
                .collect();
            let grown = admin(bootstrap)?
                .create_partitions(&wanted, &options())
                .await
                .map_err(|source| TopicError::Broker {
                    bootstrap: bootstrap.to_owned(),
                    source,
                })?;
            // Somebody else may have been quicker.
            refusals(grown, RDKafkaErrorCode::InvalidPartitions)?;
            asked = true;
        } else if Instant::now() > deadline {
            return Err(TopicError::NotGrown {
                topic: first.clone(),
                wanted: partitions,
            });
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn smaller_topics(
    bootstrap: &str,
    topics: &TopicSet,
    partitions: u32,
) -> Result<Vec<String>, TopicError> {
    let (bootstrap, names) = (bootstrap.to_owned(), topics.partitioned());
    let canceled = TopicError::Broker {
        bootstrap: bootstrap.clone(),
        source: KafkaError::Canceled,
    };
    let ask = move || {
        let admin = admin(&bootstrap)?;
        let mut smaller = Vec::new();
        for name in names {
            if partition_count(admin.inner(), &bootstrap, &name)? < partitions {
                smaller.push(name);
            }
        }
        Ok(smaller)
    };
    tokio::task::spawn_blocking(ask)
        .await
        .unwrap_or(Err(canceled))
}

/// Checks the topics against a map, with a client of its own.
///
/// # Errors
/// As [`verify_topics`].
pub async fn check_topics(
    bootstrap: &str,
    topics: &TopicSet,
    map: &SlotMap,
) -> Result<TopicReport, TopicError> {
    let (bootstrap, names, map) = (bootstrap.to_owned(), topics.webhooks(), map.clone());
    let canceled = TopicError::Broker {
        bootstrap: bootstrap.clone(),
        source: KafkaError::Canceled,
    };
    let ask = move || verify_topics(admin(&bootstrap)?.inner(), &bootstrap, &names, &map);
    tokio::task::spawn_blocking(ask)
        .await
        .unwrap_or(Err(canceled))
}
