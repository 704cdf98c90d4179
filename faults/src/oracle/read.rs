//! Everything that the shards and the dead-letter topics hold, read past the router.

use std::collections::HashMap;

use anyhow::Context as _;
use futures_util::future::try_join_all;
use jiff::Timestamp;
use shardlane_domain::Source;
use shardlane_router::Slot;
use uuid::Uuid;

use super::model::{EventKey, State, StateKey};
use crate::log::{LogRecord, read};
use crate::world::{PARTITIONS, World};

/// A row of an event log.
#[derive(Debug, Clone)]
pub struct EventRow {
    /// Its shard.
    pub shard: usize,
    /// `applied` or `stale`.
    pub outcome: String,
    /// The state's version after it.
    pub version: i64,
    /// When the front door took it, in milliseconds since 1970.
    pub received_ms: i64,
    /// The body, byte for byte.
    pub payload: String,
}

/// What the servers hold.
#[derive(Debug, Default)]
pub struct Held {
    /// Records of the webhook topics.
    pub log: Vec<(&'static str, Vec<LogRecord>)>,
    /// Records of the dead-letter topics.
    pub dead: Vec<(&'static str, Vec<LogRecord>)>,
    /// Records of the feed's topics, by the topic's last name.
    pub feed: Vec<(&'static str, Vec<LogRecord>)>,
    /// Rows of the event logs.
    pub rows: HashMap<EventKey, Vec<EventRow>>,
    /// Rows of the inbox, with their shards.
    pub inbox: HashMap<EventKey, Vec<usize>>,
    /// Rows of the outbox: version, status.
    pub outbox: HashMap<EventKey, Vec<(i64, String)>>,
    /// Orders and disputes, with their shards.
    pub states: HashMap<StateKey, Vec<(usize, State)>>,
    /// Where outcomes are counted: source, partition -> how many records, and how many of them wait now.
    pub outcomes: HashMap<(&'static str, i32), (i64, i64)>,
    /// user, order.
    pub directory: HashMap<(Uuid, String), usize>,
    /// Each user's slot, as Postgres hashes it, on each shard that has a row of this user.
    pub homes: HashMap<Uuid, Vec<(usize, u16)>>,
}

impl Held {
    /// Reads everything.
    ///
    /// # Errors
    /// A server that does not answer.
    pub async fn read(world: &World<'_>) -> anyhow::Result<Held> {
        let mut held = Held::default();
        let partitions = i32::try_from(PARTITIONS)?;
        for source in Source::ALL {
            for dead in [false, true] {
                let topic = if dead {
                    world.topics.dlq_of(*source)
                } else {
                    world.topics.of(*source)
                };
                let bootstrap = world.bootstrap();
                let reading = move || read(&bootstrap, &topic, partitions);
                let records = tokio::task::spawn_blocking(reading).await??;
                let place = if dead { &mut held.dead } else { &mut held.log };
                place.push((source.as_str(), records));
            }
        }
        for (topic, name) in world
            .topics
            .feed()
            .into_iter()
            .zip(["read", "email", "events"])
        {
            let bootstrap = world.bootstrap();
            let reading = move || read(&bootstrap, &topic, partitions);
            let records = tokio::task::spawn_blocking(reading).await??;
            held.feed.push((name, records));
        }
        let shards = 0..world.databases.len();
        let parts = try_join_all(shards.map(|shard| shard_rows(world, shard))).await?;
        for part in parts {
            held.add(part);
        }
        Ok(held)
    }

    fn add(&mut self, part: Held) {
        extend(&mut self.rows, part.rows);
        extend(&mut self.inbox, part.inbox);
        extend(&mut self.outbox, part.outbox);
        extend(&mut self.states, part.states);
        extend(&mut self.homes, part.homes);
        for (key, (records, waiting)) in part.outcomes {
            let sum = self.outcomes.entry(key).or_default();
            *sum = (sum.0 + records, sum.1 + waiting);
        }
        for (key, count) in part.directory {
            *self.directory.entry(key).or_default() += count;
        }
    }
}

fn extend<K: Eq + std::hash::Hash, V>(to: &mut HashMap<K, Vec<V>>, from: HashMap<K, Vec<V>>) {
    for (key, mut values) in from {
        to.entry(key).or_default().append(&mut values);
    }
}

fn source_of(text: &str) -> anyhow::Result<&'static str> {
    let known = Source::ALL.iter().map(|source| source.as_str());
    known
        .into_iter()
        .find(|name| *name == text)
        .context("an unknown source")
}

async fn shard_rows(world: &World<'_>, shard: usize) -> anyhow::Result<Held> {
    let client = world.client(shard).await?;
    let mut held = Held::default();
    for (source, table) in [
        ("orders", "order_events"),
        ("chargebacks", "dispute_events"),
    ] {
        let query = format!(
            "select user_id, event_id, outcome, version, \
             floor(extract(epoch from received_at) * 1000)::bigint, payload::text from {table}"
        );
        for row in client.query(&query, &[]).await? {
            held.rows
                .entry((source, row.get(0), row.get(1)))
                .or_default()
                .push(EventRow {
                    shard,
                    outcome: row.get(2),
                    version: row.get(3),
                    received_ms: row.get(4),
                    payload: row.get(5),
                });
        }
    }
    for row in client
        .query("select source, user_id, event_id from inbox", &[])
        .await?
    {
        let key = (source_of(row.get(0))?, row.get(1), row.get(2));
        held.inbox.entry(key).or_default().push(shard);
    }
    let query = "select source, user_id, event_id, version, status from outbox";
    for row in client.query(query, &[]).await? {
        let key = (source_of(row.get(0))?, row.get(1), row.get(2));
        held.outbox
            .entry(key)
            .or_default()
            .push((row.get(3), row.get(4)));
    }
    for (source, query) in [
        (
            "orders",
            "select user_id, order_id, status, version, amount_minor, created_at, updated_at from orders",
        ),
        (
            "chargebacks",
            "select user_id, order_id, status, version, amount_minor, opened_at, updated_at from disputes",
        ),
    ] {
        for row in client.query(query, &[]).await? {
            let state = State {
                status: row.get(2),
                version: row.get(3),
                amount_minor: row.get(4),
                opened_at: row.get::<_, Timestamp>(5),
                updated_at: row.get::<_, Timestamp>(6),
            };
            held.states
                .entry((source, row.get(0), row.get(1)))
                .or_default()
                .push((shard, state));
        }
    }
    for row in client
        .query("select user_id, order_id from order_directory", &[])
        .await?
    {
        *held.directory.entry((row.get(0), row.get(1))).or_default() += 1;
    }
    if world.parks {
        let query = "select topic, kafka_partition, \
                     applied + duplicate + duplicate_with_different_payload + stale + illegal + parked + dead_lettered, \
                     parked - released - expired from kafka_outcomes";
        for row in client.query(query, &[]).await? {
            let source = Source::of_topic(row.get(0))?.as_str();
            let sum = held.outcomes.entry((source, row.get(1))).or_default();
            *sum = (sum.0 + row.get::<_, i64>(2), sum.1 + row.get::<_, i64>(3));
        }
    }
    let query = "select user_id, (((uuid_hash(user_id)::int8 + 2147483648) >> 20))::int4 from \
                 (select user_id from inbox union select user_id from orders union select user_id from disputes \
                  union select user_id from order_events union select user_id from dispute_events \
                  union select user_id from outbox union select user_id from order_directory) u";
    for row in client.query(query, &[]).await? {
        let slot = u16::try_from(row.get::<_, i32>(1))?;
        held.homes
            .entry(row.get(0))
            .or_default()
            .push((shard, slot));
    }
    Ok(held)
}

/// The shard that the map names for a slot.
pub(super) fn home_of(world: &World<'_>, slot: u16) -> Option<usize> {
    let slot = Slot::all().find(|it| it.number() == slot)?;
    let shard = world.map.shard_of(slot);
    world.map.shards().iter().position(|it| *it == shard)
}
