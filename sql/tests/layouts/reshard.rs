//! Slots that move between manual shards while writers write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shardlane_router::{Epoch, RouteKey, ShardId};
use shardlane_sql::reshard::{Change, Reshard, ReshardOptions, Step};
use shardlane_sql::testing::{TestDb, spare_database, test_map};
use shardlane_sql::{ErrorClass, Layout, Record, Store, digest};
use uuid::Uuid;

use crate::events::{order, users};

/// Writes orders of its users, one after the other, for as long as it shall; waits out whatever passes.
struct Writers {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<Duration>>,
}

fn record(user: Uuid, round: u64) -> Record {
    let status = if round == 0 { "created" } else { "updated" };
    let mut event = order(user, "o", &format!("e{round}"), status, 1 + round as i64);
    // The same in the undisturbed run.
    event.received_at = jiff::Timestamp::from_second(1_700_000_000 + round as i64).unwrap();
    Record {
        event,
        origin: None,
    }
}

impl Writers {
    fn start(store: &Store, users: &[Uuid]) -> Writers {
        let (stop, written): (Arc<AtomicBool>, Arc<AtomicU64>) = Default::default();
        let tasks = users
            .chunks(users.len() / 4)
            .map(|users| {
                let (store, users) = (store.clone(), users.to_vec());
                let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
                tokio::spawn(async move {
                    let (mut stall, mut round) = (Duration::ZERO, 0);
                    while !stop.load(Ordering::Relaxed) {
                        for user in &users {
                            let began = Instant::now();
                            write(&store, &record(*user, round)).await;
                            stall = stall.max(began.elapsed());
                            written.fetch_add(1, Ordering::Relaxed);
                        }
                        round += 1;
                    }
                    stall
                })
            })
            .collect();
        Writers {
            stop,
            written,
            tasks,
        }
    }

    /// How many events were written, and the longest wait of one.
    async fn stop(self) -> (u64, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let mut stall = Duration::ZERO;
        for task in self.tasks {
            stall = stall.max(task.await.unwrap());
        }
        (self.written.load(Ordering::Relaxed), stall)
    }
}

async fn write(store: &Store, record: &Record) {
    loop {
        let routes = store.routes();
        let Some(target) = routes.target_of(record.event.user_id) else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let staged = match store.stage(target, std::slice::from_ref(record)).await {
            Ok(staged) => staged,
            Err(error) => {
                let class = error.class();
                assert!(
                    matches!(class, ErrorClass::Transient | ErrorClass::Rerouted),
                    "{error}"
                );
                store.refresh(routes.epoch()).await;
                continue;
            }
        };
        let report = staged.report().clone();
        if staged.commit().await.is_ok() {
            assert_eq!(report.applied + report.duplicates, 1, "{report:?}");
            return;
        }
    }
}

/// Every row lies on the shard that the catalog names, and the sum of all is that of an undisturbed run.
async fn check(reshard: &Reshard, urls: &[String], users: &[Uuid], written: u64) {
    let catalog = reshard.catalog().await.unwrap();
    assert!(catalog.frozen.is_empty());
    let mut rows = 0;
    for entry in &catalog.shards {
        let url = urls
            .iter()
            .find(|url| url.ends_with(&format!("/{}", entry.database)))
            .unwrap();
        let client = crate::ground::connect(url).await;
        for table in [
            "orders",
            "order_events",
            "inbox",
            "outbox",
            "order_directory",
        ] {
            let query = format!("select distinct user_id from {table}");
            for row in client.query(&query, &[]).await.unwrap() {
                let owner = catalog.map.shard_for(&RouteKey::Uuid(row.get(0)));
                assert_eq!(owner, entry.shard, "a row of {table}");
            }
        }
        let count = client
            .query_one("select count(*) from order_events", &[])
            .await;
        rows += count.unwrap().get::<_, i64>(0);
    }
    assert_eq!(rows, i64::try_from(written).unwrap(), "each event once");

    let undisturbed = TestDb::new(Layout::Single).await.unwrap();
    let store = undisturbed.store().await;
    let rounds = written / users.len() as u64 + 2;
    let mut left = std::collections::HashMap::new();
    for entry in &catalog.shards {
        let url = urls
            .iter()
            .find(|url| url.ends_with(&format!("/{}", entry.database)))
            .unwrap();
        let query = "select user_id, version from orders";
        for row in crate::ground::connect(url)
            .await
            .query(query, &[])
            .await
            .unwrap()
        {
            left.insert(row.get::<_, Uuid>(0), row.get::<_, i64>(1));
        }
    }
    for user in users {
        let versions = left.get(user).copied().unwrap_or(0);
        assert!(u64::try_from(versions).unwrap() <= rounds * 2);
        for round in 0..u64::try_from(versions).unwrap() {
            write(&store, &record(*user, round)).await;
        }
    }
    let owned: Vec<String> = urls.to_vec();
    let (ours, theirs) = (
        digest(&owned).await.unwrap(),
        digest(undisturbed.urls()).await.unwrap(),
    );
    assert_eq!(ours, theirs);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_become_three_and_two_again_under_load() {
    let Some(db) = TestDb::new(Layout::Shards).await else {
        return;
    };
    let Some(spare) = spare_database().await else {
        return;
    };
    let store = db.store().await;
    let users = users(91, 200);
    let writers = Writers::start(&store, &users);

    let mut reshard = Reshard::connect(db.urls(), test_map(), ReshardOptions::default())
        .await
        .unwrap();
    let grow = Change {
        add: vec![spare.clone()],
        ..Change::default()
    };
    let plan = reshard.run(&grow, print).await.unwrap();
    assert_eq!(plan.targets(), [ShardId(2)]);
    let shrink = Change {
        remove: vec![ShardId(2)],
        ..Change::default()
    };
    let mut urls = db.urls().to_vec();
    urls.push(spare);
    let grown = store.routes().epoch();
    assert!(
        grown > Epoch(1),
        "the store has learned the new map by itself"
    );
    reshard.run(&shrink, print).await.unwrap();
    let (written, stall) = writers.stop().await;
    println!("{written} events, longest wait {stall:?}");
    assert!(written > 0);
    check(&reshard, &urls, &users, written).await;
}

fn print(step: Step, number: usize, steps: usize) {
    let now = jiff::Timestamp::now();
    println!("{now} {number}/{steps} {step}");
}
