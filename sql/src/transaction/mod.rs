//! One shard's batch through one transaction, in four round trips and a constant number of statements.
//!
//! 1. `begin`, move the fences, insert into the inbox, read the queues and the states: sent at once.
//! 2. Where the inbox knew an event, or the batch releases events that wait: read the former's payloads, the latter and
//!    their states.
//! 3. Write states, event logs, outbox, directory and queues, and take what is a dead letter from the inbox: sent at
//!    once.
//! 4. The counts of outcomes and `commit`, when the caller has kept what is a dead letter.
//!
//! Reads take no row locks, because Citus has none over several shards: each upsert names the version from which
//! it was computed, and one that finds another version fails the batch, which is then folded anew. What leaves a queue
//! is counted in the same way, and a place in a queue is taken once.

mod read;

use std::collections::HashMap;

use futures_util::future::join_all;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

pub(crate) use self::read::may_move;
#[cfg(test)]
pub(crate) use self::read::{FenceMove, fence_moves, users_of};
use self::read::{begin, known_payloads, load_parked, read_states};
use crate::SqlError;
use crate::fold::{self, Keys, States};
#[cfg(feature = "mutants")]
use crate::mutants::{self, Mutant};
use crate::outcome::{EventOutcome, Tally};
use crate::park::{self, Carried, ParkedKeys, ParkedRows};
use crate::queue::{Fold, Folded, Rules, Seen};
use crate::routes::Target;
use crate::rows::InboxRows;
use crate::session::Session;
use crate::stage::{EventKey, Origin, Record, Report, event_key};

/// What one transaction is to do.
pub(crate) struct Work<'a> {
    pub(crate) target: Target,
    pub(crate) anchor: Uuid,
    pub(crate) records: &'a [Record],
    /// Where records stood that are dead letters already: they are counted only.
    pub(crate) dead: &'a [Origin],
    /// Key and headers of a record, asked only for those that are parked.
    pub(crate) carried: &'a (dyn Fn(usize) -> Carried + Sync),
    /// Users whose queues are swept, if this is a sweep.
    pub(crate) swept: Option<&'a [Uuid]>,
    pub(crate) rules: Rules,
}

/// `releases` tells whether stored events were to leave their queues, also where this fails.
pub(crate) async fn write(
    session: &Session,
    work: &Work<'_>,
    releases: &mut bool,
) -> Result<(Report, Tally), SqlError> {
    let records = work.records;
    let mut seen = first_of_each(records);
    let keys = Keys::of(records.iter().map(|record| {
        let event = &record.event;
        (event.source, (event.user_id, event.order_id.as_str()))
    }));
    let read = begin(session, work, &seen, &keys).await?;
    let mut fresh = vec![false; records.len()];
    for row in &read.inserted {
        if let Some(seen) = seen.get_mut(&(row.get(0), row.get(1), row.get(2))) {
            fresh[seen.first] = true;
            seen.hash = Some(records[seen.first].event.payload_hash);
        }
    }
    #[cfg(feature = "mutants")]
    if mutants::is(Mutant::MemoryInbox) {
        for ((user, source, event), seen) in &mut seen {
            fresh[seen.first] = !mutants::seen_before(*user, source, event);
            if fresh[seen.first] {
                seen.hash = Some(records[seen.first].event.payload_hash);
            }
        }
    }
    let mut states = States::default();
    states.add(&read.states, &keys)?;

    let mut parked = park::queues(&read.parked);
    let wanted = park::wanted(&parked, may_move(work, &parked));
    let waiting = parked
        .iter()
        .filter(|it| wanted.users.binary_search(&it.user_id).is_ok());
    let addressed: Vec<(_, (Uuid, String))> = waiting
        .map(|it| (it.source, (it.user_id, it.order_id.clone())))
        .collect();
    let more = states.missing(Keys::of(
        addressed
            .iter()
            .map(|(source, (user, order))| (*source, (*user, order.as_str()))),
    ));
    let (known, loaded, more_states) = futures_util::join!(
        known_payloads(session, &seen),
        load_parked(session, &wanted),
        read_states(session, &more),
    );
    let known = known?;
    for row in &known {
        if let Some(seen) = seen.get_mut(&(row.get(0), row.get(1), row.get(2))) {
            seen.hash = Some(row.get::<_, Uuid>(3).as_u128());
        }
    }
    park::fill(&mut parked, &loaded?);
    states.add(&more_states?, &more)?;

    let mut tally = Tally::new(work.anchor);
    for origin in work.dead {
        tally.ended(origin, EventOutcome::DeadLettered);
    }
    let mut fold = Fold::new(records, &parked, &mut seen, &mut states, tally, work.rules);
    fold.take_all(&fresh);
    fold.sweep(work.swept.unwrap_or_default());
    let folded = fold.end();
    if folded.held {
        let park_rows_max = work.rules.limits.park_rows_max;
        return Err(SqlError::QueueFull { park_rows_max });
    }
    *releases = !folded.unparked.is_empty();
    let rows = write_folded(session, work, &folded, &states).await?;
    let inserted = read.inserted.len() as u64;
    Ok(report(folded, read.moved + inserted, rows))
}

/// Writes what a fold came to; how many rows are there that were not there before, or were updated.
async fn write_folded(
    session: &Session,
    work: &Work<'_>,
    folded: &Folded<'_>,
    states: &States<'_>,
) -> Result<i64, SqlError> {
    let (client, statements) = (&session.client, &session.statements);
    let changed = fold::changed(states);
    let (new_users, new_ids): (Vec<Uuid>, Vec<&str>) = changed.new_orders.iter().copied().unzip();
    let logs = &folded.logs;
    let parked = parked_rows(work, folded);
    let order_params = changed.orders.params();
    let dispute_params = changed.disputes.params();
    let order_event_params = logs.order_events.params();
    let dispute_event_params = logs.dispute_events.params();
    let outbox_params = logs.outbox.params();
    let directory_params: [&(dyn ToSql + Sync); 2] = [&new_users, &new_ids];
    let parked_params = parked.params();
    let mut unparked = ParkedKeys::default();
    folded.unparked.iter().for_each(|it| unparked.push(it));
    let unparked_params = unparked.params();
    // Statement, parameters, rows, and the table whose rows must all be written.
    let writes = [
        (
            &statements.delete_parked,
            &unparked_params[..],
            unparked.users.len(),
            Some("parked"),
        ),
        (
            &statements.insert_parked,
            &parked_params[..],
            parked.user_id.len(),
            Some("parked"),
        ),
        (
            &statements.upsert_orders,
            &order_params[..],
            changed.orders.user_id.len(),
            Some("orders"),
        ),
        (
            &statements.upsert_disputes,
            &dispute_params[..],
            changed.disputes.user_id.len(),
            Some("disputes"),
        ),
        (
            &statements.insert_order_events,
            &order_event_params[..],
            logs.order_events.user_id.len(),
            None,
        ),
        (
            &statements.insert_dispute_events,
            &dispute_event_params[..],
            logs.dispute_events.user_id.len(),
            None,
        ),
        (
            &statements.insert_outbox,
            &outbox_params[..],
            logs.outbox.user_id.len(),
            None,
        ),
        (
            &statements.insert_directory,
            &directory_params[..],
            new_users.len(),
            None,
        ),
    ];
    let write = join_all(writes.iter().filter(|(_, _, rows, _)| *rows > 0).map(
        |(statement, params, rows, counted)| async move {
            let written = client.execute(*statement, params).await?;
            match counted {
                Some(table) if written != *rows as u64 => Err(SqlError::Conflict { table }),
                _ => Ok(i64::try_from(written).unwrap_or(i64::MAX)),
            }
        },
    ));
    let forget = async {
        if folded.forgotten.is_empty() {
            return Ok(0);
        }
        let (users, sources, ids) = columns(folded.forgotten.iter().copied());
        let params: [&(dyn ToSql + Sync); 3] = [&users, &sources, &ids];
        client.execute(&statements.forget_rejected, &params).await
    };
    let mut inbox = InboxRows::default();
    for index in folded.retaken.values() {
        inbox.push(&work.records[*index].event);
    }
    let inbox_params = inbox.params();
    // Sent after `forget`, which takes the first of them out.
    let retake = async {
        if folded.retaken.is_empty() {
            return Ok(0);
        }
        let taken = client.query(&statements.insert_inbox, &inbox_params);
        taken.await.map(|rows| rows.len())
    };
    let (written, forgotten, retaken) = futures_util::join!(write, forget, retake);
    let written = written.into_iter().collect::<Result<Vec<i64>, _>>()?;
    // What left a queue is no row more, and a letter's row in the inbox was not of this batch.
    let gone = forgotten?.saturating_sub(folded.letters.len() as u64) + unparked.users.len() as u64;
    let gone = i64::try_from(gone).unwrap_or(i64::MAX);
    Ok(written.iter().sum::<i64>() + i64::try_from(retaken?).unwrap_or(i64::MAX) - gone)
}

fn parked_rows<'a>(work: &'a Work<'_>, folded: &Folded<'_>) -> ParkedRows<'a> {
    let mut rows = ParkedRows::default();
    for (index, seq, deadline) in &folded.park {
        let Record { event, origin } = &work.records[*index];
        let carried = (work.carried)(*index);
        let times = (work.rules.now, *deadline);
        rows.push(event, origin.as_ref(), &carried, *seq, times);
    }
    rows
}

fn report(folded: Folded<'_>, taken: u64, rows: i64) -> (Report, Tally) {
    let count = |wanted| folded.outcomes.iter().filter(|it| **it == wanted).count();
    let letters = folded.letters.iter();
    let report = Report {
        applied: count(EventOutcome::Applied),
        duplicates: count(EventOutcome::Duplicate),
        stale: count(EventOutcome::Stale),
        parked: count(EventOutcome::Parked),
        released: folded.released,
        letters: letters
            .filter_map(|(parked, reason)| parked.letter(*reason))
            .collect(),
        rows: taken.saturating_add_signed(rows),
        outcomes: folded.outcomes,
        rejected: folded.rejected,
        ..Report::default()
    };
    (report, folded.tally)
}

/// The keys of events, one array a column.
fn columns<'a>(
    keys: impl Iterator<Item = EventKey<'a>>,
) -> (Vec<Uuid>, Vec<&'a str>, Vec<&'a str>) {
    let mut columns = (Vec::new(), Vec::new(), Vec::new());
    for (user, source, event_id) in keys {
        columns.0.push(user);
        columns.1.push(source);
        columns.2.push(event_id);
    }
    columns
}

/// The first record of each event: a batch may hold a duplicate of its own.
pub(crate) fn first_of_each(records: &[Record]) -> HashMap<EventKey<'_>, Seen> {
    let mut seen = HashMap::with_capacity(records.len());
    for (first, record) in records.iter().enumerate() {
        seen.entry(event_key(&record.event))
            .or_insert(Seen { first, hash: None });
    }
    seen
}
