//! Events that wait: released by what they wait for, in order, whatever the borders of batches.

use std::collections::BTreeMap;
use std::sync::Mutex;

use jiff::{SignedDuration, Timestamp};
use rand::{Rng, RngExt};
use serde_json::json;
use shardlane_domain::{Event, Source};
use shardlane_sql::testing::TestDb;
use shardlane_sql::{
    Backend, ErrorClass, EventOutcome, KeepLetters, Origin, ParkLimits, ParkedLetter, Record,
    RejectReason, Store, StoreOptions, Swept,
};
use uuid::Uuid;

use crate::events::{direct, dispute, from_kafka, order, order_with, rng, user, users};
use crate::ground::{Ground, apply, connect};
use crate::model::Model;

on_every_layout!(
    random_streams_in_random_batches_end_as_the_model_says,
    a_dispute_waits_for_its_order_and_all_behind_it_wait_too,
    an_event_that_is_too_early_for_too_long_is_a_dead_letter,
);

/// Keeps letters, or refuses them.
#[derive(Default)]
struct Letters {
    kept: Mutex<Vec<ParkedLetter>>,
    is_full: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("no room")]
struct NoRoom;

impl KeepLetters for Letters {
    type Error = NoRoom;

    async fn keep(&self, letters: &[ParkedLetter]) -> Result<(), NoRoom> {
        if self.is_full {
            return Err(NoRoom);
        }
        self.kept.lock().unwrap().extend_from_slice(letters);
        Ok(())
    }
}

/// Sweeps at `now` and gives the dead letters.
pub(crate) async fn sweep(store: &Store, now: Timestamp) -> (Swept, Vec<ParkedLetter>) {
    let letters = Letters::default();
    let swept = store.sweep(now, &letters).await.unwrap();
    (swept, letters.kept.into_inner().unwrap())
}

/// A time at which all deadlines are over.
pub(crate) fn after_all() -> Timestamp {
    Timestamp::now() + SignedDuration::from_hours(24)
}

/// How many events wait, over all shards.
pub(crate) async fn waiting(db: &TestDb) -> i64 {
    let mut sum = 0;
    for url in db.urls() {
        let query = "select count(*) from parked";
        sum += connect(url)
            .await
            .query_one(query, &[])
            .await
            .unwrap()
            .get::<_, i64>(0);
    }
    sum
}

/// The sums of the columns of `kafka_outcomes` by topic, over all shards.
pub(crate) async fn outcomes(db: &TestDb) -> BTreeMap<String, BTreeMap<String, i64>> {
    let mut sums: BTreeMap<String, BTreeMap<String, i64>> = BTreeMap::new();
    let query = "select topic, c.key, sum(c.value::bigint)::bigint \
                 from kafka_outcomes o, jsonb_each_text(to_jsonb(o)) c \
                 where c.key not in ('user_id', 'topic', 'kafka_partition') group by 1, 2";
    for url in db.urls() {
        for row in connect(url).await.query(query, &[]).await.unwrap() {
            let of = sums.entry(row.get(0)).or_default();
            *of.entry(row.get(1)).or_default() += row.get::<_, i64>(2);
        }
    }
    sums
}

/// Each record is in one column, and each parked one has left or waits.
fn add_up(sums: &BTreeMap<String, i64>, records: i64, waiting: i64) {
    let of_records: i64 = EventOutcome::ALL.iter().map(|it| sums[it.as_str()]).sum();
    assert_eq!(of_records, records, "{sums:?}");
    let parked = sums["released"] + sums["expired"] + waiting;
    assert_eq!(sums["parked"], parked, "{sums:?}");
}

/// Orders and disputes of some users, with openers that are missing or late, duplicates, and ids that are used twice.
fn disorder(rng: &mut impl Rng, seed: u64) -> Vec<Event> {
    let mut events: Vec<(u32, Event)> = Vec::new();
    for user in users(seed, 10) {
        for nth in 0..rng.random_range(1..4) {
            let id = format!("o{nth}");
            let start = rng.random_range(0..100);
            let late = |rng: &mut dyn Rng| {
                if rng.random_bool(0.3) {
                    rng.random_range(0..80)
                } else {
                    0
                }
            };
            let mut push = |rng: &mut dyn Rng, at: u32, event: Event| {
                let at = start + at + late(rng);
                if rng.random_bool(0.1) {
                    events.push((at + rng.random_range(0..60), event.clone()));
                }
                if event.source == Source::Orders && rng.random_bool(0.05) {
                    let other = json!({"note": "other bytes"});
                    let other = order_with(user, &id, &event.event_id, "updated", 25, &other);
                    events.push((at + rng.random_range(0..60), other));
                }
                events.push((at, event));
            };
            if rng.random_bool(0.85) {
                push(rng, 0, order(user, &id, &format!("{id}c"), "created", 10));
            }
            for step in 0..rng.random_range(0..4) {
                let name = format!("{id}u{step}");
                push(
                    rng,
                    10 + step,
                    order(user, &id, &name, "updated", 20 + i64::from(step)),
                );
            }
            if rng.random_bool(0.6) {
                push(rng, 20, order(user, &id, &format!("{id}s"), "success", 30));
            }
            if rng.random_bool(0.1) {
                push(rng, 5, order(user, &id, &format!("{id}c2"), "created", 12));
            }
            if rng.random_bool(0.7) {
                for (nth, status) in ["opened", "updated", "closed"].into_iter().enumerate() {
                    let second = 50 + 10 * i64::try_from(nth).unwrap();
                    let event = dispute(user, &id, &format!("{id}d{nth}"), status, second);
                    if rng.random_bool(0.85) {
                        push(rng, 10, event);
                    }
                }
            }
        }
    }
    events.sort_by_key(|(at, _)| *at);
    events.into_iter().map(|(_, event)| event).collect()
}

async fn random_streams_in_random_batches_end_as_the_model_says(ground: Ground) {
    const SEEDS: u64 = 5;
    let Some(db) = ground.db().await else { return };
    let store = db.store().await;
    let (mut model, mut records) = (Model::default(), BTreeMap::<Source, i64>::new());
    for seed in 0..SEEDS {
        let mut rng = rng(900 + seed);
        let events = disorder(&mut rng, 900 + seed);
        let mut rest = &events[..];
        while !rest.is_empty() {
            let size = rng.random_range(1..=30).min(rest.len());
            let (batch, behind) = rest.split_at(size);
            rest = behind;
            let batch: Vec<Record> = batch
                .iter()
                .map(|event| {
                    model.take(event);
                    let next = records.entry(event.source).or_default();
                    *next += 1;
                    let origin = Origin {
                        topic: event.source.topic().into(),
                        partition: 3,
                        offset: *next - 1,
                    };
                    Record {
                        event: event.clone(),
                        origin: Some(origin),
                    }
                })
                .collect();
            apply(&store, &batch).await.unwrap();
        }
        model.check(&db).await;
    }
    assert!(
        model.parked > 150 && model.applied > 250 && model.rejected > 10 && model.duplicates > 40,
        "a thin stream proves little: {} {} {} {}",
        model.parked,
        model.applied,
        model.rejected,
        model.duplicates
    );
    let still = waiting(&db).await;
    assert!(still > 10, "{still} wait");
    // Before its time a sweep finds nothing to do.
    assert_eq!(sweep(&store, Timestamp::now()).await.0, Swept::default());
    model.check(&db).await;
    let before = model.rejected;
    model.expire();
    let (swept, letters) = sweep(&store, after_all()).await;
    assert_eq!(letters.len(), model.rejected - before);
    assert_eq!(
        swept.released + swept.expired.len(),
        usize::try_from(still).unwrap()
    );
    model.check(&db).await;
    let sums = outcomes(&db).await;
    for (source, records) in records {
        add_up(&sums[source.topic()], records, 0);
    }
}

async fn a_dispute_waits_for_its_order_and_all_behind_it_wait_too(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let store = db.store().await;
    let user = user(41);
    let exists = [order(user, "there", "e0", "created", 1)];
    apply(&store, &from_kafka(exists, "orders.webhooks", 0, 0))
        .await
        .unwrap();
    // The second is about an order that is there; it waits behind the first all the same.
    let disputes = [
        dispute(user, "o", "d1", "opened", 20),
        dispute(user, "there", "d2", "opened", 21),
        dispute(user, "o", "d3", "closed", 30),
    ];
    let disputes = from_kafka(disputes, "disputes.webhooks", 0, 0);
    let report = apply(&store, &disputes).await.unwrap();
    assert_eq!((report.parked, report.applied), (3, 0), "{report:?}");
    // A redelivery is known, though it waits.
    let again = from_kafka([disputes[0].event.clone()], "disputes.webhooks", 0, 3);
    assert_eq!(apply(&store, &again).await.unwrap().duplicates, 1);

    let created = [order(user, "o", "e1", "created", 10)];
    let report = apply(&store, &from_kafka(created, "orders.webhooks", 0, 1))
        .await
        .unwrap();
    assert_eq!((report.applied, report.released), (1, 3), "{report:?}");
    assert_eq!(waiting(&db).await, 0);
    let mut found = Vec::new();
    for url in db.urls() {
        let query = "select order_id || ' ' || status || version from disputes order by 1";
        let rows = connect(url).await.query(query, &[]).await.unwrap();
        found.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    }
    assert_eq!(found, ["o closed2", "there open1"]);
    let sums = outcomes(&db).await;
    add_up(&sums["orders.webhooks"], 2, 0);
    add_up(&sums["disputes.webhooks"], 4, 0);
    assert_eq!(sums["disputes.webhooks"]["released"], 3, "{sums:?}");
}

async fn an_event_that_is_too_early_for_too_long_is_a_dead_letter(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let store = db.store().await;
    let user = user(42);
    let events = [
        order(user, "never", "e1", "updated", 10),
        order(user, "o", "e2", "created", 10),
        order(user, "never", "e3", "success", 20),
        order(user, "o", "e4", "created", 20),
        order(user, "o", "e5", "success", 30),
    ];
    let records = from_kafka(events.clone(), "orders.webhooks", 5, 70);
    let carried = |index: usize| shardlane_sql::Carried {
        key: Some(format!("key {index}").into()),
        headers: vec![shardlane_sql::Header {
            key: "traceparent".to_owned(),
            value: Some(vec![0, 255].into()),
        }],
    };
    let target = store.target_of(user).unwrap();
    let staged = store
        .stage_carrying(target, &records, &[], &carried)
        .await
        .unwrap();
    assert_eq!(staged.commit().await.unwrap().parked, 5);
    assert_eq!(sweep(&store, Timestamp::now()).await.0, Swept::default());

    // A letter that cannot be kept stays.
    let full = Letters {
        is_full: true,
        ..Letters::default()
    };
    let refused = store.sweep(after_all(), &full).await;
    assert!(refused.unwrap_err().1.to_string().contains("no room"));
    assert_eq!(waiting(&db).await, 5);

    let (swept, letters) = sweep(&store, after_all()).await;
    assert_eq!((swept.released, swept.expired.len()), (2, 3));
    let of = |index: usize| (events[index].event_id.as_str(), 70 + index as i64);
    let illegal = RejectReason::Illegal {
        from: "created",
        asked: "created",
    };
    let expected = [
        (of(0), RejectReason::TooEarly),
        (of(2), RejectReason::TooEarly),
        (of(3), illegal),
    ];
    let found: Vec<_> = letters
        .iter()
        .map(|letter| {
            let origin = letter.origin.as_ref().unwrap();
            assert_eq!((&*origin.topic, origin.partition), ("orders.webhooks", 5));
            (
                (letter.event.event_id.as_str(), origin.offset),
                letter.reason,
            )
        })
        .collect();
    assert_eq!(found, expected);
    assert_eq!(letters[1].event.payload, events[2].payload, "byte for byte");
    assert_eq!(letters[1].event.received_at, events[2].received_at);
    assert_eq!(letters[1].carried, carried(2));
    add_up(&outcomes(&db).await["orders.webhooks"], 5, 0);

    // What is a dead letter is not known, and may come again; what was released is known.
    let report = apply(&store, &direct(events)).await.unwrap();
    assert_eq!((report.parked, report.duplicates), (3, 2), "{report:?}");
}

/// Beyond the limit an event is a dead letter at once; the one that all wait for is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_bounded() {
    let Some(db) = Ground::SINGLE.db().await else {
        return;
    };
    let limited = async |park_rows_max| {
        let backend = Backend::One {
            url: db.urls()[0].clone(),
        };
        let park = ParkLimits {
            park_rows_max,
            ..ParkLimits::default()
        };
        let options = StoreOptions {
            park,
            ..StoreOptions::default()
        };
        Store::connect(backend, options).await.unwrap()
    };
    let user = user(43);
    let early = |nth: i64| order(user, "o", &format!("e{nth}"), "updated", 10 + nth);
    let store = limited(2).await;
    let report = apply(&store, &direct((0..4).map(early))).await.unwrap();
    let full: Vec<_> = report
        .rejected
        .iter()
        .map(|it| (it.index, it.reason))
        .collect();
    assert_eq!(
        full,
        [(2, RejectReason::QueueFull), (3, RejectReason::QueueFull)]
    );
    assert_eq!(report.outcomes[2..], [EventOutcome::DeadLettered; 2]);
    let opener = order(user, "o", "opener", "created", 1);
    let report = apply(&store, &direct([opener])).await.unwrap();
    assert_eq!((report.applied, report.released), (1, 2), "{report:?}");

    let none = limited(0).await;
    let another: Uuid = crate::events::user(44);
    let early = order(another, "o", "e", "updated", 1);
    let report = apply(&none, &direct([early])).await.unwrap();
    assert_eq!(report.rejected[0].reason, RejectReason::TooEarly);
    assert_eq!(waiting(&db).await, 0);
}

/// What waits for another topic makes its partition wait when there is no more room, and is no dead letter: neither while
/// the head waits for its order, nor when its order has come and only the rest of the queue was left behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_that_will_move_holds_its_partition() {
    let Some(db) = Ground::SINGLE.db().await else {
        return;
    };
    let backend = Backend::One {
        url: db.urls()[0].clone(),
    };
    let park = ParkLimits {
        park_rows_max: 2,
        ..ParkLimits::default()
    };
    let options = StoreOptions {
        park,
        ..StoreOptions::default()
    };
    let store = Store::connect(backend, options).await.unwrap();
    let user = user(45);
    let disputes = |range: std::ops::Range<i64>| {
        let events = range.clone().map(|nth| {
            let status = if nth == 0 { "opened" } else { "updated" };
            dispute(user, "o", &format!("d{nth}"), status, 20 + nth)
        });
        from_kafka(events, "disputes.webhooks", 0, range.start)
    };
    let is_held = async |records: Vec<Record>| {
        let error = apply(&store, &records).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Held, "{error}");
    };

    apply(&store, &disputes(0..1)).await.unwrap();
    is_held(disputes(1..3)).await;
    // One is parked behind it while its order comes and releases what it sees.
    let target = store.routes().target_of(user).unwrap();
    let parking = disputes(1..2);
    let parking = store.stage(target, &parking).await.unwrap();
    let created = [order(user, "o", "e", "created", 10)];
    let created = from_kafka(created, "orders.webhooks", 0, 0);
    let report = apply(&store, &created).await.unwrap();
    assert_eq!(report.released, 1, "{report:?}");
    assert_eq!(parking.commit().await.unwrap().parked, 1);
    let report = apply(&store, &disputes(2..3)).await.unwrap();
    assert_eq!(report.parked, 1, "{report:?}");
    is_held(disputes(3..4)).await;

    assert_eq!(sweep(&store, Timestamp::now()).await.0.released, 2);
    let report = apply(&store, &disputes(3..4)).await.unwrap();
    assert_eq!((report.applied, waiting(&db).await), (1, 0), "{report:?}");
}
