//! Producer, topic, worker and shard agree where a user belongs.

use std::collections::HashMap;
use std::sync::Arc;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use shardlane_domain::Source;
use shardlane_router::{KeyType, SlotPartitioner};
use shardlane_sql::Layout;
use shardlane_worker::{HEADER_EPOCH, HEADER_HASH_ID, HEADER_SLOT};
use uuid::Uuid;

use crate::events::{order, order_json, partition_of, user, walks};
use crate::world::{PATIENCE, World, until_done};

#[tokio::test(flavor = "multi_thread")]
async fn a_mixed_stream_reaches_the_shards_that_the_map_names() {
    mixed_stream(Layout::Shards).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mixed_stream_reaches_the_owning_nodes_of_citus() {
    mixed_stream(Layout::Citus).await;
}

async fn mixed_stream(layout: Layout) {
    let Some(world) = World::new(layout).await else {
        return;
    };
    let ring = &world.ring;
    let users: Vec<Uuid> = (0..120).map(user).collect();
    let events = walks(users.iter().copied());
    let settings = ring.settings("");
    let worker = world.start(settings.clone()).await;
    ring.publish(&events).await;
    until_done(&worker, events.len()).await;
    let stats = worker.stats();
    worker.stop().await.unwrap();

    let counts = stats.counts();
    let taken = counts.applied + counts.parked;
    assert_eq!((counts.done, taken), (720, 720), "{counts:?}");
    let others = [
        counts.duplicates,
        counts.stale,
        counts.illegal,
        counts.too_early,
        counts.different_payload,
        counts.malformed,
        counts.fenced,
        counts.misrouted,
        counts.zombie_refusals,
    ];
    assert_eq!(others, [0; 9], "{counts:?}");
    assert!(stats.first_record_at().is_some());
    assert_eq!(stats.batch_latency_us().len(), counts.batches);
    world.has_walks_of(&users).await;
    ring.everything_is_committed(&settings);

    let mut sent: HashMap<(String, Vec<u8>), usize> = HashMap::new();
    for source in Source::ALL {
        for found in ring.read(&ring.topics.of(*source)) {
            let key = String::from_utf8(found.key.clone().unwrap()).unwrap();
            let user: Uuid = key.parse().unwrap();
            assert_eq!(key, user.to_string(), "the key is the canonical text");
            assert_eq!(found.partition, partition_of(&ring.map, user), "{user}");
            assert_eq!(found.header(HEADER_HASH_ID), ring.map.hash().id());
            assert_eq!(found.header(HEADER_EPOCH), "1");
            let slot = ring.map.route(&shardlane_router::RouteKey::Uuid(user)).slot;
            assert_eq!(found.header(HEADER_SLOT), slot.number().to_string());
            *sent.entry((key, found.value.unwrap())).or_default() += 1;
        }
        assert_eq!(ring.read(&ring.topics.dlq_of(*source)), []);
    }
    for event in &events {
        let key = (event.user_id.to_string(), event.payload.to_vec());
        assert_eq!(sent.remove(&key), Some(1), "{key:?}");
    }
    assert_eq!(sent, HashMap::new());

    if layout == Layout::Citus {
        // The fence of each Citus shard lies in that shard, on the node that owns it.
        let fences = world.db.store().await.fences().await.unwrap();
        assert!(fences.len() >= 8, "{fences:?}");
    }
}

struct Placing(SlotPartitioner);

impl ClientContext for Placing {}

impl ProducerContext<SlotPartitioner> for Placing {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}

    fn get_custom_partitioner(&self) -> Option<&SlotPartitioner> {
        Some(&self.0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitioner_plain_function_and_worker_agree() {
    const USERS: usize = 500;
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    let orders = ring.topics.of(Source::Orders);
    let users: Vec<Uuid> = (0..USERS).map(user).collect();
    // By the partitioner, in rdkafka's callback.
    let context = Placing(SlotPartitioner::new(
        Arc::new(ring.map.clone()),
        KeyType::Uuid,
    ));
    let producer: ThreadedProducer<Placing, SlotPartitioner> = ClientConfig::new()
        .set("bootstrap.servers", &ring.bootstrap)
        .set("message.timeout.ms", "60000")
        .create_with_context(context)
        .unwrap();
    for user in &users {
        let (key, value) = (
            user.to_string(),
            order_json(*user, "o1", "ord", "created", 1),
        );
        producer
            .send(BaseRecord::to(&orders).key(&key).payload(&value))
            .map_err(|(error, _)| error)
            .unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    assert_eq!(producer.context().0.unreadable_keys(), 0);
    // By the plain function.
    let updates: Vec<_> = users
        .iter()
        .map(|user| order(*user, "o2", "ord", "updated", 2))
        .collect();
    ring.publish(&updates).await;

    let mut partitions: HashMap<Uuid, Vec<i32>> = HashMap::new();
    for found in ring.read(&orders) {
        let user = Uuid::try_parse_ascii(found.key.as_deref().unwrap()).unwrap();
        partitions.entry(user).or_default().push(found.partition);
    }
    for user in &users {
        assert_eq!(
            partitions[user],
            [partition_of(&ring.map, *user); 2],
            "{user}"
        );
    }
    let used: std::collections::BTreeSet<i32> = partitions.into_values().flatten().collect();
    assert_eq!(
        used.len(),
        4,
        "the users are not spread over all partitions"
    );

    let worker = world.start(ring.settings("")).await;
    let counts = until_done(&worker, 2 * USERS).await;
    worker.stop().await.unwrap();
    assert_eq!((counts.misrouted, counts.applied), (0, 1000), "{counts:?}");
    for index in 0..2 {
        let client = world.db.client(index).await;
        for row in client
            .query("select user_id, version from orders", &[])
            .await
            .unwrap()
        {
            assert_eq!(world.server_of(row.get(0)), index);
            assert_eq!(row.get::<_, i64>(1), 2);
        }
    }
    assert_eq!(
        world
            .ask("select count(*) from orders")
            .await
            .iter()
            .sum::<i64>(),
        500
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_producers_records_reach_the_right_shard() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    let producer = ring.foreign_producer();
    let users: Vec<Uuid> = (0..60).map(user).collect();
    for (index, user) in users.iter().enumerate() {
        // Never in its own partition, and mostly in one of the other shard.
        let away = i32::try_from(index % 3).unwrap() + 1;
        let partition = (partition_of(&ring.map, *user) + away) % 4;
        let json = order_json(*user, "o1", "ord", "created", 1);
        let key = user.to_string();
        // A record without a key is no poison: its user decides.
        let key = (index != 7).then_some(key.as_bytes());
        ring.put(
            &producer,
            Source::Orders,
            partition,
            key,
            Some(json.as_bytes()),
        )
        .await;
    }
    let settings = ring.settings("");
    let worker = world.start(settings.clone()).await;
    let counts = until_done(&worker, users.len()).await;
    worker.stop().await.unwrap();
    assert_eq!(
        (counts.misrouted, counts.applied, counts.malformed),
        (60, 60, 0),
        "{counts:?}"
    );
    let mut seen = 0;
    for index in 0..2 {
        let client = world.db.client(index).await;
        for row in client
            .query("select user_id from orders", &[])
            .await
            .unwrap()
        {
            assert_eq!(world.server_of(row.get(0)), index);
            seen += 1;
        }
    }
    assert_eq!(seen, 60);
    ring.everything_is_committed(&settings);
    assert_eq!(ring.read(&ring.topics.dlq_of(Source::Orders)), []);

    // Each partition led to both shards, so each has a fence on both; a replay knows all of them.
    let before = world.digest().await;
    let worker = world.start(ring.settings("again")).await;
    let counts = until_done(&worker, users.len()).await;
    worker.stop().await.unwrap();
    assert_eq!(
        (counts.fenced, counts.applied, counts.duplicates),
        (60, 0, 0),
        "{counts:?}"
    );
    assert_eq!(world.digest().await, before);
}
