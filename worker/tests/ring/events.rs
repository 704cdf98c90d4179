//! Webhooks that a provider could send.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use shardlane_domain::{Event, Source};
use shardlane_router::{RouteKey, SlotMap};
use shardlane_worker::accepted_now;
use uuid::Uuid;

/// A user that is the same in each run. Its hash is as good as any.
pub(crate) fn user(number: usize) -> Uuid {
    Uuid::from_u128(0x5eed_0000_0000_4000_8000_0000_0000_0000 + number as u128)
}

/// The first `count` users whom the map gives to this partition.
pub(crate) fn users_of(map: &SlotMap, partition: i32, count: usize) -> Vec<Uuid> {
    let users = (0..).map(user);
    users
        .filter(|user| partition_of(map, *user) == partition)
        .take(count)
        .collect()
}

pub(crate) fn partition_of(map: &SlotMap, user: Uuid) -> i32 {
    map.partition_for(&RouteKey::Uuid(user)).0
}

/// Provider's time: `second` seconds after a day in the past.
pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000).unwrap() + SignedDuration::from_secs(second)
}

pub(crate) fn order_json(
    user: Uuid,
    event: &str,
    order: &str,
    status: &str,
    second: i64,
) -> String {
    json!({
        "provider_event_id": event, "order_id": order, "user_id": user, "status": status,
        "created_at": at(0), "updated_at": at(second),
        "meta": {"amount": "12.34", "currency": "EUR"},
    })
    .to_string()
}

/// An order whose payload is so many bytes longer.
pub(crate) fn order_with_note(
    user: Uuid,
    event: &str,
    status: &str,
    second: i64,
    bytes: usize,
) -> Event {
    let mut json: serde_json::Value =
        serde_json::from_str(&order_json(user, event, "ord", status, second)).unwrap();
    json["meta"]["note"] = "x".repeat(bytes).into();
    decoded(Source::Orders, json.to_string())
}

pub(crate) fn decoded(source: Source, json: String) -> Event {
    Event::decode(source, Bytes::from(json), accepted_now()).unwrap()
}

pub(crate) fn order(user: Uuid, event: &str, order: &str, status: &str, second: i64) -> Event {
    decoded(
        Source::Orders,
        order_json(user, event, order, status, second),
    )
}

pub(crate) fn dispute(user: Uuid, event: &str, order: &str, status: &str, second: i64) -> Event {
    let json = json!({
        "provider_event_id": event, "order_id": order, "user_id": user, "status": status,
        "reason": "fraud", "amount": 12.34, "currency": "EUR", "occurred_at": at(second),
    });
    decoded(Source::Chargebacks, json.to_string())
}

/// How many events [`walks`] gives for each user.
pub(crate) const WALK: usize = 6;

/// An order from its beginning to its end and a dispute about it, for each user: all of it is applied.
pub(crate) fn walks(users: impl IntoIterator<Item = Uuid>) -> Vec<Event> {
    let walk = |user| {
        [
            order(user, "o1", "ord", "created", 1),
            order(user, "o2", "ord", "updated", 2),
            order(user, "o3", "ord", "success", 3),
            dispute(user, "d1", "ord", "opened", 4),
            dispute(user, "d2", "ord", "updated", 5),
            dispute(user, "d3", "ord", "closed", 6),
        ]
    };
    users.into_iter().flat_map(walk).collect()
}
