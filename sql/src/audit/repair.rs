//! What is safe to repair on manual shards, in the order in which one repair allows the next.

use shardlane_router::ShardId;
use tokio_postgres::error::SqlState;

use super::members::Members;
use super::shift::Shift;
use super::{AuditError, Finding, Repair, checks, leftovers, rows};
use crate::SLOT_TABLES;
use crate::identity::{SLOT_CHECK, become_shard};

/// How long the locks of a repair may be waited for. Batches hold theirs for milliseconds, and those behind wait too.
pub(super) const LOCK_WAIT: &str = "set local lock_timeout = '2s'";

/// Shards whose identity is not what the newest catalog says are left alone: who is right is not known.
pub(super) async fn all(
    members: &mut Members,
    repairs: &mut Vec<Repair>,
) -> Result<(), AuditError> {
    let clients: Vec<_> = members
        .list
        .iter()
        .map(|member| (member.shard, &member.client))
        .collect();
    leftovers::drop_all(&clients, repairs).await?;
    restore_checks(members, repairs).await?;
    for (from, owner) in misplaced(members).await? {
        let is_agreed = |shard| members.of(shard).filter(|member| member.is_agreed());
        if let (Some(from), Some(owner)) = (is_agreed(from), is_agreed(owner)) {
            let slots = members.catalog.owned(owner.shard);
            Shift::new(from, owner, slots).await?.run(repairs).await?;
        }
    }
    validate(members, repairs).await
}

/// CHECKs that are missing, or that are not the identity's.
async fn restore_checks(
    members: &mut Members,
    repairs: &mut Vec<Repair>,
) -> Result<(), AuditError> {
    let mut wrong = Vec::new();
    for member in members.list.iter().filter(|member| member.is_agreed()) {
        let findings = checks::find(members, member).await?;
        let is_wrong = |finding: &Finding| !matches!(finding, Finding::CheckNotValid { .. });
        if findings.iter().any(is_wrong) {
            wrong.push(member.shard);
        }
    }
    let members = members.list.iter_mut();
    for member in members.filter(|member| wrong.contains(&member.shard)) {
        let transaction = member.client.transaction().await?;
        transaction.batch_execute(LOCK_WAIT).await?;
        become_shard(&transaction, &member.expected).await?;
        transaction.commit().await?;
        repairs.push(Repair::ChecksRestored {
            shard: member.shard,
        });
    }
    Ok(())
}

/// Pairs of shards of which the first has rows of the second.
async fn misplaced(members: &Members) -> Result<Vec<(ShardId, ShardId)>, AuditError> {
    let mut pairs = Vec::new();
    for member in &members.list {
        for finding in rows::find(members, member).await? {
            if let Finding::ForeignRows { shard, owner, .. } = finding {
                pairs.push((shard, owner));
            }
        }
    }
    pairs.sort_unstable();
    pairs.dedup();
    Ok(pairs)
}

/// Validates what all rows fulfil; a CHECK that a conflicting row breaks stays NOT VALID.
async fn validate(members: &Members, repairs: &mut Vec<Repair>) -> Result<(), AuditError> {
    for member in &members.list {
        let not_valid = checks::find(members, member).await?;
        for table in SLOT_TABLES {
            let constraint = format!("{table}{SLOT_CHECK}");
            let shard = member.shard;
            let wanted = Finding::CheckNotValid { shard, constraint };
            if !not_valid.contains(&wanted) {
                continue;
            }
            let validate = format!("alter table {table} validate constraint {table}{SLOT_CHECK}");
            match member.client.batch_execute(&validate).await {
                Ok(()) => repairs.push(Repair::CheckValidated {
                    shard,
                    constraint: format!("{table}{SLOT_CHECK}"),
                }),
                Err(error) if error.code() == Some(&SqlState::CHECK_VIOLATION) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}
