//! What a transaction reads, and what it does before it can.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::future::join_all;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::{Work, columns};
use crate::SqlError;
use crate::fold::{Keys, OrderKey};
use crate::mutants::{self, Mutant};
use crate::park::{Parked, ParkedKeys};
use crate::queue::Seen;
use crate::rows::InboxRows;
use crate::session::Session;
use crate::stage::{EventKey, Record};

/// From so many records on a statement is planned for its arrays, each time: a plan for all times knows neither how long
/// they are nor how large the tables have become, and joins two thousand keys with two thousand rows one by one. Planning
/// costs about what so few rows save.
const CUSTOM_PLANS_FROM: usize = 32;

const BEGIN_WITH_CUSTOM_PLANS: &str = "begin; set local plan_cache_mode = force_custom_plan";

/// What the first round trip brings.
pub(super) struct Read {
    /// Fences that were moved.
    pub(super) moved: u64,
    /// What the inbox did not know.
    pub(super) inserted: Vec<Row>,
    pub(super) parked: Vec<Row>,
    pub(super) states: (Vec<Row>, Vec<Row>),
}

pub(super) async fn begin(
    session: &Session,
    work: &Work<'_>,
    seen: &HashMap<EventKey<'_>, Seen>,
    keys: &Keys<'_>,
) -> Result<Read, SqlError> {
    let (client, statements) = (&session.client, &session.statements);
    let fences = fence_moves(work);
    let epoch = i64::try_from(work.target.epoch.0).unwrap_or(i64::MAX);
    let anchor = work.anchor;

    if mutants::is(Mutant::FenceOutside) {
        for fence in &fences {
            let (topic, partition) = (&*fence.topic, fence.partition);
            let params: [&(dyn ToSql + Sync); 6] = [
                &anchor,
                &topic,
                &partition,
                &epoch,
                &fence.first,
                &fence.next,
            ];
            client.execute(&statements.move_fence, &params).await?;
        }
    }
    // Pipelined: the client sends each request when its future is first polled, in this order. All answers are
    // awaited, and the first error in this order is the cause: behind it each statement fails with 25P02, and
    // `try_join` would return whichever answer it happens to see first.
    let begin = client.batch_execute(if work.records.len() < CUSTOM_PLANS_FROM {
        "begin"
    } else {
        BEGIN_WITH_CUSTOM_PLANS
    });
    let lock = sweep_lock(client, work);
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
    let inbox = inbox_rows(work.records, seen);
    let inbox_params = inbox.params();
    let insert_inbox = client.query(&statements.insert_inbox, &inbox_params);
    let users = users_of(work, keys);
    let users_params: [&(dyn ToSql + Sync); 1] = [&users];
    let read_parked = client.query(&statements.read_parked, &users_params);
    let (begun, locked, moved, inserted, parked, states) = futures_util::join!(
        begin,
        lock,
        move_fences,
        insert_inbox,
        read_parked,
        read_states(session, keys)
    );
    begun?;
    let locked = locked?;
    let moved = moved.into_iter().collect::<Result<Vec<u64>, _>>()?;
    let (inserted, parked, states) = (inserted?, parked?, states?);
    if !locked {
        return Err(SqlError::SweptElsewhere {
            shard: work.target.shard,
        });
    }
    if let Some((fence, _)) = fences.iter().zip(&moved).find(|(_, rows)| **rows == 0) {
        return Err(SqlError::Fenced {
            topic: fence.topic.to_string(),
            partition: fence.partition,
            offset: fence.first,
        });
    }
    Ok(Read {
        moved: moved.iter().sum(),
        inserted,
        parked,
        states,
    })
}

/// One sweep of a shard at a time: whoever comes second would only run into conflicts.
async fn sweep_lock(client: &Client, work: &Work<'_>) -> Result<bool, SqlError> {
    /// Of this program's advisory locks on a database.
    const SWEEP: i64 = 0x5348_4c53_0000_0000;
    if work.swept.is_none() {
        return Ok(true);
    }
    let key = SWEEP.wrapping_add(work.target.shard.0);
    let query = "select pg_try_advisory_xact_lock($1)";
    Ok(client.query_one(query, &[&key]).await?.get(0))
}

/// The users whose queues matter, sorted.
pub(crate) fn users_of(work: &Work<'_>, keys: &Keys<'_>) -> Vec<Uuid> {
    let swept = work.swept.unwrap_or_default().iter().copied();
    let mut users: Vec<Uuid> = keys.orders.iter().map(|key| key.0).chain(swept).collect();
    users.sort_unstable();
    users.dedup();
    users
}

/// Which users' queues may move: a sweep's, those of which an event of the batch opens what one of them waits for, and full
/// ones, because what comes next to them depends on whether they can.
pub(crate) fn may_move<'a>(work: &'a Work<'_>, parked: &[Parked]) -> impl Fn(Uuid) -> bool + 'a {
    let events = work.records.iter().map(|record| &record.event);
    let opened: HashSet<(Uuid, &str)> = if parked.is_empty() {
        HashSet::new()
    } else {
        let openers = events.filter(|event| event.opens());
        openers
            .map(|event| (event.user_id, event.order_id.as_str()))
            .collect()
    };
    let awaited = parked
        .iter()
        .filter(|it| opened.contains(&(it.user_id, it.order_id.as_str())));
    let limit = work.rules.limits.park_rows_max;
    let full = parked
        .chunk_by(|a, b| (a.user_id, a.source) == (b.user_id, b.source))
        .filter(|queue| queue.len() >= limit);
    let moving: HashSet<Uuid> = awaited
        .map(|it| it.user_id)
        .chain(full.map(|queue| queue[0].user_id))
        .chain(work.swept.unwrap_or_default().iter().copied())
        .collect();
    move |user| moving.contains(&user)
}

pub(super) async fn read_states(
    session: &Session,
    keys: &Keys<'_>,
) -> Result<(Vec<Row>, Vec<Row>), SqlError> {
    let (client, statements) = (&session.client, &session.statements);
    let read = async |statement, keys: &[OrderKey<'_>]| {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let (users, ids): (Vec<Uuid>, Vec<&str>) = keys.iter().copied().unzip();
        client.query(statement, &[&users, &ids]).await
    };
    let (orders, disputes) = futures_util::join!(
        read(&statements.read_orders, &keys.orders),
        read(&statements.read_disputes, &keys.disputes)
    );
    Ok((orders?, disputes?))
}

/// Under which payload the inbox had those events that are not known by this batch.
pub(super) async fn known_payloads(
    session: &Session,
    seen: &HashMap<EventKey<'_>, Seen>,
) -> Result<Vec<Row>, SqlError> {
    let unknown = seen.iter().filter(|(_, seen)| seen.hash.is_none());
    let (users, sources, ids) = columns(unknown.map(|(key, _)| *key));
    if users.is_empty() {
        return Ok(Vec::new());
    }
    let statement = &session.statements.read_inbox;
    Ok(session
        .client
        .query(statement, &[&users, &sources, &ids])
        .await?)
}

pub(super) async fn load_parked(
    session: &Session,
    wanted: &ParkedKeys<'_>,
) -> Result<Vec<Row>, SqlError> {
    if wanted.users.is_empty() {
        return Ok(Vec::new());
    }
    let statement = &session.statements.load_parked;
    Ok(session.client.query(statement, &wanted.params()).await?)
}

/// Sorted by key, so that two batches with the same events wait for each other rather than deadlock.
fn inbox_rows<'a>(records: &'a [Record], seen: &HashMap<EventKey<'_>, Seen>) -> InboxRows<'a> {
    let mut keys: Vec<_> = seen.iter().map(|(key, seen)| (key, seen.first)).collect();
    keys.sort_unstable();
    let mut rows = InboxRows::default();
    for (_, first) in keys {
        rows.push(&records[first].event);
    }
    rows
}

pub(crate) struct FenceMove {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) first: i64,
    pub(crate) next: i64,
}

/// One move a partition, in one order everywhere, so that two batches cannot deadlock.
pub(crate) fn fence_moves(work: &Work<'_>) -> Vec<FenceMove> {
    let mut moves: Vec<FenceMove> = Vec::new();
    let origins = work
        .records
        .iter()
        .filter_map(|record| record.origin.as_ref());
    for origin in origins.chain(work.dead) {
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
