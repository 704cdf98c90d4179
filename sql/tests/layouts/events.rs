//! Webhooks as providers send them, decoded by the domain.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use shardlane_domain::{Event, Source};
use shardlane_sql::{Origin, Record};
use uuid::Uuid;

/// The provider's clock at second 0.
const EPOCH_SECONDS: i64 = 1_780_000_000;

/// Seeded, so that a failure repeats.
pub(crate) fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

pub(crate) fn users(seed: u64, count: usize) -> Vec<Uuid> {
    let mut rng = rng(seed);
    (0..count)
        .map(|_| uuid::Builder::from_random_bytes(rng.random()).into_uuid())
        .collect()
}

pub(crate) fn user(seed: u64) -> Uuid {
    users(seed, 1)[0]
}

/// The provider's time, as it writes it.
pub(crate) fn at(second: i64) -> String {
    Timestamp::from_second(EPOCH_SECONDS + second)
        .unwrap()
        .to_string()
}

/// The front door's time: now, in whole seconds, because Postgres keeps microseconds.
pub(crate) fn received_now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap()
}

pub(crate) fn decode(source: Source, payload: &Value) -> Event {
    Event::decode(source, Bytes::from(payload.to_string()), received_now())
        .unwrap_or_else(|error| panic!("{payload} must decode: {error}"))
}

pub(crate) fn order(
    user: Uuid,
    order_id: &str,
    event_id: &str,
    status: &str,
    second: i64,
) -> Event {
    order_with(user, order_id, event_id, status, second, &json!({}))
}

pub(crate) fn order_with(
    user: Uuid,
    order_id: &str,
    event_id: &str,
    status: &str,
    second: i64,
    meta: &Value,
) -> Event {
    let payload = json!({
        "provider_event_id": event_id, "order_id": order_id, "user_id": user, "status": status,
        "created_at": at(0), "updated_at": at(second), "meta": meta,
    });
    decode(Source::Orders, &payload)
}

pub(crate) fn dispute(
    user: Uuid,
    order_id: &str,
    event_id: &str,
    status: &str,
    second: i64,
) -> Event {
    dispute_with(user, order_id, event_id, status, second, json!({}))
}

/// `more` replaces or adds fields.
pub(crate) fn dispute_with(
    user: Uuid,
    order_id: &str,
    event_id: &str,
    status: &str,
    second: i64,
    more: Value,
) -> Event {
    let mut payload = json!({
        "provider_event_id": event_id, "order_id": order_id, "user_id": user, "status": status,
        "reason": "fraud", "amount": 12.34, "currency": "EUR", "occurred_at": at(second),
    });
    let Value::Object(more) = more else {
        panic!("more fields are an object")
    };
    payload.as_object_mut().unwrap().extend(more);
    decode(Source::Chargebacks, &payload)
}

/// Records as direct mode has them: from nowhere in Kafka.
pub(crate) fn direct(events: impl IntoIterator<Item = Event>) -> Vec<Record> {
    events
        .into_iter()
        .map(|event| Record {
            event,
            origin: None,
        })
        .collect()
}

/// Records as they lie one behind the other in a Kafka partition, from offset `first` on.
pub(crate) fn from_kafka(
    events: impl IntoIterator<Item = Event>,
    topic: &str,
    partition: i32,
    first: i64,
) -> Vec<Record> {
    let topic: Arc<str> = topic.into();
    (first..)
        .zip(events)
        .map(|(offset, event)| Record {
            event,
            origin: Some(Origin {
                topic: Arc::clone(&topic),
                partition,
                offset,
            }),
        })
        .collect()
}
