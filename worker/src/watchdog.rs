//! Partitions that stand still: they have records, their lanes wait for some, and none come. librdkafka can lose a
//! wake-up, or leave a partition paused (its issues 1802 and 5591; rust-rdkafka's 840); a new consumer cures both.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};
use tokio::runtime::Handle;

use crate::consumer::{Context, Key};

/// How long the broker may take to say where the logs end.
const ASK_MAX: Duration = Duration::from_secs(5);
/// How often a time is doubled at most.
const DOUBLED_MAX: u32 = 6;
/// A partition whose lane holds nothing, and the next offset that it expects: `None` where nothing came yet.
pub(crate) type Idle = (Key, Option<i64>);

/// Watches one topic's partitions; it outlives their consumers.
#[derive(Debug)]
pub(crate) struct Watchdog {
    stall_max: Duration,
    next_look: Instant,
    asked: Option<Receiver<HashMap<Key, i64>>>,
    /// Since when a partition is known to have records that do not come, and the offset at which it stands.
    still: HashMap<Key, (i64, Instant)>,
    /// How often the consumer was made anew for this partition at this offset. A log may end in what is no record, such
    /// as a transaction's marker: that is waited for longer each time.
    strikes: HashMap<Key, (i64, u32)>,
}

impl Watchdog {
    pub(crate) fn new(stall_max: Duration) -> Self {
        Watchdog {
            stall_max,
            next_look: Instant::now() + stall_max / 4,
            asked: None,
            still: HashMap::new(),
            strikes: HashMap::new(),
        }
    }

    /// Whether it is time to look. Cheap.
    pub(crate) fn is_due(&self) -> bool {
        Instant::now() >= self.next_look
    }

    /// Looks at what is idle; true if one of them stands still for too long. Asks the broker in the background, one
    /// question for all of them, and judges by the answer to the question before.
    pub(crate) fn look(
        &mut self,
        idle: &[Idle],
        consumer: &Arc<BaseConsumer<Context>>,
        runtime: &Handle,
    ) -> bool {
        self.next_look = Instant::now() + self.stall_max / 4;
        if let Some(asked) = &self.asked {
            match asked.try_recv() {
                Ok(behind) => self.learn(idle, &behind),
                Err(TryRecvError::Empty) => return false,
                // The broker did not answer: nothing is known.
                Err(TryRecvError::Disconnected) => self.still.clear(),
            }
        }
        let (answer, asked) = channel();
        let (consumer, wanted) = (Arc::clone(consumer), idle.to_vec());
        runtime.spawn_blocking(move || match behind(&consumer, &wanted) {
            // Nobody may wait for it any more.
            Ok(behind) => drop(answer.send(behind)),
            Err(error) => tracing::debug!("where the logs end: {error}"),
        });
        self.asked = Some(asked);
        self.strike()
    }

    fn learn(&mut self, idle: &[Idle], behind: &HashMap<Key, i64>) {
        let now = Instant::now();
        let known = std::mem::take(&mut self.still);
        for (key, next) in idle {
            // Whoever moved since the question was asked does not stand still.
            let Some(found) = behind.get(key) else {
                continue;
            };
            if next.is_some_and(|next| next != *found) {
                continue;
            }
            let since = known
                .get(key)
                .filter(|(next, _)| *next == *found)
                .map_or(now, |(_, since)| *since);
            self.still.insert(key.clone(), (*found, since));
        }
    }

    fn strike(&mut self) -> bool {
        let mut strikes = false;
        for (key, (next, since)) in &self.still {
            let before = self.strikes.get(key).filter(|(at, _)| at == next);
            let before = before.map_or(0, |(_, count)| *count);
            let patience = self.stall_max * 2_u32.pow(before.min(DOUBLED_MAX));
            if since.elapsed() >= patience {
                tracing::error!(
                    topic = %key.0, partition = key.1, next,
                    "stands still though its log goes on; the consumer is made anew"
                );
                self.strikes.insert(key.clone(), (*next, before + 1));
                strikes = true;
            }
        }
        if strikes {
            self.still.clear();
            self.asked = None;
        }
        strikes
    }
}

/// Those of these partitions whose log goes on behind the offset at which they stand, which it gives. Blocks.
fn behind(
    consumer: &BaseConsumer<Context>,
    idle: &[Idle],
) -> Result<HashMap<Key, i64>, KafkaError> {
    let ends = limits(consumer, &list(idle.iter()), Offset::End)?;
    let fresh = list(idle.iter().filter(|(_, next)| next.is_none()));
    let mut begins = HashMap::new();
    if fresh.count() > 0 {
        // They begin where the group has committed, or at the beginning of the log.
        begins = limits(consumer, &fresh, Offset::Beginning)?;
        for (key, next) in offsets(&consumer.committed_offsets(fresh, ASK_MAX)?) {
            begins.insert(key, next);
        }
    }
    let behind = idle.iter().filter_map(|(key, next)| {
        let next = next.or_else(|| begins.get(key).copied())?;
        (next < *ends.get(key)?).then(|| (key.clone(), next))
    });
    Ok(behind.collect())
}

/// Where logs begin or end.
fn limits(
    consumer: &BaseConsumer<Context>,
    partitions: &TopicPartitionList,
    limit: Offset,
) -> Result<HashMap<Key, i64>, KafkaError> {
    let mut asked = partitions.clone();
    if asked.count() == 0 {
        return Ok(HashMap::new());
    }
    // Kafka takes both where a timestamp is wanted: one request for all partitions of a broker.
    asked.set_all_offsets(limit)?;
    Ok(offsets(&consumer.offsets_for_times(asked, ASK_MAX)?).collect())
}

fn list<'a>(idle: impl Iterator<Item = &'a Idle>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for ((topic, partition), _) in idle {
        list.add_partition(topic, *partition);
    }
    list
}

/// Those that are known.
fn offsets(list: &TopicPartitionList) -> impl Iterator<Item = (Key, i64)> {
    let known = |element: TopicPartitionListElem<'_>| {
        let Offset::Offset(offset) = element.offset() else {
            return None;
        };
        Some(((Arc::from(element.topic()), element.partition()), offset))
    };
    list.elements().into_iter().filter_map(known)
}
