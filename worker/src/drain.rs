//! Whether a consumer group has taken all that lies in some partitions.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use shardlane_domain::Source;
use shardlane_router::PartitionId;

use crate::map_topic::BROKER_TIMEOUT;
use crate::topics::TopicSet;

/// How long a group may take to see that somebody has come.
const NUDGE_MAX: Duration = Duration::from_secs(15);

/// One consumer group, seen from outside; it is never joined. Blocks.
pub(crate) struct Group {
    consumer: BaseConsumer,
    name: String,
}

/// The records of one partition that were there at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Pile {
    topic: String,
    partition: i32,
    start: i64,
    end: i64,
}

impl Group {
    pub(crate) fn open(bootstrap: &str, name: &str) -> Result<Group, KafkaError> {
        Ok(Group {
            consumer: client(bootstrap, name)?,
            name: name.to_owned(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What lies in these partitions of each webhook topic now.
    pub(crate) fn piles(
        &self,
        topics: &TopicSet,
        partitions: &[PartitionId],
    ) -> Result<Vec<Pile>, KafkaError> {
        let mut piles = Vec::new();
        for source in Source::ALL {
            let topic = topics.of(*source);
            for PartitionId(partition) in partitions.iter().copied() {
                let (start, end) =
                    self.consumer
                        .fetch_watermarks(&topic, partition, BROKER_TIMEOUT)?;
                piles.push(Pile {
                    topic: topic.clone(),
                    partition,
                    start,
                    end,
                });
            }
        }
        Ok(piles)
    }

    /// How many of these records the group has not committed, and whether it has ever committed anything of them.
    pub(crate) fn left(&self, piles: &[Pile]) -> Result<(i64, bool), KafkaError> {
        let mut list = TopicPartitionList::with_capacity(piles.len());
        for pile in piles {
            list.add_partition(&pile.topic, pile.partition);
        }
        let committed = self.consumer.committed_offsets(list, BROKER_TIMEOUT)?;
        let (mut left, mut any) = (0, false);
        for pile in piles {
            let offset = committed
                .find_partition(&pile.topic, pile.partition)
                .map_or(Offset::Invalid, |element| element.offset());
            // What retention has deleted needs no commit.
            let next = match offset {
                Offset::Offset(next) => {
                    any = true;
                    next.max(pile.start)
                }
                _ => pile.start,
            };
            left += (pile.end - next).max(0);
        }
        Ok((left, any))
    }
}

/// Joins a group for a moment, for a topic that its workers do not consume. Whenever somebody joins, the group's leader
/// asks what partitions there are, and gives out the new ones; by itself it asks every five minutes. False: nobody
/// minded us in time, and the workers will find the new partitions by themselves.
pub(crate) fn nudge(bootstrap: &str, group: &str, topics: &TopicSet) -> Result<bool, KafkaError> {
    // Dropped at the end, which leaves the group at once.
    let consumer = client(bootstrap, group)?;
    let deadline = Instant::now() + NUDGE_MAX;
    consumer.subscribe(&[&topics.map()])?;
    while consumer.assignment()?.count() == 0 {
        if Instant::now() > deadline {
            return Ok(false);
        }
        // A record that comes is the map, which is of no interest here.
        if let Some(Err(error)) = consumer.poll(Duration::from_millis(100)) {
            tracing::debug!(group, "while joining: {error}");
        }
    }
    Ok(true)
}

fn client(bootstrap: &str, group: &str) -> Result<BaseConsumer, KafkaError> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("client.id", "shardlane-topics")
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        // The workers'; a group takes nobody who cannot do as the others.
        .set("partition.assignment.strategy", "cooperative-sticky")
        .create()
}
