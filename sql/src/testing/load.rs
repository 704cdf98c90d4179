//! Writers that write while a test moves slots beneath them, and the oracle for what became of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use shardlane_domain::{Event, Source};
use shardlane_router::{RouteKey, ShardId};
use tokio_postgres::Client;
use uuid::Uuid;

use super::TestDb;
use crate::follow::connect;
use crate::reshard::Reshard;
use crate::store::parse;
use crate::{Digest, ErrorClass, Layout, Record, SLOT_TABLES, Store, digest};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);
const WRITERS: usize = 4;
const BATCH_ROWS: usize = 1_000;

/// A user that is the same in each run. Its hash is as good as any.
#[must_use]
pub fn user(number: usize) -> Uuid {
    Uuid::from_u128(0x5eed_0000_0000_4000_8000_0000_0000_0000 + number as u128)
}

/// The event with which a user's only order comes to version `number` + 1.
#[must_use]
pub fn event(user: Uuid, number: u64) -> Event {
    let status = if number == 0 { "created" } else { "updated" };
    let second = i64::try_from(number).expect("few events") + 1_700_000_000;
    let at = jiff::Timestamp::from_second(second).expect("a time of this century");
    let payload = serde_json::json!({
        "provider_event_id": format!("e{number}"), "order_id": "o", "user_id": user, "status": status,
        "created_at": "2023-11-01T00:00:00Z", "updated_at": at.to_string(),
    });
    // The front door's time too is the same in the undisturbed run.
    Event::decode(Source::Orders, Bytes::from(payload.to_string()), at).expect("a valid webhook")
}

/// Each user's next event is written when the one before is committed, for as long as they shall.
pub struct Writers {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    users: usize,
    tasks: Vec<tokio::task::JoinHandle<Written>>,
}

/// What writers have written.
#[derive(Debug, Clone, Default)]
pub struct Written {
    /// How many events of each user are committed.
    pub events: BTreeMap<Uuid, u64>,
    /// The longest wait for one.
    pub stall: Duration,
}

impl Writers {
    /// Starts to write events of the first `users` users.
    #[must_use]
    pub fn start(store: &Store, users: usize) -> Writers {
        let (stop, written): (Arc<AtomicBool>, Arc<AtomicU64>) = Default::default();
        let all: Vec<Uuid> = (0..users).map(user).collect();
        let tasks = all
            .chunks(users.div_ceil(WRITERS))
            .map(|users| {
                let (store, users) = (store.clone(), users.to_vec());
                let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
                tokio::spawn(async move {
                    let mut done = Written::default();
                    while !stop.load(Ordering::Relaxed) {
                        for user in &users {
                            let began = Instant::now();
                            let number = done.events.entry(*user).or_default();
                            write(&store, *user, *number).await;
                            *number += 1;
                            done.stall = done.stall.max(began.elapsed());
                            written.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    done
                })
            })
            .collect();
        Writers {
            stop,
            written,
            users,
            tasks,
        }
    }

    /// Waits until about three more events of each user are written: nobody is held up for ever.
    ///
    /// # Panics
    /// If they are not, in a minute and a half.
    pub async fn go_on(&self) {
        let goal = self.written.load(Ordering::Relaxed) + 3 * self.users as u64;
        let deadline = Instant::now() + PATIENCE;
        while self.written.load(Ordering::Relaxed) < goal {
            assert!(Instant::now() < deadline, "the writers are stuck");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops, when each has written what it is at.
    ///
    /// # Panics
    /// If a write was refused for ever, or applied twice.
    pub async fn stop(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Written::default();
        for task in self.tasks {
            let written = task.await.expect("a writer has met no surprise");
            all.events.extend(written.events);
            all.stall = all.stall.max(written.stall);
        }
        all
    }
}

/// Writes one event, and waits out whatever passes.
async fn write(store: &Store, user: Uuid, number: u64) {
    let record = Record {
        event: event(user, number),
        origin: None,
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "{user} waits for ever");
        let routes = store.routes();
        let Some(target) = routes.target_of(user) else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let staged = match store.stage(target, std::slice::from_ref(&record)).await {
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

impl Written {
    /// What the databases hold if these events are applied to one Postgres, and nothing moves.
    async fn undisturbed(&self) -> Digest {
        let db = TestDb::new(Layout::Single)
            .await
            .expect("there is a Postgres");
        let store = db.store().await;
        let most = self.events.values().max().copied().unwrap_or(0);
        let records: Vec<Record> = (0..most)
            .flat_map(|number| {
                let users = self
                    .events
                    .iter()
                    .filter(move |(_, events)| number < **events);
                users.map(move |(user, _)| Record {
                    event: event(*user, number),
                    origin: None,
                })
            })
            .collect();
        for batch in records.chunks(BATCH_ROWS) {
            let target = store
                .target_of(batch[0].event.user_id)
                .expect("one Postgres");
            let staged = store.stage(target, batch).await.expect("nothing disturbs");
            staged.commit().await.expect("nothing disturbs");
        }
        digest(db.urls()).await.expect("it can be read")
    }

    /// Each event is there once, each user's in order, each row on the shard that owns it, the state is that of an
    /// undisturbed run, and nothing is left over. `urls` are all databases that are or were shards.
    ///
    /// # Panics
    /// If not.
    pub async fn is_what_is_there(&self, reshard: &Reshard, urls: &[String]) {
        let catalog = reshard.catalog().await.expect("the shards answer");
        assert!(catalog.frozen.is_empty(), "{:?} are frozen", catalog.frozen);
        assert_eq!(catalog.pace, None);
        let mut owner_of: HashMap<&str, ShardId> = HashMap::new();
        for entry in &catalog.shards {
            owner_of.insert(&entry.database, entry.shard);
        }
        for url in urls {
            let (client, database) = (client(url).await, url.rsplit('/').next().unwrap_or(""));
            for table in SLOT_TABLES {
                let query = format!("select distinct user_id from {table}");
                for row in client.query(&query, &[]).await.expect("it can be read") {
                    let owner = catalog.map.shard_for(&RouteKey::Uuid(row.get(0)));
                    let here = owner_of.get(database);
                    assert_eq!(here, Some(&owner), "a row of {table} in {database}");
                }
            }
        }
        let found = digest(urls).await.expect("it can be read");
        assert_eq!(found, self.undisturbed().await);
        nothing_is_left(urls).await;
    }
}

/// No publication, subscription or replication slot in these databases.
///
/// # Panics
/// If there is one.
pub async fn nothing_is_left(urls: &[String]) {
    let query = "select coalesce(string_agg(name, ', '), '') from ( \
                 select 'publication ' || pubname as name from pg_publication union all \
                 select 'subscription ' || subname from pg_subscription s join pg_database d on d.oid = s.subdbid \
                 where d.datname = current_database() union all \
                 select 'slot ' || slot_name from pg_replication_slots where database = current_database()) x";
    for url in urls {
        let row = client(url).await.query_one(query, &[]).await;
        let left: String = row.expect("it can be read").get(0);
        assert_eq!(left, "", "in {url}");
    }
}

async fn client(url: &str) -> Client {
    connect(&parse(url).expect("a DSN"))
        .await
        .expect("the test's own database answers")
}
