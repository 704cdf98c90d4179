//! Records into the partitions that the map names, by both ways that rdkafka offers.
//!
//! ```text
//! cargo run -p shardlane-router --features rdkafka --example kafka_producer [-- BOOTSTRAP TOPIC]
//! ```
//!
//! The topic must exist with 8 partitions. Without arguments the records go to a broker that lives
//! inside librdkafka, so that it runs anywhere.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{
    BaseRecord, FutureProducer, FutureRecord, Producer, ProducerContext, ThreadedProducer,
};
use shardlane_router::{Epoch, KeyType, ShardId, SlotMap, SlotPartitioner, TokenHash};
use uuid::Uuid;

const PARTITIONS: u32 = 8;
const PATIENCE: Duration = Duration::from_secs(30);

/// Key of a record -> the partition in which the broker has it.
pub(crate) type Placed = BTreeMap<String, i32>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (by_record, by_partitioner) = match &arguments[..] {
        [bootstrap, topic] => run(bootstrap, topic).await?,
        [] => {
            let broker = MockCluster::new(1)?;
            broker.create_topic("orders", PARTITIONS.cast_signed(), 1)?;
            run(&broker.bootstrap_servers(), "orders").await?
        }
        _ => return Err("usage: kafka_producer [BOOTSTRAP TOPIC]".into()),
    };
    println!("key                                   FutureRecord  SlotPartitioner");
    for (key, partition) in &by_record {
        println!("{key:36}  {partition:>12}  {:>15}", by_partitioner[key]);
    }
    if by_record == by_partitioner {
        Ok(())
    } else {
        Err("the two ways disagree".into())
    }
}

/// Sends a record for each of 20 users, once by each way; answers where the broker has them.
pub(crate) async fn run(bootstrap: &str, topic: &str) -> Result<(Placed, Placed), Box<dyn Error>> {
    // A service loads the map as JSON from where its operator keeps it; all producers and consumers
    // must have the same one. Never make it of the count that the broker reports: that may grow.
    let map = SlotMap::aligned(Epoch(1), TokenHash::Postgres, PARTITIONS, &[ShardId(0)])?;
    let users: Vec<Uuid> = (0..20).map(Uuid::from_u128).collect();
    let by_record = send_by_record(bootstrap, topic, &map, &users).await?;
    let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
    // This way's `flush` blocks its thread.
    let by_partitioner = tokio::task::spawn_blocking(move || {
        send_by_partitioner(&bootstrap, &topic, map, &users).map_err(|error| error.to_string())
    })
    .await??;
    Ok((by_record, by_partitioner))
}

/// The way to prefer: whoever builds the record sets its partition.
async fn send_by_record(
    bootstrap: &str,
    topic: &str,
    map: &SlotMap,
    users: &[Uuid],
) -> Result<Placed, Box<dyn Error>> {
    let producer: FutureProducer = config(bootstrap).create()?;
    check_topic(&producer, topic)?;
    let mut placed = Placed::new();
    for user in users {
        let key = user.to_string();
        let record = FutureRecord::to(topic)
            .key(&key)
            .payload("paid")
            .partition(map.partition_for(&(*user).into()).0);
        // Awaited one by one to keep this short; a service has many under way at once.
        let delivery = producer.send(record, PATIENCE).await;
        let delivery = delivery.map_err(|(error, _)| error)?;
        placed.insert(key, delivery.partition);
    }
    Ok(placed)
}

/// The way for code that builds records and knows nothing of partitions. `FutureProducer` would
/// ignore the partitioner without a word.
fn send_by_partitioner(
    bootstrap: &str,
    topic: &str,
    map: SlotMap,
    users: &[Uuid],
) -> Result<Placed, Box<dyn Error>> {
    let deliveries = Deliveries {
        partitioner: SlotPartitioner::new(Arc::new(map), KeyType::Uuid),
        placed: Mutex::default(),
    };
    let producer: ThreadedProducer<Deliveries, SlotPartitioner> =
        config(bootstrap).create_with_context(deliveries)?;
    check_topic(&producer, topic)?;
    for user in users {
        let key = user.to_string();
        let record = BaseRecord::to(topic).key(&key).payload("paid");
        // A full queue is an error here: a service waits and sends again.
        producer.send(record).map_err(|(error, _)| error)?;
    }
    producer.flush(PATIENCE)?;
    let context = producer.context();
    let unreadable = context.partitioner.unreadable_keys();
    let placed = context.placed.lock().map_err(|_| "a delivery panicked")?;
    if unreadable > 0 || placed.len() != users.len() {
        let (sent, delivered) = (users.len(), placed.len());
        return Err(
            format!("{delivered} of {sent} delivered, {unreadable} keys unreadable").into(),
        );
    }
    Ok(placed.clone())
}

/// What librdkafka calls: for the partition of each record, and with the broker's answer.
struct Deliveries {
    partitioner: SlotPartitioner,
    placed: Mutex<Placed>,
}

impl ClientContext for Deliveries {}

impl ProducerContext<SlotPartitioner> for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(record) => {
                let key = String::from_utf8_lossy(record.key().unwrap_or_default());
                if let Ok(mut placed) = self.placed.lock() {
                    placed.insert(key.into_owned(), record.partition());
                }
            }
            Err((error, _)) => eprintln!("not delivered: {error}"),
        }
    }

    fn get_custom_partitioner(&self) -> Option<&SlotPartitioner> {
        Some(&self.partitioner)
    }
}

fn config(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        // A topic-level property: without any, a custom partitioner crashes the process.
        .set("message.timeout.ms", "30000");
    config
}

/// A topic with fewer partitions than the map fails sends; one with more is fine, the map ignores
/// what it does not know.
fn check_topic<C, Part, P>(producer: &P, topic: &str) -> Result<(), Box<dyn Error>>
where
    C: ProducerContext<Part>,
    Part: rdkafka::producer::Partitioner,
    P: Producer<C, Part>,
{
    let metadata = producer.client().fetch_metadata(Some(topic), PATIENCE)?;
    let found = metadata
        .topics()
        .first()
        .map_or(0, |t| t.partitions().len());
    if found < PARTITIONS as usize {
        return Err(format!(
            "topic {topic} has {found} partitions and the map {PARTITIONS}; create it with {PARTITIONS}"
        )
        .into());
    }
    Ok(())
}
