//! Finding one dead letter among many.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use regex::Regex;
use uuid::Uuid;

use crate::{DeadLetter, Source};

/// One condition of a [`LetterFilter`].
#[derive(Debug, Clone)]
enum Condition {
    /// `class=illegal`
    Class(String),
    /// `user=550e8400-...`
    User(Uuid),
    /// `source=orders`
    Source(Source),
    /// `since=2026-11-21T10:00:00Z`, `since=2026-11-21` (UTC) or `since=2h` (ago): the letter died then or later.
    Since(Timestamp),
    /// `state=dead`
    State(&'static str),
    /// `reason~REGEX`
    Reason(Regex),
}

/// A filter that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BadFilter {
    /// No such condition.
    #[error(
        "{0:?} is no condition; expected class=, user=, source=, since=, state= or reason~, such as class=illegal"
    )]
    Unknown(String),
    /// A value that its condition does not take.
    #[error("{field}={value:?} is not understood; expected {expected}")]
    Value {
        /// The condition.
        field: &'static str,
        /// What was given.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
    /// A pattern that is no regular expression.
    #[error("reason~ needs a regular expression: {0}")]
    Pattern(#[from] regex::Error),
}

/// Conditions that a letter must all fulfil; none is every letter.
#[derive(Debug, Clone, Default)]
pub struct LetterFilter(Vec<Condition>);

impl LetterFilter {
    /// Reads conditions, each text holding one or several with commas between them; the pattern of `reason~` takes the
    /// rest of its text, commas too. `now` is what `since=2h` counts from.
    ///
    /// # Errors
    /// [`BadFilter`] says what was expected.
    pub fn parse<'a>(
        texts: impl IntoIterator<Item = &'a str>,
        now: Timestamp,
    ) -> Result<Self, BadFilter> {
        let mut conditions = Vec::new();
        for text in texts {
            let mut rest = text;
            while !rest.is_empty() {
                let (first, behind) = match rest.split_once(',') {
                    Some(parts) if !rest.starts_with("reason~") => parts,
                    _ => (rest, ""),
                };
                conditions.push(condition(first.trim(), now)?);
                rest = behind.trim_start();
            }
        }
        Ok(LetterFilter(conditions))
    }

    /// Whether a letter fulfils all conditions.
    pub fn takes(&self, letter: &DeadLetter) -> bool {
        self.0.iter().all(|condition| match condition {
            Condition::Class(class) => letter.class == *class,
            Condition::User(user) => letter.user_id == Some(*user),
            Condition::Source(source) => letter.source == *source,
            Condition::Since(since) => letter.dead_at >= *since,
            Condition::State(state) => letter.state.as_str() == *state,
            Condition::Reason(pattern) => pattern.is_match(&letter.reason),
        })
    }
}

fn condition(text: &str, now: Timestamp) -> Result<Condition, BadFilter> {
    if let Some(pattern) = text.strip_prefix("reason~") {
        return Ok(Condition::Reason(Regex::new(pattern)?));
    }
    let unknown = || BadFilter::Unknown(text.to_owned());
    let (field, value) = text.split_once('=').ok_or_else(unknown)?;
    let bad = |field, expected| BadFilter::Value {
        field,
        value: value.to_owned(),
        expected,
    };
    Ok(match field {
        "class" if !value.is_empty() => Condition::Class(value.to_owned()),
        "class" => return Err(bad("class", "a class, such as malformed or illegal")),
        "user" => Condition::User(value.parse().map_err(|_| bad("user", "a uuid"))?),
        "source" => Condition::Source(
            Source::from_text(value).ok_or_else(|| bad("source", "orders or chargebacks"))?,
        ),
        "since" => Condition::Since(
            since(value, now)
                .ok_or_else(|| bad("since", "2026-11-21, 2026-11-21T10:00:00Z or 2h"))?,
        ),
        "state" => Condition::State(
            ["dead", "replaying", "replayed"]
                .into_iter()
                .find(|state| *state == value)
                .ok_or_else(|| bad("state", "dead, replaying or replayed"))?,
        ),
        _ => return Err(unknown()),
    })
}

fn since(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time);
    }
    if let Ok(date) = text.parse::<Date>() {
        return Some(date.to_zoned(TimeZone::UTC).ok()?.timestamp());
    }
    let ago = span(text)?;
    now.checked_sub(ago).ok()
}

/// A length of time such as `90s`, `2h` or `7d`, a day being 24 hours; `None` if it is none, or not positive.
pub fn span(text: &str) -> Option<SignedDuration> {
    let span: Span = text.parse().ok()?;
    let length = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    length.is_positive().then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LetterState;

    const NOW: &str = "2026-11-21T12:00:00Z";

    fn letter() -> DeadLetter {
        DeadLetter {
            id: "orders.webhooks.DLQ/3/17".to_owned(),
            source: Source::Orders,
            user_id: Some(Uuid::from_u128(7)),
            class: "illegal".to_owned(),
            reason: "illegal transition: success does not take failed, ever".to_owned(),
            attempts: 1,
            received_at: "2026-11-20T10:00:00Z".parse().unwrap(),
            dead_at: "2026-11-21T11:00:00Z".parse().unwrap(),
            origin: None,
            key: None,
            payload: None,
            headers: Vec::new(),
            state: LetterState::Dead,
        }
    }

    #[track_caller]
    fn check(texts: &[&str], expect: bool) {
        let filter = LetterFilter::parse(texts.iter().copied(), NOW.parse().unwrap()).unwrap();
        assert_eq!(filter.takes(&letter()), expect, "{texts:?}");
    }

    #[track_caller]
    fn refused(text: &str, expect: &str) {
        let error = LetterFilter::parse([text], NOW.parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains(expect), "{text}: {error}");
    }

    #[test]
    fn each_condition_takes_and_leaves() {
        check(&[], true);
        let user = Uuid::from_u128(7).to_string();
        for (taken, left) in [
            ("class=illegal", "class=malformed"),
            (
                &*format!("user={user}"),
                "user=00000000-0000-0000-0000-000000000008",
            ),
            ("source=orders", "source=chargebacks"),
            (
                "since=2026-11-21T11:00:00Z",
                "since=2026-11-21T11:00:00.001Z",
            ),
            ("since=2026-11-21", "since=2026-11-22"),
            ("since=1h", "since=59m"),
            ("since=7d", "since=1s"),
            ("state=dead", "state=replayed"),
            ("reason~^illegal", "reason~^transition"),
            ("reason~failed, ever$", "reason~failed,ever"),
        ] {
            check(&[taken], true);
            check(&[left], false);
            // All must hold, in one text or in several.
            check(&[taken, left], false);
            check(&["class=illegal", taken], true);
            check(&[&format!("source=orders,{left}")], false);
        }
    }

    #[test]
    fn what_is_no_condition_is_refused_with_what_was_expected() {
        refused("colour=red", "class=, user=");
        refused("illegal", "class=illegal");
        refused("user=7", "a uuid");
        refused("source=refunds", "orders or chargebacks");
        refused("since=yesterday", "2h");
        refused("since=-2h", "2h");
        refused("state=alive", "dead, replaying or replayed");
        refused("class=", "a class");
        refused("reason~(", "regular expression");
        refused("class=illegal,colour=red", "colour=red");
    }
}
