//! The built `shardlane relay`, killed again and again while rows are written: every event reaches the topic, and each
//! user's in order.

use std::collections::{BTreeMap, HashMap};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use shardlane_router::RouteKey;
use shardlane_sql::Layout;
use shardlane_sql::testing::load::Writers;
use shardlane_sql::testing::{TEST_PARTITIONS, TestDb, kafka, test_map, unique};
use shardlane_worker::{TopicSet, create_topics};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(10);
const KILLS: usize = 8;
const USERS: usize = 40;

struct World {
    db: TestDb,
    kafka: String,
    prefix: String,
    topics: TopicSet,
}

/// A process that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl World {
    async fn new(layout: Layout) -> Option<World> {
        let (kafka, db) = (kafka().await?, TestDb::new(layout).await?);
        let prefix = unique("relay");
        let topics = TopicSet::with_prefix(&prefix);
        // The events are years old, and Kafka would take them for expired.
        let keep = [("retention.ms", "-1")];
        create_topics(&kafka, &topics, TEST_PARTITIONS, 1, &keep)
            .await
            .unwrap();
        let world = World {
            db,
            kafka,
            prefix,
            topics,
        };
        // Made by the controller; the broker that is asked next may not have heard of them yet.
        let (consumer, deadline) = (world.consumer(), Instant::now() + PATIENCE);
        for topic in world.topics.feed() {
            while tokio::task::block_in_place(|| consumer.fetch_watermarks(&topic, 0, PATIENCE))
                .is_err()
            {
                assert!(Instant::now() < deadline, "{topic}");
                tokio::time::sleep(PAUSE).await;
            }
        }
        Some(world)
    }

    fn start(&self, subcommand: &str, layout: Layout) -> Killed {
        // The topics of this test keep records for ever.
        let forever: &[&str] = match subcommand {
            "worker" => &["--inbox-retention", "off"],
            _ => &[],
        };
        let child = Command::new(env!("CARGO_BIN_EXE_shardlane"))
            .args([subcommand, "--layout", &layout.to_string(), "--database"])
            .arg(self.db.urls().join(","))
            .args(["--kafka", &self.kafka, "--prefix", &self.prefix])
            .args(["--partitions", &TEST_PARTITIONS.to_string()])
            .args(forever)
            .env_remove("SHARDLANE_DATABASE")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Killed(child)
    }

    async fn waiting(&self) -> i64 {
        let mut rows = 0;
        for index in 0..self.db.urls().len() {
            let client = self.db.client(index).await;
            let count = client.query_one("select count(*) from outbox", &[]).await;
            rows += count.unwrap().get::<_, i64>(0);
        }
        rows
    }

    fn consumer(&self) -> BaseConsumer {
        ClientConfig::new()
            .set("bootstrap.servers", &self.kafka)
            .set("group.id", "reader")
            .set("enable.auto.commit", "false")
            .create()
            .unwrap()
    }

    /// Where each partition of a topic ends.
    fn ends(&self, topic: &str) -> BTreeMap<i32, i64> {
        let consumer = self.consumer();
        let partitions = 0..i32::try_from(TEST_PARTITIONS).unwrap();
        partitions
            .map(|partition| {
                // A partition that was just made has no leader for a moment.
                let deadline = Instant::now() + PATIENCE;
                loop {
                    match consumer.fetch_watermarks(topic, partition, PATIENCE) {
                        Ok((_, end)) => break (partition, end),
                        Err(error) => assert!(Instant::now() < deadline, "{error}"),
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            })
            .collect()
    }

    fn records(&self, topic: &str) -> i64 {
        tokio::task::block_in_place(|| self.ends(topic).values().sum())
    }

    /// Everything in a topic, each partition in order.
    fn read<T>(&self, topic: &str, take: impl Fn(&BorrowedMessage<'_>) -> T) -> Vec<T> {
        let (consumer, mut ends) = (self.consumer(), self.ends(topic));
        ends.retain(|_, end| *end > 0);
        let mut list = TopicPartitionList::new();
        for partition in ends.keys() {
            list.add_partition_offset(topic, *partition, Offset::Beginning)
                .unwrap();
        }
        consumer.assign(&list).unwrap();
        let mut found = Vec::new();
        while !ends.is_empty() {
            let message = consumer.poll(PATIENCE).expect("there is more").unwrap();
            if ends[&message.partition()] == message.offset() + 1 {
                ends.remove(&message.partition());
            }
            found.push(take(&message));
        }
        found
    }
}

/// What a consumer of `domain.events` goes by.
#[derive(Debug)]
struct Seen {
    user: Uuid,
    id: String,
    version: u64,
}

fn seen(message: &BorrowedMessage<'_>) -> Seen {
    let header = |name: &str| {
        let headers = message.headers().unwrap();
        let found = headers.iter().find(|header| header.key == name);
        String::from_utf8(found.unwrap().value.unwrap().to_vec()).unwrap()
    };
    let user: Uuid = std::str::from_utf8(message.key().unwrap())
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(
        message.partition(),
        test_map().partition_for(&RouteKey::Uuid(user)).0
    );
    let body: serde_json::Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
    assert_eq!(body["id"], header("ce_id"));
    Seen {
        user,
        id: header("ce_id"),
        version: body["version"].as_u64().unwrap(),
    }
}

/// Two relays compete; whichever leads is killed while it publishes, and the other one goes on.
async fn killed_again_and_again(subcommand: &str, layout: Layout) {
    let Some(world) = World::new(layout).await else {
        return;
    };
    let store = world.db.store().await;
    let writers = Writers::start(&store, USERS);
    let topic = world.topics.events();
    let mut relays = [0, 1].map(|_| world.start(subcommand, layout));
    for kill in 0..KILLS {
        // It publishes, and rows are on their way.
        let (before, deadline) = (world.records(&topic), Instant::now() + PATIENCE);
        while world.records(&topic) == before || world.waiting().await == 0 {
            assert!(Instant::now() < deadline, "nothing is published any more");
        }
        if kill % 3 == 2 {
            // Both at once: there is nobody to take over.
            relays = [0, 1].map(|_| world.start(subcommand, layout));
        } else {
            relays[kill % 2] = world.start(subcommand, layout);
        }
    }
    writers.go_on().await;
    let written = writers.stop().await;
    let deadline = Instant::now() + PATIENCE;
    while world.waiting().await > 0 {
        assert!(Instant::now() < deadline, "the outbox is never empty");
        tokio::time::sleep(PAUSE).await;
    }
    drop(relays);

    let published = tokio::task::block_in_place(|| world.read(&topic, seen));
    let mut newest: HashMap<Uuid, u64> = HashMap::new();
    let mut ids: HashMap<(Uuid, u64), &str> = HashMap::new();
    for Seen { user, id, version } in &published {
        if let Some(known) = ids.insert((*user, *version), id) {
            assert_eq!(known, id, "a repeated event has the same id");
            continue;
        }
        let newest = newest.entry(*user).or_default();
        assert_eq!(*version, *newest + 1, "{user}: a gap, or out of order");
        *newest = *version;
    }
    let newest: BTreeMap<Uuid, u64> = newest.into_iter().collect();
    assert_eq!(newest, written.events);
    let total: u64 = written.events.values().sum();
    let repeated = published.len() as u64 - total;
    println!("{total} events, {KILLS} kills or more, {repeated} published again");
    assert!(repeated > 0, "no kill struck between publish and delete");
    let states = world.records(&world.topics.read());
    assert!(states.unsigned_abs() >= total, "{states}");
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_that_are_killed_lose_nothing_on_one_server() {
    killed_again_and_again("relay", Layout::Single).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_killed_lose_nothing_of_their_shards_outboxes() {
    killed_again_and_again("worker", Layout::Shards).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_that_are_killed_lose_nothing_on_citus() {
    killed_again_and_again("relay", Layout::Citus).await;
}
