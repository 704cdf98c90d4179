//! [`SlotPartitioner`]: a slot map as rdkafka's custom partitioner.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rdkafka::producer::{PARTITION_UA, Partitioner};

use crate::hash::lookup3;
use crate::{KeyType, RouteKey, SlotMap};

/// Chooses the partition of each record by its key, inside librdkafka's callback.
///
/// Where you can, prefer the plain function: `FutureRecord::partition(map.partition_for(&key).0)`
/// sets the partition outright and meets none of the traps below. The partitioner is for producers
/// whose records are built by code that knows nothing of partitions.
///
/// It is pure, takes no lock, allocates nothing and does not panic, whatever the bytes and whatever
/// the partition count.
///
/// # What it answers
///
/// - A key that reads as the key type: the map's partition, always. If the topic has fewer
///   partitions than the map that may lie beyond the topic's end, and librdkafka fails the send with
///   `UnknownPartition`. That is meant: a failed send is seen, a record in a wrong partition is not.
///   If the topic has more partitions than the map the additional ones are never chosen.
/// - No key, or a key that does not read: `lookup3(bytes) % min(partition_cnt, map's partitions)`,
///   no key being no bytes. The choice is deterministic and always inside the topic; the record
///   arrives somewhere, where a worker refuses it with its reason. It is counted in
///   [`SlotPartitioner::unreadable_keys`].
/// - A topic of 0 or fewer partitions, with any key: `RD_KAFKA_PARTITION_UA` (-1), "not now".
///
/// # Example
///
/// Against the broker that lives inside librdkafka; `examples/kafka_producer.rs` takes a real one.
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicI32, Ordering};
/// use std::time::Duration;
///
/// use rdkafka::ClientConfig;
/// use rdkafka::client::ClientContext;
/// use rdkafka::message::{DeliveryResult, Message};
/// use rdkafka::mocking::MockCluster;
/// use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
/// use shardlane_router::{Epoch, KeyType, ShardId, SlotMap, SlotPartitioner, TokenHash};
///
/// struct Context {
///     partitioner: SlotPartitioner,
///     /// Where the broker has the record; a service counts deliveries and failures.
///     partition: AtomicI32,
/// }
///
/// impl ClientContext for Context {}
///
/// impl ProducerContext<SlotPartitioner> for Context {
///     type DeliveryOpaque = ();
///
///     fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
///         if let Ok(record) = result {
///             self.partition.store(record.partition(), Ordering::Relaxed);
///         }
///     }
///
///     fn get_custom_partitioner(&self) -> Option<&SlotPartitioner> {
///         Some(&self.partitioner)
///     }
/// }
///
/// let broker = MockCluster::new(1)?;
/// broker.create_topic("orders", 8, 1)?;
///
/// let map = SlotMap::aligned(Epoch(1), TokenHash::Postgres, 8, &[ShardId(0)])?;
/// let context = Context {
///     partitioner: SlotPartitioner::new(Arc::new(map), KeyType::Uuid),
///     partition: AtomicI32::new(-1),
/// };
/// let producer: ThreadedProducer<Context, SlotPartitioner> = ClientConfig::new()
///     .set("bootstrap.servers", broker.bootstrap_servers())
///     .set("message.timeout.ms", "30000")
///     .create_with_context(context)?;
/// let key = "550e8400-e29b-41d4-a716-446655440000";
/// producer.send(BaseRecord::to("orders").key(key).payload("paid")).map_err(|(error, _)| error)?;
/// producer.flush(Duration::from_secs(30))?;
/// assert_eq!(producer.context().partition.load(Ordering::Relaxed), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Traps of rdkafka 0.39
///
/// - `FutureProducer` silently ignores a custom partitioner. `BaseProducer` and `ThreadedProducer`
///   with a `ProducerContext` of your own call it.
/// - With no topic-level property set, a custom partitioner crashes the process: always set one,
///   such as `message.timeout.ms`.
/// - A null key bypasses the partitioner unless `sticky.partitioning.linger.ms` is 0.
/// - It may be called on librdkafka's threads, and several times for one record; so
///   [`SlotPartitioner::unreadable_keys`] counts calls, not records.
#[derive(Debug)]
pub struct SlotPartitioner {
    map: Arc<SlotMap>,
    key_type: KeyType,
    unreadable_keys: AtomicU64,
}

impl SlotPartitioner {
    /// A partitioner for records whose keys are the text of a `key_type`.
    #[must_use]
    pub fn new(map: Arc<SlotMap>, key_type: KeyType) -> SlotPartitioner {
        SlotPartitioner {
            map,
            key_type,
            unreadable_keys: AtomicU64::new(0),
        }
    }

    /// The map that it chooses by.
    #[must_use]
    pub fn map(&self) -> &Arc<SlotMap> {
        &self.map
    }

    /// How often a key was absent or did not read, since this partitioner was made.
    #[must_use]
    pub fn unreadable_keys(&self) -> u64 {
        self.unreadable_keys.load(Ordering::Relaxed)
    }

    /// The partition for a record with this key in a topic of `partition_cnt` partitions; see
    /// [`SlotPartitioner`].
    #[must_use]
    pub fn choose(&self, key: Option<&[u8]>, partition_cnt: i32) -> i32 {
        let Ok(topic_count @ 1..) = u32::try_from(partition_cnt) else {
            return PARTITION_UA;
        };
        if let Ok(key) = RouteKey::from_kafka_key(self.key_type, key) {
            return self.map.partition_for(&key).0;
        }
        self.unreadable_keys.fetch_add(1, Ordering::Relaxed);
        let hash = lookup3::hash_bytes(key.unwrap_or_default());
        // Neither count is 0, and the smaller one is at most 4096.
        let partition = hash % topic_count.min(self.map.partition_count());
        i32::try_from(partition).unwrap_or(PARTITION_UA)
    }
}

impl Partitioner for SlotPartitioner {
    fn partition(
        &self,
        _topic_name: &str,
        key: Option<&[u8]>,
        partition_cnt: i32,
        _is_partition_available: impl Fn(i32) -> bool,
    ) -> i32 {
        // Availability is not asked: a key whose partition has no leader must wait for it, because
        // elsewhere it would overtake itself.
        self.choose(key, partition_cnt)
    }
}
