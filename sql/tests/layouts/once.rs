//! An event changes state once, however often it comes.

use serde_json::json;
use shardlane_sql::{ErrorClass, RejectReason, SqlError};

use crate::apply::stream;
use crate::events::{direct, from_kafka, order, order_with, user};
use crate::ground::{Ground, apply, digest_of};

on_every_layout!(
    the_same_batch_again_is_all_duplicates_and_changes_no_row,
    the_same_offsets_again_are_fenced_and_change_nothing,
    an_id_with_other_bytes_is_no_duplicate,
    duplicates_inside_one_batch_are_told_apart,
);

async fn the_same_batch_again_is_all_duplicates_and_changes_no_row(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let store = db.store().await;
    let mut events = stream(3);
    events.truncate(150);
    let first = apply(&store, &direct(events.clone())).await.unwrap();
    // What was rejected is no row, so it is judged anew, and now it may be legal; the others are known.
    let known: Vec<_> = events
        .into_iter()
        .enumerate()
        .filter(|(index, _)| first.rejected.iter().all(|it| it.index != *index))
        .map(|(_, event)| event)
        .collect();
    let before = digest_of(&db).await;
    let again = apply(&store, &direct(known.clone())).await.unwrap();
    assert_eq!(
        again.duplicates,
        known.len(),
        "all are duplicates: {again:?}"
    );
    assert_eq!(
        (again.applied, again.stale, again.rejected.len(), again.rows),
        (0, 0, 0, 0),
        "{again:?}"
    );
    assert_eq!(digest_of(&db).await, before, "a duplicate changed a row");

    // In another order, on other connections, after a restart of the process: the same.
    let reversed: Vec<_> = known.into_iter().rev().collect();
    let again = apply(&*db.store().await, &direct(reversed.clone()))
        .await
        .unwrap();
    assert_eq!(again.duplicates, reversed.len(), "{again:?}");
    assert_eq!(digest_of(&db).await, before, "a duplicate changed a row");
}

async fn the_same_offsets_again_are_fenced_and_change_nothing(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let store = db.store().await;
    let user = user(4);
    let events: Vec<_> = (0..5)
        .map(|nth| order(user, &format!("o{nth}"), &format!("e{nth}"), "created", 1))
        .collect();
    let records = from_kafka(events, "orders.webhooks", 2, 100);
    assert_eq!(apply(&store, &records).await.unwrap().applied, 5);
    let (before, fences) = (digest_of(&db).await, store.fences().await.unwrap());

    let error = apply(&store, &records)
        .await
        .expect_err("the fence is past these offsets");
    assert_eq!(error.class(), ErrorClass::Fenced, "{error}");
    let SqlError::Fenced {
        topic,
        partition,
        offset,
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(
        (topic.as_str(), *partition, *offset),
        ("orders.webhooks", 2, 100)
    );
    assert_eq!(digest_of(&db).await, before, "a fenced batch changed a row");
    assert_eq!(
        store.fences().await.unwrap(),
        fences,
        "a fenced batch moved a fence"
    );
}

async fn an_id_with_other_bytes_is_no_duplicate(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let store = db.store().await;
    let user = user(5);
    let event = order(user, "o", "e", "created", 1);
    let other = order_with(
        user,
        "o",
        "e",
        "created",
        1,
        &json!({"note": "other bytes"}),
    );
    apply(&store, &direct([event.clone()])).await.unwrap();
    let before = digest_of(&db).await;

    let report = apply(&store, &direct([event.clone(), other]))
        .await
        .unwrap();
    assert_eq!((report.applied, report.duplicates), (0, 1), "{report:?}");
    let [rejected] = &report.rejected[..] else {
        panic!("one is rejected: {report:?}")
    };
    assert_eq!(
        (rejected.index, rejected.reason),
        (1, RejectReason::DifferentPayload)
    );
    assert_eq!(digest_of(&db).await, before, "the first payload must stay");

    // The same id of another user or another source is another event.
    let of_another = order(crate::events::user(6), "o", "e", "created", 1);
    let of_disputes = crate::events::dispute(user, "o", "e", "opened", 2);
    let report = apply(&store, &direct([of_another, of_disputes]))
        .await
        .unwrap();
    assert_eq!(
        report.applied, 2,
        "an id belongs to its user and source: {report:?}"
    );
}

async fn duplicates_inside_one_batch_are_told_apart(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let store = db.store().await;
    let user = user(7);
    let created = order(user, "o", "e1", "created", 1);
    let other = order_with(
        user,
        "o",
        "e1",
        "created",
        1,
        &json!({"note": "other bytes"}),
    );
    let updated = order(user, "o", "e2", "updated", 2);
    let batch = direct([
        created.clone(),
        created.clone(),
        other.clone(),
        updated,
        created.clone(),
    ]);
    let report = apply(&store, &batch).await.unwrap();
    assert_eq!((report.applied, report.duplicates), (2, 2), "{report:?}");
    let [rejected] = &report.rejected[..] else {
        panic!("one is rejected: {report:?}")
    };
    assert_eq!(
        (rejected.index, rejected.reason),
        (2, RejectReason::DifferentPayload)
    );

    // Known from before, and twice in the batch: the first bytes decide, wherever they came from.
    let before = digest_of(&db).await;
    let report = apply(
        &store,
        &direct([other.clone(), created.clone(), other, created]),
    )
    .await
    .unwrap();
    assert_eq!((report.applied, report.duplicates), (0, 2), "{report:?}");
    let rejected: Vec<_> = report
        .rejected
        .iter()
        .map(|it| (it.index, it.reason))
        .collect();
    assert_eq!(
        rejected,
        [
            (0, RejectReason::DifferentPayload),
            (2, RejectReason::DifferentPayload)
        ]
    );
    assert_eq!(digest_of(&db).await, before, "nothing new came");
}
