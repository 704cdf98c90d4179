//! One user's sequence of webhooks, which follows from a seed.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use shardlane_domain::Source;
use uuid::Uuid;

/// How many of its orders a user works on at once.
const OPEN_ORDERS: usize = 2;
/// A redelivery repeats one of this many newest events.
const RECENT: usize = 6;
/// 2026-01-01; a user's n-th event happened n seconds later.
const START_SECOND: i64 = 1_767_225_600;

/// A webhook as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Its user: the Kafka key.
    pub user: Uuid,
    /// Where it is posted.
    pub source: Source,
    /// The provider's id.
    pub id: String,
    /// The body.
    pub payload: Bytes,
}

/// How often a user's sequence has what is not plain, in events of a thousand.
#[derive(Debug, Clone, Copy)]
pub struct Mixture {
    /// Sent again as it was.
    pub redelivered: u32,
    /// Older than what was sent before it.
    pub stale: u32,
    /// Sent before the event that it follows.
    pub early: u32,
    /// To an order that has ended.
    pub illegal: u32,
    /// Known by its id, with another body.
    pub other_body: u32,
    /// No webhook at all.
    pub garbage: u32,
    /// Refused by a trigger that the scenario has put into the databases.
    pub refused: u32,
}

impl Mixture {
    /// What providers send.
    pub const USUAL: Mixture = Mixture {
        redelivered: 20,
        stale: 10,
        early: 5,
        illegal: 5,
        other_body: 2,
        garbage: 0,
        refused: 0,
    };
    /// Nothing but what applies.
    pub const PLAIN: Mixture = Mixture {
        redelivered: 0,
        stale: 0,
        early: 0,
        illegal: 0,
        other_body: 0,
        garbage: 0,
        refused: 0,
    };
    /// Much of it poison.
    pub const POISON: Mixture = Mixture {
        illegal: 30,
        other_body: 30,
        garbage: 30,
        refused: 20,
        ..Mixture::USUAL
    };
}

/// What a trigger of [`crate::world::World::refuse_poison`] looks for.
pub const REFUSED_MARK: &str = "refuse-me";

struct Order {
    name: String,
    /// Steps that are still to come, the last one first.
    steps: Vec<Step>,
}

#[derive(Clone, Copy)]
enum Step {
    Order(&'static str),
    Dispute(&'static str, Option<&'static str>),
}

/// A user who sends.
pub struct User {
    id: Uuid,
    rng: ChaCha8Rng,
    mixture: Mixture,
    sequence: i64,
    orders: Vec<Order>,
    opened: u32,
    last_order: Option<String>,
    recent: Vec<Webhook>,
    /// Sent before anything else.
    next: Vec<Webhook>,
}

impl User {
    /// The user of this number and seed.
    #[must_use]
    pub fn new(seed: u64, number: u64, mixture: Mixture) -> User {
        let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(number));
        User {
            id: uuid::Builder::from_random_bytes(rng.random()).into_uuid(),
            rng,
            mixture,
            sequence: 0,
            orders: Vec::new(),
            opened: 0,
            last_order: None,
            recent: Vec::new(),
            next: Vec::new(),
        }
    }

    /// The user's id.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Whether it has sent what follows something that it has not sent yet.
    #[must_use]
    pub fn owes(&self) -> bool {
        !self.next.is_empty()
    }

    /// The next webhook.
    pub fn next_webhook(&mut self) -> Webhook {
        if let Some(waiting) = self.next.pop() {
            return self.remembered(waiting);
        }
        let draw = self.rng.random_range(0..1_000);
        let mixture = self.mixture;
        let mut bound = 0;
        let mut falls = |share: u32| {
            let begin = bound;
            bound += share;
            (begin..bound).contains(&draw)
        };
        if falls(mixture.redelivered) && !self.recent.is_empty() {
            let back = self.rng.random_range(0..self.recent.len());
            return self.recent[back].clone();
        }
        if falls(mixture.other_body) && !self.recent.is_empty() {
            let back = self.rng.random_range(0..self.recent.len());
            return self.with_other_body(back);
        }
        if falls(mixture.garbage) {
            return self.garbage();
        }
        if falls(mixture.refused) && self.last_order.is_some() {
            let order = self.last_order.clone().unwrap_or_default();
            let webhook = self.order(&order, "updated", 0, REFUSED_MARK);
            return self.remembered(webhook);
        }
        if falls(mixture.illegal)
            && let Some(order) = self.last_order.clone()
        {
            let webhook = self.order(&order, "updated", 0, "");
            return self.remembered(webhook);
        }
        if falls(mixture.stale)
            && let Some(order) = self.last_order.clone()
        {
            let webhook = self.order(&order, "updated", -1_000, "");
            return self.remembered(webhook);
        }
        let early = falls(mixture.early);
        let webhook = self.step();
        if early {
            let after = self.step_of_newest();
            if let Some(after) = after {
                // The later one first, with the times in their right order.
                self.next.push(webhook);
                return self.remembered(after);
            }
        }
        self.remembered(webhook)
    }

    fn remembered(&mut self, webhook: Webhook) -> Webhook {
        if self.recent.len() == RECENT {
            self.recent.remove(0);
        }
        self.recent.push(webhook.clone());
        webhook
    }

    /// The next step of one of the orders.
    fn step(&mut self) -> Webhook {
        if self.orders.is_empty() || self.orders.len() < OPEN_ORDERS && self.rng.random_bool(0.3) {
            let order = self.new_order();
            self.orders.push(order);
        }
        let index = self.rng.random_range(0..self.orders.len());
        self.advance(index)
    }

    /// The next step of the order that was worked on last, if it goes on.
    fn step_of_newest(&mut self) -> Option<Webhook> {
        let last = self.last_order.as_ref()?;
        let index = self.orders.iter().position(|order| order.name == *last)?;
        let same_topic = matches!(self.orders[index].steps.last(), Some(Step::Order(_)));
        same_topic.then(|| self.advance(index))
    }

    fn advance(&mut self, index: usize) -> Webhook {
        let order = &mut self.orders[index];
        let name = order.name.clone();
        let step = order.steps.pop();
        if order.steps.is_empty() {
            self.orders.swap_remove(index);
        }
        self.last_order = Some(name.clone());
        match step {
            Some(Step::Dispute(status, resolution)) => self.dispute(&name, status, resolution),
            Some(Step::Order(status)) => self.order(&name, status, 0, ""),
            None => self.order(&name, "updated", 0, ""),
        }
    }

    fn new_order(&mut self) -> Order {
        self.opened += 1;
        let mut steps = Vec::new();
        let paid = self.rng.random_bool(0.8);
        if paid && self.rng.random_bool(0.4) {
            let ends = [Some("won"), Some("lost"), None];
            steps.push(Step::Dispute("closed", ends[self.rng.random_range(0..3)]));
            for _ in 0..self.rng.random_range(0..3) {
                steps.push(Step::Dispute("updated", None));
            }
            steps.push(Step::Dispute("opened", None));
        }
        steps.push(Step::Order(if paid { "success" } else { "failed" }));
        for _ in 0..self.rng.random_range(0..4) {
            steps.push(Step::Order("updated"));
        }
        steps.push(Step::Order("created"));
        Order {
            name: format!("o{}", self.opened),
            steps,
        }
    }

    fn now(&mut self, later: i64) -> Timestamp {
        self.sequence += 1;
        Timestamp::from_second(START_SECOND + self.sequence + later)
            .unwrap_or(Timestamp::UNIX_EPOCH)
    }

    fn amount(&mut self) -> String {
        let minor: u32 = self.rng.random_range(1..1_000_000);
        format!("{}.{:02}", minor / 100, minor % 100)
    }

    fn order(&mut self, order: &str, status: &str, later: i64, note: &str) -> Webhook {
        let at = self.now(later);
        let id = format!("e{}", self.sequence);
        let payload = json!({
            "provider_event_id": id, "order_id": order, "user_id": self.id, "status": status,
            "created_at": (at - SignedDuration::from_hours(1)).to_string(), "updated_at": at.to_string(),
            "meta": {"amount": self.amount(), "currency": "EUR", "note": note},
        });
        self.webhook(Source::Orders, id, &payload)
    }

    fn dispute(&mut self, order: &str, status: &str, resolution: Option<&str>) -> Webhook {
        let at = self.now(0);
        let id = format!("e{}", self.sequence);
        let amount = serde_json::value::RawValue::from_string(self.amount()).ok();
        let payload = json!({
            "provider_event_id": id, "order_id": order, "user_id": self.id, "status": status,
            "reason": "fraud", "amount": 0, "currency": "EUR", "occurred_at": at.to_string(),
            "meta": {"resolution": resolution},
        });
        // A float would round the amount.
        let amount = amount.map_or_else(|| "0".to_owned(), |amount| amount.get().to_owned());
        let text = payload
            .to_string()
            .replacen("\"amount\":0", &format!("\"amount\":{amount}"), 1);
        Webhook {
            user: self.id,
            source: Source::Chargebacks,
            id,
            payload: Bytes::from(text),
        }
    }

    fn with_other_body(&mut self, back: usize) -> Webhook {
        let known = self.recent[back].clone();
        let mut text = String::from_utf8_lossy(&known.payload).into_owned();
        // One more unknown field, which changes nothing but the bytes.
        self.sequence += 1;
        if let Some(end) = text.rfind('}') {
            text.replace_range(end.., &format!(",\"body\":{}}}", self.sequence));
        }
        Webhook {
            payload: Bytes::from(text),
            ..known
        }
    }

    fn garbage(&mut self) -> Webhook {
        self.sequence += 1;
        let id = format!("g{}", self.sequence);
        let kinds = [
            format!("{{\"provider_event_id\":\"{id}\"}}"),
            format!("no JSON at all {id}"),
            String::new(),
        ];
        let payload = kinds[self.rng.random_range(0..kinds.len())].clone();
        Webhook {
            user: self.id,
            source: Source::Orders,
            id,
            payload: Bytes::from(payload),
        }
    }

    fn webhook(&self, source: Source, id: String, payload: &serde_json::Value) -> Webhook {
        Webhook {
            user: self.id,
            source,
            id,
            payload: Bytes::from(payload.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use shardlane_domain::Event;

    use super::*;

    #[test]
    fn one_seed_is_one_sequence_of_webhooks_that_decode() {
        for number in 0..20 {
            let (mut user, mut again) = (
                User::new(7, number, Mixture::USUAL),
                User::new(7, number, Mixture::USUAL),
            );
            for _ in 0..1_000 {
                let webhook = user.next_webhook();
                assert_eq!(webhook, again.next_webhook());
                let event = Event::decode(
                    webhook.source,
                    webhook.payload.clone(),
                    Timestamp::UNIX_EPOCH,
                );
                let event = event.unwrap_or_else(|error| panic!("{error}: {webhook:?}"));
                assert_eq!((event.user_id, event.event_id), (webhook.user, webhook.id));
            }
        }
    }
}
