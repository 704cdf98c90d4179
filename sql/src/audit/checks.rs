//! The CHECKs that make a manual shard refuse what is not its own.

use std::sync::LazyLock;

use shardlane_router::{RouteKey, SLOT_COUNT, Slot, TokenHash};
use uuid::Uuid;

use super::members::{Member, Members};
use super::{AuditError, Finding};
use crate::SLOT_TABLES;
use crate::identity::{EPOCH_CHECK, SLOT_CHECK};
use crate::slots::SlotSet;

/// A user of each slot, in the order of the slots. Small numbers hash evenly, so some 40,000 are enough.
static USER_OF_SLOT: LazyLock<Vec<Uuid>> = LazyLock::new(|| {
    let mut users = vec![None; SLOT_COUNT];
    let mut missing = SLOT_COUNT;
    for user in (0..).map(Uuid::from_u128) {
        let slot = TokenHash::Postgres.token(&RouteKey::Uuid(user)).slot();
        if users[slot.index()].replace(user).is_none() {
            missing -= 1;
        }
        if missing == 0 {
            break;
        }
    }
    users.into_iter().flatten().collect()
});

/// What the server has of one CHECK.
struct Check {
    validated: bool,
    expression: String,
}

/// Missing, not valid, or with other slots than the shard takes. While a reshard is under way its targets admit more,
/// and are validated at its end.
pub(super) async fn find(members: &Members, member: &Member) -> Result<Vec<Finding>, AuditError> {
    let shard = member.shard;
    let mut findings = Vec::new();
    // Fences of older epochs are legal rows, so it does not matter whether this one is validated.
    if read(member, "kafka_fence", EPOCH_CHECK).await?.is_none() {
        let constraint = EPOCH_CHECK.to_owned();
        findings.push(Finding::CheckMissing { shard, constraint });
    }
    for table in SLOT_TABLES {
        let constraint = format!("{table}{SLOT_CHECK}");
        let Some(check) = read(member, table, &constraint).await? else {
            findings.push(Finding::CheckMissing { shard, constraint });
            continue;
        };
        if members.journal.is_some() {
            continue;
        }
        let admits = admitted(member, &check.expression).await?;
        let expected = members.catalog.accepted(shard);
        if admits != expected {
            findings.push(Finding::CheckDiffers {
                shard,
                constraint,
                admits,
                expected,
            });
        } else if !check.validated {
            findings.push(Finding::CheckNotValid { shard, constraint });
        }
    }
    Ok(findings)
}

async fn read(member: &Member, table: &str, name: &str) -> Result<Option<Check>, AuditError> {
    let query = "select convalidated, pg_get_expr(conbin, conrelid) from pg_constraint \
                 where contype = 'c' and conname = $1::text::name and conrelid = to_regclass($2::text)";
    let row = member.client.query_opt(query, &[&name, &table]).await?;
    Ok(row.map(|row| Check {
        validated: row.get(0),
        expression: row.get(1),
    }))
}

/// Asks the server for which slots a CHECK holds, by a user in each.
async fn admitted(member: &Member, expression: &str) -> Result<SlotSet, AuditError> {
    let query = format!(
        "select coalesce({expression}, true) from unnest($1::uuid[]) with ordinality as t (user_id, n) order by n"
    );
    let rows = member.client.query(&query, &[&*USER_OF_SLOT]).await?;
    let slots = Slot::all().zip(rows);
    Ok(slots
        .filter(|(_, row)| row.get(0))
        .map(|(slot, _)| slot)
        .collect())
}
