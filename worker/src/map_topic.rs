//! The topic that holds the map: one partition, compacted, one key.
//!
//! A writer is transactional. Not for atomicity, one record needs none, but because Kafka then knows one writer at a
//! time: a second `topics grow`, or one that was suspended and wakes up, is refused at its next write. Two writers
//! would give one epoch two meanings, of which compaction keeps the later one and running readers the earlier.

use std::time::{Duration, Instant};

use rdkafka::admin::{NewTopic, TopicReplication};
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use shardlane_router::SlotMap;

use crate::log_scan::{LogReader, Quiet};
use crate::map_document::MapDocument;
use crate::topics::{TopicError, TopicSet, admin, options, refusals};

const KEY: &str = "map";
/// How long the broker may take for one answer to a writer.
pub(crate) const BROKER_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a coordinator that is loading is asked.
const COORDINATOR_LOOK: Duration = Duration::from_millis(100);
/// After so long Kafka forgets a writer that died in the middle of a write.
const TRANSACTION_TIMEOUT_MS: &str = "10000";

/// The map's topic cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MapTopicError {
    /// The topic could not be made.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The broker did not answer or refused.
    #[error(
        "Kafka did not answer about topic {topic}: {source}; is the broker running, and may we use the topic?"
    )]
    Kafka {
        /// The topic.
        topic: String,
        /// Why not.
        source: KafkaError,
    },
    /// There is no map to read.
    #[error("topic {0} holds no map; run `shardlane topics create`")]
    NoMap(String),
    /// The newest document cannot be read.
    #[error(
        "the newest map in topic {topic} cannot be read ({reason}); was it written by a newer shardlane?"
    )]
    Unreadable {
        /// The topic.
        topic: String,
        /// Why not.
        reason: String,
    },
    /// The topic is shorter than it was.
    #[error(
        "topic {0} is shorter than it was: it was deleted and made anew; start again to take the new map"
    )]
    MadeAnew(String),
    /// Somebody else writes the map now.
    #[error(
        "another `shardlane topics` command has taken over topic {0}; leave the growth to that one"
    )]
    TakenOver(String),
}

/// Reads the topic, from its beginning and then what is new. Blocks.
pub(crate) struct MapReader {
    consumer: LogReader,
    bootstrap: String,
    topic: String,
    /// Everything below this offset has been read.
    next: i64,
}

/// What one look at the topic gave: a document, or why the record under the key is none.
pub(crate) type Read = Result<MapDocument, String>;

impl MapReader {
    pub(crate) fn open(bootstrap: &str, topics: &TopicSet) -> Result<MapReader, MapTopicError> {
        let topic = topics.map();
        // `read_committed` is librdkafka's default; here everything rests on it.
        let consumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("client.id", "shardlane-map")
            // Never joined: librdkafka wants a name to assign by hand.
            .set("group.id", "shardlane-map")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_committed")
            .set("allow.auto.create.topics", "false")
            .set("fetch.wait.max.ms", "10")
            .create_with_context(Quiet)
            .map_err(|source| kafka(&topic, source))?;
        Ok(MapReader {
            consumer,
            bootstrap: bootstrap.to_owned(),
            topic,
            next: 0,
        })
    }

    pub(crate) fn topic(&self) -> &str {
        &self.topic
    }

    /// Reads everything that was committed before this call, in order. Nothing, where there is no topic.
    pub(crate) fn read_new(&mut self, timeout: Duration) -> Result<Vec<Read>, MapTopicError> {
        let deadline = Instant::now() + timeout;
        if self.next == 0 && !self.exists(timeout)? {
            return Ok(Vec::new());
        }
        let watermarks = self.consumer.fetch_watermarks(&self.topic, 0, timeout);
        let (start, end) = watermarks.map_err(|source| kafka(&self.topic, source))?;
        if end < self.next {
            return Err(MapTopicError::MadeAnew(self.topic.clone()));
        }
        if end == self.next {
            return Ok(Vec::new());
        }
        let read = self.read_to_end(start.max(self.next), deadline);
        // Between two looks nothing is fetched.
        let unassigned = self.consumer.unassign();
        let read = read
            .and_then(|read| unassigned.map(|()| read))
            .map_err(|source| kafka(&self.topic, source))?;
        self.next = end;
        Ok(read)
    }

    fn exists(&self, timeout: Duration) -> Result<bool, MapTopicError> {
        let metadata = self.consumer.fetch_metadata(Some(&self.topic), timeout);
        let metadata = metadata.map_err(|source| TopicError::Broker {
            bootstrap: self.bootstrap.clone(),
            source,
        })?;
        let found = metadata
            .topics()
            .iter()
            .find(|topic| topic.name() == self.topic);
        let absent = rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
        match found.map(rdkafka::metadata::MetadataTopic::error) {
            Some(None) => Ok(true),
            Some(Some(error)) if error != absent => Err(kafka(
                &self.topic,
                KafkaError::MetadataFetch(RDKafkaErrorCode::from(error)),
            )),
            _ => Ok(false),
        }
    }

    /// Reads from `from` to the end, which librdkafka reports once for each assignment. The last offsets may be
    /// Kafka's own marks of a commit, which no consumer sees, so offsets do not tell where the end is.
    fn read_to_end(&self, from: i64, deadline: Instant) -> Result<Vec<Read>, KafkaError> {
        let mut place = TopicPartitionList::with_capacity(1);
        place.add_partition_offset(&self.topic, 0, Offset::Offset(from))?;
        self.consumer.assign(&place)?;
        let mut read = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.consumer.poll(left) {
                Some(Ok(message)) if message.key() == Some(KEY.as_bytes()) => {
                    read.push(document_in(message.payload()));
                }
                Some(Ok(_)) => tracing::warn!(topic = %self.topic, "a record with a foreign key"),
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(read),
                Some(Err(error)) => tracing::debug!(topic = %self.topic, "while reading: {error}"),
                None if left.is_zero() => {
                    let late = RDKafkaErrorCode::OperationTimedOut;
                    return Err(KafkaError::MessageConsumption(late));
                }
                None => {}
            }
        }
    }
}

fn document_in(payload: Option<&[u8]>) -> Read {
    let payload = payload.ok_or("the record has no value")?;
    serde_json::from_slice(payload).map_err(|error| error.to_string())
}

/// Shuts out who writes under the same transactional id. A broker that has just started loads its coordinator first, and
/// says so.
fn begin_as_the_only_one(
    producer: &ThreadedProducer<DefaultProducerContext>,
) -> Result<(), KafkaError> {
    // An answer that is late is asked for again: what was begun goes on.
    let deadline = Instant::now() + 3 * BROKER_TIMEOUT;
    loop {
        match producer.init_transactions(BROKER_TIMEOUT) {
            Err(KafkaError::Transaction(error))
                if error.is_retriable() && Instant::now() < deadline =>
            {
                std::thread::sleep(COORDINATOR_LOOK);
            }
            begun => return begun,
        }
    }
}

/// The only writer of the topic, until the next one is opened. Blocks.
pub(crate) struct MapWriter {
    producer: ThreadedProducer<DefaultProducerContext>,
    reader: MapReader,
    document: Option<MapDocument>,
}

impl MapWriter {
    /// Shuts every earlier writer out, and only then reads the newest document.
    pub(crate) fn open(bootstrap: &str, topics: &TopicSet) -> Result<MapWriter, MapTopicError> {
        let reader = MapReader::open(bootstrap, topics)?;
        let failed = |source| kafka(&reader.topic, source);
        let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("client.id", "shardlane-map")
            .set("transactional.id", &reader.topic)
            .set("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS)
            .set("message.timeout.ms", TRANSACTION_TIMEOUT_MS)
            .create()
            .map_err(failed)?;
        begin_as_the_only_one(&producer).map_err(failed)?;
        let mut writer = MapWriter {
            producer,
            reader,
            document: None,
        };
        writer.read()?;
        Ok(writer)
    }

    /// The newest document.
    pub(crate) fn document(&self) -> Option<&MapDocument> {
        self.document.as_ref()
    }

    /// Writes a document, and returns when a reader finds it: a commit is answered a moment before.
    pub(crate) fn write(&mut self, document: &MapDocument) -> Result<(), MapTopicError> {
        let json = serde_json::to_string(document).map_err(|error| MapTopicError::Unreadable {
            topic: self.reader.topic.clone(),
            reason: error.to_string(),
        })?;
        let topic = &self.reader.topic;
        let record = BaseRecord::to(topic).key(KEY).payload(&json).partition(0);
        self.producer
            .begin_transaction()
            .map_err(|error| refused(topic, error))?;
        self.producer
            .send(record)
            .map_err(|(error, _)| refused(topic, error))?;
        self.producer
            .commit_transaction(BROKER_TIMEOUT)
            .map_err(|error| refused(topic, error))?;
        let deadline = Instant::now() + BROKER_TIMEOUT;
        while self.document.as_ref() != Some(document) {
            if Instant::now() > deadline {
                let late = KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut);
                return Err(kafka(&self.reader.topic, late));
            }
            std::thread::sleep(Duration::from_millis(10));
            self.read()?;
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), MapTopicError> {
        for read in self.reader.read_new(BROKER_TIMEOUT)? {
            let document = read.map_err(|reason| MapTopicError::Unreadable {
                topic: self.reader.topic.clone(),
                reason,
            })?;
            if succeeds(self.document.as_ref(), &document) {
                self.document = Some(document);
            }
        }
        Ok(())
    }
}

/// Whether `next` replaces `current`; one that may not is logged.
pub(crate) fn succeeds(current: Option<&MapDocument>, next: &MapDocument) -> bool {
    match current.map_or(Ok(()), |current| current.check_successor(next)) {
        Ok(()) => true,
        Err(error) => {
            tracing::error!("a map in the map's topic is ignored: {error}");
            false
        }
    }
}

/// Makes the map's topic, and puts `map` into it unless it holds one. Returns what it holds then.
///
/// # Errors
/// [`MapTopicError`].
pub async fn create_map(
    bootstrap: &str,
    topics: &TopicSet,
    map: &SlotMap,
    replicas: i32,
) -> Result<MapDocument, MapTopicError> {
    let name = topics.map();
    let topic =
        NewTopic::new(&name, 1, TopicReplication::Fixed(replicas)).set("cleanup.policy", "compact");
    let made = admin(bootstrap)?
        .create_topics([&topic], &options())
        .await
        .map_err(|source| kafka(&name, source))?;
    refusals(made, RDKafkaErrorCode::TopicAlreadyExists)?;
    let (bootstrap, topics) = (bootstrap.to_owned(), topics.clone());
    let first = MapDocument::open(map);
    blocking(name, move || {
        let mut writer = MapWriter::open(&bootstrap, &topics)?;
        if writer.document().is_none() {
            writer.write(&first)?;
        }
        Ok(writer.document.unwrap_or(first))
    })
    .await
}

/// The newest document of the map's topic; `None` where there is no topic, or nothing in it.
///
/// # Errors
/// [`MapTopicError`].
pub async fn read_map(
    bootstrap: &str,
    topics: &TopicSet,
) -> Result<Option<MapDocument>, MapTopicError> {
    let (bootstrap, topics) = (bootstrap.to_owned(), topics.clone());
    blocking(topics.map(), move || {
        let mut reader = MapReader::open(&bootstrap, &topics)?;
        let mut newest: Option<MapDocument> = None;
        for read in reader.read_new(BROKER_TIMEOUT)? {
            let document = read.map_err(|reason| MapTopicError::Unreadable {
                topic: reader.topic.clone(),
                reason,
            })?;
            if succeeds(newest.as_ref(), &document) {
                newest = Some(document);
            }
        }
        Ok(newest)
    })
    .await
}

/// Runs what blocks where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    topic: String,
    work: impl FnOnce() -> Result<T, MapTopicError> + Send + 'static,
) -> Result<T, MapTopicError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(kafka(&topic, KafkaError::Canceled)))
}

pub(crate) fn kafka(topic: &str, source: KafkaError) -> MapTopicError {
    MapTopicError::Kafka {
        topic: topic.to_owned(),
        source,
    }
}

fn refused(topic: &str, error: KafkaError) -> MapTopicError {
    use RDKafkaErrorCode as Code;
    match error.rdkafka_error_code() {
        Some(Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch) => {
            MapTopicError::TakenOver(topic.to_owned())
        }
        _ => kafka(topic, error),
    }
}
