//! A batch, and what one transaction makes of it. How the transaction does that is in `transaction/mod.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use shardlane_domain::Event;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::fold::Rejected;
use crate::outcome::{EventOutcome, Tally};
use crate::park::ParkedLetter;
use crate::queue::Drain;
use crate::session::{PooledSession, Session};
use crate::transaction::{Work, write};
use crate::{ErrorClass, SqlError};

/// Where in Kafka a record stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The topic.
    pub topic: Arc<str>,
    /// The Kafka partition.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
}

/// An event to apply, with its place in Kafka if it came from there.
#[derive(Debug, Clone)]
pub struct Record {
    /// The event.
    pub event: Event,
    /// Its place; `None` in direct mode, where no fence moves.
    pub origin: Option<Origin>,
}

/// What a batch did.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// One an event, in the order of the batch.
    pub outcomes: Vec<EventOutcome>,
    /// Events that changed a state.
    pub applied: usize,
    /// Events that the inbox knew already, with the same payload.
    pub duplicates: usize,
    /// Events older than the state, kept in the log.
    pub stale: usize,
    /// Events that were parked: those that left their queue within the batch are counted here, too.
    pub parked: usize,
    /// Events that had been parked, in this batch or before, and are rows now.
    pub released: usize,
    /// Events of the batch that are dead letters: keep them elsewhere before [`Staged::commit`].
    pub rejected: Vec<Rejected>,
    /// Events of earlier batches that had been parked and are dead letters now: keep them elsewhere before
    /// [`Staged::commit`].
    pub letters: Vec<ParkedLetter>,
    /// Rows inserted or updated, over all tables.
    pub rows: u64,
    /// From `begin` to the answer to `commit`; waiting for a connection is not in it.
    pub took: Duration,
}

/// A batch that is written and not yet committed. Dropped without [`Staged::commit`], it is rolled back and its
/// connection closed.
#[must_use = "a staged batch is rolled back unless it is committed"]
pub struct Staged {
    session: PooledSession,
    began: Instant,
    report: Report,
    tally: Tally,
}

impl std::fmt::Debug for Staged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Staged")
            .field("report", &self.report)
            .finish_non_exhaustive()
    }
}

impl Staged {
    /// What the batch does when it is committed.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Counts the outcomes and commits, in one round trip. After an error it is unknown whether the batch was applied:
    /// stage it again, and the fence or the inbox tells.
    ///
    /// # Errors
    /// [`SqlError::Postgres`].
    pub async fn commit(mut self) -> Result<Report, SqlError> {
        // Only now, because the rows of other partitions are locked until the commit, and dead letters take their time.
        let Session {
            client, statements, ..
        } = &*self.session;
        let anchor = self.tally.anchor;
        let count = join_all(self.tally.rows().iter().map(|row| async move {
            let topic = &*row.topic;
            let mut params: Vec<&(dyn ToSql + Sync)> = vec![&anchor, &topic, &row.partition];
            params.extend(
                row.outcomes
                    .iter()
                    .map(|count| count as &(dyn ToSql + Sync)),
            );
            params.extend([&row.released as &(dyn ToSql + Sync), &row.expired]);
            client.execute(&statements.count_outcomes, &params).await
        }));
        let (counted, committed) = futures_util::join!(count, client.batch_execute("commit"));
        // Where a count failed, the commit was a rollback, and did not say so.
        counted.into_iter().collect::<Result<Vec<u64>, _>>()?;
        committed?;
        self.session.in_transaction = false;
        self.report.took = self.began.elapsed();
        Ok(self.report)
    }

    /// Rolls back and keeps the connection.
    ///
    /// # Errors
    /// [`SqlError::Postgres`]; the batch is rolled back by the server then.
    pub async fn rollback(mut self) -> Result<(), SqlError> {
        self.session.client.batch_execute("rollback").await?;
        self.session.in_transaction = false;
        Ok(())
    }
}

/// Writes a batch in one transaction and leaves it open.
///
/// Where the database refuses a row and the batch released events that waited, one of those may be at fault and not
/// the batch: it is written again and releases nothing, and the sweep finds out which.
pub(crate) async fn stage(
    mut session: PooledSession,
    mut work: Work<'_>,
) -> Result<Staged, SqlError> {
    loop {
        session.in_transaction = true;
        let (began, mut releases) = (Instant::now(), false);
        let error = match write(&session, &work, &mut releases).await {
            Ok((report, tally)) => {
                return Ok(Staged {
                    session,
                    began,
                    report,
                    tally,
                });
            }
            Err(error) => error,
        };
        // If even this fails, the pool discards the session.
        session.in_transaction = session.client.batch_execute("rollback").await.is_err();
        let again = releases
            && !session.in_transaction
            && work.rules.drain == Drain::RELEASE
            && error.class() == ErrorClass::Data;
        if !again {
            return Err(error);
        }
        work.rules.drain = Drain::OFF;
    }
}

pub(crate) type EventKey<'a> = (Uuid, &'a str, &'a str);

pub(crate) fn event_key(event: &Event) -> EventKey<'_> {
    (event.user_id, event.source.as_str(), &event.event_id)
}
