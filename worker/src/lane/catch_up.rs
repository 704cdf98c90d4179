//! What lies between a fence and the group's offset.
//!
//! An offset is committed after its records are applied, so a group that is past the fence has been set there by somebody,
//! or the database is an older one that was restored. Either way the fence knows better: what lies between is read again
//! before anything behind it. What is dead among it is published once more.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use shardlane_router::{PartitionId, Slot};
use shardlane_sql::Target;
use shardlane_sql::mutants::{self, Mutant};

use super::fence::Fence;
use super::retry::Failure;
use super::{FROZEN_POLL, Fences, Lane};
use crate::error::WorkerError;
use crate::record::RawRecord;
use crate::stats::Stats;

/// How long the broker may take for the next record of the gap.
const READ_MAX: Duration = Duration::from_secs(5);

impl Lane {
    /// Applies what lies between the fences that are known and `first`, the first record that came. False: the lane was
    /// closed before that.
    pub(super) async fn catch_up(
        &self,
        first: i64,
        fences: &mut Fences,
    ) -> Result<bool, WorkerError> {
        // This net would catch two of the planted defects, and the oracle is to do it.
        if mutants::is(Mutant::CommitBeforeWrite) || mutants::is(Mutant::LostRevokeDrain) {
            return Ok(true);
        }
        // None at all: a database that has never seen the partition, and nobody can say what it lacks.
        let known = fences.values().copied().max().unwrap_or(0);
        if known == 0 || known >= first {
            return Ok(true);
        }
        // The newest records may all be another target's.
        for target in self.owners() {
            if fences.contains_key(&target) {
                continue;
            }
            match self.read_fence(target, first).await? {
                Fence::At(fence) => fences.insert(target, fence),
                Fence::Closed => return Ok(false),
                // Applying finds out where they belong.
                Fence::Rerouted(_) => return Ok(true),
            };
        }
        let fence = fences.values().copied().max().unwrap_or(0);
        if fence >= first {
            return Ok(true);
        }
        tracing::error!(
            topic = %self.topic,
            partition = self.partition,
            fence,
            offset = first,
            "the group's offset is past what the database has applied; what lies between is read again"
        );
        let (mut next, mut retry) = (fence, self.retry());
        let mut reader = None;
        while next < first {
            let piece = match self.read_gap(&mut reader, next, first).await {
                Ok(piece) => piece,
                Err(error) => {
                    reader = None;
                    if !self.wait(&mut retry, &Failure::LogEnd(error)).await {
                        return Ok(false);
                    }
                    continue;
                }
            };
            // The rest is not in the log any more.
            let Some(last) = piece.last() else { break };
            next = last.offset + 1;
            Stats::add(&self.shared.stats.counters.caught_up, piece.len());
            let Some(mut events) = self.decode(piece).await? else {
                return Ok(false);
            };
            while !events.is_empty() {
                let Some(frozen) = self.process(events, fences).await? else {
                    return Ok(false);
                };
                events = frozen;
                if !events.is_empty() && !self.pause(FROZEN_POLL).await {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The targets that have users of the lane's partition: on manual shards those of its slots, and no other, because
    /// another may be away.
    fn owners(&self) -> Vec<Target> {
        let routes = self.shared.store.routes();
        let Some(catalog) = routes.catalog() else {
            return routes.targets().collect();
        };
        let snapshot = self.shared.settings.map.snapshot();
        let map = snapshot.document.map();
        let owns = |target: &Target| {
            Slot::all().any(|slot| {
                map.partition_of(slot) == PartitionId(self.partition)
                    && catalog.map.shard_of(slot) == target.shard()
            })
        };
        routes.targets().filter(owns).collect()
    }

    /// The next records from `next` on and before `end`, at most a batch; none where the log has none.
    async fn read_gap(
        &self,
        reader: &mut Option<Arc<BaseConsumer>>,
        next: i64,
        end: i64,
    ) -> Result<Vec<RawRecord>, KafkaError> {
        let settings = &self.shared.settings;
        let (topic, partition) = (Arc::clone(&self.topic), self.partition);
        let (bootstrap, group) = (settings.bootstrap.clone(), settings.group.clone());
        let (rows_max, known) = (settings.batch_rows_max, reader.take());
        let read = move || {
            let consumer = match known {
                Some(consumer) => consumer,
                None => open(&bootstrap, &group, &topic, partition, next)?,
            };
            let mut piece = Vec::new();
            while piece.len() < rows_max {
                let message = consumer.poll(READ_MAX);
                let record = RawRecord::copy(&message.ok_or(KafkaError::Canceled)??);
                let offset = record.offset;
                if offset < end {
                    piece.push(record);
                }
                if offset + 1 >= end {
                    break;
                }
            }
            Ok::<_, KafkaError>((piece, consumer))
        };
        let read = tokio::task::spawn_blocking(read).await;
        let (piece, consumer) = read.map_err(|_| KafkaError::Canceled)??;
        *reader = Some(consumer);
        Ok(piece)
    }
}

/// A consumer of the one partition from `next` on, or from where its log begins. It never joins the group.
fn open(
    bootstrap: &str,
    group: &str,
    topic: &str,
    partition: i32,
    next: i64,
) -> Result<Arc<BaseConsumer>, KafkaError> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("client.id", "shardlane-catch-up")
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        // A batch or two; the rest is read when they are done.
        .set("queued.max.messages.kbytes", "8192")
        .create()?;
    let (begin, _) = consumer.fetch_watermarks(topic, partition, READ_MAX)?;
    let mut list = TopicPartitionList::with_capacity(1);
    list.add_partition_offset(topic, partition, Offset::Offset(next.max(begin)))?;
    consumer.assign(&list)?;
    Ok(Arc::new(consumer))
}
