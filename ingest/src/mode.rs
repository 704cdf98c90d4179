//! The two ways on: into Kafka, or straight into the database.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use backon::{ExponentialBuilder, Retryable};
use shardlane_domain::Event;
use shardlane_sql::{
    ErrorClass, EventOutcome, KeepLetters as _, NewLetter, Record, RejectReason, SqlError, Store,
};
use shardlane_worker::{PublishError, Published, Publisher, Refused};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tracing::Instrument as _;

use crate::dead_letter;
use crate::parked::Keeper;
use crate::problem::Problem;
use crate::webhook::{Answer, trace_of};

/// Where events go.
#[derive(Clone)]
pub enum Mode {
    /// Into Kafka, for workers to apply. The publisher's timeout should be shorter than the request's deadline.
    Kafka(Publisher),
    /// Into the database, within the request.
    Direct(Arc<Store>),
}

/// What one transaction did with the event.
enum Fate {
    Kept(Answer),
    Rejected(RejectReason),
}

impl Mode {
    /// Makes the event durable, or says why it is not. `retry_budget`: after it a failed try is the last.
    pub(crate) async fn take(
        &self,
        event: Event,
        headers: &HeaderMap,
        retry_budget: Duration,
    ) -> Result<Answer, Problem> {
        match self {
            Mode::Kafka(publisher) => publish(publisher, &event, headers).await,
            Mode::Direct(store) => {
                apply(store, event, dead_letter::kept(headers), retry_budget).await
            }
        }
    }

    /// Keeps bytes that are no event. Gives back `problem`, or, if they could not be kept, that the sender should send
    /// them again.
    pub(crate) async fn bury(&self, letter: NewLetter, problem: Problem) -> Problem {
        match self {
            Mode::Direct(store) => dead_letter::bury(store, &letter, problem).await,
            Mode::Kafka(publisher) => {
                let refused = Refused {
                    source: letter.source,
                    payload: letter.payload,
                    received_at: letter.received_at,
                    reason: letter.reason,
                };
                match publisher.bury(&refused).await {
                    Ok(place) => {
                        let Published { partition, offset } = place;
                        tracing::warn!(source = %refused.source, partition, offset, "a dead letter");
                        problem
                    }
                    Err(error) => {
                        tracing::error!(error = chain(&error), "a dead letter could not be kept");
                        Problem::Unavailable {
                            what: "Kafka did not acknowledge the dead letter",
                        }
                    }
                }
            }
        }
    }

    /// For counting.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Mode::Kafka(_) => "kafka",
            Mode::Direct(_) => "direct",
        }
    }

    /// Asks the broker, or all shards, for anything at all. `turn` is given back when the question is over, which may be
    /// after the caller went away.
    pub(crate) async fn ping(
        &self,
        deadline: Duration,
        turn: OwnedSemaphorePermit,
    ) -> Result<(), Problem> {
        match self {
            Mode::Kafka(publisher) => ping_broker(publisher.clone(), deadline, turn).await,
            Mode::Direct(store) => {
                let down = store.servers_down(deadline).await;
                drop(turn);
                if down.is_empty() {
                    return Ok(());
                }
                // Where they are is for the log: anybody may ask the front door.
                let shards = down.iter().flat_map(|down| &down.shards);
                let named: Vec<String> = shards.map(|shard| format!("shard {shard}")).collect();
                tracing::warn!(?down, "not ready");
                let what = format!("the database does not answer: {}", named.join(", "));
                Err(Problem::NotReady { what: what.into() })
            }
        }
    }
}

const SILENCE: &str = "the Kafka broker does not answer";

async fn ping_broker(
    publisher: Publisher,
    deadline: Duration,
    turn: OwnedSemaphorePermit,
) -> Result<(), Problem> {
    let question = tokio::task::spawn_blocking(move || {
        let answer = publisher.ping(deadline);
        drop(turn);
        answer
    });
    let what = match timeout(deadline, question).await {
        Ok(Ok(Ok(()))) => return Ok(()),
        Ok(Ok(Err(error))) => {
            tracing::warn!(error = chain(&error), "not ready");
            refusal(&error).unwrap_or(SILENCE)
        }
        Ok(Err(error)) => {
            tracing::error!(error = chain(&error), "the probe panicked");
            SILENCE
        }
        Err(_) => SILENCE,
    };
    Err(Problem::NotReady { what: what.into() })
}

/// Whatever Kafka's reason, the event is not acknowledged and may be sent again: a broker that is away comes back,
/// and a missing topic or right is an operator's to mend. The event itself cannot be at fault: it was validated,
/// and is far below a record's limit.
async fn publish(
    publisher: &Publisher,
    event: &Event,
    headers: &HeaderMap,
) -> Result<Answer, Problem> {
    let trace = trace_of(headers);
    match publisher.publish_in(event, trace.as_ref()).await {
        Ok(published) => Ok(Answer::Accepted {
            partition: published.partition,
            offset: published.offset,
        }),
        Err(error) => {
            tracing::warn!(error = chain(&error), "not published");
            let what = refusal(&error).unwrap_or("Kafka did not acknowledge the event");
            Err(Problem::Unavailable { what })
        }
    }
}

/// What a sender hears when the map, and not the broker, is the reason.
fn refusal(error: &PublishError) -> Option<&'static str> {
    match error {
        PublishError::LeaseExpired { .. } => Some("the map's lease has expired"),
        PublishError::Frozen { .. } => Some("Kafka partitions are being added for this user"),
        PublishError::Kafka(_) | PublishError::Late => None,
    }
}

/// Nine tries at most, with about four seconds of pauses.
const RETRY: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(20))
    .with_max_delay(Duration::from_secs(1))
    .with_max_times(8)
    .with_jitter();

/// Takes an event through one transaction. What is refused for good is a dead letter when this returns; if even that
/// cannot be kept, the answer is that it should be sent again.
pub(crate) async fn apply(
    store: &Store,
    event: Event,
    headers: Vec<(String, String)>,
    retry_budget: Duration,
) -> Result<Answer, Problem> {
    let started = Instant::now();
    let attempts = AtomicU32::new(0);
    // Across the tries the same event: a try whose commit was lost on the way makes the next one a duplicate.
    let records = [Record {
        event,
        origin: None,
    }];
    let fate = (|| {
        attempts.fetch_add(1, Ordering::Relaxed);
        apply_once(store, &records)
    })
    .retry(RETRY)
    .when(|error| passes(error) && started.elapsed() < retry_budget)
    .notify(|error, delay| {
        tracing::debug!(error = chain(error), ?delay, "trying again");
    })
    .await;
    let [Record { event, .. }] = records;
    let bury = async |class, reason, problem| {
        let attempts = attempts.into_inner();
        let letter = dead_letter::of_event(&event, class, reason, attempts, headers);
        dead_letter::bury(store, &letter, problem).await
    };
    let error = match fate {
        Ok(Fate::Kept(answer)) => return Ok(answer),
        Ok(Fate::Rejected(reason)) => {
            let (class, sentence) = (reason.class(), reason.to_string());
            return Err(bury(class, sentence, Problem::Rejected(reason)).await);
        }
        Err(error) => error,
    };
    match error.class() {
        ErrorClass::Transient | ErrorClass::Rerouted => {
            tracing::warn!(error = chain(&error), "not applied");
            Err(Problem::Unavailable {
                what: "the database is not available",
            })
        }
        // The text of a database's error may quote the payload; the SQLSTATE is enough to find the statement.
        ErrorClass::Data => {
            tracing::warn!(
                sqlstate = sqlstate(&error),
                "the database refuses the event"
            );
            Err(bury("data", error.to_string(), Problem::Unstorable).await)
        }
        ErrorClass::Held | ErrorClass::Fenced | ErrorClass::Permanent => {
            tracing::error!(error = chain(&error), "not applied");
            Err(Problem::Internal)
        }
    }
}

/// Whether another try may succeed: a user whose slot is being moved has a home again in a moment.
fn passes(error: &SqlError) -> bool {
    matches!(error.class(), ErrorClass::Transient | ErrorClass::Rerouted)
}

async fn apply_once(store: &Store, records: &[Record; 1]) -> Result<Fate, SqlError> {
    let routes = store.routes();
    let target = routes.target_of(records[0].event.user_id);
    let target = target.ok_or(SqlError::Frozen)?;
    let mut staged = match store.stage(target, records).await {
        Err(error) if error.class() == ErrorClass::Rerouted => {
            store.refresh(routes.epoch()).await;
            return Err(error);
        }
        staged => staged?,
    };
    if let Err(error) = Keeper(store).keep(&staged.report().letters).await {
        // They wait on, and this event is not held up by them.
        tracing::warn!("dead letters are not kept: {error}");
        staged.rollback().await?;
        staged = store.stage_without_release(target, records).await?;
    }
    if let Some(rejected) = staged.report().rejected.first() {
        let reason = rejected.reason;
        // The inbox forgets it too, so that it may be sent again.
        staged.rollback().await?;
        return Ok(Fate::Rejected(reason));
    }
    let report = staged
        .commit()
        .instrument(tracing::info_span!("commit"))
        .await?;
    let answer = match report.outcomes.first() {
        Some(EventOutcome::Applied) => Answer::Applied,
        Some(EventOutcome::Stale) => Answer::Stale,
        Some(EventOutcome::Parked) => Answer::Parked,
        // The others are rejected, and one event has one outcome.
        Some(
            EventOutcome::Duplicate
            | EventOutcome::DuplicateWithDifferentPayload
            | EventOutcome::Illegal
            | EventOutcome::DeadLettered,
        )
        | None => Answer::Duplicate,
    };
    Ok(Fate::Kept(answer))
}

fn sqlstate(error: &SqlError) -> &str {
    let SqlError::Postgres(error) = error else {
        return "none";
    };
    error.code().map_or("none", |state| state.code())
}

/// An error with its sources, each said once: some errors of the house show their source themselves.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut sentence = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let text = source.to_string();
        if !sentence.contains(&text) {
            sentence.push_str(": ");
            sentence.push_str(&text);
        }
        next = source.source();
    }
    sentence
}
