//! Many users who send one event after another by several publishers, and an oracle for what became of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use shardlane_domain::Source;
use shardlane_router::SlotMap;
use shardlane_worker::{
    GrowthSettings, MapTiming, MapWatch, PublishError, Publisher, WorkerSettings, create_map,
};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::events::{order, partition_of, user};
use crate::world::{PATIENCE, Ring, World};

/// Short, so that tests are; long enough for a busy machine to keep a lease most of the time.
pub(crate) const TIMING: MapTiming = MapTiming {
    lease: Duration::from_millis(1_200),
    message_timeout: Duration::from_millis(1_800),
    hold_max: Duration::from_millis(400),
};

impl Ring {
    /// Puts the ring's map into its topic.
    pub(crate) async fn create_map(&self) {
        create_map(&self.bootstrap, &self.topics, &self.map, 1)
            .await
            .unwrap();
    }

    /// A publisher with a watch of its own, as in a process of its own.
    pub(crate) async fn follower(&self) -> (Publisher, Arc<MapWatch>) {
        self.follower_with(TIMING).await
    }

    pub(crate) async fn follower_with(&self, timing: MapTiming) -> (Publisher, Arc<MapWatch>) {
        let (bootstrap, topics) = (self.bootstrap.clone(), self.topics.clone());
        let follow = move || {
            let watch = MapWatch::start(&bootstrap, &topics, timing, None).unwrap();
            let watch = Arc::new(watch);
            let publisher = Publisher::follow(&bootstrap, topics, Arc::clone(&watch)).unwrap();
            (publisher, watch)
        };
        tokio::task::spawn_blocking(follow).await.unwrap()
    }

    pub(crate) fn growth(&self, worker: &WorkerSettings) -> GrowthSettings {
        GrowthSettings {
            bootstrap: self.bootstrap.clone(),
            topics: self.topics.clone(),
            groups: vec![worker.group.clone()],
            timing: TIMING,
            drain_max: PATIENCE,
        }
    }

    /// The same topics under another map.
    pub(crate) fn under(&self, map: SlotMap) -> Ring {
        Ring {
            bootstrap: self.bootstrap.clone(),
            topics: self.topics.clone(),
            map,
        }
    }
}

/// What the publishers answered that was no acknowledgement.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    pub(crate) lease: AtomicU64,
    pub(crate) frozen: AtomicU64,
    pub(crate) late: AtomicU64,
    /// The broker may have the record.
    pub(crate) unknown: AtomicU64,
}

/// Users at work.
pub(crate) struct Storm {
    stop: Arc<AtomicBool>,
    senders: Vec<(Uuid, JoinHandle<usize>)>,
    /// By publisher.
    pub(crate) refusals: Arc<[Refusals]>,
}

impl Storm {
    /// Each user sends its next event when the one before is acknowledged, each time by another publisher.
    pub(crate) fn start(publishers: &[Publisher], users: usize) -> Storm {
        let stop = Arc::new(AtomicBool::new(false));
        let refusals: Arc<[Refusals]> = publishers.iter().map(|_| Refusals::default()).collect();
        let senders = (0..users).map(user).map(|user| {
            let sender = send(
                user,
                publishers.to_vec(),
                Arc::clone(&refusals),
                Arc::clone(&stop),
            );
            (user, tokio::spawn(sender))
        });
        Storm {
            senders: senders.collect(),
            stop,
            refusals,
        }
    }

    /// Stops sending. Gives how many events of each user were acknowledged: all that it has sent.
    pub(crate) async fn stop(self) -> BTreeMap<Uuid, usize> {
        self.stop.store(true, Ordering::Release);
        let mut sent = BTreeMap::new();
        for (user, sender) in self.senders {
            sent.insert(user, sender.await.unwrap());
        }
        sent
    }
}

async fn send(
    user: Uuid,
    publishers: Vec<Publisher>,
    refusals: Arc<[Refusals]>,
    stop: Arc<AtomicBool>,
) -> usize {
    let (mut number, mut way) = (0, 0);
    while !stop.load(Ordering::Acquire) {
        let status = if number == 0 { "created" } else { "updated" };
        let second = i64::try_from(number).unwrap();
        let event = order(user, &format!("e{number}"), "ord", status, second);
        loop {
            way = (way + 1) % publishers.len();
            let counter = match publishers[way].publish(&event).await {
                Ok(_) => break,
                Err(PublishError::LeaseExpired { .. }) => &refusals[way].lease,
                Err(PublishError::Frozen { .. }) => &refusals[way].frozen,
                Err(PublishError::Late) => &refusals[way].late,
                Err(PublishError::Kafka(_)) => &refusals[way].unknown,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        number += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    number
}

impl World {
    /// Every event that was acknowledged has a row, once, and each user's rows are in the order of sending.
    pub(crate) async fn has_all_in_order(&self, sent: &BTreeMap<Uuid, usize>) {
        all_in_order(self.db.urls(), sent).await;
    }
}

/// As [`World::has_all_in_order`], in these databases.
pub(crate) async fn all_in_order(urls: &[String], sent: &BTreeMap<Uuid, usize>) {
    let mut found = BTreeMap::new();
    for url in urls {
        let query = "select user_id, array_agg(event_id order by version), \
                 array_agg(version order by version) from order_events group by 1";
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        let rows = client.query(query, &[]).await.unwrap();
        for row in rows {
            let user: Uuid = row.get(0);
            let events: Vec<String> = row.get(1);
            let versions: Vec<i64> = row.get(2);
            let count = events.len();
            let expected: Vec<String> = (0..count).map(|number| format!("e{number}")).collect();
            assert_eq!(events, expected, "{user}: lost, twice or out of order");
            let expected: Vec<i64> = (1..).take(count).collect();
            assert_eq!(versions, expected, "{user}");
            assert_eq!(found.insert(user, count), None, "{user} is on two servers");
        }
    }
    assert_eq!(&found, sent);
}

/// In the log, whatever a user sent before the map changed lies in its old partition, and all later in its new one.
/// Gives how many users have moved.
pub(crate) fn log_is_in_order(ring: &Ring, old: &SlotMap, new: &SlotMap) -> usize {
    let mut numbers: HashMap<(Uuid, i32), Vec<usize>> = HashMap::new();
    for (key, partition, value) in records(ring, new.partition_count()) {
        let user = Uuid::try_parse_ascii(&key).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&value).unwrap();
        let id = value["provider_event_id"].as_str().unwrap();
        let number = id.strip_prefix('e').unwrap().parse().unwrap();
        numbers.entry((user, partition)).or_default().push(number);
    }
    let mut moved = 0;
    for ((user, partition), here) in &numbers {
        let (before, after) = (partition_of(old, *user), partition_of(new, *user));
        assert!([before, after].contains(partition), "{user} in {partition}");
        if *partition != after || before == after {
            continue;
        }
        moved += 1;
        let last_before = numbers
            .get(&(*user, before))
            .and_then(|there| there.iter().max());
        let first_after = here.iter().min().unwrap();
        // Equal: the broker had it, did not say so in time, and the user sent it again.
        assert!(
            last_before.is_none_or(|last| last <= first_after),
            "{user}: {last_before:?} in partition {before}, {first_after} in {after}"
        );
    }
    moved
}

/// Key, partition and value of all orders.
fn records(ring: &Ring, partitions: u32) -> Vec<(Vec<u8>, i32, Vec<u8>)> {
    let topic = ring.topics.of(Source::Orders);
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &ring.bootstrap)
        .set("group.id", "storm")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    let mut missing: HashMap<i32, i64> = HashMap::new();
    for partition in 0..i32::try_from(partitions).unwrap() {
        let (start, end) = consumer
            .fetch_watermarks(&topic, partition, PATIENCE)
            .unwrap();
        if end > start {
            list.add_partition_offset(&topic, partition, Offset::Beginning)
                .unwrap();
            missing.insert(partition, end);
        }
    }
    consumer.assign(&list).unwrap();
    let mut found = Vec::new();
    while !missing.is_empty() {
        let message = consumer.poll(PATIENCE).expect("there is more").unwrap();
        if missing[&message.partition()] == message.offset() + 1 {
            missing.remove(&message.partition());
        }
        let bytes = |slice: Option<&[u8]>| slice.unwrap().to_vec();
        found.push((
            bytes(message.key()),
            message.partition(),
            bytes(message.payload()),
        ));
    }
    found
}
