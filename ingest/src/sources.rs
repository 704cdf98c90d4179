//! Sources: who may send, where to, what, how signed, and how much.

mod build;
mod settings;

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use jiff::Timestamp;
use shardlane_domain::{Body, Event};

use crate::IngestError;
use crate::json::{Flaw, JsonLimits, parse};
use crate::schema::Schema;
use crate::signature::Verifier;

pub(crate) use settings::{Kind, SourceSettings};

/// The sources of one front door, checked.
#[derive(Clone)]
pub struct Sources(Arc<[Arc<Endpoint>]>);

/// One source: a path of its own, and what passes there.
pub(crate) struct Endpoint {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) kind: Kind,
    pub(crate) verifier: Verifier,
    pub(crate) schema: Schema,
    pub(crate) body_bytes_max: usize,
    json: JsonLimits,
    window: Window,
    rate: Option<Rate>,
}

/// How far from now the times in a webhook may be.
#[derive(Debug, Clone, Copy)]
struct Window {
    past: Duration,
    future: Duration,
}

/// How many authentic webhooks a source may send.
struct Rate {
    limiter: DefaultDirectRateLimiter,
    clock: DefaultClock,
}

impl Sources {
    /// The built-in routes without any verification: for development, for tests, and behind something that
    /// verifies. The server says so loudly at its start.
    pub fn unsigned() -> Sources {
        let sources = build::built_in_unsigned();
        Sources(sources.into_iter().map(Arc::new).collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.0.iter()
    }

    /// The paths to which webhooks are posted.
    pub(crate) fn paths(&self) -> Vec<&str> {
        self.iter().map(|source| source.path.as_str()).collect()
    }

    /// The names of the sources that verify nothing.
    pub(crate) fn unverified(&self) -> Vec<&str> {
        self.iter()
            .filter(|source| !source.verifier.is_on())
            .map(|source| source.name.as_str())
            .collect()
    }
}

impl Endpoint {
    /// Counts one webhook. Only authentic ones are counted, so that a stranger cannot use up a provider's share.
    ///
    /// The error is in how many seconds there is room again.
    pub(crate) fn admit(&self) -> Result<(), u64> {
        let Some(Rate { limiter, clock }) = &self.rate else {
            return Ok(());
        };
        limiter.check().map_err(|full| {
            let wait = full.wait_time_from(clock.now());
            wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
        })
    }

    /// Parses and checks everything that needs no database: strict JSON, the schema, the event, its times.
    pub(crate) fn read(
        &self,
        payload: bytes::Bytes,
        received_at: Timestamp,
    ) -> Result<Event, Flaw> {
        let value = parse(&payload, self.json)?;
        self.schema.check(&value)?;
        let event = Event::decode(self.kind.source(), payload, received_at)
            .map_err(|error| Flaw::at(error.pointer(), error.to_string()))?;
        self.window.check(self.kind, &event)?;
        Ok(event)
    }
}

impl Window {
    /// A time that is off is a clock or a unit that is wrong, and it would decide which event is the newest.
    fn check(&self, kind: Kind, event: &Event) -> Result<(), Flaw> {
        match &event.body {
            Body::Order(change) if kind == Kind::Payment => {
                self.happened(event, "/timestamp", change.updated_at)
            }
            Body::Order(change) => {
                self.happened(event, "/created_at", change.created_at)?;
                self.happened(event, "/updated_at", change.updated_at)
            }
            Body::Dispute(change) => {
                self.happened(event, "/occurred_at", change.occurred_at)?;
                match change.evidence_due_at {
                    // A date to come: as far ahead as the others may be back.
                    Some(due)
                        if due.duration_since(event.received_at).unsigned_abs() > self.past =>
                    {
                        Err(Flaw::at(
                            "/evidence_due_at",
                            "the time is out of the window",
                        ))
                    }
                    Some(_) | None => Ok(()),
                }
            }
        }
    }

    fn happened(&self, event: &Event, pointer: &str, time: Timestamp) -> Result<(), Flaw> {
        let age = event.received_at.duration_since(time);
        let (max, side) = if age.is_negative() {
            (self.future, "future")
        } else {
            (self.past, "past")
        };
        if age.unsigned_abs() <= max {
            return Ok(());
        }
        let seconds = max.as_secs();
        Err(Flaw::at(
            pointer,
            format!("the time is more than {seconds} s in the {side}; send UTC in RFC 3339"),
        ))
    }
}

impl Rate {
    fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Rate {
        let quota = Quota::per_second(per_second).allow_burst(burst);
        let clock = DefaultClock::default();
        Rate {
            limiter: RateLimiter::direct_with_clock(quota, clock.clone()),
            clock,
        }
    }
}

/// Without the schema, and without anything of a secret.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("name", &self.name)
            .field("path", &self.path)
            .field("kind", &self.kind)
            .field("verifier", &self.verifier)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

pub(crate) fn refuse(sentence: String) -> IngestError {
    IngestError::Settings(sentence)
}
