//! What a provider says, as plain data: the generator's and the model's view, which is not the domain crate's.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use jiff::Timestamp;
use rand::RngExt as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use shardlane_domain::{
    Body, DisputeAction, DisputeChange, Event, Money, OrderChange, OrderStatus, Resolution, Source,
};
use uuid::Uuid;

use crate::stage::{Origin, Record};

static TOPICS: LazyLock<[Arc<str>; 2]> =
    LazyLock::new(|| [Source::Orders, Source::Chargebacks].map(|source| Arc::from(source.topic())));

/// A webhook.
#[derive(Debug, Clone)]
pub(super) struct Said {
    pub(super) source: Source,
    pub(super) user: Uuid,
    pub(super) order: &'static str,
    pub(super) id: String,
    pub(super) payload: u128,
    pub(super) status: &'static str,
    pub(super) at: i64,
}

impl Said {
    /// As the decoder gives it. `number` stands where the time of acceptance does, so that each row tells its record.
    pub(super) fn record(&self, number: usize, partition: i32, offset: i64) -> Record {
        static MONEY: LazyLock<Money> =
            LazyLock::new(|| Money::parse_major("10.00", "EUR").unwrap());
        let at = second(self.at);
        let body = match self.source {
            Source::Orders => Body::Order(OrderChange {
                status: OrderStatus::from_text(self.status).unwrap(),
                created_at: second(0),
                updated_at: at,
                amount: None,
            }),
            Source::Chargebacks => Body::Dispute(DisputeChange {
                action: match self.status {
                    "opened" => DisputeAction::Opened,
                    "updated" => DisputeAction::Updated,
                    _ => DisputeAction::Closed(Some(Resolution::Won)),
                },
                reason: String::new(),
                amount: *MONEY,
                occurred_at: at,
                evidence_due_at: None,
            }),
        };
        Record {
            event: Event {
                user_id: self.user,
                source: self.source,
                event_id: self.id.clone(),
                order_id: self.order.to_owned(),
                received_at: second(i64::try_from(number).unwrap()),
                payload: Bytes::from_static(b"{}"),
                payload_hash: self.payload,
                body,
            },
            origin: Some(Origin {
                topic: Arc::clone(&TOPICS[self.source as usize]),
                partition,
                offset,
            }),
        }
    }
}

pub(super) fn second(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Valid walks, and what goes wrong with them.
pub(super) fn generate(users: &[Uuid], rng: &mut ChaCha8Rng) -> Vec<Said> {
    let mut walks: Vec<Vec<Said>> = Vec::new();
    let mut next = 0;
    for user in users {
        for order in ["a", "b"] {
            let end = if rng.random_bool(0.5) {
                "success"
            } else {
                "failed"
            };
            walks.push(walk(
                Source::Orders,
                *user,
                order,
                ["created", "updated", end],
                &mut next,
                rng,
            ));
            if rng.random_bool(0.6) {
                let statuses = ["opened", "updated", "closed"];
                walks.push(walk(
                    Source::Chargebacks,
                    *user,
                    order,
                    statuses,
                    &mut next,
                    rng,
                ));
            }
        }
    }
    let mut turns: Vec<usize> = walks
        .iter()
        .enumerate()
        .flat_map(|(walk, events)| std::iter::repeat_n(walk, events.len()))
        .collect();
    turns.shuffle(rng);
    let mut walks: Vec<_> = walks.into_iter().map(Vec::into_iter).collect();
    let mut said: Vec<Said> = turns
        .iter()
        .filter_map(|walk| walks[*walk].next())
        .collect();
    for index in 0..said.len() {
        let mut again = said[index].clone();
        if rng.random_bool(0.25) {
            if rng.random_bool(0.4) {
                next += 1;
                again.payload = next;
            }
            let near = said.len().min(index + 5);
            let last = if rng.random_bool(0.5) {
                near
            } else {
                said.len()
            };
            let place = rng.random_range(index + 1..=last);
            said.insert(place, again);
        }
    }
    said
}

fn walk(
    source: Source,
    user: Uuid,
    order: &'static str,
    statuses: [&'static str; 3],
    next: &mut u128,
    rng: &mut ChaCha8Rng,
) -> Vec<Said> {
    let mut at = 10;
    let mut said = |status: &'static str| {
        *next += 1;
        at += 10;
        let (id, payload) = (format!("e{next}"), *next);
        Said {
            source,
            user,
            order,
            id,
            payload,
            status,
            at,
        }
    };
    let mut walk: Vec<Said> = statuses.into_iter().map(&mut said).collect();
    match rng.random_range(0..10) {
        // The opener comes late, or never.
        0..3 => walk.rotate_left(1),
        3 => walk.swap(0, 1),
        4 => drop(walk.remove(0)),
        // Stale; illegal, for now or for good.
        5 => walk[1].at = 15,
        6 => walk.push(said("updated")),
        7 => {
            let opener = Said {
                at: 25,
                ..said(statuses[0])
            };
            // Illegal, and stale when it comes again.
            walk.insert(1, opener.clone());
            walk.insert(3, opener);
        }
        _ => {}
    }
    walk
}
