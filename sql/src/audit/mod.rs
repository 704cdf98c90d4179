//! Is everything where the map says? [`inspect`] looks at the servers behind a layout and lists what is not;
//! [`repair`] does what is safe and lists what it did and what is left.
//!
//! Invariants:
//! - **Looking writes nothing**, and counts on the servers: no table is copied to the client.
//! - **A row is deleted only where its exact copy is on its owner**: same key, same text.
//! - **What two shards hold differently is never touched**: somebody has to decide.
//! - **No repair while a reshard is under way**: its copies look like damage and are none.

mod checks;
mod citus;
mod finding;
mod leftovers;
mod members;
mod ownership;
mod repair;
mod rows;
mod sentences;
mod shift;

use shardlane_router::ShardId;

use self::finding::conflicts;
pub use self::finding::{Finding, LeftoverKind, Repair, Severity};
use self::members::Members;
use crate::reshard::ReshardError;
use crate::store::parse;
use crate::{Backend, SqlError, follow};

/// How many users a finding names.
pub const EXAMPLES_MAX: usize = 5;
/// How often an audit begins anew because slots moved under it.
const TRIES_MAX: usize = 3;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// A server did not answer, or refused.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// The journal of a reshard could not be read.
    #[error(transparent)]
    Reshard(#[from] ReshardError),
    /// Nothing is repaired now.
    #[error(
        "nothing is repaired while a reshard is under way; finish it with `shardlane reshard run` or give it up with \
         `shardlane reshard abort`, then run the audit again"
    )]
    ReshardUnderWay,
    /// No moment was quiet enough to compare the shards.
    #[error(
        "slots moved in each of {TRIES_MAX} attempts; run the audit again when the reshard has ended"
    )]
    Moving,
    /// A Citus node that holds shards cannot be asked.
    #[error(
        "the Citus node {node} does not answer: {source}; its shards cannot be audited without it"
    )]
    Node {
        /// host:port.
        node: String,
        /// Why not.
        source: SqlError,
    },
}

impl From<tokio_postgres::Error> for AuditError {
    fn from(error: tokio_postgres::Error) -> Self {
        AuditError::Sql(error.into())
    }
}

/// What [`repair`] did, and what is left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repaired {
    /// What was done, in order.
    pub repairs: Vec<Repair>,
    /// What a second look found.
    pub left: Vec<Finding>,
}

/// Looks at everything behind `backend`; an empty list means that all is as the map says. Full scans of the tables,
/// on the servers.
///
/// # Errors
/// [`AuditError`]: a server that does not answer, slots that do not stop moving.
pub async fn inspect(backend: &Backend) -> Result<Vec<Finding>, AuditError> {
    match backend {
        Backend::One { url } => {
            let client = follow::connect(&parse(url)?).await?;
            leftovers::find(&client, ShardId(0), None).await
        }
        Backend::Citus { coordinator, .. } => citus::inspect(coordinator).await,
        Backend::Shards { urls, map } => {
            for _ in 0..TRIES_MAX {
                let members = Members::connect(urls, map).await?;
                let findings = inspect_shards(&members).await?;
                if members.is_unmoved().await? {
                    return Ok(findings);
                }
            }
            Err(AuditError::Moving)
        }
    }
}

async fn inspect_shards(members: &Members) -> Result<Vec<Finding>, AuditError> {
    let mut findings = ownership::find(members);
    let plan = members.journal.as_ref().map(|journal| &journal.plan);
    for member in &members.list {
        findings.extend(checks::find(members, member).await?);
        findings.extend(ownership::fences(member).await?);
        findings.extend(rows::find(members, member).await?);
        findings.extend(leftovers::find(&member.client, member.shard, plan).await?);
    }
    Ok(findings)
}

/// Repairs what is safe, then looks again. On Citus nothing is: there each finding says what to do.
///
/// # Errors
/// [`AuditError::ReshardUnderWay`]; else as [`inspect`]. What was done before an error stays done, and a second run
/// goes on.
pub async fn repair(backend: &Backend) -> Result<Repaired, AuditError> {
    let mut repairs = Vec::new();
    match backend {
        Backend::One { url } => {
            let client = follow::connect(&parse(url)?).await?;
            leftovers::drop_all(&[(ShardId(0), &client)], &mut repairs).await?;
        }
        Backend::Citus { .. } => {}
        Backend::Shards { urls, map } => {
            let mut members = Members::connect(urls, map).await?;
            members.hold_still().await?;
            repair::all(&mut members, &mut repairs).await?;
        }
    }
    let left = conflicts(inspect(backend).await?);
    Ok(Repaired { repairs, left })
}
