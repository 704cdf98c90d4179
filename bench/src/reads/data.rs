//! The rows that are read: any of them can be computed from its number, in every layout the same.

use jiff::{SignedDuration, Timestamp};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use uuid::Uuid;

use super::ReadsSettings;
use super::question::{Key, PAGE_ROWS, Question};

/// The log goes back so far: pg_partman has partitions for it.
const LOG_DAYS: i64 = 7;
const DAY_US: i64 = 86_400_000_000;

pub(super) struct Data {
    pub(super) users: Vec<Uuid>,
    pub(super) orders_a_user: u64,
    pub(super) events_an_order: u64,
    /// The first event's time.
    pub(super) began: Timestamp,
    /// Between two events of the log.
    pub(super) step_us: i64,
}

impl Data {
    pub(super) fn new(settings: &ReadsSettings, now: Timestamp) -> anyhow::Result<Data> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let users: Vec<Uuid> = (0..settings.users)
            .map(|_| uuid::Builder::from_random_bytes(rng.random()).into_uuid())
            .collect();
        let events_a_user = settings.orders_a_user * settings.events_an_order;
        let events = i64::try_from(u64::from(settings.users) * events_a_user)?;
        Ok(Data {
            users,
            orders_a_user: settings.orders_a_user,
            events_an_order: settings.events_an_order,
            began: now.checked_sub(SignedDuration::from_hours(24 * LOG_DAYS))?,
            step_us: (LOG_DAYS * DAY_US / events.max(1)).max(1),
        })
    }

    pub(super) fn events_a_user(&self) -> u64 {
        self.orders_a_user * self.events_an_order
    }

    pub(super) fn any_key(&self, question: Question, rng: &mut ChaCha8Rng) -> Key {
        let user = rng.random_range(0..self.users.len());
        self.key(question, user, rng.random_range(0..self.events_a_user()))
    }

    /// The key of a user's event; a page has the events before it.
    pub(super) fn key(&self, question: Question, user: usize, event: u64) -> Key {
        // The log has the first event of every user, then the second one of every user, ...
        let place = event * self.users.len() as u64 + user as u64;
        let since =
            SignedDuration::from_micros(i64::try_from(place).unwrap_or(i64::MAX) * self.step_us);
        let rows = match question {
            Question::User => self.orders_a_user,
            Question::Latest => self.events_a_user().min(PAGE_ROWS),
            Question::Page => event.min(PAGE_ROWS),
            Question::Directory | Question::Scan => 1,
        };
        Key {
            user: self.users[user],
            order_id: format!("order-{user}-{}", event / self.events_an_order),
            received_at: self.began + since,
            event_id: format!("event-{user}-{event}"),
            rows: usize::try_from(rows).unwrap_or(usize::MAX),
        }
    }
}
