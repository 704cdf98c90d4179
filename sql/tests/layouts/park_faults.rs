//! Transactions that meet over one queue, and rows that the database refuses while it is drained.

use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use serde_json::json;
use shardlane_sql::testing::TestDb;
use shardlane_sql::{ErrorClass, Layout, RejectReason, Store, Swept};
use uuid::Uuid;

use crate::events::{direct, dispute, order, order_with, user, users};
use crate::ground::{Ground, apply, connect, node_urls, wait_until_blocked};
use crate::park::{sweep, waiting};

on_every_layout!(
    a_queue_that_a_race_left_behind_is_swept,
    of_two_that_take_one_place_the_second_is_folded_anew,
    what_somebody_else_released_is_not_released_twice,
    an_event_that_the_database_refuses_does_not_hold_up_its_queue,
);

async fn versions(db: &TestDb, user: Uuid) -> Vec<String> {
    let query = "select order_id || ' ' || status || version from orders where user_id = $1 union all \
                 select order_id || ' dispute ' || status || version from disputes where user_id = $1 order by 1";
    let mut found = Vec::new();
    for url in db.urls() {
        let rows = connect(url).await.query(query, &[&user]).await.unwrap();
        found.extend(rows.iter().map(|row| row.get(0)));
    }
    found
}

/// Neither transaction sees the other: the dispute waits for an order that is there.
async fn a_queue_that_a_race_left_behind_is_swept(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let store = db.store().await;
    let user = user(45);
    let target = store.target_of(user).unwrap();
    let opened = direct([dispute(user, "o", "d1", "opened", 20)]);
    let created = direct([order(user, "o", "e1", "created", 10)]);
    let parks = store.stage(target, &opened).await.unwrap();
    let creates = store.stage(target, &created).await.unwrap();
    assert_eq!(creates.commit().await.unwrap().released, 0);
    assert_eq!(parks.commit().await.unwrap().parked, 1);
    assert_eq!(waiting(&db).await, 1);
    // What comes now does not overtake it.
    let closed = direct([dispute(user, "o", "d2", "closed", 30)]);
    assert_eq!(apply(&store, &closed).await.unwrap().parked, 1);

    let expected = Swept {
        released: 2,
        expired: Vec::new(),
    };
    assert_eq!(sweep(&store, Timestamp::now()).await.0, expected);
    assert_eq!(
        versions(&db, user).await,
        ["o created1", "o dispute closed2"]
    );
    assert_eq!(waiting(&db).await, 0);
}

async fn of_two_that_take_one_place_the_second_is_folded_anew(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let store = db.store().await;
    let user = user(46);
    let target = store.target_of(user).unwrap();
    let early = |id: &str, second| direct([order(user, "o", id, "updated", second)]);
    let (first, second) = (early("e1", 10), early("e2", 20));
    let staged = store.stage(target, &first).await.unwrap();
    let done = AtomicBool::new(false);
    let late = async {
        let error = store.stage(target, &second).await.unwrap_err();
        done.store(true, Ordering::Release);
        error
    };
    let nodes = node_urls(ground, &db).await;
    let wakes = async {
        assert!(wait_until_blocked(&nodes, || done.load(Ordering::Acquire)).await);
        staged.commit().await.unwrap();
    };
    let (error, ()) = tokio::join!(late, wakes);
    assert_eq!(error.class(), ErrorClass::Transient, "{error}");
    assert_eq!(apply(&store, &second).await.unwrap().parked, 1);
    let opener = direct([order(user, "o", "e0", "created", 1)]);
    assert_eq!(apply(&store, &opener).await.unwrap().released, 2);
    assert_eq!(versions(&db, user).await, ["o updated3"]);
}

async fn what_somebody_else_released_is_not_released_twice(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let store = db.store().await;
    let user = user(47);
    let early = direct([order(user, "o", "e1", "updated", 10)]);
    apply(&store, &early).await.unwrap();
    let target = store.target_of(user).unwrap();
    let opener = direct([order(user, "o", "e0", "created", 1)]);
    // Somebody who has taken the event away and does not commit yet.
    let other = connect(&home_of(ground, &store, &db, user)).await;
    other.batch_execute("begin").await.unwrap();
    let gone = other
        .execute("delete from parked where user_id = $1", &[&user])
        .await;
    assert_eq!(gone.unwrap(), 1);
    let done = AtomicBool::new(false);
    let late = async {
        let error = store.stage(target, &opener).await.unwrap_err();
        done.store(true, Ordering::Release);
        error
    };
    let nodes = node_urls(ground, &db).await;
    let wakes = async {
        assert!(wait_until_blocked(&nodes, || done.load(Ordering::Acquire)).await);
        other.batch_execute("commit").await.unwrap();
    };
    let (error, ()) = tokio::join!(late, wakes);
    assert_eq!(error.class(), ErrorClass::Transient, "{error}");
    let report = apply(&store, &opener).await.unwrap();
    assert_eq!((report.applied, report.released), (1, 0));
}

/// The database that holds the user.
fn home_of(ground: Ground, store: &Store, db: &TestDb, user: Uuid) -> String {
    let shard = store.target_of(user).unwrap().shard().0;
    let nth = if ground.layout == Layout::Shards {
        usize::try_from(shard).unwrap()
    } else {
        0
    };
    db.urls()[nth].clone()
}

async fn an_event_that_the_database_refuses_does_not_hold_up_its_queue(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let store = db.store().await;
    let users = users(48, 12);
    // The log cannot hold a time before Postgres's first.
    let poison = |user| order(user, "o", "poison", "updated", -377_000_000_000);
    let early = |user, id, second| order(user, "o", id, "updated", second);
    let waits = users.iter().enumerate().flat_map(|(nth, user)| {
        // Of two users one event is at fault, of one of them the first.
        let is_first = nth == 3;
        let is_second = nth == 7;
        [
            if is_first {
                poison(*user)
            } else {
                early(*user, "e1", 10)
            },
            if is_second {
                poison(*user)
            } else {
                early(*user, "e2", 20)
            },
            early(*user, "e3", 30),
        ]
    });
    let report = apply(&store, &direct(waits)).await.unwrap();
    assert_eq!(report.parked, 36, "{report:?}");
    let openers = || {
        users
            .iter()
            .map(|user| order(*user, "o", "e0", "created", 1))
    };
    // Not one opener is at fault.
    let report = apply(&store, &direct(openers())).await.unwrap();
    assert_eq!(
        (report.applied, report.rejected.len()),
        (12, 0),
        "{report:?}"
    );

    let (swept, letters) = sweep(&store, Timestamp::now()).await;
    assert_eq!(swept.released + report.released, 34);
    let found: Vec<_> = letters
        .iter()
        .map(|it| (it.event.event_id.as_str(), it.reason, it.reason.class()))
        .collect();
    assert_eq!(found, [("poison", RejectReason::Refused, "data"); 2]);
    assert_eq!(waiting(&db).await, 0);
    for (nth, user) in users.iter().enumerate() {
        let version = if [3, 7].contains(&nth) { 3 } else { 4 };
        assert_eq!(versions(&db, *user).await, [format!("o updated{version}")]);
    }
}

/// A transaction reads no more than fits into some megabytes; the sweep goes on with the rest, in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_queue_is_released_piece_by_piece() {
    const EVENTS: usize = 50;
    let Some(db) = Ground::SINGLE.db().await else {
        return;
    };
    let store = db.store().await;
    let user = user(49);
    let note = json!({"note": "x".repeat(250_000)});
    let early = |nth| order_with(user, "o", &format!("e{nth:02}"), "updated", 10, &note);
    apply(&store, &direct((0..EVENTS).map(early)))
        .await
        .unwrap();
    let opener = direct([order(user, "o", "opener", "created", 1)]);
    let report = apply(&store, &opener).await.unwrap();
    assert!(
        (10..EVENTS).contains(&report.released),
        "{}",
        report.released
    );
    // It stands behind those that are still there.
    let last = order(user, "o", "last", "success", 99);
    assert_eq!(apply(&store, &direct([last])).await.unwrap().parked, 1);
    let (swept, _) = sweep(&store, Timestamp::now()).await;
    assert_eq!(swept.released + report.released, EVENTS + 1);
    assert_eq!(
        versions(&db, user).await,
        [format!("o success{}", EVENTS + 2)]
    );
    let query = "select string_agg(event_id, ' ' order by version) = string_agg(event_id, ' ' order by event_id) \
                 from order_events where event_id ~ '^e'";
    assert!(
        db.client(0)
            .await
            .query_one(query, &[])
            .await
            .unwrap()
            .get::<_, bool>(0)
    );
}
