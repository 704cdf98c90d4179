//! A payload that Postgres refuses: the row is at fault, and nothing is written.

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::json;
use shardlane_domain::{Body, Event, PAYLOAD_BYTES_MAX};
use shardlane_sql::ErrorClass;
use uuid::Uuid;

use crate::events::{at, dispute, from_kafka, order, user, users};
use crate::ground::{Ground, apply, digest_of};

on_every_layout!(a_poisonous_payload_is_a_data_error_and_writes_nothing);

/// An order whose unknown field `x` has this value. Made by hand, because the decoder may refuse it today or
/// tomorrow, and the database's answer must be understood all the same.
fn with_extra(user: Uuid, extra: &str) -> Event {
    let payload = json!({
        "provider_event_id": "p", "order_id": "p", "user_id": user, "status": "created",
        "created_at": at(0), "updated_at": at(1),
    })
    .to_string();
    let payload = Bytes::from(payload.replacen('{', &format!("{{\"x\":{extra},"), 1));
    Event {
        payload,
        ..order(user, "p", "p", "created", 1)
    }
}

/// An order of a time that jiff knows and Postgres, which begins in 4713 BC, does not.
fn ancient(user: Uuid) -> Event {
    let mut event = order(user, "p", "p", "created", 1);
    if let Body::Order(change) = &mut event.body {
        change.created_at = Timestamp::MIN;
    }
    event
}

async fn a_poisonous_payload_is_a_data_error_and_writes_nothing(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let store = db.store().await;
    let user = user(71);
    let good = |id: &str| order(user, id, id, "created", 1);
    apply(
        &store,
        &from_kafka([good("before")], "orders.webhooks", 0, 0),
    )
    .await
    .unwrap();
    let (before, fences) = (digest_of(&db).await, store.fences().await.unwrap());

    let deep = PAYLOAD_BYTES_MAX / 2 - 300;
    let poisons = [
        ("a time before Postgres's first", ancient(user)),
        (
            "deep nesting",
            with_extra(user, &format!("{}{}", "[".repeat(deep), "]".repeat(deep))),
        ),
        (
            "no JSON",
            Event {
                payload: Bytes::from_static(b"{"),
                ..good("p")
            },
        ),
        (
            "no UTF-8",
            Event {
                payload: Bytes::from_static(b"\"\xff\""),
                ..good("p")
            },
        ),
        (
            "NUL in an id",
            Event {
                order_id: "a\0b".to_owned(),
                ..good("p")
            },
        ),
        (
            "an id that no index takes",
            Event {
                order_id: incompressible(9000),
                ..good("p")
            },
        ),
    ];
    for (what, poison) in poisons {
        let records = from_kafka([good("a"), poison, good("b")], "orders.webhooks", 0, 1);
        let error = apply(&store, &records)
            .await
            .err()
            .unwrap_or_else(|| panic!("{what} was stored"));
        assert_eq!(error.class(), ErrorClass::Data, "{what}: {error}");
        assert_eq!(
            digest_of(&db).await,
            before,
            "{what}: its batch was written"
        );
        assert_eq!(
            store.fences().await.unwrap(),
            fences,
            "{what}: the fence moved"
        );
    }

    // The batch without the poison passes, on the same connections.
    let records = from_kafka([good("a"), good("b")], "orders.webhooks", 0, 1);
    assert_eq!(apply(&store, &records).await.unwrap().applied, 2);
}

/// The statements of a batch are sent at once, so those behind the guilty one fail as well, with 25P02 "current
/// transaction is aborted". Whichever answer is read first, the cause must be told: 25P02 would stop a worker.
#[tokio::test(flavor = "multi_thread")]
async fn the_cause_is_told_and_not_its_consequences() {
    const ROUNDS: usize = 300;
    let Some(db) = Ground::SINGLE.db().await else {
        return;
    };
    let store = db.store().await;
    let lanes = users(73, 4).into_iter().map(|user| {
        let store = &store;
        async move {
            let poison = ancient(user);
            let records = from_kafka(
                [poison, dispute(user, "p", "d", "opened", 1)],
                "orders.webhooks",
                0,
                0,
            );
            for round in 0..ROUNDS {
                let error = apply(store, &records)
                    .await
                    .expect_err("a poisonous payload");
                assert_eq!(error.class(), ErrorClass::Data, "round {round}: {error}");
            }
        }
    });
    futures_util::future::join_all(lanes).await;
}

/// Text that TOAST cannot press under an index's limit of about 2,700 bytes.
fn incompressible(bytes: usize) -> String {
    let mut rng = crate::events::rng(72);
    (0..bytes)
        .map(|_| char::from(rand::RngExt::random_range(&mut rng, b'!'..=b'~')))
        .collect()
}
