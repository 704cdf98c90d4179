//! The seeded stream of webhooks that every layout is given.
//!
//! Orders walk their states, some are disputed; a share of the events is sent twice, a share comes late, a share is
//! illegal. The same [`StreamSettings`] give the same bytes on every machine.

mod payload;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Zipf};
use shardlane_domain::Source;
use uuid::Uuid;

use payload::{
    ChargebackMeta, ChargebackPayload, OrderMeta, OrderPayload, PaymentMeta, PaymentPayload,
    to_json, to_text,
};

/// How many orders are under way at once.
const OPEN_WALKS: usize = 2_000;
/// A redelivery repeats one of this many newest events.
const RECENT: usize = 1_000;

/// What to generate.
#[derive(Debug, Clone)]
pub struct StreamSettings {
    /// Events, duplicates included.
    pub events: usize,
    /// Users over whom orders are spread.
    pub users: u32,
    /// Zipf exponent of that spread; 0 is uniform.
    pub skew: f64,
    /// Share of orders that belong to one user, whatever the spread of the others.
    pub tenant: f64,
    /// Everything random comes from this.
    pub seed: u64,
    /// A payload is filled up to this size, in bytes.
    pub payload_bytes: usize,
    /// The first event's time.
    pub start: Timestamp,
    /// The time from the first to the last event.
    pub span: SignedDuration,
    /// Share of events that are sent twice.
    pub duplicates: f64,
    /// Share of events that arrive after their successor.
    pub late: f64,
    /// Share of orders with an event after their end.
    pub illegal: f64,
    /// Share of successful orders with a dispute.
    pub disputes: f64,
    /// Share of orders that end with the webhooks of their payment.
    pub payments: f64,
}

impl StreamSettings {
    /// The stream of the ingest experiment: five days that end today at midnight, 2 % duplicates, 1 % late, 0.5 %
    /// illegal, 10 % disputed.
    pub fn ingest(events: usize, users: u32, skew: f64, seed: u64, payload_bytes: usize) -> Self {
        let midnight = Timestamp::now().as_second().div_euclid(86_400) * 86_400;
        let today = Timestamp::from_second(midnight).unwrap_or(Timestamp::UNIX_EPOCH);
        StreamSettings {
            events,
            users,
            skew,
            tenant: 0.0,
            seed,
            payload_bytes,
            start: today - SignedDuration::from_hours(5 * 24),
            span: SignedDuration::from_hours(5 * 24),
            duplicates: 0.02,
            late: 0.01,
            illegal: 0.005,
            disputes: 0.1,
            payments: 0.0,
        }
    }

    /// A stream for the front door, whose events happen while they are sent. None is late or illegal, so that each is
    /// taken: 2 % duplicates, 10 % disputed, and this share of orders `payments`.
    pub fn load(
        events: usize,
        users: u32,
        seed: u64,
        payload_bytes: usize,
        span: SignedDuration,
        payments: f64,
    ) -> Self {
        StreamSettings {
            payments,
            start: Timestamp::now(),
            span,
            late: 0.0,
            illegal: 0.0,
            ..StreamSettings::ingest(events, users, 0.0, seed, payload_bytes)
        }
    }
}

/// One webhook of the stream.
#[derive(Debug, Clone)]
pub struct Webhook {
    /// Whether it was sent before.
    pub is_duplicate: bool,
    /// What it is: its topic, and the name space of its id.
    pub source: Source,
    /// Where it is posted.
    pub path: &'static str,
    /// The provider's id of it.
    pub event_id: String,
    /// Its user: the Kafka key.
    pub user_id: Uuid,
    /// When the front door accepts it, in whole milliseconds.
    pub received_at: Timestamp,
    /// The body.
    pub payload: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Order(&'static str),
    Payment(&'static str),
    Dispute(&'static str, Option<&'static str>),
}

struct Walk {
    user_id: Uuid,
    order: u64,
    created_at: Timestamp,
    amount_minor: u64,
    steps: Vec<Step>,
    next: usize,
    /// A step that is held back until its successor was sent.
    held: Option<Webhook>,
}

/// The stream, one webhook after the other: its memory does not grow with its length.
pub struct Stream {
    settings: StreamSettings,
    rng: ChaCha8Rng,
    users: Vec<Uuid>,
    zipf: Option<Zipf<f64>>,
    orders: u64,
    walks: Vec<Walk>,
    /// How many were sent, those that wait to be taken included.
    sent: usize,
    /// The newest that were sent, oldest first.
    recent: VecDeque<Webhook>,
    /// Sent and not taken.
    waiting: VecDeque<Webhook>,
    taken: usize,
}

/// Generates the stream.
pub fn generate(settings: &StreamSettings) -> Vec<Webhook> {
    Stream::new(settings.clone()).collect()
}

impl Iterator for Stream {
    type Item = Webhook;

    fn next(&mut self) -> Option<Webhook> {
        if self.taken == self.settings.events {
            return None;
        }
        while self.waiting.is_empty() {
            self.step();
        }
        self.taken += 1;
        self.waiting.pop_front()
    }
}

impl Stream {
    /// A stream at its beginning.
    pub fn new(settings: StreamSettings) -> Stream {
        let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
        let users = (0..settings.users.max(1))
            .map(|_| uuid::Builder::from_random_bytes(rng.random()).into_uuid())
            .collect();
        let zipf = (settings.skew > 0.0)
            .then(|| Zipf::new(f64::from(settings.users.max(1)), settings.skew).ok())
            .flatten();
        Stream {
            settings,
            rng,
            users,
            zipf,
            orders: 0,
            walks: Vec::new(),
            sent: 0,
            recent: VecDeque::with_capacity(RECENT),
            waiting: VecDeque::new(),
            taken: 0,
        }
    }

    /// The user with a tenant's share; the busiest one where users are spread by Zipf.
    pub fn tenant(&self) -> Uuid {
        self.users[0]
    }

    fn step(&mut self) {
        if self.walks.len() < OPEN_WALKS.min(self.settings.events / 4 + 1) {
            let walk = self.new_walk();
            self.walks.push(walk);
        }
        let index = self.rng.random_range(0..self.walks.len());
        let mut walk = self.walks.swap_remove(index);
        if !self.advance(&mut walk) {
            // Back to its place, as if it had never been away.
            self.walks.push(walk);
            let last = self.walks.len() - 1;
            self.walks.swap(index, last);
        }
        if self.rng.random_bool(self.settings.duplicates) && !self.recent.is_empty() {
            let back = self.rng.random_range(1..=self.recent.len());
            let again = self.recent[self.recent.len() - back].clone();
            let received_at = self.clock();
            self.send(Webhook {
                is_duplicate: true,
                received_at,
                ..again
            });
        }
    }

    fn send(&mut self, webhook: Webhook) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(webhook.clone());
        self.waiting.push_back(webhook);
        self.sent += 1;
    }

    /// Sends a walk's next step; true at its end.
    fn advance(&mut self, walk: &mut Walk) -> bool {
        let webhook = self.webhook(walk, walk.steps[walk.next]);
        walk.next += 1;
        let last = walk.next == walk.steps.len();
        if !last && walk.held.is_none() && self.rng.random_bool(self.settings.late) {
            walk.held = Some(webhook);
            return false;
        }
        self.send(webhook);
        if let Some(mut late) = walk.held.take() {
            late.received_at = self.clock();
            self.send(late);
        }
        last
    }

    fn new_walk(&mut self) -> Walk {
        self.orders += 1;
        let mut steps = vec![Step::Order("created")];
        for _ in 0..self.rng.random_range(0..3) {
            steps.push(Step::Order("updated"));
        }
        let paid = self.rng.random_bool(0.9);
        // Nothing is drawn where there are none, so that such a stream stays what it was.
        if self.settings.payments > 0.0 && self.rng.random_bool(self.settings.payments) {
            let end = if paid { "captured" } else { "voided" };
            steps.extend(["authorized", end].map(Step::Payment));
        } else {
            steps.push(Step::Order(if paid { "success" } else { "failed" }));
        }
        if self.rng.random_bool(self.settings.illegal) {
            steps.push(Step::Order("updated"));
        }
        if paid && self.rng.random_bool(self.settings.disputes) {
            steps.push(Step::Dispute("opened", None));
            if self.rng.random_bool(0.3) {
                steps.push(Step::Dispute("updated", None));
            }
            let resolution = *[Some("won"), Some("lost"), None]
                .get(self.rng.random_range(0..3))
                .unwrap_or(&None);
            steps.push(Step::Dispute("closed", resolution));
        }
        Walk {
            user_id: self.user(),
            order: self.orders,
            created_at: self.clock(),
            amount_minor: self.rng.random_range(100..500_000),
            steps,
            next: 0,
            held: None,
        }
    }

    fn user(&mut self) -> Uuid {
        // Nothing is drawn where there is none, so that such a stream stays what it was.
        if self.settings.tenant > 0.0 && self.rng.random_bool(self.settings.tenant) {
            return self.users[0];
        }
        let index = match &self.zipf {
            // Zipf gives 1..=n as a float.
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a sample is a whole number from 1 to the count of users"
            )]
            Some(zipf) => zipf.sample(&mut self.rng) as usize - 1,
            None => self.rng.random_range(0..self.users.len()),
        };
        self.users[index.min(self.users.len() - 1)]
    }

    /// The time of the event that is sent now: the span in equal parts.
    fn clock(&self) -> Timestamp {
        let span = self.settings.span.as_millis();
        let (sent, all) = (self.sent as i128, self.settings.events.max(1) as i128);
        let at = i64::try_from(span * sent / all).unwrap_or(0);
        self.settings.start + SignedDuration::from_millis(at)
    }

    fn webhook(&mut self, walk: &Walk, step: Step) -> Webhook {
        let received_at = self.clock();
        let event = format!("evt-{:x}-{}", walk.order, walk.next);
        let order = format!("ord-{:x}", walk.order);
        let amount = format!("{}.{:02}", walk.amount_minor / 100, walk.amount_minor % 100);
        // The provider's clock counts a walk's steps, so a late event is seen to be late.
        let step_ms = i64::try_from(walk.next).unwrap_or(0);
        let occurred_at = walk.created_at + SignedDuration::from_millis(step_ms);
        let (source, path, event, json) = match step {
            Step::Payment(status) => (
                Source::Orders,
                "/webhooks/silvergate",
                format!("payment:tx-{:x}:{status}", walk.order),
                self.filled(|note| {
                    to_json(&PaymentPayload {
                        event: format!("payment.{status}"),
                        transaction_id: format!("tx-{:x}", walk.order),
                        order_id: &order,
                        merchant_id: "m-1",
                        status,
                        amount: walk.amount_minor,
                        currency: "EUR",
                        timestamp: occurred_at,
                        metadata: PaymentMeta {
                            user_id: walk.user_id,
                            note,
                        },
                    })
                }),
            ),
            Step::Order(status) => (
                Source::Orders,
                "/webhooks/payments/orders",
                event.clone(),
                self.filled(|note| {
                    to_json(&OrderPayload {
                        provider_event_id: &event,
                        order_id: &order,
                        user_id: walk.user_id,
                        status,
                        created_at: walk.created_at,
                        updated_at: occurred_at,
                        meta: OrderMeta {
                            amount: &amount,
                            currency: "EUR",
                            note,
                        },
                    })
                }),
            ),
            Step::Dispute(status, resolution) => (
                Source::Chargebacks,
                "/webhooks/payments/chargebacks",
                event.clone(),
                self.filled(|note| {
                    to_json(&ChargebackPayload {
                        provider_event_id: &event,
                        order_id: &order,
                        user_id: walk.user_id,
                        status,
                        reason: "fraud",
                        amount: serde_json::value::RawValue::from_string(amount.clone()).ok(),
                        currency: "EUR",
                        occurred_at,
                        meta: ChargebackMeta { resolution, note },
                    })
                }),
            ),
        };
        Webhook {
            is_duplicate: false,
            source,
            path,
            event_id: event,
            user_id: walk.user_id,
            received_at,
            payload: Bytes::from(json),
        }
    }

    /// JSON with a note of random text that fills it up to the size that was asked for.
    fn filled(&mut self, json: impl Fn(&str) -> String) -> String {
        let missing = self.settings.payload_bytes.saturating_sub(json("").len());
        let mut noise = vec![0; missing];
        self.rng.fill_bytes(&mut noise);
        json(&to_text(&noise))
    }
}
