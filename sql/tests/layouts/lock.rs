//! The optimistic lock: two writers of one order lose nothing of each other.

use std::sync::Arc;
use std::time::Duration;

use shardlane_domain::Event;
use shardlane_sql::testing::TestDb;
use shardlane_sql::{ErrorClass, Layout, Record, SqlError, Store};
use uuid::Uuid;

use crate::events::{direct, dispute, order, user, users};
use crate::ground::{Ground, WAIT_MAX, apply, by_target, connect, node_urls, wait_until_blocked};

type MakeEvent = fn(Uuid, &str, &str, &str, i64) -> Event;

const WRITERS: i64 = 3;
const EVENTS_EACH: i64 = 8;

on_every_layout!(
    the_second_writer_folds_anew,
    writers_in_parallel_lose_nothing,
    batches_that_cross_come_to_an_end,
);

/// The second one blocks on the first one's row, finds another version than it read, and must not write over it.
async fn the_second_writer_folds_anew(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let nodes = node_urls(ground, &db).await;
    let (first, second) = (db.store().await, db.store().await);
    let user = user(41);
    let cases: [(&str, MakeEvent, &str, bool); 4] = [
        ("orders", order, "created", false),
        ("orders", order, "created", true),
        ("disputes", dispute, "opened", false),
        ("disputes", dispute, "opened", true),
    ];
    for (table, make, opening, is_known) in cases {
        let order_id = if is_known { "known" } else { "new" };
        if is_known {
            let event = make(user, order_id, "before", opening, 1);
            apply(&first, &direct([event])).await.unwrap();
        }
        // Both open what is new, and both update what is known.
        let status = if is_known { "updated" } else { opening };
        let event = make(user, order_id, &format!("{order_id}-a"), status, 2);
        let target = first.target_of(user).unwrap();
        let staged = first.stage(target, &direct([event])).await.unwrap();
        let records = direct([
            make(user, order_id, &format!("{order_id}-b"), status, 2),
            make(user, order_id, &format!("{order_id}-c"), "updated", 2),
        ]);
        let waiting = {
            let (second, records) = (Arc::clone(&second), records.clone());
            tokio::spawn(async move { apply(&second, &records).await })
        };
        assert!(
            wait_until_blocked(&nodes, || waiting.is_finished()).await,
            "{table}, {order_id}: the second did not wait for the first: {:?}",
            waiting.await
        );
        staged.commit().await.unwrap();
        let report = match waiting.await.unwrap() {
            // Citus may make the second wait before it reads; then there is no conflict.
            Ok(report) if ground.layout == Layout::Citus => report,
            Ok(report) => {
                panic!("{table}, {order_id}: the second wrote over the first: {report:?}")
            }
            Err(error) => {
                let expected =
                    matches!(error, SqlError::Conflict { table: found } if found == table);
                assert!(expected, "{table}, {order_id}: {error}");
                assert_eq!(
                    error.class(),
                    ErrorClass::Transient,
                    "a conflict is tried again"
                );
                apply(&second, &records).await.unwrap()
            }
        };
        // Of what is new, the second opening has become illegal; all others are applied.
        let illegal = usize::from(!is_known);
        let found = (report.applied, report.rejected.len());
        assert_eq!(
            found,
            (2 - illegal, illegal),
            "{table}, {order_id}: {report:?}"
        );
        let expected = if is_known { 4 } else { 2 };
        assert_eq!(
            version(&db, table, user, order_id).await,
            expected,
            "{table}, {order_id}"
        );
    }
}

async fn writers_in_parallel_lose_nothing(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let user = user(42);
    let store = db.store().await;
    apply(&store, &direct([order(user, "o", "created", "created", 1)]))
        .await
        .unwrap();
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let store = db.store().await;
        writers.push(tokio::spawn(async move {
            let mut retries = 0;
            for nth in 0..EVENTS_EACH {
                // The same time at the provider, so that none is stale in any order.
                let event = order(user, "o", &format!("w{writer}-{nth}"), "updated", 2);
                retries += until_applied(&store, &direct([event])).await;
            }
            retries
        }));
    }
    let mut retries = 0;
    for writer in writers {
        retries += writer.await.unwrap();
    }
    let expected = 1 + WRITERS * EVENTS_EACH;
    assert_eq!(
        version(&db, "orders", user, "o").await,
        expected,
        "after {retries} retries"
    );
    let mut versions = Vec::new();
    for url in db.urls() {
        let rows = connect(url)
            .await
            .query("select version from order_events", &[])
            .await
            .unwrap();
        versions.extend(rows.iter().map(|row| row.get::<_, i64>(0)));
    }
    versions.sort_unstable();
    assert_eq!(
        versions,
        (1..=expected).collect::<Vec<_>>(),
        "each event has a version of its own"
    );
}

/// Two writers, each with batches over the same users in another order, and so over the same shards: whoever waits
/// for whom, nobody waits for ever, and what is told to try again succeeds.
async fn batches_that_cross_come_to_an_end(ground: Ground) {
    const ROUNDS: i64 = 6;
    let Some(db) = ground.db().await else { return };
    let users = users(43, 12);
    let opening = users
        .iter()
        .map(|user| order(*user, "o", "created", "created", 1));
    apply(&*db.store().await, &direct(opening)).await.unwrap();
    let writers = [false, true].map(|reversed| {
        let (db, mut users) = (&db, users.clone());
        if reversed {
            users.reverse();
        }
        async move {
            let store = db.store().await;
            let mut retries = 0;
            for round in 0..ROUNDS {
                let event =
                    |user: &Uuid| order(*user, "o", &format!("{reversed}-{round}"), "updated", 2);
                let records = direct(users.iter().map(event));
                // By target, so that a retry does not meet what another target's transaction has committed.
                for (_, _, group) in by_target(&store, &records) {
                    retries += until_applied(&store, &group).await;
                }
            }
            retries
        }
    });
    let ended = tokio::time::timeout(WAIT_MAX * 2, futures_util::future::join_all(writers)).await;
    let retries = ended.expect("two writers wait for each other for ever");
    for user in users {
        let version = version(&db, "orders", user, "o").await;
        assert_eq!(
            version,
            1 + 2 * ROUNDS,
            "the order of {user}, after {retries:?} retries"
        );
    }
}

/// Applies new records of one target, trying again what is transient; gives the number of retries.
async fn until_applied(store: &Store, records: &[Record]) -> u32 {
    for retries in 0..200 {
        match apply(store, records).await {
            Ok(report) => {
                assert_eq!(
                    (report.applied, report.duplicates),
                    (records.len(), 0),
                    "{report:?}"
                );
                return retries;
            }
            Err(error) if error.class() == ErrorClass::Transient => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("a concurrent writer is no reason for {error}"),
        }
    }
    panic!("200 tries were not enough");
}

async fn version(db: &TestDb, table: &str, user: Uuid, order_id: &str) -> i64 {
    let mut found = Vec::new();
    for url in db.urls() {
        let sql = "select version from orders where user_id = $1 and order_id = $2";
        let rows = connect(url)
            .await
            .query(sql, &[&user, &order_id])
            .await
            .unwrap();
        found.extend(rows.iter().map(|row| row.get::<_, i64>(0)));
    }
    assert_eq!(
        found.len(),
        1,
        "{order_id} of {table} lies in one place: {found:?}"
    );
    found[0]
}
