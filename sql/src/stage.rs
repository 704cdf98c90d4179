//! One shard's batch through one transaction, in four round trips and a constant number of statements.
//!
//! 1. `begin`, move the fences, insert into the inbox, read the states: sent at once.
//! 2. Where the inbox knew an event: read under which payload.
//! 3. Write states, event logs, outbox and directory, and take what was rejected from the inbox: sent at once.
//! 4. `commit`, when the caller has kept what was rejected.
//!
//! Reads take no row locks, because Citus has none over several shards: each upsert names the version from which
//! it was computed, and one that finds another version fails the batch, which is then folded anew.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use shardlane_domain::{Body, Event};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::SqlError;
use crate::fold::{self, OrderKey, RejectReason, Rejected, States};
use crate::mutants::{self, Mutant, Point};
use crate::routes::Target;
use crate::rows::InboxRows;
use crate::session::{PooledSession, Session};

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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Events that changed a state.
    pub applied: usize,
    /// Events that the inbox knew already, with the same payload.
    pub duplicates: usize,
    /// Events older than the state, kept in the log.
    pub stale: usize,
    /// Events that are no row: keep them elsewhere before [`Staged::commit`].
    pub rejected: Vec<Rejected>,
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

    /// Commits. After an error it is unknown whether the batch was applied: stage it again, and the fence or the
    /// inbox tells.
    ///
    /// # Errors
    /// [`SqlError::Postgres`].
    pub async fn commit(mut self) -> Result<Report, SqlError> {
        let client = &self.session.client;
        #[cfg(feature = "mutants")]
        let outbox = mutants::take_outbox(client).await?;
        client.batch_execute("commit").await?;
        self.session.in_transaction = false;
        mutants::reached(Point::Committed).await;
        #[cfg(feature = "mutants")]
        mutants::put_outbox(&self.session.client, outbox).await?;
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

/// Writes `records` in one transaction and leaves it open.
pub(crate) async fn stage(
    mut session: PooledSession,
    target: Target,
    anchor: Uuid,
    records: &[Record],
) -> Result<Staged, SqlError> {
    if mutants::is(Mutant::FenceOutside) {
        for fence in fence_moves(records) {
            let epoch = i64::try_from(target.epoch.0).unwrap_or(i64::MAX);
            let params: [&(dyn ToSql + Sync); 6] = [
                &anchor,
                &&*fence.topic,
                &fence.partition,
                &epoch,
                &fence.first,
                &fence.next,
            ];
            session
                .client
                .execute(&session.statements.move_fence, &params)
                .await?;
        }
    }
    session.in_transaction = true;
    let began = Instant::now();
    match write(&session, target, anchor, records).await {
        Ok(report) => Ok(Staged {
            session,
            began,
            report,
        }),
        Err(error) => {
            // If even this fails, the pool discards the session.
            if session.client.batch_execute("rollback").await.is_ok() {
                session.in_transaction = false;
            }
            Err(error)
        }
    }
}

async fn write(
    session: &Session,
    target: Target,
    anchor: Uuid,
    records: &[Record],
) -> Result<Report, SqlError> {
    let (client, statements) = (&session.client, &session.statements);
    let mut first_seen = first_of_each(records);
    let inbox = inbox_rows(records, &first_seen);
    let (order_keys, dispute_keys) = addressed(records);
    let fences = fence_moves(records);
    let epoch = i64::try_from(target.epoch.0).unwrap_or(i64::MAX);

    // Pipelined: the client sends each request when its future is first polled, in this order. All answers are
    // awaited, and the first error in this order is the cause: behind it each statement fails with 25P02, and
    // `try_join` would return whichever answer it happens to see first.
    let begin = client.batch_execute("begin");
    let move_fences = join_all(fences.iter().map(|fence| async move {
        let params: [&(dyn ToSql + Sync); 6] = [
            &anchor,
            &&*fence.topic,
            &fence.partition,
            &epoch,
            &fence.first,
            &fence.next,
        ];
        client.execute(&statements.move_fence, &params).await
    }));
    let inbox_params = inbox.params();
    let insert_inbox = client.query(&statements.insert_inbox, &inbox_params);
    let (order_users, order_ids): (Vec<Uuid>, Vec<&str>) = order_keys.iter().copied().unzip();
    let read_orders = async {
        if order_users.is_empty() {
            return Ok(Vec::new());
        }
        client
            .query(&statements.read_orders, &[&order_users, &order_ids])
            .await
    };
    let (dispute_users, dispute_ids): (Vec<Uuid>, Vec<&str>) = dispute_keys.iter().copied().unzip();
    let read_disputes = async {
        if dispute_users.is_empty() {
            return Ok(Vec::new());
        }
        client
            .query(&statements.read_disputes, &[&dispute_users, &dispute_ids])
            .await
    };
    let (begun, moved, inserted, orders, disputes) =
        futures_util::join!(begin, move_fences, insert_inbox, read_orders, read_disputes);
    begun?;
    let moved = moved.into_iter().collect::<Result<Vec<u64>, _>>()?;
    let (inserted, orders, disputes) = (inserted?, orders?, disputes?);

    if let Some((fence, _)) = fences.iter().zip(&moved).find(|(_, rows)| **rows == 0) {
        return Err(SqlError::Fenced {
            topic: fence.topic.to_string(),
            partition: fence.partition,
            offset: fence.first,
        });
    }

    let mut fresh = vec![false; records.len()];
    for row in &inserted {
        if let Some(index) = first_seen.get(&(row.get(0), row.get(1), row.get(2))) {
            fresh[*index] = true;
        }
    }
    #[cfg(feature = "mutants")]
    if mutants::is(Mutant::MemoryInbox) {
        for ((user, source, event), index) in &first_seen {
            fresh[*index] = !mutants::seen_before(*user, source, event);
        }
    }
    let mut states = States::from_rows(&orders, &disputes, &order_keys, &dispute_keys)?;
    let folded = fold::fold(records, &mut fresh, &mut states);
    for index in &folded.taken_later {
        first_seen.insert(event_key(&records[*index].event), *index);
    }
    let known = known_payloads(session, records, &fresh, &first_seen).await?;
    let rejected = event_keys(
        folded
            .rejected
            .iter()
            .map(|rejected| &records[rejected.index].event),
    );

    let mut report = Report {
        applied: folded.applied,
        stale: folded.stale,
        rejected: folded.rejected,
        ..Report::default()
    };
    for (index, record) in records
        .iter()
        .enumerate()
        .filter(|(index, _)| !fresh[*index])
    {
        let event = &record.event;
        if known.get(&event_key(event)) == Some(&event.payload_hash) {
            report.duplicates += 1;
        } else {
            report.rejected.push(Rejected {
                index,
                reason: RejectReason::DifferentPayload,
            });
        }
    }

    let changed = fold::changed(&states);
    let (new_users, new_ids): (Vec<Uuid>, Vec<&str>) = changed.new_orders.iter().copied().unzip();
    let order_params = changed.orders.params();
    let dispute_params = changed.disputes.params();
    let order_event_params = folded.order_events.params();
    let dispute_event_params = folded.dispute_events.params();
    let outbox_params = folded.outbox.params();
    let directory_params: [&(dyn ToSql + Sync); 2] = [&new_users, &new_ids];
    let writes = [
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
            folded.order_events.user_id.len(),
            None,
        ),
        (
            &statements.insert_dispute_events,
            &dispute_event_params[..],
            folded.dispute_events.user_id.len(),
            None,
        ),
        (
            &statements.insert_outbox,
            &outbox_params[..],
            folded.outbox.user_id.len(),
            None,
        ),
        (
            &statements.insert_directory,
            &directory_params[..],
            new_users.len(),
            None,
        ),
    ];
    let forget = async {
        if rejected.0.is_empty() {
            return Ok(0);
        }
        let params: [&(dyn ToSql + Sync); 3] = [&rejected.0, &rejected.1, &rejected.2];
        Ok::<_, SqlError>(client.execute(&statements.forget_rejected, &params).await?)
    };
    let mut inbox_later = InboxRows::default();
    for index in &folded.taken_later {
        inbox_later.push(&records[*index].event);
    }
    let inbox_later_params = inbox_later.params();
    // Sent after `forget`, which takes the first of them out.
    let retake = async {
        if folded.taken_later.is_empty() {
            return Ok(0);
        }
        let taken = client.query(&statements.insert_inbox, &inbox_later_params);
        Ok::<_, SqlError>(taken.await?.len() as u64)
    };
    let write = join_all(writes.iter().filter(|(_, _, rows, _)| *rows > 0).map(
        |(statement, params, rows, locked)| async move {
            let written = client.execute(*statement, params).await?;
            match locked {
                Some(table) if written != *rows as u64 => Err(SqlError::Conflict { table }),
                _ => Ok(written),
            }
        },
    ));
    let (written, forgotten, retaken) = futures_util::join!(write, forget, retake);
    let written = written.into_iter().collect::<Result<Vec<u64>, _>>()?;
    let taken = (inserted.len() as u64 + retaken?).saturating_sub(forgotten?);
    report.rows = written.iter().sum::<u64>() + taken + moved.iter().sum::<u64>();
    Ok(report)
}

pub(crate) type EventKey<'a> = (Uuid, &'a str, &'a str);

pub(crate) fn event_key(event: &Event) -> EventKey<'_> {
    (event.user_id, event.source.as_str(), &event.event_id)
}

/// The keys of events, one array a column.
fn event_keys<'a>(
    events: impl Iterator<Item = &'a Event>,
) -> (Vec<Uuid>, Vec<&'static str>, Vec<&'a str>) {
    let mut keys = (Vec::new(), Vec::new(), Vec::new());
    for event in events {
        keys.0.push(event.user_id);
        keys.1.push(event.source.as_str());
        keys.2.push(event.event_id.as_str());
    }
    keys
}

/// The index of the first record of each event: a batch may hold a duplicate of its own.
fn first_of_each(records: &[Record]) -> HashMap<EventKey<'_>, usize> {
    let mut first = HashMap::with_capacity(records.len());
    for (index, record) in records.iter().enumerate() {
        first.entry(event_key(&record.event)).or_insert(index);
    }
    first
}

/// Sorted by key, so that two batches with the same events wait for each other rather than deadlock.
fn inbox_rows<'a>(
    records: &'a [Record],
    first_seen: &HashMap<EventKey<'a>, usize>,
) -> InboxRows<'a> {
    let mut keys: Vec<_> = first_seen.iter().collect();
    keys.sort_unstable();
    let mut rows = InboxRows::default();
    for (_, index) in keys {
        rows.push(&records[*index].event);
    }
    rows
}

/// The orders and the disputes that the records address, each once.
fn addressed(records: &[Record]) -> (Vec<OrderKey<'_>>, Vec<OrderKey<'_>>) {
    let (mut orders, mut disputes) = (Vec::with_capacity(records.len()), Vec::new());
    for Record { event, .. } in records {
        let key: OrderKey<'_> = (event.user_id, &event.order_id);
        match event.body {
            Body::Order(_) => orders.push(key),
            Body::Dispute(_) => disputes.push(key),
        }
    }
    for keys in [&mut orders, &mut disputes] {
        keys.sort_unstable();
        keys.dedup();
    }
    (orders, disputes)
}

struct FenceMove {
    topic: Arc<str>,
    partition: i32,
    first: i64,
    next: i64,
}

/// One move a partition, in one order everywhere, so that two batches cannot deadlock.
fn fence_moves(records: &[Record]) -> Vec<FenceMove> {
    let mut moves: Vec<FenceMove> = Vec::new();
    for origin in records.iter().filter_map(|record| record.origin.as_ref()) {
        let known = moves
            .iter_mut()
            .find(|known| known.partition == origin.partition && known.topic == origin.topic);
        match known {
            Some(known) => {
                known.first = known.first.min(origin.offset);
                known.next = known.next.max(origin.offset + 1);
            }
            None => moves.push(FenceMove {
                topic: Arc::clone(&origin.topic),
                partition: origin.partition,
                first: origin.offset,
                next: origin.offset + 1,
            }),
        }
    }
    moves.sort_unstable_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
    moves
}

/// Under which payload each event that is not fresh was taken: by this batch, or before.
async fn known_payloads<'a>(
    session: &Session,
    records: &'a [Record],
    fresh: &[bool],
    first_seen: &HashMap<EventKey<'a>, usize>,
) -> Result<HashMap<EventKey<'a>, u128>, SqlError> {
    let mut known = HashMap::new();
    let (mut users, mut sources, mut ids) = (Vec::new(), Vec::new(), Vec::new());
    for (index, record) in records
        .iter()
        .enumerate()
        .filter(|(index, _)| !fresh[*index])
    {
        let key = event_key(&record.event);
        let first = first_seen[&key];
        if fresh[first] {
            known.insert(key, records[first].event.payload_hash);
        } else if first == index {
            users.push(key.0);
            sources.push(key.1);
            ids.push(key.2);
        }
    }
    if users.is_empty() {
        return Ok(known);
    }
    let rows = session
        .client
        .query(&session.statements.read_inbox, &[&users, &sources, &ids])
        .await?;
    for row in &rows {
        let key = (row.get(0), row.get::<_, &str>(1), row.get::<_, &str>(2));
        if let Some(index) = first_seen.get(&key) {
            known.insert(
                event_key(&records[*index].event),
                row.get::<_, Uuid>(3).as_u128(),
            );
        }
    }
    Ok(known)
}
