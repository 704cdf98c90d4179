//! The payment domain, pure: a webhook's bytes become an [`Event`], and `(state, event)` becomes an
//! [`Outcome`]. No I/O, no clock, no database: whoever calls brings the time and keeps the state.
//!
//! Invariants:
//! - **Money is an integer** of minor units with a currency; decimal text is parsed exactly or refused.
//! - **The machines are total**: each pair of state and event has exactly one outcome, none panics.
//! - **An older event never overwrites a newer state**: it is [`Outcome::Stale`].
//! - **Decoding decides what a database could refuse** (NUL, length, broken text), so that a record that
//!   decodes can be stored.

mod dead_letter;
mod dispute;
mod envelope;
mod letter_filter;
mod money;
mod order;
mod payment;
mod pointer;
mod signature;

pub use dead_letter::{
    DeadLetter, LetterOrigin, LetterState, Listing, REPLAY_WINDOW, ReplayEnd, ReplayOptions,
    ReplayStep, Replayed, replay_plan,
};
pub use dispute::{DisputeAction, DisputeChange, DisputeState, DisputeStatus, Resolution};
pub use envelope::{
    Body, DEPTH_MAX, DecodeError, Event, FIELD_BYTES_MAX, PAYLOAD_BYTES_MAX, Source, UnknownSource,
};
pub use letter_filter::{BadFilter, LetterFilter, span};
pub use money::{Money, MoneyError};
pub use order::{OrderChange, OrderState, OrderStatus};
pub use signature::{SecretError, SigningKey};

/// What became of an event when it met the state that it addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome<S> {
    /// The event changed the state to this one.
    Applied(S),
    /// The state already knows something newer: the event is kept in the log and changes nothing.
    Stale,
    /// The event needs something that has not arrived yet, such as the event that opens the state.
    TooEarly,
    /// The machine has no such transition, whatever else may still arrive.
    Illegal {
        /// The status that the state has, as it is stored.
        from: &'static str,
        /// What the event asked for, as it is stored.
        asked: &'static str,
    },
}

/// A status that is stored as text: one table gives both directions.
macro_rules! stored_as_text {
    ($name:ident { $($variant:ident = $text:literal),+ $(,)? }) => {
        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &[$name] = &[$($name::$variant),+];

            /// The text under which the database and the API know this value.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }

            /// The value that `text` names, if it names one.
            pub fn from_text(text: &str) -> Option<Self> {
                match text { $($text => Some($name::$variant),)+ _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use stored_as_text;
