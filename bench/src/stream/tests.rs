use std::collections::{HashMap, HashSet};

use shardlane_domain::{Body, DisputeState, Event, OrderState, OrderStatus, Outcome};

use super::*;

fn settings(seed: u64, skew: f64) -> StreamSettings {
    StreamSettings::ingest(20_000, 500, skew, seed, 300)
}

fn decode(webhook: &Webhook) -> Event {
    let payload = webhook.payload.clone();
    Event::decode(webhook.source, payload, webhook.received_at).unwrap()
}

#[test]
fn one_seed_is_one_stream_and_another_is_another() {
    let bytes = |seed| -> Vec<Bytes> {
        generate(&settings(seed, 0.5))
            .into_iter()
            .map(|webhook| webhook.payload)
            .collect()
    };
    assert_eq!(bytes(7), bytes(7));
    assert_ne!(bytes(7), bytes(8));
}

/// One user has the share of the orders, and the others keep theirs; without a tenant the stream is what it was.
#[test]
fn a_tenant_has_its_share_of_the_orders() {
    for (skew, tenant) in [(0.0, 0.5), (1.0, 0.3)] {
        let settings = StreamSettings {
            tenant,
            ..settings(1, skew)
        };
        let hot = Stream::new(settings.clone()).tenant();
        let mut orders: HashMap<Uuid, HashSet<String>> = HashMap::new();
        for webhook in generate(&settings) {
            let event = decode(&webhook);
            orders
                .entry(event.user_id)
                .or_default()
                .insert(event.order_id.to_string());
        }
        let all: usize = orders.values().map(HashSet::len).sum();
        let share = orders[&hot].len() as f64 / all as f64;
        // By Zipf with 500 users the first one has 0.147 of what is left.
        let expected = tenant + (1.0 - tenant) * if skew > 0.0 { 0.147 } else { 0.002 };
        assert!((share - expected).abs() < 0.03, "{share} of {expected}");
        assert!(orders.len() > 200, "{}", orders.len());
    }
}

/// The share of ends that are told by a payment, for each end; all is as decoders read it.
#[test]
fn payments_end_the_share_of_orders_that_is_asked_for() {
    for share in [0.0, 0.3, 1.0] {
        let span = SignedDuration::from_secs(60);
        let stream = generate(&StreamSettings::load(20_000, 500, 1, 300, span, share));
        let mut ends: HashMap<OrderStatus, [f64; 2]> = HashMap::new();
        for webhook in stream.iter().filter(|webhook| !webhook.is_duplicate) {
            let event = decode(webhook);
            assert_eq!(event.event_id, webhook.event_id);
            let paid = webhook.path == "/webhooks/silvergate";
            assert_eq!(paid, event.event_id.starts_with("payment:"));
            let Body::Order(change) = event.body else {
                continue;
            };
            assert!(!paid || change.status != OrderStatus::Created);
            ends.entry(change.status).or_default()[usize::from(paid)] += 1.0;
        }
        for end in [OrderStatus::Success, OrderStatus::Failed] {
            let [told, paid] = ends[&end];
            assert!(told + paid > 300.0, "{ends:?}");
            assert!(
                (paid / (told + paid) - share).abs() < 0.05,
                "{share}: {ends:?}"
            );
        }
        let [_, authorized] = ends[&OrderStatus::Updated];
        let paid = ends[&OrderStatus::Success][1] + ends[&OrderStatus::Failed][1];
        assert!(authorized >= paid, "{ends:?}");
    }
}

#[test]
fn the_stream_has_what_it_promises() {
    let stream = generate(&StreamSettings {
        payments: 0.3,
        ..settings(1, 0.0)
    });
    assert_eq!(stream.len(), 20_000);
    let mut seen = HashSet::new();
    let mut orders: HashMap<(Uuid, String), OrderState> = HashMap::new();
    let mut disputes: HashMap<(Uuid, String), DisputeState> = HashMap::new();
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for webhook in &stream {
        let event = decode(webhook);
        assert_eq!(event.user_id, webhook.user_id);
        assert!(webhook.payload.len() >= 300);
        if !seen.insert((event.source, event.event_id.clone())) {
            *counts.entry("duplicate").or_default() += 1;
            continue;
        }
        let key = (event.user_id, event.order_id.clone());
        let outcome = match &event.body {
            Body::Order(change) => match OrderState::apply(orders.get(&key), change) {
                Outcome::Applied(state) => {
                    orders.insert(key, state);
                    "applied"
                }
                other => name(&other),
            },
            Body::Dispute(change) => {
                let order_exists = orders.contains_key(&key);
                match DisputeState::apply(disputes.get(&key), order_exists, change) {
                    Outcome::Applied(state) => {
                        disputes.insert(key, state);
                        "applied dispute"
                    }
                    other => name(&other),
                }
            }
        };
        *counts.entry(outcome).or_default() += 1;
    }
    for outcome in [
        "applied",
        "applied dispute",
        "duplicate",
        "stale",
        "too early",
        "illegal",
    ] {
        assert!(
            counts.get(outcome).is_some_and(|count| *count >= 10),
            "{outcome}: {counts:?}"
        );
    }
    assert!(counts["applied"] > 17_000, "{counts:?}");
}

fn name<S>(outcome: &Outcome<S>) -> &'static str {
    match outcome {
        Outcome::Applied(_) => "applied",
        Outcome::Stale => "stale",
        Outcome::TooEarly => "too early",
        Outcome::Illegal { .. } => "illegal",
    }
}

#[test]
fn skew_gives_the_first_users_more() {
    let share_of_hottest = |skew| {
        let mut by_user: HashMap<Uuid, usize> = HashMap::new();
        for webhook in generate(&settings(3, skew)) {
            *by_user.entry(webhook.user_id).or_default() += 1;
        }
        by_user.values().copied().max().unwrap_or(0)
    };
    assert!(share_of_hottest(1.2) > 5 * share_of_hottest(0.0));
}
