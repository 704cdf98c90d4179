//! How far a worker is behind. Where a log ends, librdkafka says by itself now and then. Not of a partition whose queue
//! is full: it hears of an end with the records that it fetches, so there the broker is asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rdkafka::Statistics;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::consumer::{Context, Key};

/// How often librdkafka says where the logs end.
pub(crate) const STATISTICS_INTERVAL_MS: &str = "1000";
/// How often the broker is asked.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// How long it may take to answer for one partition.
const ASK_MAX: Duration = Duration::from_secs(1);

/// One partition's.
#[derive(Debug, Clone, PartialEq)]
pub struct Lag {
    /// The topic.
    pub topic: Arc<str>,
    /// The Kafka partition.
    pub partition: i32,
    /// Records in the log that are not done; `None` until it is known where the log ends.
    pub records: Option<u64>,
    /// How long ago the front door took the oldest record that is not done; where that one has not been fetched yet, the
    /// last one that is done. `None` where neither is known.
    pub seconds: Option<f64>,
    /// All before this offset is done; `None` until this worker has done something.
    pub done: Option<i64>,
    /// Whether its lane held records and took none for a second: its database is away or slow, or its slots are frozen.
    pub stands: bool,
}

/// The partitions that a worker has.
#[derive(Debug, Default)]
pub(crate) struct Lags(Mutex<BTreeMap<Key, Partition>>);

#[derive(Debug, Clone, Default)]
struct Partition {
    /// librdkafka's name of the consumer that has it.
    consumer: Option<String>,
    /// The log's end, as librdkafka said last.
    end: Option<i64>,
    /// Where the group stood when librdkafka spoke last.
    begin: Option<i64>,
    /// All before it is done.
    done: Option<i64>,
    /// When the oldest record in hand was accepted.
    oldest: Option<Timestamp>,
    /// When the last record that is done was accepted.
    last: Option<Timestamp>,
    stands: bool,
}

impl Lags {
    fn partitions(&self) -> MutexGuard<'_, BTreeMap<Key, Partition>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what librdkafka says; it knows which partitions this worker has.
    pub(crate) fn observe(&self, statistics: &Statistics) {
        let known = |offset: i64| (offset >= 0).then_some(offset);
        let mut partitions = self.partitions();
        for (name, topic) in &statistics.topics {
            let name: Arc<str> = Arc::from(&**name);
            for (number, seen) in &topic.partitions {
                let key = (Arc::clone(&name), *number);
                if !seen.desired {
                    // A consumer of another topic may know this one too.
                    let is_own = |it: &Partition| it.consumer.as_ref() == Some(&statistics.name);
                    if partitions.get(&key).is_some_and(is_own) {
                        partitions.remove(&key);
                    }
                    continue;
                }
                let partition = partitions.entry(key).or_default();
                if partition.consumer.as_ref() != Some(&statistics.name) {
                    partition.consumer = Some(statistics.name.clone());
                }
                // What the broker was asked may be newer.
                partition.end = partition.end.max(known(seen.hi_offset));
                // A group that never committed begins at the log's beginning.
                partition.begin = known(seen.committed_offset).or(known(seen.lo_offset));
            }
        }
    }

    /// Takes the log's end as the broker has said it, if the partition is still this worker's.
    fn ends(&self, key: &Key, end: i64) {
        if let Some(partition) = self.partitions().get_mut(key) {
            partition.end = partition.end.max(Some(end));
        }
    }

    /// Takes which of a topic's partitions stand still.
    fn stand(&self, before: &[Key], now: &[Key]) {
        let mut partitions = self.partitions();
        for key in before.iter().chain(now) {
            if let Some(partition) = partitions.get_mut(key) {
                partition.stands = now.contains(key);
            }
        }
    }

    pub(crate) fn read(&self) -> Vec<Lag> {
        let now = Timestamp::now();
        let partitions = self.partitions();
        let lag = |((topic, partition), it): (&Key, &Partition)| Lag {
            topic: Arc::clone(topic),
            partition: *partition,
            records: it.records(),
            seconds: it.seconds(now),
            done: it.done,
            stands: it.stands,
        };
        partitions.iter().map(lag).collect()
    }

    /// For the lane of a partition, for as long as it runs.
    pub(crate) fn of_lane(self: &Arc<Self>, topic: &Arc<str>, partition: i32) -> LaneLag {
        LaneLag {
            lags: Arc::clone(self),
            key: (Arc::clone(topic), partition),
        }
    }
}

/// Asks the broker now and then where the logs of partitions end that stand still.
pub(crate) struct Ends {
    next: Instant,
    asking: Option<JoinHandle<()>>,
    stood: Vec<Key>,
}

impl Ends {
    pub(crate) fn new() -> Ends {
        Ends {
            next: Instant::now(),
            asking: None,
            stood: Vec::new(),
        }
    }

    /// Whether it is time, and the last question was answered or given up.
    pub(crate) fn is_due(&self) -> bool {
        Instant::now() >= self.next && self.asking.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Asks, on a thread of its own: the broker may be away.
    pub(crate) fn ask(
        &mut self,
        stands: Vec<Key>,
        consumer: &Arc<BaseConsumer<Context>>,
        lags: &Arc<Lags>,
        runtime: &Handle,
    ) {
        self.next = Instant::now() + ASK_INTERVAL;
        lags.stand(&self.stood, &stands);
        self.stood.clone_from(&stands);
        if stands.is_empty() {
            return;
        }
        // Not held for long: who holds a consumer keeps its partitions.
        let (consumer, lags) = (Arc::downgrade(consumer), Arc::clone(lags));
        self.asking = Some(runtime.spawn_blocking(move || {
            for key in stands {
                let Some(consumer) = consumer.upgrade() else {
                    return;
                };
                match consumer.fetch_watermarks(&key.0, key.1, ASK_MAX) {
                    Ok((_, end)) => lags.ends(&key, end),
                    Err(error) => tracing::debug!("where the log ends is not known: {error}"),
                }
            }
        }));
    }
}

impl Partition {
    fn records(&self) -> Option<u64> {
        let behind = self.end?.saturating_sub(self.done.or(self.begin)?);
        // The end is a little older than what is done.
        Some(u64::try_from(behind).unwrap_or(0))
    }

    fn seconds(&self, now: Timestamp) -> Option<f64> {
        let since = match (self.oldest, self.records()) {
            (Some(oldest), _) => oldest,
            (None, Some(0)) => return Some(0.0),
            (None, _) => self.last?,
        };
        Some(now.duration_since(since).as_secs_f64().max(0.0))
    }
}

/// What a lane says of its partition. When the lane ends, somebody else has what it held.
pub(crate) struct LaneLag {
    lags: Arc<Lags>,
    key: Key,
}

impl LaneLag {
    /// A batch begins, whose oldest record was accepted then.
    pub(crate) fn begins(&self, oldest: Option<Timestamp>) {
        // A record without a time of its own.
        let oldest = oldest.filter(|at| *at > Timestamp::UNIX_EPOCH);
        self.change(|partition| partition.oldest = oldest.or(partition.oldest));
    }

    /// A batch has ended: all before `done` is done, and what is left was accepted at `oldest` or later.
    pub(crate) fn ended(
        &self,
        done: Option<i64>,
        last: Option<Timestamp>,
        oldest: Option<Timestamp>,
    ) {
        self.change(|partition| {
            partition.done = done.or(partition.done);
            partition.last = last.or(partition.last);
            partition.oldest = oldest;
        });
    }

    fn change(&self, change: impl FnOnce(&mut Partition)) {
        change(self.lags.partitions().entry(self.key.clone()).or_default());
    }
}

impl Drop for LaneLag {
    fn drop(&mut self) {
        self.lags.partitions().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn check(partition: &Partition, records: Option<u64>, seconds: Option<f64>) {
        assert_eq!(partition.records(), records, "{partition:?}");
        assert_eq!(partition.seconds(at(100)), seconds, "{partition:?}");
    }

    #[test]
    fn lag_is_counted_from_what_is_known() {
        let nothing = Partition::default();
        check(&nothing, None, None);
        let begun = Partition {
            end: Some(10),
            begin: Some(4),
            ..nothing.clone()
        };
        check(&begun, Some(6), None);
        let in_hand = Partition {
            oldest: Some(at(70)),
            ..begun.clone()
        };
        check(&in_hand, Some(6), Some(30.0));
        // Done up to 8, and nothing in hand: the rest is younger than the last one that is done.
        let between = Partition {
            done: Some(8),
            last: Some(at(80)),
            ..begun.clone()
        };
        check(&between, Some(2), Some(20.0));
        let all = Partition {
            done: Some(10),
            ..between.clone()
        };
        check(&all, Some(0), Some(0.0));
        // The lane is past what librdkafka said last.
        let past = Partition {
            done: Some(12),
            ..between.clone()
        };
        check(&past, Some(0), Some(0.0));
        let past = Partition {
            oldest: Some(at(95)),
            ..past.clone()
        };
        check(&past, Some(0), Some(5.0));
    }

    /// What a consumer says that knows one partition.
    fn says(name: &str, topic: &str, desired: bool) -> Statistics {
        let partition = rdkafka::statistics::Partition {
            desired,
            hi_offset: 9,
            committed_offset: 4,
            ..Default::default()
        };
        let topics = [(
            topic.to_owned(),
            rdkafka::statistics::Topic {
                partitions: [(3, partition)].into(),
                ..Default::default()
            },
        )];
        Statistics {
            name: name.to_owned(),
            topics: topics.into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_consumer_says_nothing_of_what_another_one_has() {
        let lags = Lags::default();
        lags.observe(&says("disputes", "disputes.webhooks", true));
        lags.observe(&says("orders", "disputes.webhooks", false));
        assert_eq!(lags.read()[0].records, Some(5));
        // Made anew under another name.
        lags.observe(&says("disputes-2", "disputes.webhooks", true));
        lags.observe(&says("disputes-2", "disputes.webhooks", false));
        assert_eq!(lags.read(), []);
    }

    #[test]
    fn who_stands_still_is_known_until_he_goes_on() {
        let lags = Arc::new(Lags::default());
        let topic: Arc<str> = Arc::from("orders.webhooks");
        let lanes = [3, 4].map(|partition| lags.of_lane(&topic, partition));
        lanes.iter().for_each(|lane| lane.begins(Some(at(1))));
        let stands = || lags.read().iter().map(|lag| lag.stands).collect::<Vec<_>>();
        let key = |partition| (Arc::clone(&topic), partition);
        lags.stand(&[], &[key(3), key(9)]);
        assert_eq!(stands(), [true, false]);
        lags.stand(&[key(3), key(9)], &[key(4)]);
        assert_eq!(stands(), [false, true]);
        lags.stand(&[key(4)], &[]);
        assert_eq!(stands(), [false, false]);
    }

    #[test]
    fn a_lane_that_ends_says_nothing_any_more() {
        let lags = Arc::new(Lags::default());
        let topic: Arc<str> = Arc::from("orders.webhooks");
        let lane = lags.of_lane(&topic, 3);
        lane.begins(Some(at(1)));
        lane.ended(Some(7), Some(at(1)), None);
        lane.begins(None);
        let read = lags.read();
        assert_eq!((&*read[0].topic, read[0].partition), ("orders.webhooks", 3));
        drop(lane);
        assert_eq!(lags.read(), []);
    }
}
