//! Routing consistency, asked of everyone who computes or enforces it.
//!
//! The same keys go through the router, Postgres's own functions, Citus's own functions, the CHECKs of manual shards,
//! a real producer's topic and a real worker's rows. None of them is compared with a stored expectation.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde::Serialize;
use shardlane_domain::Source;
use shardlane_router::{Epoch, RouteKey, ShardId, SlotMap, TokenHash};
use shardlane_sql::servers::LayoutDatabase;
use shardlane_sql::{CitusPath, Layout, Store, StoreOptions, TABLES};
use shardlane_worker::{TopicSet, WorkerSettings, create_topics};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::fill::fill;
use crate::lab::{Lab, connect};
use crate::replay::consume;
use crate::results::Skipped;
use crate::stream::{StreamSettings, Webhook, generate};

/// How many disagreements are shown in full.
const SHOWN_MAX: usize = 5;

/// What to ask.
#[derive(Debug, Clone, Copy)]
pub struct CheckOptions {
    /// Keys of each type.
    pub keys: usize,
    /// Seed of the keys.
    pub seed: u64,
    /// Kafka partitions.
    pub partitions: u32,
    /// Manual shards.
    pub shards: u32,
    /// Citus shards.
    pub citus_shards: u32,
}

/// What everyone said.
#[derive(Debug, Default, Serialize)]
pub struct CheckReport {
    /// One question each.
    pub checks: Vec<Check>,
    /// Who could not be asked.
    pub skipped: Vec<Skipped>,
}

/// One question, asked for many keys.
#[derive(Debug, Serialize)]
pub struct Check {
    /// Who is compared with the router.
    pub name: String,
    /// Keys asked.
    pub asked: usize,
    /// Keys on which both agree.
    pub agreed: usize,
    /// The first disagreements, as sentences.
    pub disagreements: Vec<String>,
}

impl CheckReport {
    /// Whether anyone disagreed.
    pub fn agrees(&self) -> bool {
        self.checks.iter().all(|check| check.agreed == check.asked)
    }

    /// Compares `ours` with `theirs`, key by key.
    fn compare<T: PartialEq + std::fmt::Display>(
        &mut self,
        name: &str,
        answers: impl IntoIterator<Item = (String, T, T)>,
    ) {
        let (mut asked, mut agreed, mut disagreements) = (0, 0, Vec::new());
        for (key, ours, theirs) in answers {
            asked += 1;
            if ours == theirs {
                agreed += 1;
            } else if disagreements.len() < SHOWN_MAX {
                disagreements.push(format!(
                    "{key}: the router says {ours}, {name} says {theirs}"
                ));
            }
        }
        self.checks.push(Check {
            name: name.to_owned(),
            asked,
            agreed,
            disagreements,
        });
    }
}

impl std::fmt::Display for CheckReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for check in &self.checks {
            let verdict = if check.agreed == check.asked {
                "agree"
            } else {
                "DISAGREE"
            };
            writeln!(
                f,
                "{:<52} {:>7} of {:>7}  {verdict}",
                check.name, check.agreed, check.asked
            )?;
            for disagreement in &check.disagreements {
                writeln!(f, "    {disagreement}")?;
            }
        }
        for skipped in &self.skipped {
            writeln!(f, "skipped {}: {}", skipped.layout, skipped.reason)?;
        }
        Ok(())
    }
}

/// Starts servers, asks, and stops them.
///
/// # Errors
/// Where a server cannot be started or asked; a disagreement is no error but stands in the report.
pub async fn run(options: &CheckOptions) -> anyhow::Result<CheckReport> {
    let shards: Vec<ShardId> = (0..i64::from(options.shards)).map(ShardId).collect();
    let map = SlotMap::aligned(Epoch(1), TokenHash::Postgres, options.partitions, &shards)?;
    let lab = Lab::start(&[Layout::Shards, Layout::Citus], shards.len()).await?;
    let keys = Keys::generate(options);
    let mut report = CheckReport::default();
    for servers in &lab.layouts {
        let database = servers.create("check", &map, options.citus_shards).await?;
        let client = connect(&database.urls()[0]).await?;
        match servers.layout() {
            Layout::Citus => {
                citus_hashes(&mut report, &client, &keys).await?;
                citus_shards(&mut report, &client, &keys).await?;
            }
            Layout::Single | Layout::Partman | Layout::Shards => {
                postgres_hashes(&mut report, &client, &keys).await?;
                slot_checks(&mut report, &database, &keys).await?;
                records(&mut report, &lab, &database, options).await?;
            }
        }
    }
    report.skipped.extend(lab.skipped.iter().cloned());
    Ok(report)
}

struct Keys {
    uuids: Vec<Uuid>,
    ints: Vec<i64>,
    texts: Vec<String>,
}

impl Keys {
    fn generate(options: &CheckOptions) -> Keys {
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        let uuids =
            (0..options.keys).map(|_| uuid::Builder::from_random_bytes(rng.random()).into_uuid());
        let uuids = uuids.collect();
        let ints = (0..options.keys).map(|_| rng.random()).collect();
        let texts = (0..options.keys)
            .map(|_| {
                let length = rng.random_range(1..40);
                (0..length)
                    .map(|_| rng.random_range('\u{1}'..'\u{300}'))
                    .collect()
            })
            .collect();
        Keys { uuids, ints, texts }
    }
}

fn hash(key: &RouteKey<'_>) -> i32 {
    TokenHash::Postgres.hash_i32(key)
}

/// Asks one hash function of the server for the keys of each type.
async fn hashes(
    report: &mut CheckReport,
    client: &Client,
    keys: &Keys,
    functions: [&str; 3],
) -> anyhow::Result<()> {
    let [uuid, int8, text] = functions;
    let rows = client
        .query(
            &format!("select {uuid} from unnest($1::uuid[]) as k"),
            &[&keys.uuids],
        )
        .await?;
    report.compare(
        &format!("uuid: {uuid}"),
        keys.uuids.iter().zip(&rows).map(|(key, row)| {
            (
                key.to_string(),
                hash(&RouteKey::Uuid(*key)),
                row.get::<_, i32>(0),
            )
        }),
    );
    let rows = client
        .query(
            &format!("select {int8} from unnest($1::bigint[]) as k"),
            &[&keys.ints],
        )
        .await?;
    report.compare(
        &format!("int8: {int8}"),
        keys.ints.iter().zip(&rows).map(|(key, row)| {
            (
                key.to_string(),
                hash(&RouteKey::Int8(*key)),
                row.get::<_, i32>(0),
            )
        }),
    );
    let rows = client
        .query(
            &format!("select {text} from unnest($1::text[]) as k"),
            &[&keys.texts],
        )
        .await?;
    report.compare(
        &format!("text: {text}"),
        keys.texts.iter().zip(&rows).map(|(key, row)| {
            (
                format!("{key:?}"),
                hash(&RouteKey::Text(key)),
                row.get::<_, i32>(0),
            )
        }),
    );
    Ok(())
}

async fn postgres_hashes(
    report: &mut CheckReport,
    client: &Client,
    keys: &Keys,
) -> anyhow::Result<()> {
    let functions = ["uuid_hash(k)", "hashint8(k)", "hashtext(k collate \"C\")"];
    hashes(report, client, keys, functions).await
}

async fn citus_hashes(
    report: &mut CheckReport,
    client: &Client,
    keys: &Keys,
) -> anyhow::Result<()> {
    hashes(report, client, keys, ["worker_hash(k)"; 3]).await
}

async fn citus_shards(
    report: &mut CheckReport,
    client: &Client,
    keys: &Keys,
) -> anyhow::Result<()> {
    let map = shardlane_citus::load(client, &TABLES, Epoch(1)).await?;
    let rows = client
        .query(
            "select get_shard_id_for_distribution_column('inbox', k) from unnest($1::uuid[]) as k",
            &[&keys.uuids],
        )
        .await?;
    report.compare(
        "uuid: get_shard_id_for_distribution_column(inbox)",
        keys.uuids.iter().zip(&rows).map(|(key, row)| {
            (
                key.to_string(),
                map.route(&RouteKey::Uuid(*key)).shard.0,
                row.get::<_, i64>(0),
            )
        }),
    );
    Ok(())
}

/// Tries to insert every key into every shard: only the owner's CHECK may let it in.
async fn slot_checks(
    report: &mut CheckReport,
    database: &LayoutDatabase,
    keys: &Keys,
) -> anyhow::Result<()> {
    let map = database.map();
    let mut takers: HashMap<Uuid, Vec<ShardId>> = HashMap::new();
    for (url, shard) in database.urls().iter().zip(map.shards()) {
        let client = connect(url).await?;
        client
            .batch_execute(
                "create function pg_temp.is_taken(k uuid) returns boolean language plpgsql as $$
                 begin
                     insert into order_directory (order_id, user_id) values ('check', k);
                     return true;
                 exception when check_violation then
                     return false;
                 end $$",
            )
            .await?;
        client.batch_execute("begin").await?;
        let rows = client
            .query(
                "select k, pg_temp.is_taken(k) from unnest($1::uuid[]) as k",
                &[&keys.uuids],
            )
            .await?;
        client.batch_execute("rollback").await?;
        for row in rows {
            let taken = takers.entry(row.get(0)).or_default();
            if row.get(1) {
                taken.push(*shard);
            }
        }
    }
    report.compare(
        "uuid: slot CHECKs of the manual shards",
        keys.uuids.iter().map(|key| {
            let ours = map.shard_for(&RouteKey::Uuid(*key)).to_string();
            let theirs: Vec<String> = takers
                .get(key)
                .into_iter()
                .flatten()
                .map(ToString::to_string)
                .collect();
            (key.to_string(), ours, theirs.join(" and "))
        }),
    );
    Ok(())
}

/// Sends webhooks with a real producer and lets a real worker take them: in which partition and which shard are they?
async fn records(
    report: &mut CheckReport,
    lab: &Lab,
    database: &LayoutDatabase,
    options: &CheckOptions,
) -> anyhow::Result<()> {
    let map = database.map();
    let bootstrap = lab.kafka.bootstrap();
    let topics = TopicSet::with_prefix("check");
    create_topics(
        &bootstrap,
        &topics,
        map.partition_count(),
        1,
        &[("retention.ms", "-1")],
    )
    .await?;
    let users = u32::try_from(options.keys)?;
    // Enough events for each user to have about one order.
    let settings = StreamSettings::ingest(options.keys * 3, users, 0.0, options.seed, 0);
    let stream = Arc::new(generate(&settings));
    {
        let (bootstrap, topics, map) = (bootstrap.clone(), topics.clone(), map.clone());
        let stream = Arc::clone(&stream);
        tokio::task::spawn_blocking(move || fill(&bootstrap, &topics, &map, &stream)).await??;
    }
    let found = {
        let (bootstrap, topics, map) = (bootstrap.clone(), topics.clone(), map.clone());
        let events = stream.len();
        tokio::task::spawn_blocking(move || partitions_in(&bootstrap, &topics, &map, events))
            .await??
    };
    report.compare(
        "uuid: the topic's partition of a producer's record",
        found.iter().map(|(key, partition)| {
            let user: Option<Uuid> = key.parse().ok();
            let ours = user.map_or(-1, |user| map.partition_for(&RouteKey::Uuid(user)).0);
            (key.clone(), ours, *partition)
        }),
    );

    let backend = database.backend(CitusPath::Owner);
    let store = Arc::new(Store::connect(backend, StoreOptions::default()).await?);
    let worker = WorkerSettings::new(bootstrap, "check".to_owned(), topics, map.clone());
    consume(worker, store, stream.len() as u64, |_| {}).await?;
    let mut shards_of: HashMap<Uuid, Vec<String>> = HashMap::new();
    for (url, shard) in database.urls().iter().zip(map.shards()) {
        let client = connect(url).await?;
        for row in client
            .query("select distinct user_id from inbox", &[])
            .await?
        {
            shards_of
                .entry(row.get(0))
                .or_default()
                .push(shard.to_string());
        }
    }
    let sent: std::collections::BTreeSet<Uuid> = stream
        .iter()
        .map(|webhook: &Webhook| webhook.user_id)
        .collect();
    report.compare(
        "uuid: the shard where the worker put the rows",
        sent.iter().map(|user| {
            let ours = map.shard_for(&RouteKey::Uuid(*user)).to_string();
            let theirs = shards_of
                .get(user)
                .map(|shards| shards.join(" and "))
                .unwrap_or_default();
            (user.to_string(), ours, theirs)
        }),
    );
    Ok(())
}

/// Reads every record of both topics: its key, and the partition in which it stands. Blocks.
fn partitions_in(
    bootstrap: &str,
    topics: &TopicSet,
    map: &SlotMap,
    events: usize,
) -> anyhow::Result<Vec<(String, i32)>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "check-partitions")
        .set("enable.auto.commit", "false")
        .create()?;
    let mut list = TopicPartitionList::new();
    for source in Source::ALL {
        for partition in 0..i32::try_from(map.partition_count())? {
            list.add_partition_offset(&topics.of(*source), partition, Offset::Beginning)?;
        }
    }
    consumer.assign(&list)?;
    let mut found = Vec::with_capacity(events);
    while found.len() < events {
        let message = consumer
            .poll(Duration::from_secs(30))
            .context("the topics hold fewer records than were sent")??;
        let key = String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned();
        found.push((key, message.partition()));
    }
    Ok(found)
}
