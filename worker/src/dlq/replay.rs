//! Letters back into their topics, by the front door's own way.

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use jiff::Timestamp;
use shardlane_domain::{
    DeadLetter, Event, ReplayEnd, ReplayOptions, ReplayStep, Replayed, Source, replay_plan,
};

use super::marks::MarkWriter;
use super::{DeadLetterLog, DlqError};
use crate::cloud_event::is_attribute;
use crate::{HEADER_REPLAYED_FROM, Publisher};

/// How many users' letters are on their way at once.
const USERS_MAX: usize = 64;

impl DeadLetterLog {
    /// Publishes letters again: those of one user in the order in which their webhooks were accepted, those of different
    /// users side by side.
    ///
    /// # Errors
    /// [`DlqError`] if the marks cannot be written at all. What fails for one letter is in its [`ReplayEnd`].
    pub async fn replay(
        &self,
        letters: Vec<DeadLetter>,
        publisher: &Publisher,
        options: &ReplayOptions,
    ) -> Result<Vec<Replayed>, DlqError> {
        let marks = if options.dry_run {
            None
        } else {
            let (topic, dlq) = (self.topics.replays(), self.topics.dlq_of(Source::Orders));
            Some(MarkWriter::open(&self.bootstrap, topic, dlq).await?)
        };
        let plan = replay_plan(letters, options, Timestamp::now());
        let users = plan
            .into_iter()
            .map(|steps| replay_user(steps, publisher, marks.as_ref()));
        let all: Vec<Vec<Replayed>> = stream::iter(users).buffered(USERS_MAX).collect().await;
        Ok(all.into_iter().flatten().collect())
    }
}

/// Without `marks` nothing is done.
async fn replay_user(
    steps: Vec<ReplayStep>,
    publisher: &Publisher,
    marks: Option<&MarkWriter>,
) -> Vec<Replayed> {
    let mut replayed = Vec::with_capacity(steps.len());
    let mut failed = false;
    for (letter, step) in steps {
        let end = match (step, marks) {
            (Err(end), _) => end,
            (Ok(_), None) => ReplayEnd::WouldTake,
            (Ok(_), Some(_)) if failed => {
                ReplayEnd::Failed("an earlier letter of this user failed".to_owned())
            }
            (Ok(event), Some(marks)) => {
                let end = publish(&letter, &event, publisher, marks).await;
                end.unwrap_or_else(ReplayEnd::Failed)
            }
        };
        failed |= matches!(end, ReplayEnd::Failed(_));
        replayed.push(Replayed { letter, end });
    }
    replayed
}

async fn publish(
    letter: &DeadLetter,
    event: &Event,
    publisher: &Publisher,
    marks: &MarkWriter,
) -> Result<ReplayEnd, String> {
    let at = Timestamp::now();
    let begun = marks.write(letter, at, None).await;
    begun.map_err(|error| error.to_string())?;
    let published = publisher.republish(event, &headers(letter)).await;
    let published = published.map_err(|error| error.to_string())?;
    let topic = publisher.topic_of(event.source);
    let to = format!("{topic}/{}/{}", published.partition, published.offset);
    let ended = marks.write(letter, at, Some(to.clone())).await;
    ended.map_err(|error| format!("published to {to}, and not marked so: {error}"))?;
    Ok(ReplayEnd::Taken(to))
}

/// The record's own headers, such as its trace, and where it comes from.
fn headers(letter: &DeadLetter) -> Vec<(String, Option<Bytes>)> {
    // What the publisher writes anew must not come twice.
    let ours = |key: &str| {
        key.starts_with("shardlane-") || key.starts_with("__connect.errors.") || is_attribute(key)
    };
    let kept = letter.headers.iter().filter(|(key, _)| !ours(key));
    let from = (
        HEADER_REPLAYED_FROM.to_owned(),
        Some(letter.id.clone().into()),
    );
    kept.cloned().chain([from]).collect()
}
