//! The fence: a worker that was overtaken writes nothing.

use shardlane_domain::Event;
use shardlane_sql::{ErrorClass, SqlError};
use uuid::Uuid;

use crate::events::{direct, from_kafka, order, user, users};
use crate::ground::{Ground, apply, digest_of};

const TOPIC: &str = "orders.webhooks";

on_every_layout!(
    a_zombie_is_refused,
    a_zombie_that_waits_for_the_winner_is_refused,
    partitions_and_topics_do_not_interfere,
    a_batch_that_is_dropped_is_rolled_back,
);

/// One event an offset, so that the same offsets are the same events.
fn created(user: Uuid, offsets: std::ops::Range<i64>) -> Vec<Event> {
    offsets
        .map(|offset| {
            order(
                user,
                &format!("o{offset}"),
                &format!("e{offset}"),
                "created",
                1,
            )
        })
        .collect()
}

async fn a_zombie_is_refused(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let (winner, zombie) = (db.store().await, db.store().await);
    let user = user(31);
    apply(&winner, &from_kafka(created(user, 0..10), TOPIC, 0, 0))
        .await
        .unwrap();
    let (before, fences) = (digest_of(&db).await, winner.fences().await.unwrap());
    assert_eq!(
        fences.values().copied().collect::<Vec<_>>(),
        [10],
        "{fences:?}"
    );

    for first in [5, 9] {
        let late = from_kafka(created(user, first..first + 10), TOPIC, 0, first);
        let error = apply(&zombie, &late)
            .await
            .expect_err("offsets before 10 were applied");
        assert!(
            matches!(error, SqlError::Fenced { offset, .. } if offset == first),
            "{error}"
        );
        assert_eq!(error.class(), ErrorClass::Fenced);
        assert_eq!(
            digest_of(&db).await,
            before,
            "the zombie wrote, from offset {first}"
        );
        assert_eq!(
            zombie.fences().await.unwrap(),
            fences,
            "the zombie moved the fence"
        );
    }

    // Without what the fence covers it passes, also with a hole where other targets' records lay.
    let rest = from_kafka(created(user, 10..15), TOPIC, 0, 10);
    assert_eq!(
        apply(&zombie, &rest).await.unwrap().applied,
        5,
        "the fence refuses its own next offset"
    );
    let rest = from_kafka(created(user, 20..21), TOPIC, 0, 20);
    assert_eq!(apply(&zombie, &rest).await.unwrap().applied, 1);
    let fences: Vec<i64> = winner.fences().await.unwrap().into_values().collect();
    assert_eq!(fences, [21]);
}

/// Both at once: the zombie waits on the fence's row lock, and is refused when the winner commits.
async fn a_zombie_that_waits_for_the_winner_is_refused(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let (winner, zombie) = (db.store().await, db.store().await);
    let user = user(32);
    apply(&winner, &from_kafka(created(user, 0..1), TOPIC, 0, 0))
        .await
        .unwrap();
    let nodes = crate::ground::node_urls(ground, &db).await;

    let target = winner.target_of(user).unwrap();
    let staged = winner
        .stage(target, &from_kafka(created(user, 1..10), TOPIC, 0, 1))
        .await
        .unwrap();
    let late = from_kafka(created(user, 5..14), TOPIC, 0, 5);
    let zombie = tokio::spawn(async move { apply(&zombie, &late).await });
    assert!(
        crate::ground::wait_until_blocked(&nodes, || zombie.is_finished()).await,
        "the zombie did not wait for the winner: {:?}",
        zombie.await
    );
    staged.commit().await.unwrap();
    let error = zombie.await.unwrap().expect_err("the winner was here");
    assert!(
        matches!(error, SqlError::Fenced { offset: 5, .. }),
        "{error}"
    );
    let fences: Vec<i64> = winner.fences().await.unwrap().into_values().collect();
    assert_eq!(fences, [10]);
    assert_eq!(
        digest_of(&db).await.0["orders"].0,
        10,
        "ten orders, each once"
    );
}

async fn partitions_and_topics_do_not_interfere(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let (a, b) = (db.store().await, db.store().await);
    let users = users(33, 3);
    apply(&a, &from_kafka(created(users[0], 0..10), TOPIC, 0, 0))
        .await
        .unwrap();
    let other_partition = from_kafka(created(users[1], 5..15), TOPIC, 1, 5);
    assert_eq!(apply(&b, &other_partition).await.unwrap().applied, 10);
    let other_topic = from_kafka(created(users[2], 3..6), "disputes.webhooks", 0, 3);
    assert_eq!(apply(&b, &other_topic).await.unwrap().applied, 3);
    // The same user, and so the same shard, by two partitions in one batch.
    let mut both = from_kafka(created(users[0], 15..17), TOPIC, 1, 15);
    both.extend(from_kafka(created(users[0], 10..12), TOPIC, 0, 10));
    assert_eq!(apply(&b, &both).await.unwrap().applied, 4);

    let fences = a.fences().await.unwrap();
    let next = |topic: &str, partition| {
        fences[&(topic.to_owned(), partition, a.target_of(users[0]).unwrap())]
    };
    assert_eq!((next(TOPIC, 0), next(TOPIC, 1)), (12, 17), "{fences:?}");

    // If one of a batch's partitions is fenced, all of the batch is.
    let before = digest_of(&db).await;
    let mut both = from_kafka(created(users[0], 17..18), TOPIC, 1, 17);
    both.extend(from_kafka(created(users[0], 11..13), TOPIC, 0, 11));
    let error = apply(&b, &both)
        .await
        .expect_err("offset 11 of partition 0 was applied");
    assert!(
        matches!(
            error,
            SqlError::Fenced {
                partition: 0,
                offset: 11,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(digest_of(&db).await, before);
    assert_eq!(
        a.fences().await.unwrap(),
        fences,
        "partition 1's fence is rolled back too"
    );
}

/// More often than the pool has connections, so that each is lost once.
async fn a_batch_that_is_dropped_is_rolled_back(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let store = db.store().await;
    let empty = digest_of(&db).await;
    let user = user(34);
    let records = from_kafka(created(user, 0..3), TOPIC, 0, 0);
    let target = store.target_of(user).unwrap();
    for round in 0..10 {
        let staged = store
            .stage(target, &records)
            .await
            .unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(
            staged.report().applied,
            3,
            "round {round}: the batch before it is not rolled back"
        );
        drop(staged);
        // A caller that goes away in the middle.
        let given_up = tokio::time::timeout(
            std::time::Duration::from_millis(1),
            store.stage(target, &records),
        );
        drop(given_up.await);
    }
    assert_eq!(
        digest_of(&db).await,
        empty,
        "a batch without commit left rows"
    );
    assert!(
        store.fences().await.unwrap().is_empty(),
        "a batch without commit moved a fence"
    );
    let report = apply(&store, &records).await.unwrap();
    assert_eq!((report.applied, report.duplicates), (3, 0), "{report:?}");
    // And in direct mode after it, over the same pool.
    assert_eq!(
        apply(&store, &direct(created(user, 3..4)))
            .await
            .unwrap()
            .applied,
        1
    );
}
