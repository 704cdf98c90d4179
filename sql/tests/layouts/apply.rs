//! What a stream of webhooks leaves behind, and where.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use rand::RngExt;
use serde_json::json;
use shardlane_domain::{Event, Source};
use shardlane_router::{RouteKey, ShardId};
use shardlane_sql::testing::TestDb;
use shardlane_sql::{Layout, TABLES, Target};
use uuid::Uuid;

use crate::events::{at, dispute_with, from_kafka, order, order_with, rng, users};
use crate::ground::{Ground, OF_THE_SHARD, apply, by_target, citus_map, connect};
use crate::model::Model;

const USERS: usize = 40;
const BATCH: usize = 30;

on_every_layout!(
    a_stream_becomes_the_rows_that_an_independent_model_expects,
    rows_lie_on_the_shard_that_the_map_names
);

/// Enough batches over the same connections that Postgres turns from custom to generic plans (after five).
async fn a_stream_becomes_the_rows_that_an_independent_model_expects(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let store = db.store().await;
    let events = stream(1);
    let mut model = Model::default();
    let mut found = [0; 3];
    let mut next: HashMap<(Source, Target), i64> = HashMap::new();
    let mut offsets: HashMap<Source, i64> = HashMap::new();
    for batch in events.chunks(BATCH) {
        for source in [Source::Orders, Source::Chargebacks] {
            let part: Vec<Event> = batch
                .iter()
                .filter(|it| it.source == source)
                .cloned()
                .collect();
            part.iter().for_each(|event| model.take(event));
            let first = offsets.entry(source).or_default();
            let records = from_kafka(part, source.topic(), 3, *first);
            *first += i64::try_from(records.len()).unwrap();
            for (target, _, group) in by_target(&store, &records) {
                next.insert(
                    (source, target),
                    group.last().unwrap().origin.as_ref().unwrap().offset + 1,
                );
            }
            let report = apply(&store, &records)
                .await
                .unwrap_or_else(|error| panic!("{ground:?}: {error}"));
            let counts = [
                report.applied + report.stale + report.released,
                report.parked,
                report.rejected.len() + report.letters.len(),
            ];
            for (sum, count) in found.iter_mut().zip(counts) {
                *sum += count;
            }
            assert_eq!(report.duplicates, 0, "no event came twice");
        }
    }
    let expected = [model.applied + model.stale, model.parked, model.rejected];
    assert_eq!(found, expected, "rows, parked and rejected of all reports");
    assert!(
        model.applied > 200 && model.stale > 10 && expected[1..].iter().all(|count| *count > 10),
        "a thin stream proves little: {expected:?}"
    );
    model.check(&db).await;

    let fences: HashMap<(Source, Target), i64> = store
        .fences()
        .await
        .unwrap()
        .into_iter()
        .map(|((topic, partition, target), next)| {
            assert_eq!(partition, 3);
            ((Source::of_topic(&topic).unwrap(), target), next)
        })
        .collect();
    assert_eq!(
        fences, next,
        "each target's fence stands behind the last offset that it was given"
    );
}

async fn rows_lie_on_the_shard_that_the_map_names(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let store = db.store().await;
    let mut events = stream(2);
    // Of every user one that waits.
    events.extend(
        users(2, USERS)
            .into_iter()
            .map(|user| order(user, "never", "never", "updated", 1)),
    );
    apply(&store, &from_kafka(events, "orders.webhooks", 0, 0))
        .await
        .unwrap();
    let (places, shard_of): (_, Box<dyn Fn(Uuid) -> ShardId>) = match ground.layout {
        Layout::Single | Layout::Partman => {
            let only = BTreeMap::from([(ShardId(0), db.urls()[0].clone())]);
            (users_by_database(&only).await, Box::new(|_| ShardId(0)))
        }
        Layout::Shards => {
            let map = db.database().map().clone();
            let urls = map
                .shards()
                .iter()
                .copied()
                .zip(db.urls().iter().cloned())
                .collect();
            (
                users_by_database(&urls).await,
                Box::new(move |user| map.shard_for(&RouteKey::Uuid(user))),
            )
        }
        Layout::Citus => {
            let map = citus_map(&db).await;
            (
                users_by_citus_shard(&db).await,
                Box::new(move |user| map.route(&RouteKey::Uuid(user)).shard),
            )
        }
    };
    let shards: BTreeSet<ShardId> = places.keys().map(|(shard, _)| *shard).collect();
    let expected = match ground.layout {
        Layout::Single | Layout::Partman => 1,
        Layout::Shards => 2,
        Layout::Citus => 4,
    };
    assert_eq!(shards.len(), expected, "shards that were looked at");
    for ((shard, table), users) in &places {
        // Citus's mixed path has one fence for the cluster, so three of its shards have none.
        let of_the_shard = OF_THE_SHARD.contains(&table.as_str());
        let may_be_empty = of_the_shard && ground.layout == Layout::Citus;
        assert!(
            may_be_empty || !users.is_empty(),
            "shard {shard} has no row in {table}: the test shows nothing"
        );
        // A manual shard's fences are the shard's own, not a user's.
        if of_the_shard && ground.layout == Layout::Shards {
            continue;
        }
        for user in users {
            assert_eq!(
                shard_of(*user),
                *shard,
                "a row of {user} in {table} lies on shard {shard}"
            );
        }
    }
}

type Places = BTreeMap<(ShardId, String), BTreeSet<Uuid>>;

async fn users_by_database(urls: &BTreeMap<ShardId, String>) -> Places {
    let mut places = Places::new();
    for (shard, url) in urls {
        let client = connect(url).await;
        for table in TABLES {
            let rows = client
                .query(&format!("select distinct user_id from {table}"), &[])
                .await
                .unwrap();
            places.insert(
                (*shard, table.to_owned()),
                rows.iter().map(|row| row.get(0)).collect(),
            );
        }
    }
    places
}

/// Asks each shard's own table, on its node; all tables of a colocation group count from the first one's shards.
async fn users_by_citus_shard(db: &TestDb) -> Places {
    let client = db.client(0).await;
    let mut places = Places::new();
    for table in TABLES {
        let rows = client
            .query(
                "select first.shardid, r.success, r.result
                 from run_command_on_shards($1::text::regclass,
                          'select string_agg(distinct user_id::text, '','') from %s') r
                 join pg_dist_shard s on s.shardid = r.shardid
                 join pg_dist_shard first on first.logicalrelid = 'inbox'::regclass
                                         and first.shardminvalue = s.shardminvalue",
                &[&table],
            )
            .await
            .unwrap();
        for row in rows {
            let (shard, success): (i64, bool) = (row.get(0), row.get(1));
            let result: Option<String> = row.get(2);
            assert!(success, "{table}, shard {shard}: {result:?}");
            let users = result
                .as_deref()
                .unwrap_or_default()
                .split(',')
                .filter(|it| !it.is_empty());
            places.insert(
                (ShardId(shard), table.to_owned()),
                users.map(|it| it.parse().unwrap()).collect(),
            );
        }
    }
    places
}

/// Orders with their disputes, of many users at once: each walk in its order, now and then an event that is too
/// old, too early or illegal.
pub(crate) fn stream(seed: u64) -> Vec<Event> {
    let mut rng = rng(seed);
    let mut walks: Vec<VecDeque<Event>> = Vec::new();
    for (index, user) in users(seed, USERS).into_iter().enumerate() {
        for nth in 0..rng.random_range(1..4) {
            let order_id = format!("order-{index}-{nth}");
            walks.push(walk(&mut rng, user, &order_id));
        }
    }
    let mut events = Vec::new();
    while !walks.is_empty() {
        let index = rng.random_range(0..walks.len());
        match walks[index].pop_front() {
            Some(event) => events.push(event),
            None => drop(walks.swap_remove(index)),
        }
    }
    events
}

fn walk(rng: &mut impl rand::Rng, user: Uuid, order_id: &str) -> VecDeque<Event> {
    let mut walk = VecDeque::new();
    let mut ids = 0;
    let mut id = |kind: &str| {
        ids += 1;
        format!("{order_id}-{kind}{ids}")
    };
    let order = |id: &str, status: &str, second, meta| {
        order_with(user, order_id, id, status, second, &meta)
    };
    let dispute = |id: &str, status: &str, second, more| {
        dispute_with(user, order_id, id, status, second, more)
    };
    if rng.random_bool(0.1) {
        walk.push_back(order(&id("early"), "updated", 5, json!({})));
    }
    let cents: u32 = rng.random_range(1..1_000_000);
    let money = json!({"amount": format!("{}.{:02}", cents / 100, cents % 100), "currency": "EUR"});
    walk.push_back(order(
        &id("o"),
        "created",
        10,
        if cents.is_multiple_of(3) {
            json!({})
        } else {
            money.clone()
        },
    ));
    for step in 0..rng.random_range(0..4) {
        walk.push_back(order(
            &id("o"),
            "updated",
            20 + step,
            if step == 1 { money.clone() } else { json!({}) },
        ));
    }
    if rng.random_bool(0.2) {
        walk.push_back(order(&id("stale"), "failed", 7, json!({})));
    }
    if rng.random_bool(0.8) {
        walk.push_back(order(
            &id("o"),
            if rng.random_bool(0.7) {
                "success"
            } else {
                "failed"
            },
            30,
            json!({}),
        ));
        if rng.random_bool(0.2) {
            walk.push_back(order(&id("illegal"), "updated", 40, json!({})));
        }
    }
    if rng.random_bool(0.6) {
        if rng.random_bool(0.2) {
            walk.push_back(dispute(&id("early"), "updated", 45, json!({})));
        }
        let due = if rng.random_bool(0.5) {
            json!({"evidence_due_at": at(900)})
        } else {
            json!({})
        };
        walk.push_back(dispute(&id("d"), "opened", 50, due));
        if rng.random_bool(0.5) {
            let more = json!({"reason": "not received \u{1f4e6} \"at all\"", "amount": 0.5, "currency": "USD",
                              "evidence_due_at": at(950)});
            walk.push_back(dispute(&id("d"), "updated", 60, more));
        }
        if rng.random_bool(0.3) {
            walk.push_back(dispute(&id("stale"), "closed", 40, json!({})));
        }
        let more = match rng.random_range(0..4) {
            0 => json!({"meta": {"resolution": "won"}}),
            1 => json!({"meta": {"resolution": "lost"}}),
            _ => json!({}),
        };
        walk.push_back(dispute(&id("d"), "closed", 70, more));
        if rng.random_bool(0.2) {
            walk.push_back(dispute(&id("illegal"), "updated", 80, json!({})));
        }
    }
    walk
}
