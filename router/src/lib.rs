//! One hash decides where a key goes: which Kafka partition, which Postgres shard, which Citus shard
//! and which node.
//!
//! ```
//! use shardlane_router::{Epoch, KeyType, RouteKey, ShardId, SlotMap, TokenHash};
//!
//! // 8 partitions over 2 shards, hashed as Postgres hashes.
//! let map = SlotMap::aligned(Epoch(1), TokenHash::Postgres, 8, &[ShardId(0), ShardId(1)])?;
//!
//! let user = RouteKey::parse(KeyType::Uuid, "550e8400-e29b-41d4-a716-446655440000")?;
//! let route = map.route(&user);
//! assert_eq!(route.token.hash_i32(), -379807113); // select uuid_hash('550e8400-...')
//! assert_eq!((route.slot.number(), route.partition.0, route.shard.0), (1685, 3, 0));
//!
//! // A batch read from partition 3 touches one shard.
//! assert_eq!(map.shards_of(route.partition), [ShardId(0)]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The way of a key
//!
//! ```text
//! RouteKey --TokenHash--> i32 --^ sign bit--> Token --  >> 20  --> Slot --SlotMap--> PartitionId
//!                                               |                   `------SlotMap--> ShardId (manual)
//!                                               `-----ShardMap (ranges)-------------> ShardId (Citus), Node
//! ```
//!
//! - [`RouteKey`]: a uuid, a 64-bit integer or a text, read strictly.
//! - [`TokenHash`]: Postgres's own 32-bit hash (the default), or murmur3.
//! - [`Token`] and [`Slot`]: `token = hash ^ 0x8000_0000`, `slot = token >> 20`.
//! - [`SlotMap`]: slot to Kafka partition, and slot to manual shard, as tables with an [`Epoch`].
//! - [`ShardMap`]: sorted token ranges to shard to [`Node`], as in Citus's metadata.
//! - [`GrowthPlan`]: more or fewer partitions or shards with the fewest slots moved.
//! - [`explain`](explain()): all of it for one key, to read.
//!
//! # Invariants
//!
//! - **No I/O, no async, no clock, no randomness, no global state, no domain.** Every function is a
//!   function of its arguments.
//! - **Total.** Every key has exactly one token, slot, partition and shard. Only reading a key or
//!   building a map can fail, with a [`KeyError`] or a [`MapError`] that says what to do.
//! - **A bad key is an error, never a broadcast** to all shards.
//! - **A map that exists is valid**, also one that was deserialized.
//! - **Maps do not change.** A new map has a higher epoch; an epoch never goes back.
//! - **4096 slots, for ever** ([`SLOT_COUNT`]).
//! - **Never a formula over a count.** Slots go by table, Citus's shards by range search.
//! - **Nothing is allocated** on the way of a uuid or an integer; nothing is locked at all.
//!
//! What is *not* here: reading Citus's metadata and noticing changes, connections, SQL, and whether
//! two DSNs are one database. Those belong to the crates that do I/O.
//!
//! # Which rules the tokens keep
//!
//! The Postgres hash is the *standard* hash function of a type (`hashint8`, `uuid_hash`,
//! `hashtext`), which Citus distributes by; not the seeded one behind `PARTITION BY HASH`. A database
//! can therefore check a route by itself:
//!
//! ```sql
//! CHECK (((uuid_hash(user_id)::int8 + 2147483648) >> 20) BETWEEN 0 AND 2047)
//! ```
//!
//! `vectors.json` in this crate's folder holds golden vectors for other languages, and
//! `check_vectors.py` is a second implementation, in Python.
//!
//! # Placement comes from the key
//!
//! Never take a record's shard from the partition that it arrived in: a foreign producer may have
//! put it anywhere. Compute the route from the key and count the strays; then a foreign producer
//! costs locality and not correctness.
//!
//! # A Kafka producer
//!
//! The record's key is the key's text, and its partition the map's:
//!
//! ```
//! # use shardlane_router::{Epoch, KeyType, RouteKey, ShardId, SlotMap, TokenHash};
//! # let map = SlotMap::aligned(Epoch(1), TokenHash::Postgres, 8, &[ShardId(0)])?;
//! let key = RouteKey::parse(KeyType::Uuid, "550E8400-E29B-41D4-A716-446655440000")?;
//! let (text, partition) = (key.to_string(), map.partition_for(&key).0);
//! // FutureRecord::to("orders").key(&text).partition(partition).payload(..)
//! assert_eq!((text.as_str(), partition), ("550e8400-e29b-41d4-a716-446655440000", 3));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! For code that builds records and knows nothing of partitions there is `SlotPartitioner` (feature
//! `rdkafka`). `examples/kafka_producer.rs` has both ways.
//!
//! # A pool over manual shards
//!
//! One pool a shard, one statement a shard; `examples/manual_shards.rs` does it with bb8.
//!
//! ```
//! # use std::collections::BTreeMap;
//! # use shardlane_router::{Epoch, RouteKey, ShardId, SlotMap, TokenHash, group_by_shard};
//! # let map = SlotMap::aligned(Epoch(1), TokenHash::Postgres, 1, &[ShardId(0), ShardId(1)])?;
//! // In life the values are pools of connections.
//! let pools = BTreeMap::from([(ShardId(0), "db0"), (ShardId(1), "db1")]);
//! let mut sent = Vec::new();
//! for (shard, ids) in group_by_shard([1_i64, 2, 3], |id| map.shard_for(&RouteKey::Int8(*id))) {
//!     sent.push((pools[&shard], ids)); // insert into users select * from unnest($1::int8[])
//! }
//! assert_eq!(sent, [("db0", vec![1, 3]), ("db1", vec![2])]);
//! # Ok::<(), shardlane_router::MapError>(())
//! ```
//!
//! # A Citus writer
//!
//! A [`ShardMap`] of the cluster's metadata, as the crate `shardlane-citus` reads it, names the node
//! that holds a user. Send the statement there, *on the logical table*: then a map that is out of
//! date costs one hop and nothing else.
//!
//! ```
//! # use shardlane_router::{Epoch, KeyType, Node, RouteKey, ShardId, ShardMap, TokenHash};
//! # let nodes = (1..=2).map(|group| Node { group, host: format!("worker-{group}"), port: 5432 }).collect();
//! # let map = ShardMap::uniform(Epoch(1), TokenHash::Postgres, KeyType::Int8, nodes, ShardId(102008), 32)?;
//! let node = &map.nodes()[map.route(&RouteKey::Int8(42)).node];
//! assert_eq!(node.to_string(), "worker-2:5432"); // connect here: insert into orders ...
//! # Ok::<(), shardlane_router::MapError>(())
//! ```
//!
//! # Growing
//!
//! ```
//! use shardlane_router::{Epoch, ShardId, SlotMap, TokenHash};
//!
//! let twelve = SlotMap::aligned(Epoch(1), TokenHash::Postgres, 12, &[ShardId(0)])?;
//! let plan = twelve.plan_partitions(13)?;
//! assert_eq!(plan.moves.len(), 315); // 7.7 % of 4096; by `hash % 13` it would be 92 %
//! assert_eq!(plan.map.epoch(), Epoch(2));
//! println!("{}", twelve.diff(&plan.map)?); // slots 316-341: partition 0 -> 12 ...
//! # Ok::<(), shardlane_router::MapError>(())
//! ```
//!
//! # What a version promises
//!
//! Hashes, hash ids, slots, anchors and the JSON of maps never change. The Rust API follows semver;
//! [`uuid`] 1 and, with its feature, rdkafka 0.39 are part of it. [`RouteKey`], [`KeyType`],
//! [`TokenHash`] and [`Alignment`] are closed on purpose, so that a `match` over them is whole; what
//! the router hands out (routes, moves, plans, explanations) and its errors may gain fields and
//! variants.
//!
//! # Features
//!
//! - `rdkafka` (off): `SlotPartitioner`, a custom partitioner for rdkafka's producers, and the list
//!   of traps around it.

mod alignment;
mod anchor;
mod error;
mod excerpt;
mod explain;
mod group;
mod growth;
mod hash;
mod ids;
mod key;
#[cfg(feature = "rdkafka")]
mod partitioner;
mod range;
mod shard_map;
mod slot_map;
mod token;

pub use alignment::Alignment;
pub use anchor::anchor_uuid;
pub use error::{KeyError, MapError};
pub use excerpt::Excerpt;
pub use explain::{Explanation, explain};
pub use group::group_by_shard;
pub use growth::{GrowthPlan, SlotMove};
pub use hash::{TokenHash, lookup3};
pub use ids::{Epoch, PartitionId, ShardId};
pub use key::{KeyType, RouteKey};
#[cfg(feature = "rdkafka")]
pub use partitioner::SlotPartitioner;
pub use range::KeyRange;
pub use shard_map::{Node, ShardMap, ShardRange, ShardRoute};
pub use slot_map::{Route, SlotMap, SlotMapDiff, SlotRunMove};
pub use token::{SLOT_COUNT, Slot, Token};

/// The README's example, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
