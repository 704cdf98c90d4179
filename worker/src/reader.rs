//! What a lane reads: its partition's own queue in the client.
//!
//! librdkafka fetches for the queues that have room. A lane that is busy, or waits for its database, leaves its own alone,
//! and the others go on; a pause of the partition instead would throw away what was fetched ahead.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::BaseConsumer;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::time::{Instant, timeout_at};

use crate::consumer::{Context, Key};
use crate::flow::Progress;
use crate::record::RawRecord;
use crate::stats::Stats;

/// How many records are read at once.
const CHUNK_ROWS_MAX: usize = 128;
/// How many bytes are read at once, but for the last record.
const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// How long a reader sleeps at most before it looks by itself: a wake-up can be lost (rust-rdkafka's pull request 840).
const LOOK: Duration = Duration::from_millis(500);

/// Reads one partition.
pub(crate) struct Reader {
    queue: PartitionQueue<Context>,
    key: Key,
    progress: Arc<Progress>,
    stats: Arc<Stats>,
}

impl Reader {
    /// Takes the partition's queue out of its consumer's. Before librdkafka begins to fetch for it: what came earlier would
    /// be in the consumer's. `None` where the client has no such partition.
    pub(crate) fn split(
        consumer: &Arc<BaseConsumer<Context>>,
        key: &Key,
        progress: &Arc<Progress>,
        stats: &Arc<Stats>,
    ) -> Option<Reader> {
        let mut queue = consumer.split_partition_queue(&key.0, key.1)?;
        let waked = Arc::clone(progress);
        queue.set_nonempty_callback(move || waked.wake());
        Some(Reader {
            queue,
            key: key.clone(),
            progress: Arc::clone(progress),
            stats: Arc::clone(stats),
        })
    }

    /// What is at hand, at most `rows_max` records and what the lane may hold; never waits.
    pub(crate) fn chunk(&self, rows_max: usize) -> Result<Vec<RawRecord>, KafkaError> {
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        let rows_max = rows_max.min(CHUNK_ROWS_MAX);
        while chunk.len() < rows_max && bytes < CHUNK_BYTES_MAX && self.progress.has_room() {
            let message = match self.queue.poll(Duration::ZERO) {
                None => break,
                Some(Ok(message)) => message,
                Some(Err(error)) if is_passing(&error) => {
                    tracing::warn!(topic = %self.key.0, partition = self.key.1, "Kafka: {error}");
                    continue;
                }
                Some(Err(error)) => return Err(error),
            };
            let record = RawRecord::copy(&message);
            self.look_for_hole(record.offset);
            self.progress.read(record.offset + 1, record.bytes());
            bytes += record.bytes();
            chunk.push(record);
        }
        if !chunk.is_empty() {
            self.stats.record_polled();
        }
        Ok(chunk)
    }

    /// Waits until there may be records, or the lane closes. False: `deadline` came first.
    pub(crate) async fn news(&self, deadline: Option<Instant>) -> bool {
        let look = Instant::now() + LOOK;
        match deadline.filter(|deadline| *deadline <= look) {
            None => {
                timeout_at(look, self.progress.waked()).await.ok();
                true
            }
            Some(deadline) => timeout_at(deadline, self.progress.waked()).await.is_ok(),
        }
    }

    /// Offsets that are not in the log any more: somebody must hear of it. A topic whose retention is shorter than the
    /// worker's lag loses webhooks, and neither Kafka nor librdkafka says a word.
    fn look_for_hole(&self, offset: i64) {
        let Some(next) = self.progress.position().filter(|next| *next < offset) else {
            return;
        };
        let missing = offset - next;
        tracing::error!(
            topic = %self.key.0,
            partition = self.key.1,
            next,
            missing,
            "offsets are not in the log: deleted by retention before they were read, or markers of a transaction"
        );
        let counter = &self.stats.counters.missing;
        Stats::add(counter, usize::try_from(missing).unwrap_or(usize::MAX));
    }
}

/// Errors after which librdkafka goes on by itself.
pub(crate) fn is_passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    match error.rdkafka_error_code() {
        Some(
            Code::UnknownTopicOrPartition
            | Code::UnknownTopic
            | Code::UnknownPartition
            | Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::Fatal,
        ) => false,
        Some(_) | None => true,
    }
}
