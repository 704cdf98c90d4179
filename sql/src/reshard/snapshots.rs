//! Two snapshots that hold the same: one of a source, one of its target, while writers write.
//!
//! The source's tables are locked against writers for the moment in which the snapshot is taken and a marker row is
//! written behind it. At the target the marker's table is locked before, so that the apply worker stops exactly there,
//! with all before the marker applied and nothing behind it.

use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use super::ReshardError;
use super::replicate::Link;
use super::servers::LOCK_TRIES;
use super::verify::{Side, compare};
use crate::SLOT_TABLES;
use crate::follow::connect;

/// How long the apply worker may take to come to the marker.
const ARRIVAL_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(2);

/// The first transaction behind each of the two snapshots: what was written since is still to be compared.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    pub(super) from: u32,
    pub(super) to: u32,
}

/// Compares all rows of a link's slots at one moment. Writers wait for some milliseconds, once.
pub(super) async fn compare_snapshots(link: &Link<'_>) -> Result<Marks, ReshardError> {
    // No older marker may be on its way: the apply worker would stop at that one.
    while link.marker(ARRIVAL_MAX).await?.is_none() {}
    let (from, to) = (&link.from.config, &link.to.config);
    let (gate, target) = (connect(to).await?, connect(to).await?);
    gate.batch_execute("begin; lock table reshard_marker in share row exclusive mode")
        .await?;
    let (lock, source) = (connect(from).await?, connect(from).await?);
    lock_writers_out(&lock).await?;
    let first_behind = open_snapshot(&source).await?;
    let marker = "insert into reshard_marker (id) values ($1)";
    lock.execute(marker, &[&Uuid::now_v7()]).await?;
    lock.batch_execute("commit").await?;
    wait_for_apply_at_gate(link).await?;
    let marks = Marks {
        from: first_behind,
        to: open_snapshot(&target).await?,
    };
    gate.batch_execute("rollback").await?;
    let side = |client| Side {
        client,
        since: None,
    };
    compare(link.moved, side(&source), side(&target)).await?;
    Ok(marks)
}

/// Leaves a transaction open in which nobody else writes to the slots' tables. Whoever has written there has taken a lock
/// first, so all transactions that write later also have later numbers.
async fn lock_writers_out(client: &Client) -> Result<(), ReshardError> {
    let tables = SLOT_TABLES.join(", ");
    let lock = format!(
        "begin; set local lock_timeout = '300ms'; lock table kafka_fence, {tables} in share mode"
    );
    let mut tries = 1;
    loop {
        match client.batch_execute(&lock).await {
            Err(error)
                if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) && tries < LOCK_TRIES =>
            {
                tries += 1;
                client.batch_execute("rollback").await?;
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            result => return Ok(result?),
        }
    }
}

/// Begins a transaction whose snapshot is of now, and tells the first transaction number that it does not see.
async fn open_snapshot(client: &Client) -> Result<u32, ReshardError> {
    client
        .batch_execute("set timezone = 'UTC'; begin isolation level repeatable read read only")
        .await?;
    // xid8 counts on where xid wraps; xmin is an xid.
    let query = "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint % 4294967296";
    let xid: i64 = client.query_one(query, &[]).await?.get(0);
    Ok(u32::try_from(xid).unwrap_or(u32::MAX))
}

async fn wait_for_apply_at_gate(link: &Link<'_>) -> Result<(), ReshardError> {
    let began = Instant::now();
    let query = "select 1 from pg_locks l join pg_stat_subscription s on s.pid = l.pid \
                 where s.subname = $1::text::name and not l.granted and l.relation = 'reshard_marker'::regclass";
    while link
        .to
        .client
        .query_opt(query, &[&link.name])
        .await?
        .is_none()
    {
        if began.elapsed() > ARRIVAL_MAX {
            return Err(ReshardError::CopyTooSlow {
                from: link.moved.from,
                to: link.moved.to,
                waited: ARRIVAL_MAX,
            });
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
