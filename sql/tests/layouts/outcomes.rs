//! Stale, illegal and parked: each has its name, and only stale is a row of the log.

use shardlane_sql::EventOutcome::{Applied, Illegal, Parked, Stale};
use shardlane_sql::RejectReason;

use crate::events::{direct, dispute, from_kafka, order, user};
use crate::ground::{Ground, apply, connect, digest_of};

on_every_layout!(
    stale_is_logged_and_what_is_no_row_has_its_name,
    what_was_rejected_is_judged_anew_when_it_comes_again,
);

async fn stale_is_logged_and_what_is_no_row_has_its_name(ground: Ground) {
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
        report.outcomes,
        [Applied, Applied, Stale, Illegal, Parked, Parked]
    );
    assert_eq!(
        (report.applied, report.stale, report.parked, report.released),
        (2, 1, 2, 0),
        "{report:?}"
    );
    let [rejected] = &report.rejected[..] else {
        panic!("one is rejected: {report:?}")
    };
    let illegal = RejectReason::Illegal {
        from: "updated",
        asked: "created",
    };
    assert_eq!((rejected.index, rejected.reason), (3, illegal));
    assert_eq!(rejected.reason.class(), "illegal");

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
            (
                "parked",
                "source || ' ' || seq || ' ' || event_id || ' of ' || kafka_offset",
            ),
        ] {
            let sql = format!("select '{table}: ' || {columns} from {table}");
            let rows = client.query(&sql, &[]).await.unwrap();
            found.extend(rows.iter().map(|row| row.get::<_, String>(0)));
        }
    }
    found.sort();
    let expected = [
        "inbox: created",
        "inbox: dispute-early",
        "inbox: early",
        "inbox: stale",
        "inbox: updated",
        "order_directory: o",
        "order_events: created applied v1",
        "order_events: stale stale v2",
        "order_events: updated applied v2",
        "orders: o updated v2",
        "outbox: created",
        "outbox: updated",
        "parked: chargebacks 1 dispute-early of 5",
        "parked: orders 1 early of 4",
    ];
    assert_eq!(
        found, expected,
        "the rows of all shards, rejected events left out"
    );
    // inbox 5, orders 1, events 3, outbox 2, directory 1, parked 2, fence 1.
    assert_eq!(
        report.rows, 15,
        "the report counts the rows that are left: {report:?}"
    );
    let fences: Vec<i64> = store.fences().await.unwrap().into_values().collect();
    assert_eq!(
        fences,
        [6],
        "the fence stands behind the rejected as well: they are kept elsewhere"
    );
}

/// "Nothing vanishes": a dead letter is replayed later, and the inbox must not take it for known.
async fn what_was_rejected_is_judged_anew_when_it_comes_again(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let store = db.store().await;
    let user = user(12);
    let opening = [
        order(user, "o", "e1", "created", 10),
        order(user, "o", "e3", "success", 30),
        dispute(user, "o", "d1", "opened", 10),
        dispute(user, "o", "d3", "closed", 30),
    ];
    assert_eq!(apply(&store, &direct(opening)).await.unwrap().applied, 4);
    let before = digest_of(&db).await;
    let illegal = [
        order(user, "o", "e4", "failed", 40),
        dispute(user, "o", "d4", "updated", 40),
    ];
    for _ in 0..2 {
        let report = apply(&store, &direct(illegal.clone())).await.unwrap();
        assert_eq!((report.rejected.len(), report.rows), (2, 0), "{report:?}");
        assert_eq!(digest_of(&db).await, before, "what was rejected left a row");
    }
}
