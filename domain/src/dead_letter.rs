//! A webhook that became no row: what is kept of it, and what a replay makes of it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3Default;

use crate::{Event, Source};

/// Where in Kafka a dead letter's record stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterOrigin {
    /// The topic.
    pub topic: String,
    /// The Kafka partition.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
}

impl fmt::Display for LetterOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

/// What has become of a letter since it died.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LetterState {
    /// Nothing.
    Dead,
    /// A replay began and did not say how it ended. Replaying it again is safe.
    Replaying {
        /// When it began.
        at: Timestamp,
    },
    /// It was taken again.
    Replayed {
        /// When.
        at: Timestamp,
        /// Where it went: a place in Kafka, or an outcome.
        to: String,
    },
}

impl LetterState {
    /// The name by which `state=` finds it.
    pub const fn as_str(&self) -> &'static str {
        match self {
            LetterState::Dead => "dead",
            LetterState::Replaying { .. } => "replaying",
            LetterState::Replayed { .. } => "replayed",
        }
    }
}

/// A dead letter: the bytes as they came, and everything that is known about why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Stable, and unique where it is kept: `topic/partition/offset`, or a uuid in a database.
    pub id: String,
    /// Where the webhook came from.
    pub source: Source,
    /// Its user, if key or payload name one.
    pub user_id: Option<Uuid>,
    /// For counting: `malformed`, `illegal`, ...
    pub class: String,
    /// For people.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When the front door accepted it.
    pub received_at: Timestamp,
    /// When it died.
    pub dead_at: Timestamp,
    /// Its place in Kafka; `None` in direct mode.
    pub origin: Option<LetterOrigin>,
    /// The record's key; `None` is Kafka's null.
    pub key: Option<Bytes>,
    /// The body, byte for byte; `None` is Kafka's null.
    pub payload: Option<Bytes>,
    /// All headers, in their order, repeated ones too.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// What has become of it.
    pub state: LetterState,
}

impl DeadLetter {
    /// The same for each copy of one death: a try whose answer was late may have left a letter more. `None` where the
    /// letter does not say where it came from.
    pub fn fingerprint(&self) -> Option<u128> {
        let origin = self.origin.as_ref()?.to_string();
        let mut hash = Xxh3Default::new();
        for part in [
            Some(origin.as_bytes()),
            self.key.as_deref(),
            self.payload.as_deref(),
        ] {
            // The length keeps the parts apart, and null from no bytes.
            let length = part.map_or(u64::MAX, |part| part.len() as u64);
            hash.update(&length.to_le_bytes());
            hash.update(part.unwrap_or_default());
        }
        Some(hash.digest128())
    }
}

/// Letters that were found.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// In the order in which they died, as their store keeps it; as many as the limit allows.
    pub letters: Vec<DeadLetter>,
    /// How many match, beyond the limit too.
    pub matching: usize,
}

/// How old a letter may be that is replayed without further ado, from when its webhook was accepted. The inbox must
/// remember for longer than this and the topics' retention together, or a letter that was applied meanwhile could be
/// applied again.
pub const REPLAY_WINDOW: Duration = Duration::from_secs(2 * 24 * 60 * 60);

/// How letters are replayed.
#[derive(Debug, Clone, Copy)]
pub struct ReplayOptions {
    /// Say what would be done, and do nothing.
    pub dry_run: bool,
    /// Take letters that were replayed before, too.
    pub again: bool,
    /// Leave letters whose webhook was accepted longer ago.
    pub window: Duration,
}

impl Default for ReplayOptions {
    fn default() -> Self {
        ReplayOptions {
            dry_run: false,
            again: false,
            window: REPLAY_WINDOW,
        }
    }
}

/// How a letter's replay ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplayEnd {
    /// It was taken: a place in Kafka, or what the database did with it.
    Taken(String),
    /// It would be offered again.
    WouldTake,
    /// It is still no event.
    Malformed(String),
    /// It is an event, and it was refused again.
    Refused(String),
    /// Its webhook was accepted so long ago.
    TooOld(Duration),
    /// It was replayed before.
    ReplayedBefore,
    /// Nobody knows whether it was taken. Replaying it again is safe.
    Failed(String),
}

impl ReplayEnd {
    /// A name for scripts.
    pub const fn as_str(&self) -> &'static str {
        match self {
            ReplayEnd::Taken(_) => "taken",
            ReplayEnd::WouldTake => "would_take",
            ReplayEnd::Malformed(_) => "malformed",
            ReplayEnd::Refused(_) => "refused",
            ReplayEnd::TooOld(_) => "too_old",
            ReplayEnd::ReplayedBefore => "replayed_before",
            ReplayEnd::Failed(_) => "failed",
        }
    }
}

/// A letter and how its replay ended.
#[derive(Debug, Clone)]
pub struct Replayed {
    /// The letter, with the state of before.
    pub letter: DeadLetter,
    /// How it ended.
    pub end: ReplayEnd,
}

/// A letter with its event, or with why there is nothing to offer.
pub type ReplayStep = (DeadLetter, Result<Event, ReplayEnd>);

/// What a replay does: the letters of each user, in the order in which their webhooks were accepted; each letter that
/// is not offered stands alone.
pub fn replay_plan(
    mut letters: Vec<DeadLetter>,
    options: &ReplayOptions,
    now: Timestamp,
) -> Vec<Vec<ReplayStep>> {
    let offset = |letter: &DeadLetter| letter.origin.as_ref().map(|origin| origin.offset);
    letters.sort_by_key(|letter| (letter.received_at, offset(letter)));
    let mut by_user: BTreeMap<Uuid, Vec<ReplayStep>> = BTreeMap::new();
    let mut plan = Vec::new();
    for letter in letters {
        match check(&letter, options, now) {
            Ok(event) => {
                let user = by_user.entry(event.user_id).or_default();
                user.push((letter, Ok(event)));
            }
            Err(end) => plan.push(vec![(letter, Err(end))]),
        }
    }
    plan.extend(by_user.into_values());
    plan
}

/// The front door's own validation. What the key says is left: the front door makes a new one.
fn check(letter: &DeadLetter, options: &ReplayOptions, now: Timestamp) -> Result<Event, ReplayEnd> {
    if !options.again && matches!(letter.state, LetterState::Replayed { .. }) {
        return Err(ReplayEnd::ReplayedBefore);
    }
    let age = Duration::try_from(now.duration_since(letter.received_at)).unwrap_or_default();
    if age > options.window {
        return Err(ReplayEnd::TooOld(age));
    }
    let payload = letter.payload.clone().unwrap_or_default();
    Event::decode(letter.source, payload, letter.received_at)
        .map_err(|error| ReplayEnd::Malformed(error.to_string()))
}
