//! What a client does, and by which way: the same statements on every path.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tokio_postgres::Statement;
use uuid::Uuid;

use super::ground::Users;
use crate::closed_loop::Operation;
use crate::pools::{Pools, Session};

/// One kind of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Workload {
    /// One row, committed by itself.
    Insert,
    /// Many rows in one statement, by `unnest`.
    Batch,
    /// One row by its key.
    Read,
    /// One row locked, read, changed and committed.
    ReadModifyWrite,
}

impl Workload {
    pub(super) const ALL: [Workload; 4] = [
        Workload::Insert,
        Workload::Batch,
        Workload::Read,
        Workload::ReadModifyWrite,
    ];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Workload::Insert => "insert",
            Workload::Batch => "batch",
            Workload::Read => "read",
            Workload::ReadModifyWrite => "read-modify-write",
        }
    }

    /// What a session prepares, in the order in which [`operate`] uses it.
    pub(super) const fn statements(self) -> &'static [&'static str] {
        match self {
            Workload::Insert => &[include_str!("statements/insert_one.sql")],
            Workload::Batch => &[include_str!("statements/insert_batch.sql")],
            Workload::Read => &[include_str!("statements/read_order.sql")],
            Workload::ReadModifyWrite => &[
                include_str!("statements/lock_order.sql"),
                include_str!("statements/update_order.sql"),
            ],
        }
    }

    /// A batch can be sent mixed or grouped; for one row there is no difference.
    pub(super) const fn paths(self) -> &'static [Path] {
        match self {
            Workload::Batch => &[
                Path::Single,
                Path::Coordinator,
                Path::CoordinatorGrouped,
                Path::AnyNode,
                Path::AnyNodeGrouped,
                Path::Owner,
            ],
            Workload::Read => &[
                Path::Single,
                Path::Coordinator,
                Path::AnyNode,
                Path::Owner,
                Path::OwnerWatched,
            ],
            Workload::Insert | Workload::ReadModifyWrite => {
                &[Path::Single, Path::Coordinator, Path::AnyNode, Path::Owner]
            }
        }
    }
}

/// One way to the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    /// One Postgres without Citus: the floor.
    Single,
    /// Citus through its coordinator, batches of any users.
    Coordinator,
    /// The same, each batch of one shard's users.
    CoordinatorGrouped,
    /// The workers in turn, batches of any users. Without the coordinator, which holds no shards: with it, one
    /// statement in three would have no chance to meet its owner. Two workers are this path's best case.
    AnyNode,
    /// The same, each batch of one shard's users.
    AnyNodeGrouped,
    /// The node that owns the user, each batch of one shard's users.
    Owner,
    /// The same, by the map of a [`Watch`](shardlane_citus::Watch) that polls meanwhile.
    OwnerWatched,
}

impl Path {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Path::Single => "single",
            Path::Coordinator => "coordinator",
            Path::CoordinatorGrouped => "coordinator-grouped",
            Path::AnyNode => "any-node",
            Path::AnyNodeGrouped => "any-node-grouped",
            Path::Owner => "owner",
            Path::OwnerWatched => "owner-watched",
        }
    }

    pub(super) const fn is_citus(self) -> bool {
        !matches!(self, Path::Single)
    }

    /// Whether a batch holds the users of one shard only.
    const fn is_grouped(self) -> bool {
        matches!(
            self,
            Path::CoordinatorGrouped | Path::AnyNodeGrouped | Path::Owner | Path::OwnerWatched
        )
    }
}

/// An operation failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum OperationError {
    /// No connection was free in time.
    #[error("no connection in time")]
    Pool(#[source] bb8::RunError<tokio_postgres::Error>),
    /// The server refused; whether the rows are there is not known.
    #[error("the server refused")]
    Server(#[from] tokio_postgres::Error),
    /// The answer is not what was stored.
    #[error("user {user}: expected one row, found {rows}")]
    Wrong { user: Uuid, rows: usize },
}

/// What all operations of one cell share.
pub(super) struct Work {
    pub(super) workload: Workload,
    pub(super) path: Path,
    pub(super) pools: Pools,
    pub(super) users: Arc<Users>,
    pub(super) batch_rows: usize,
    /// Each operation takes one, so that no two rows have one key.
    pub(super) ids: AtomicU64,
}

impl Work {
    /// Rows that one operation reads or writes.
    pub(super) fn rows(&self) -> u64 {
        match self.workload {
            Workload::Batch => self.batch_rows as u64,
            Workload::Insert | Workload::Read | Workload::ReadModifyWrite => 1,
        }
    }

    fn choose(&self, rng: &mut ChaCha8Rng) -> Vec<Uuid> {
        let from = match self.path.is_grouped() && self.workload == Workload::Batch {
            true => self
                .users
                .of_a_shard(rng.random_range(0..self.users.shard_count())),
            false => self.users.all(),
        };
        (0..self.rows())
            .map(|_| from[rng.random_range(0..from.len())])
            .collect()
    }
}

impl Operation for Work {
    type Error = OperationError;

    async fn operate(&self, rng: &mut ChaCha8Rng) -> Result<(), OperationError> {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let now = Timestamp::now();
        let users = self.choose(rng);
        let user = users[0];
        let mut session = self
            .pools
            .session(user)
            .await
            .map_err(OperationError::Pool)?;
        let Session { client, statements } = &mut *session;
        match self.workload {
            Workload::Insert => {
                let event = id.to_string();
                client
                    .execute(&statements[0], &[&user, &event, &now])
                    .await?;
            }
            Workload::Batch => {
                let events: Vec<String> =
                    (0..users.len()).map(|row| format!("{id}-{row}")).collect();
                client
                    .execute(&statements[0], &[&users, &events, &now])
                    .await?;
            }
            Workload::Read => {
                let rows = client.query(&statements[0], &[&user]).await?;
                let ours = rows.iter().filter(|row| row.get::<_, Uuid>(0) == user);
                if ours.count() != 1 {
                    return Err(OperationError::Wrong {
                        user,
                        rows: rows.len(),
                    });
                }
            }
            Workload::ReadModifyWrite => modify(client, statements, user, now).await?,
        }
        Ok(())
    }

    fn is_fatal(error: &OperationError) -> bool {
        matches!(error, OperationError::Wrong { .. })
    }
}

async fn modify(
    client: &mut tokio_postgres::Client,
    statements: &[Statement],
    user: Uuid,
    now: Timestamp,
) -> Result<(), OperationError> {
    let transaction = client.transaction().await?;
    let version: i64 = transaction
        .query_one(&statements[0], &[&user])
        .await?
        .get(0);
    let rows = transaction
        .execute(&statements[1], &[&user, &(version + 1), &now])
        .await?;
    if rows != 1 {
        return Err(OperationError::Wrong {
            user,
            rows: usize::try_from(rows).unwrap_or(usize::MAX),
        });
    }
    transaction.commit().await?;
    Ok(())
}
