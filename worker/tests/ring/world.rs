//! A test's own database and topics, and ways to look at what became of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use jiff::Timestamp;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{Header, Headers as _, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use shardlane_domain::{Event, Source};
use shardlane_router::SlotMap;
use shardlane_sql::testing::{TestDb, kafka, test_map, unique};
use shardlane_sql::{Digest, KeepLetters, Layout, ParkedLetter, digest};
use shardlane_worker::{
    Counts, Publisher, Stats, TopicSet, Worker, WorkerSettings, accepted_now, create_topics,
};
use uuid::Uuid;

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Topics of a test's own, on the shared broker.
pub(crate) struct Ring {
    pub(crate) bootstrap: String,
    pub(crate) topics: TopicSet,
    pub(crate) map: SlotMap,
}

/// A database and topics.
pub(crate) struct World {
    pub(crate) db: TestDb,
    pub(crate) ring: Ring,
}

/// Where no dead letter is expected.
struct NoLetters;

impl KeepLetters for NoLetters {
    type Error = std::convert::Infallible;

    async fn keep(&self, letters: &[ParkedLetter]) -> Result<(), Self::Error> {
        panic!("{letters:?}");
    }
}

/// A record as it lies in a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) timestamp: Option<i64>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Found {
    /// The one header of this name, as text.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> &str {
        let values: Vec<_> = self.headers.iter().filter(|(key, _)| key == name).collect();
        let [(_, Some(value))] = &values[..] else {
            panic!("{name}: {values:?}")
        };
        std::str::from_utf8(value).unwrap()
    }
}

/// Asks until the answer is there. `Err` says what is still missing.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(last) => assert!(Instant::now() < deadline, "{what}: at last {last}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a worker's counters fulfil a condition.
pub(crate) async fn until_counts(
    stats: &Stats,
    what: &str,
    met: impl Fn(&Counts) -> bool,
) -> Counts {
    until(what, async || {
        let counts = stats.counts();
        if met(&counts) {
            Ok(counts)
        } else {
            Err(format!("{counts:?}"))
        }
    })
    .await
}

/// Waits until a worker has done so many records.
pub(crate) async fn until_done(worker: &Worker, records: usize) -> Counts {
    until_counts(&worker.stats(), "records done", |counts| {
        counts.done >= records as u64
    })
    .await
}

impl Ring {
    /// Topics with the partitions of [`test_map`], or a visible skip.
    pub(crate) async fn new() -> Option<Ring> {
        let ring = Ring {
            bootstrap: kafka().await?,
            topics: TopicSet::with_prefix(&unique("ring")),
            map: test_map(),
        };
        ring.create(ring.map.partition_count()).await;
        Some(ring)
    }

    pub(crate) async fn create(&self, partitions: u32) {
        create_topics(&self.bootstrap, &self.topics, partitions, 1, &[])
            .await
            .unwrap();
        // Made by the controller; the broker that is asked next may not have heard of them yet.
        let asker = self.asker("create");
        until("the topics", async || {
            for source in Source::ALL {
                let topic = self.topics.of(*source);
                let metadata = asker.fetch_metadata(Some(&topic), PATIENCE).unwrap();
                if metadata.topics()[0].partitions().is_empty() {
                    return Err(topic);
                }
            }
            Ok(())
        })
        .await;
    }

    /// Settings that are quick to retry.
    pub(crate) fn settings(&self, group: &str) -> WorkerSettings {
        let group = format!("{}{group}", self.topics.of(Source::Orders));
        let mut settings = WorkerSettings::new(
            self.bootstrap.clone(),
            group,
            self.topics.clone(),
            self.map.clone(),
        );
        settings.retry_delay_max = Duration::from_millis(200);
        settings
    }

    pub(crate) async fn publisher(&self) -> Publisher {
        let (bootstrap, topics) = (self.bootstrap.clone(), self.topics.clone());
        let map = Arc::new(self.map.clone());
        tokio::task::spawn_blocking(move || Publisher::connect(&bootstrap, topics, map, PATIENCE))
            .await
            .unwrap()
            .unwrap()
    }

    /// Publishes events: those of one user one after another, those of different users side by side.
    pub(crate) async fn publish(&self, events: &[Event]) {
        let publisher = self.publisher().await;
        let mut by_user: BTreeMap<Uuid, Vec<&Event>> = BTreeMap::new();
        for event in events {
            by_user.entry(event.user_id).or_default().push(event);
        }
        try_join_all(by_user.into_values().map(async |events| {
            for event in events {
                publisher.publish(event).await?;
            }
            Ok::<_, shardlane_worker::PublishError>(())
        }))
        .await
        .unwrap();
    }

    /// A producer that knows nothing of maps, and takes what the broker takes.
    pub(crate) fn foreign_producer(&self) -> FutureProducer {
        ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("message.max.bytes", "2000000")
            .create()
            .unwrap()
    }

    /// Puts one record where it is told to. Returns its offset.
    pub(crate) async fn put(
        &self,
        producer: &FutureProducer,
        source: Source,
        partition: i32,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> i64 {
        let topic = self.topics.of(source);
        // A while ago, and not so long ago that Kafka's retention would take it.
        let accepted = accepted_now().as_millisecond() - 60_000;
        let headers = OwnedHeaders::new()
            .insert(Header {
                key: "traceparent",
                value: Some("00-abc"),
            })
            .insert(Header {
                key: "ce_id",
                value: Some("its producer's"),
            })
            .insert(Header {
                key: "twice",
                value: Some("1"),
            })
            .insert(Header {
                key: "twice",
                value: Some("2"),
            })
            .insert(Header {
                key: "null",
                value: None::<&str>,
            });
        let mut record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(&topic)
            .partition(partition)
            .headers(headers)
            .timestamp(accepted);
        if let Some(key) = key {
            record = record.key(key);
        }
        if let Some(value) = value {
            record = record.payload(value);
        }
        producer
            .send(record, PATIENCE)
            .await
            .map_err(|(error, _)| error)
            .unwrap()
            .offset
    }

    /// A consumer with a group, for asking; it never joins.
    fn asker(&self, group: &str) -> BaseConsumer {
        ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .create()
            .unwrap()
    }

    fn partitions(&self) -> i32 {
        i32::try_from(self.map.partition_count()).unwrap()
    }

    /// (committed, end) of each partition of both topics; no commit is 0.
    pub(crate) fn offsets(&self, settings: &WorkerSettings) -> BTreeMap<(Source, i32), (i64, i64)> {
        let consumer = self.asker(&settings.group);
        let mut offsets = BTreeMap::new();
        for source in Source::ALL {
            let topic = self.topics.of(*source);
            let mut list = TopicPartitionList::new();
            list.add_partition_range(&topic, 0, self.partitions() - 1);
            let committed = consumer.committed_offsets(list, PATIENCE).unwrap();
            for element in committed.elements() {
                let committed = match element.offset() {
                    Offset::Offset(offset) => offset,
                    Offset::Invalid => 0,
                    other => panic!("{other:?}"),
                };
                let partition = element.partition();
                let (_, end) = consumer
                    .fetch_watermarks(&topic, partition, PATIENCE)
                    .unwrap();
                offsets.insert((*source, partition), (committed, end));
            }
        }
        offsets
    }

    /// Sets a group's offset of one partition, as an operator does it while the group is empty.
    pub(crate) fn set_offset(
        &self,
        settings: &WorkerSettings,
        source: Source,
        partition: i32,
        offset: i64,
    ) {
        let mut list = TopicPartitionList::new();
        let topic = self.topics.of(source);
        list.add_partition_offset(&topic, partition, Offset::Offset(offset))
            .unwrap();
        let asker = self.asker(&settings.group);
        asker.commit(&list, CommitMode::Sync).unwrap();
    }

    /// Each partition's committed offset is its log's end.
    #[track_caller]
    pub(crate) fn everything_is_committed(&self, settings: &WorkerSettings) {
        let offsets = self.offsets(settings);
        assert!(
            offsets.values().all(|(committed, end)| committed == end),
            "{offsets:?}"
        );
    }

    /// Everything in a topic, by partition and offset.
    pub(crate) fn read(&self, topic: &str) -> Vec<Found> {
        let consumer = self.asker("reader");
        let mut list = TopicPartitionList::new();
        let mut missing: HashMap<i32, i64> = HashMap::new();
        for partition in 0..self.partitions() {
            let (start, end) = consumer
                .fetch_watermarks(topic, partition, PATIENCE)
                .unwrap();
            if end > start {
                list.add_partition_offset(topic, partition, Offset::Beginning)
                    .unwrap();
                missing.insert(partition, end);
            }
        }
        consumer.assign(&list).unwrap();
        let mut found = Vec::new();
        while !missing.is_empty() {
            let message = consumer
                .poll(PATIENCE)
                .expect("the topic has more")
                .unwrap();
            if missing[&message.partition()] == message.offset() + 1 {
                missing.remove(&message.partition());
            }
            let headers = message.headers().map(|headers| {
                let pair = |header: Header<'_, &[u8]>| {
                    (header.key.to_owned(), header.value.map(<[u8]>::to_vec))
                };
                headers.iter().map(pair).collect()
            });
            found.push(Found {
                partition: message.partition(),
                offset: message.offset(),
                timestamp: message.timestamp().to_millis(),
                key: message.key().map(<[u8]>::to_vec),
                value: message.payload().map(<[u8]>::to_vec),
                headers: headers.unwrap_or_default(),
            });
        }
        found.sort_by_key(|found| (found.partition, found.offset));
        found
    }
}

impl World {
    pub(crate) async fn new(layout: Layout) -> Option<World> {
        let ring = Ring::new().await?;
        Some(World {
            db: TestDb::new(layout).await?,
            ring,
        })
    }

    pub(crate) async fn start(&self, settings: WorkerSettings) -> Worker {
        Worker::start(settings, self.db.store().await)
            .await
            .unwrap()
    }

    pub(crate) async fn digest(&self) -> Digest {
        self.sweep().await;
        digest(self.db.urls()).await.unwrap()
    }

    /// Executes on each server.
    pub(crate) async fn execute(&self, sql: &str) {
        for index in 0..self.db.urls().len() {
            self.db
                .client(index)
                .await
                .batch_execute(sql)
                .await
                .unwrap();
        }
    }

    /// One number from each server.
    pub(crate) async fn ask(&self, sql: &str) -> Vec<i64> {
        let mut numbers = Vec::new();
        for index in 0..self.db.urls().len() {
            let row = self
                .db
                .client(index)
                .await
                .query_one(sql, &[])
                .await
                .unwrap();
            numbers.push(row.get(0));
        }
        numbers
    }

    /// Each transaction takes so many seconds longer, so that one can step in between.
    pub(crate) async fn slow_down(&self, seconds: f64) {
        self.execute(&format!(
            "create function slow() returns trigger language plpgsql as \
             'begin perform pg_sleep({seconds}); return null; end'; \
             create trigger slow before insert on inbox for each statement execute function slow()"
        ))
        .await;
    }

    /// Lets go what a worker that stopped at once has left to the next one's sweep: a dispute that was parked while its
    /// order was being created.
    pub(crate) async fn sweep(&self) {
        let store = self.db.store().await;
        store.sweep(Timestamp::now(), &NoLetters).await.unwrap();
    }

    /// Each of these users has the rows of one walk, once and in order, on the server that the map names.
    pub(crate) async fn has_walks_of(&self, users: &[Uuid]) {
        self.sweep().await;
        let mut found: HashMap<Uuid, usize> = HashMap::new();
        for index in 0..self.db.urls().len() {
            let client = self.db.client(index).await;
            let query = "select i.user_id, count(*), \
                 (select string_agg(event_id || version, ' ' order by version) from order_events e \
                  where e.user_id = i.user_id), \
                 (select string_agg(event_id || version, ' ' order by version) from dispute_events e \
                  where e.user_id = i.user_id), \
                 (select status || version from orders o where o.user_id = i.user_id), \
                 (select status || version from disputes d where d.user_id = i.user_id), \
                 (select count(*) from outbox b where b.user_id = i.user_id) \
                 from inbox i group by 1";
            for row in client.query(query, &[]).await.unwrap() {
                let user: Uuid = row.get(0);
                assert_eq!(found.insert(user, index), None, "{user} is on two servers");
                assert_eq!(row.get::<_, i64>(1), 6, "{user}");
                assert_eq!(row.get::<_, &str>(2), "o11 o22 o33", "{user}");
                assert_eq!(row.get::<_, &str>(3), "d11 d22 d33", "{user}");
                assert_eq!(row.get::<_, &str>(4), "success3", "{user}");
                assert_eq!(row.get::<_, &str>(5), "closed3", "{user}");
                assert_eq!(row.get::<_, i64>(6), 6, "{user}");
            }
        }
        let expected: HashMap<Uuid, usize> = users
            .iter()
            .map(|user| (*user, self.server_of(*user)))
            .collect();
        assert_eq!(found, expected);
    }

    /// The index of the server that must hold a user.
    pub(crate) fn server_of(&self, user: Uuid) -> usize {
        if self.db.urls().len() == 1 {
            return 0;
        }
        let shard = self
            .ring
            .map
            .shard_for(&shardlane_router::RouteKey::Uuid(user));
        let place = self
            .ring
            .map
            .shards()
            .iter()
            .position(|known| *known == shard);
        place.unwrap()
    }
}
