//! What waits in the outbox leaves in order, under concurrent writers, beneath a reshard, and through crashes of who
//! reads it. A relay here publishes into a list.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::RngExt;
use shardlane_domain::{Event, Source};
use shardlane_sql::reshard::{Change, Reshard, ReshardOptions};
use shardlane_sql::testing::load::Writers;
use shardlane_sql::testing::{TestDb, spare_database, test_map};
use shardlane_sql::{ErrorClass, Layout, Outbox, OutboxRow, OutboxSession, Store};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::events::{direct, dispute, order, rng, user, users};
use crate::ground::{Ground, WAIT_MAX, apply, by_target};
use crate::reshard::{add, print};

/// Small, so that a read often ends in the midst of a transaction.
const ROWS_MAX: u32 = 7;
const PAUSE: Duration = Duration::from_millis(2);

on_every_layout!(
    an_applied_event_is_a_row_with_its_state,
    each_users_events_leave_in_the_order_in_which_they_were_applied,
);

async fn leading(outbox: &Outbox) -> OutboxSession {
    let deadline = Instant::now() + WAIT_MAX;
    let mut session = outbox.connect().await.unwrap();
    while !session.try_lead().await.unwrap() {
        assert!(Instant::now() < deadline, "the lock is not free");
        tokio::time::sleep(PAUSE).await;
    }
    session
}

/// Everything that waits, taken out.
async fn drained(store: &Store) -> Vec<OutboxRow> {
    let mut all = Vec::new();
    for outbox in store.outboxes() {
        let mut session = leading(&outbox).await;
        let mut rows = session.take(&[], ROWS_MAX).await.unwrap();
        while !rows.is_empty() {
            all.extend(rows.iter().cloned());
            rows = session.take(&rows, ROWS_MAX).await.unwrap();
        }
    }
    all
}

async fn an_applied_event_is_a_row_with_its_state(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let store = db.store().await;
    let (user, at) = (user(71), crate::events::at);
    let events = [
        order(user, "o", "e1", "created", 1),
        order(user, "o", "e1", "created", 1),
        order(user, "o", "e2", "updated", 3),
        order(user, "o", "stale", "updated", 2),
        order(user, "o", "e3", "success", 4),
        order(user, "o", "illegal", "updated", 5),
    ];
    apply(&store, &direct(events)).await.unwrap();
    let disputes = [
        dispute(user, "o", "d1", "opened", 6),
        dispute(user, "o", "d2", "updated", 7),
    ];
    apply(&store, &direct(disputes)).await.unwrap();
    let outbox = &store.outboxes()[..];
    let mut waiting = 0;
    for outbox in outbox {
        waiting += leading(outbox).await.lag().await.unwrap().rows;
    }
    assert_eq!(waiting, 5);
    let rows = drained(&store).await;
    let said: Vec<String> = rows
        .iter()
        .map(|row| {
            assert_eq!(row.user_id, user);
            assert_eq!(row.order_id, "o");
            format!(
                "{} {} {} {} {}",
                row.source, row.event_id, row.kind, row.version, row.status
            )
        })
        .collect();
    let expected = [
        "orders e1 created 1 created",
        "orders e2 updated 2 updated",
        "orders e3 success 3 success",
        "chargebacks d1 opened 1 open",
        "chargebacks d2 updated 2 open",
    ];
    assert_eq!(said, expected);
    let state =
        |row: &OutboxRow| -> serde_json::Value { serde_json::from_str(row.state.get()).unwrap() };
    let order = serde_json::json!({
        "amount_minor": null, "currency": null, "created_at": at(0), "updated_at": at(3),
    });
    assert_eq!(state(&rows[1]), order);
    let dispute = serde_json::json!({
        "reason": "fraud", "amount_minor": 1234, "currency": "EUR", "opened_at": at(6), "updated_at": at(7),
        "evidence_due_at": null,
    });
    assert_eq!(state(&rows[4]), dispute);
    assert!(drained(&store).await.is_empty(), "all of it is deleted");
}

/// A transaction that has committed.
struct Done {
    user: Uuid,
    events: Vec<(Source, String)>,
    began: Instant,
    ended: Instant,
}

/// Writes one user's events in one transaction, which stays open for a while.
async fn write(store: &Store, events: Vec<Event>, open: Duration) -> Done {
    let user = events[0].user_id;
    let keys = events.iter().map(|it| (it.source, it.event_id.clone()));
    let keys = keys.collect();
    let records = direct(events);
    loop {
        let began = Instant::now();
        let (target, _, group) = by_target(store, &records).remove(0);
        let committed = async {
            let staged = store.stage(target, &group).await?;
            assert_eq!(
                staged.report().applied,
                group.len(),
                "{:?}",
                staged.report()
            );
            tokio::time::sleep(open).await;
            staged.commit().await
        };
        match committed.await {
            Ok(_) => {
                return Done {
                    user,
                    events: keys,
                    began,
                    ended: Instant::now(),
                };
            }
            Err(error) => assert_eq!(error.class(), ErrorClass::Transient, "{error}"),
        }
    }
}

const USERS: usize = 4;
const ORDERS: usize = 12;

/// One lane writes a user's orders, another one the disputes of those that have committed, as two partitions' lanes do:
/// their transactions overlap, and commit in any order.
async fn each_users_events_leave_in_the_order_in_which_they_were_applied(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let store = db.store().await;
    let relay = Relay::start(Arc::clone(&store), 0.0);
    let mut lanes: Vec<JoinHandle<Vec<Done>>> = Vec::new();
    for (seed, user) in (0..).zip(users(72, USERS)) {
        let (known, mut created) = tokio::sync::mpsc::unbounded_channel::<String>();
        let orders = Arc::clone(&store);
        lanes.push(tokio::spawn(async move {
            let (mut rng, mut done) = (rng(seed), Vec::new());
            for number in 0..ORDERS {
                let id = format!("o{number}");
                let event =
                    |kind: &str, second| order(user, &id, &format!("{id}-{kind}"), kind, second);
                let first = vec![event("created", 1), event("updated", 2)];
                let open = Duration::from_micros(rng.random_range(0..6_000));
                done.push(write(&orders, first, open).await);
                known.send(id.clone()).unwrap();
                done.push(write(&orders, vec![event("success", 3)], open / 2).await);
            }
            done
        }));
        let disputes = Arc::clone(&store);
        lanes.push(tokio::spawn(async move {
            let (mut rng, mut done) = (rng(seed + 100), Vec::new());
            while let Some(id) = created.recv().await {
                for (second, status) in [(4, "opened"), (5, "updated"), (6, "closed")] {
                    let event = dispute(user, &id, &format!("{id}-{status}"), status, second);
                    let open = Duration::from_micros(rng.random_range(0..6_000));
                    done.push(write(&disputes, vec![event], open).await);
                }
            }
            done
        }));
    }
    let mut done = Vec::new();
    for lane in lanes {
        done.extend(lane.await.unwrap());
    }
    let published = relay.stop().await;
    let total = USERS * ORDERS * 6;
    assert_eq!(published.len(), total, "each once: nobody crashed");
    versions_ascend(&published);

    let place: HashMap<(Uuid, Source, &str), usize> = published
        .iter()
        .enumerate()
        .map(|(place, row)| ((row.user_id, row.source, &row.event_id[..]), place))
        .collect();
    let places = |it: &Done| -> Vec<usize> {
        let keys = it.events.iter();
        keys.map(|(source, id)| place[&(it.user, *source, &id[..])])
            .collect()
    };
    let (mut ordered, mut overlapping) = (0, 0);
    for (index, one) in done.iter().enumerate() {
        assert!(places(one).is_sorted(), "{:?}", one.events);
        for other in done[index + 1..].iter().filter(|it| it.user == one.user) {
            let (first, second) = if one.ended <= other.began {
                (one, other)
            } else if other.ended <= one.began {
                (other, one)
            } else {
                overlapping += 1;
                continue;
            };
            ordered += 1;
            assert!(
                places(first).last() < places(second).first(),
                "{:?} had committed before {:?} began",
                first.events,
                second.events
            );
        }
    }
    assert!(
        ordered > total && overlapping > USERS * ORDERS,
        "{ordered} pairs in order, {overlapping} that overlap: that proves little"
    );
}

/// The first time that each version of an order or dispute was published, they ascend.
fn versions_ascend(published: &[OutboxRow]) -> HashMap<(Uuid, Source, &str), i64> {
    let mut newest: HashMap<(Uuid, Source, &str), i64> = HashMap::new();
    let mut seen = HashSet::new();
    for row in published {
        let key = (row.user_id, row.source, &row.order_id[..]);
        if seen.insert((key, row.version)) {
            let newest = newest.entry(key).or_default();
            assert_eq!(row.version, *newest + 1, "{key:?}");
            *newest = row.version;
        }
    }
    newest
}

/// Relays for every outbox that the store knows of, each of which dies now and then between publishing and deleting.
struct Relay {
    store: Arc<Store>,
    stop: Arc<AtomicBool>,
    published: Arc<Mutex<Vec<OutboxRow>>>,
    task: JoinHandle<()>,
}

impl Relay {
    fn start(store: Arc<Store>, crashes: f64) -> Relay {
        let (stop, published): (Arc<AtomicBool>, Arc<Mutex<Vec<OutboxRow>>>) = Default::default();
        let task = tokio::spawn({
            let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
            let published = Arc::clone(&published);
            async move {
                let mut outboxes: BTreeMap<String, JoinHandle<()>> = BTreeMap::new();
                while !stop.load(Ordering::Relaxed) {
                    for outbox in store.outboxes() {
                        outboxes.entry(format!("{outbox:?}")).or_insert_with(|| {
                            let (stop, published) = (Arc::clone(&stop), Arc::clone(&published));
                            tokio::spawn(relay(outbox, stop, published, crashes))
                        });
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                for task in outboxes.into_values() {
                    task.await.unwrap();
                }
            }
        });
        Relay {
            store,
            stop,
            published,
            task,
        }
    }

    /// All that was published, when nothing is left.
    async fn stop(self) -> Vec<OutboxRow> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        let mut published = self.published.lock().unwrap().split_off(0);
        published.extend(drained(&self.store).await);
        published
    }
}

async fn relay(
    outbox: Outbox,
    stop: Arc<AtomicBool>,
    published: Arc<Mutex<Vec<OutboxRow>>>,
    crashes: f64,
) {
    while !stop.load(Ordering::Relaxed) {
        let mut session = leading(&outbox).await;
        let mut rows = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            rows = session.take(&rows, ROWS_MAX).await.unwrap();
            published.lock().unwrap().extend(rows.iter().cloned());
            if rand::rng().random_bool(crashes) {
                break;
            }
            if rows.is_empty() {
                tokio::time::sleep(PAUSE).await;
            }
        }
        if crashes == 0.0 {
            session.take(&rows, 0).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_leads_and_the_next_takes_over_when_it_ends() {
    let Some(db) = TestDb::new(Layout::Single).await else {
        return;
    };
    let store = db.store().await;
    let outbox = &store.outboxes()[0];
    let first = leading(outbox).await;
    let mut second = outbox.connect().await.unwrap();
    assert!(!second.try_lead().await.unwrap());
    let refused = second.take(&[], 1).await.unwrap_err();
    assert_eq!(refused.class(), ErrorClass::Permanent, "{refused}");
    first.heartbeat().await.unwrap();
    drop(first);
    let deadline = Instant::now() + WAIT_MAX;
    while !second.try_lead().await.unwrap() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(PAUSE).await;
    }
    assert!(second.take(&[], 1).await.unwrap().is_empty());
}

/// Rows move with their slots while relays delete them at the sources, and the targets' relays see them arrive.
#[tokio::test(flavor = "multi_thread")]
async fn slots_move_beneath_relays_and_nothing_is_lost_or_disordered() {
    let Some(db) = TestDb::new(Layout::Shards).await else {
        return;
    };
    let Some(spare) = spare_database().await else {
        return;
    };
    for index in 0..2 {
        let ahead = "alter sequence outbox_seq restart 1000000";
        db.client(index).await.batch_execute(ahead).await.unwrap();
    }
    let store = db.store().await;
    let writers = Writers::start(&store, 40);
    writers.go_on().await;
    let mut reshard = Reshard::connect(db.urls(), test_map(), ReshardOptions::default())
        .await
        .unwrap();
    reshard
        .run(&add(std::slice::from_ref(&spare)), print)
        .await
        .unwrap();
    writers.go_on().await;
    assert_eq!(store.outboxes().len(), 3);
    // All rows since the first are there still: those that came with their slots have far higher numbers of a sequence
    // than those that were written after.
    let relay = Relay::start(Arc::clone(&store), 0.02);
    // Shard 0 leaves: its slots go to shards whose sequences are elsewhere.
    let leave = Change {
        remove: vec![shardlane_router::ShardId(0)],
        ..Change::default()
    };
    reshard.run(&leave, print).await.unwrap();
    writers.go_on().await;
    let written = writers.stop().await;
    let published = relay.stop().await;
    let newest = versions_ascend(&published);
    assert_eq!(newest.len(), written.events.len());
    for (user, events) in &written.events {
        let last = newest[&(*user, Source::Orders, "o")];
        assert_eq!(last.unsigned_abs(), *events, "{user}");
    }
    assert!(
        published.len() as u64 > written.events.values().sum(),
        "no relay died in time"
    );
}

/// A reshard compares the rows of slots that it has frozen: a relay that has read and published them must not delete
/// them any more, also when its statement waited for the freeze.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_frozen_keeps_its_rows() {
    let Some(db) = TestDb::new(Layout::Shards).await else {
        return;
    };
    let store = db.store().await;
    let outbox = store.outboxes().remove(0);
    let users = users(73, 20).into_iter();
    let here = |user: &Uuid| store.target_of(*user).unwrap().shard() == outbox.shard();
    let events = users
        .filter(here)
        .map(|user| order(user, "o", "e", "created", 1));
    let events: Vec<Event> = events.collect();
    apply(&store, &direct(events.clone())).await.unwrap();
    let mut session = leading(&outbox).await;
    let rows = session.take(&[], 100).await.unwrap();
    assert_eq!(rows.len(), events.len());
    assert!(rows.len() > 3);

    let (mut freezing, watching) = (db.client(0).await, db.client(0).await);
    let freeze = freezing.transaction().await.unwrap();
    freeze
        .batch_execute("lock table outbox; update shard_identity set epoch = epoch + 1, slots = ''")
        .await
        .unwrap();
    let taking = tokio::spawn(async move { session.take(&rows, 100).await.unwrap() });
    let blocked = "select 1 from pg_stat_activity where datname = current_database() \
                   and wait_event_type = 'Lock' and query like '%delete from outbox%'";
    let deadline = Instant::now() + WAIT_MAX;
    while watching.query(blocked, &[]).await.unwrap().is_empty() {
        assert!(Instant::now() < deadline, "nobody deletes");
        tokio::time::sleep(PAUSE).await;
    }
    freeze.commit().await.unwrap();
    assert!(taking.await.unwrap().is_empty(), "it owns none of them");
    let count = "select count(*) from outbox";
    let left: i64 = watching.query_one(count, &[]).await.unwrap().get(0);
    assert_eq!(left.unsigned_abs(), events.len() as u64);
}
