//! Dead letters of direct mode: written, and replayed.

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use bytes::Bytes;
use jiff::Timestamp;
use shardlane_domain::{
    DeadLetter, Event, ReplayEnd, ReplayOptions, Replayed, Source, replay_plan,
};
use shardlane_sql::{NewLetter, SqlError, Store};

use crate::mode::{apply, chain};
use crate::problem::Problem;

/// The headers that a letter keeps: what tells the delivery. Others may hold what is nobody's business.
const KEPT: [&str; 7] = [
    "content-type",
    "user-agent",
    "traceparent",
    "tracestate",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
];

/// How long a replayed letter may be tried.
const RETRY_BUDGET: Duration = Duration::from_secs(5);

/// What a letter keeps of a request's headers.
pub(crate) fn kept(headers: &HeaderMap) -> Vec<(String, String)> {
    let kept = headers
        .iter()
        .filter(|(name, _)| KEPT.contains(&name.as_str()));
    kept.map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        (name.to_string(), value)
    })
    .collect()
}

/// The letter of an event that was refused.
pub(crate) fn of_event(
    event: &Event,
    class: &'static str,
    reason: String,
    attempts: u32,
    headers: Vec<(String, String)>,
) -> NewLetter {
    NewLetter {
        source: event.source,
        user_id: Some(event.user_id),
        class,
        reason,
        attempts,
        received_at: event.received_at,
        payload: event.payload.clone(),
        headers,
    }
}

/// The letter of bytes that are no event.
pub(crate) fn of_bytes(
    source: Source,
    payload: Bytes,
    reason: String,
    received_at: Timestamp,
    headers: &HeaderMap,
) -> NewLetter {
    NewLetter {
        source,
        user_id: None,
        class: "malformed",
        reason,
        attempts: 1,
        received_at,
        payload,
        headers: kept(headers),
    }
}

/// Keeps a letter. Gives back `problem`, or, if the letter could not be kept, that the sender should send it again.
pub(crate) async fn bury(store: &Store, letter: &NewLetter, problem: Problem) -> Problem {
    match store.bury(letter).await {
        Ok(id) => {
            tracing::warn!(%id, class = letter.class, "a dead letter");
            problem
        }
        Err(error) => {
            tracing::error!(error = chain(&error), "a dead letter could not be kept");
            Problem::Unavailable {
                what: "the database is not available",
            }
        }
    }
}

/// Applies dead letters of direct mode again: those of one user in the order in which their webhooks were accepted. One
/// that is refused again stays a letter, with the new reason.
///
/// # Errors
/// [`SqlError`] if a mark cannot be written. What fails for one letter is in its [`ReplayEnd`].
pub async fn replay(
    store: &Arc<Store>,
    letters: Vec<DeadLetter>,
    options: &ReplayOptions,
) -> Result<Vec<Replayed>, SqlError> {
    let mut replayed = Vec::with_capacity(letters.len());
    for steps in replay_plan(letters, options, Timestamp::now()) {
        let mut failed = false;
        for (letter, step) in steps {
            let end = match step {
                Err(end) => end,
                Ok(_) if options.dry_run => ReplayEnd::WouldTake,
                Ok(_) if failed => {
                    ReplayEnd::Failed("an earlier letter of this user failed".to_owned())
                }
                Ok(event) => replay_one(store, &letter, event).await?,
            };
            failed |= matches!(end, ReplayEnd::Failed(_));
            replayed.push(Replayed { letter, end });
        }
    }
    Ok(replayed)
}

async fn replay_one(
    store: &Store,
    letter: &DeadLetter,
    event: Event,
) -> Result<ReplayEnd, SqlError> {
    let began_at = Timestamp::now();
    store.mark_replay(letter, began_at, None).await?;
    let headers = letter.headers.iter().filter_map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_deref()?).into_owned();
        Some((name.clone(), value))
    });
    match apply(store, event, headers.collect(), RETRY_BUDGET).await {
        Ok(answer) => {
            let to = answer.as_str();
            store.mark_replay(letter, began_at, Some(to)).await?;
            Ok(ReplayEnd::Taken(to.to_owned()))
        }
        Err(problem @ (Problem::Rejected(_) | Problem::Unstorable)) => {
            Ok(ReplayEnd::Refused(problem.sentence()))
        }
        Err(problem) => Ok(ReplayEnd::Failed(problem.sentence())),
    }
}
