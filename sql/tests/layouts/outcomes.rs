//! Stale, illegal and too early: each has its name, and only stale is a row.

use shardlane_sql::RejectReason;

use crate::events::{direct, dispute, from_kafka, order, user};
use crate::ground::{Ground, apply, connect, digest_of};

on_every_layout!(
    stale_is_logged_and_the_rejected_are_no_rows,
    what_came_too_early_is_applied_when_it_comes_again,
);

async fn stale_is_logged_and_the_rejected_are_no_rows(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let store = db.store().await;
    let user = user(11);
    let records = from_kafka(
        [
            order(user, "o", "created", "created", 10),
            order(user, "o", "updated", "updated", 30),
            order(user, "o", "stale", "updated", 20),
            order(user, "o", "illegal", "created", 40),
            order(user, "unknown", "early", "success", 10),
            dispute(user, "o", "dispute-early", "closed", 50),
        ],
        "orders.webhooks",
        1,
        0,
    );
    let report = apply(&store, &records).await.unwrap();
    assert_eq!(
        (report.applied, report.stale, report.duplicates),
        (2, 1, 0),
        "{report:?}"
    );
    let rejected: Vec<_> = report
        .rejected
        .iter()
        .map(|it| (it.index, it.reason))
        .collect();
    let illegal = RejectReason::Illegal {
        from: "updated",
        asked: "created",
    };
    assert_eq!(
        rejected,
        [
            (3, illegal),
            (4, RejectReason::TooEarly),
            (5, RejectReason::TooEarly)
        ]
    );
    assert_eq!(
        report
            .rejected
            .iter()
            .map(|it| it.reason.class())
            .collect::<Vec<_>>(),
        ["illegal", "out_of_order", "out_of_order"]
    );

    let mut found = Vec::new();
    for url in db.urls() {
        let client = connect(url).await;
        for (table, columns) in [
            ("inbox", "event_id"),
            (
                "order_events",
                "event_id || ' ' || outcome || ' v' || version",
            ),
            ("dispute_events", "event_id"),
            ("outbox", "event_id"),
            ("orders", "order_id || ' ' || status || ' v' || version"),
            ("disputes", "order_id"),
            ("order_directory", "order_id"),
        ] {
            let sql = format!("select '{table}: ' || {columns} from {table}");
            let rows = client.query(&sql, &[]).await.unwrap();
            found.extend(rows.iter().map(|row| row.get::<_, String>(0)));
        }
    }
    found.sort();
    let expected = [
        "inbox: created",
        "inbox: stale",
        "inbox: updated",
        "order_directory: o",
        "order_events: created applied v1",
        "order_events: stale stale v2",
        "order_events: updated applied v2",
        "orders: o updated v2",
        "outbox: created",
        "outbox: updated",
    ];
    assert_eq!(
        found, expected,
        "the rows of all shards, rejected events left out"
    );
    // inbox 3, orders 1, events 3, outbox 2, directory 1, fence 1.
    assert_eq!(
        report.rows, 11,
        "the report counts the rows that are left: {report:?}"
    );
    let fences: Vec<i64> = store.fences().await.unwrap().into_values().collect();
    assert_eq!(
        fences,
        [6],
        "the fence stands behind the rejected as well: they are kept elsewhere"
    );
}

/// "Nothing vanishes": a parked or dead-lettered event is replayed later, and the inbox must not take it for known.
async fn what_came_too_early_is_applied_when_it_comes_again(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let store = db.store().await;
    let user = user(12);
    let early = [
        order(user, "o", "e2", "success", 20),
        dispute(user, "o", "d2", "closed", 20),
    ];
    let empty = digest_of(&db).await;
    let report = apply(&store, &direct(early.clone())).await.unwrap();
    assert_eq!((report.rejected.len(), report.rows), (2, 0), "{report:?}");
    assert_eq!(digest_of(&db).await, empty, "what was rejected left a row");

    let opening = [
        order(user, "o", "e1", "created", 10),
        dispute(user, "o", "d1", "opened", 10),
    ];
    assert_eq!(apply(&store, &direct(opening)).await.unwrap().applied, 2);
    let report = apply(&store, &direct(early.clone())).await.unwrap();
    assert_eq!(
        (report.applied, report.duplicates),
        (2, 0),
        "the replay was lost: {report:?}"
    );
    let report = apply(&store, &direct(early)).await.unwrap();
    assert_eq!(
        (report.applied, report.duplicates),
        (0, 2),
        "and applied once: {report:?}"
    );
}
