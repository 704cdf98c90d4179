//! A few statements a batch, whatever its size.

use shardlane_domain::Event;
use shardlane_sql::Layout;
use shardlane_sql::testing::TestDb;
use tokio_postgres::Client;

use crate::events::{dispute, from_kafka, order, users};
use crate::ground::{Ground, apply};

const STATEMENTS_MAX: i64 = 16;

#[tokio::test(flavor = "multi_thread")]
async fn single_counts() {
    a_batch_takes_as_many_statements_whatever_its_size(Ground::SINGLE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partman_counts() {
    a_batch_takes_as_many_statements_whatever_its_size(Ground::PARTMAN).await;
}

async fn a_batch_takes_as_many_statements_whatever_its_size(ground: Ground) {
    assert!(
        matches!(ground.layout, Layout::Single | Layout::Partman),
        "one server counts"
    );
    let Some(db) = ground.db().await else { return };
    let observer = db.client(0).await;
    observer
        .batch_execute("create extension pg_stat_statements")
        .await
        .unwrap();

    let mut offset = 0;
    let mut counts = Vec::new();
    // Smaller ones take one less: they are not planned anew, and set nothing.
    for size in [40, 100, 1000] {
        let events = users(20, size).into_iter().enumerate();
        let events =
            events.map(|(nth, user)| order(user, "o", &format!("{size}-{nth}"), "created", 1));
        // The second and third batch meet users that are known: another order each.
        let events: Vec<Event> = events
            .map(|event| Event {
                order_id: format!("o-{size}"),
                ..event
            })
            .collect();
        counts.push(calls_of(&db, &observer, events, &mut offset).await);
    }
    assert!(
        counts.iter().all(|count| *count == counts[0]),
        "statements of 40, 100, 1000 created orders: {counts:?}"
    );
    assert!(
        (5..=STATEMENTS_MAX).contains(&counts[0]),
        "{counts:?}; fewer than 5 means that nothing was counted"
    );

    // All that a batch can meet at once: new and known orders, disputes, stale, duplicates, rejected.
    let mut counts = Vec::new();
    for (seed, size) in [(21, 20), (22, 60), (23, 200)] {
        let events = users(seed, size).into_iter().flat_map(|user| {
            let known = order(user, "o", "e1", "created", 10);
            [
                known.clone(),
                order(user, "o", "e2", "updated", 30),
                order(user, "o", "e3", "updated", 20),
                dispute(user, "o", "d1", "opened", 40),
                order(user, "unknown", "e4", "updated", 20),
            ]
        });
        let events: Vec<Event> = events.collect();
        let known = events.iter().step_by(5).cloned().collect();
        calls_of(&db, &observer, known, &mut offset).await;
        counts.push(calls_of(&db, &observer, events, &mut offset).await);
    }
    assert!(
        counts.iter().all(|count| *count == counts[0]),
        "statements of mixed batches of 10, 100, 1000: {counts:?}"
    );
    assert!((10..=STATEMENTS_MAX).contains(&counts[0]), "{counts:?}");
}

/// How many statements this database ran while the batch was applied.
async fn calls_of(db: &TestDb, observer: &Client, events: Vec<Event>, offset: &mut i64) -> i64 {
    let store = db.store().await;
    let records = from_kafka(events, "orders.webhooks", 0, *offset);
    *offset += i64::try_from(records.len()).unwrap();
    let before = calls(observer).await;
    apply(&store, &records).await.unwrap();
    calls(observer).await - before
}

async fn calls(observer: &Client) -> i64 {
    let sql = "select coalesce(sum(calls), 0)::bigint from pg_stat_statements s
               join pg_database d on d.oid = s.dbid
               where d.datname = current_database() and s.query not like '%pg_stat_statements%'";
    observer.query_one(sql, &[]).await.unwrap().get(0)
}
