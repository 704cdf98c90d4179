//! A topic from its beginning, or its newest records, to the end that it has now: for commands that look and leave.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

/// How long the broker may be silent.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(15);

/// Says nothing about the end of a topic, which is where one wants to be and no error.
pub(crate) struct Quiet;

impl ClientContext for Quiet {
    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::PartitionEOF) {
            tracing::warn!("a topic that is read: {error}: {reason}");
        }
    }
}

impl ConsumerContext for Quiet {}

/// A consumer that looks at topics.
pub(crate) type LogReader = BaseConsumer<Quiet>;

/// A consumer that joins no group and commits nothing.
pub(crate) fn log_reader(bootstrap: &str) -> Result<LogReader, KafkaError> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        // librdkafka wants a name; without a subscription nobody joins.
        .set("group.id", "shardlane-look")
        .set("client.id", "shardlane-look")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create_with_context(Quiet)
}

/// Where a partition begins and ends. One that was just made, or whose broker has just restarted, has no leader for a
/// moment.
pub(crate) fn watermarks(
    consumer: &LogReader,
    topic: &str,
    partition: i32,
) -> Result<(i64, i64), KafkaError> {
    use RDKafkaErrorCode::{LeaderNotAvailable, NotLeaderForPartition};
    let deadline = Instant::now() + SILENCE_MAX;
    loop {
        match consumer.fetch_watermarks(topic, partition, SILENCE_MAX) {
            Err(error)
                if matches!(
                    error.rdkafka_error_code(),
                    Some(LeaderNotAvailable | NotLeaderForPartition)
                ) && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(100));
            }
            answer => return answer,
        }
    }
}

/// Shows each record of partitions 0 to `partitions` to `visit`, or only the newest `newest_max` of each, up to the end
/// that each had when the scan began; each partition in order. Blocks on the broker.
pub(crate) fn scan(
    consumer: &LogReader,
    topic: &str,
    partitions: u32,
    newest_max: Option<u64>,
    mut visit: impl FnMut(&BorrowedMessage<'_>),
) -> Result<(), KafkaError> {
    let mut list = TopicPartitionList::new();
    // The offset behind the last record to look at.
    let mut ends: BTreeMap<i32, i64> = BTreeMap::new();
    for partition in 0..i32::try_from(partitions).unwrap_or(i32::MAX) {
        let (low, high) = watermarks(consumer, topic, partition)?;
        let bound = newest_max.and_then(|max| i64::try_from(max).ok());
        let first = bound.map_or(low, |max| low.max(high.saturating_sub(max)));
        if first < high {
            list.add_partition_offset(topic, partition, Offset::Offset(first))?;
            ends.insert(partition, high);
        }
    }
    consumer.assign(&list)?;
    let mut heard = Instant::now();
    while !ends.is_empty() {
        match consumer.poll(Duration::from_millis(500)) {
            None if heard.elapsed() > SILENCE_MAX => {
                return Err(KafkaError::MessageConsumption(
                    RDKafkaErrorCode::OperationTimedOut,
                ));
            }
            None => continue,
            Some(Ok(message)) => {
                let Some(end) = ends.get(&message.partition()) else {
                    continue;
                };
                if message.offset() < *end {
                    visit(&message);
                }
                if message.offset() + 1 >= *end {
                    ends.remove(&message.partition());
                }
            }
            // The last offsets may hold no records: transaction markers, or what compaction took.
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                ends.remove(&partition);
            }
            Some(Err(error)) => return Err(error),
        }
        heard = Instant::now();
    }
    consumer.unassign()?;
    Ok(())
}
