//! Rows that lie on another shard than their user's.

use std::collections::BTreeMap;

use shardlane_router::{ShardId, Slot};
use uuid::Uuid;

use super::members::{Member, Members};
use super::{AuditError, EXAMPLES_MAX, Finding};
use crate::SLOT_TABLES;
use crate::slots::{SLOT_OF_ROW, SlotSet};

/// Foreign rows of a shard, by table and owner. What a reshard copies or has still to clean is not counted.
pub(super) async fn find(members: &Members, member: &Member) -> Result<Vec<Finding>, AuditError> {
    let moves = members.journal.iter().flat_map(|it| &it.plan.moves);
    let shard = member.shard;
    let at_home = moves
        .filter(|moved| moved.from == shard || moved.to == shard)
        .fold(members.catalog.owned(shard), |all, moved| {
            all.union(&moved.slots)
        });
    let mut findings = Vec::new();
    for table in SLOT_TABLES {
        let query = format!(
            "select {SLOT_OF_ROW}, count(*) from {table} where not {} group by 1",
            at_home.condition()
        );
        let mut by_owner: BTreeMap<ShardId, (i64, Vec<Slot>)> = BTreeMap::new();
        for row in member.client.query(&query, &[]).await? {
            let Some(slot) = slot(row.get(0)) else {
                continue;
            };
            let owner = members.catalog.map.shard_of(slot);
            let (rows, slots) = by_owner.entry(owner).or_default();
            *rows += row.get::<_, i64>(1);
            slots.push(slot);
        }
        for (owner, (rows, slots)) in by_owner {
            findings.push(Finding::ForeignRows {
                table,
                shard,
                owner,
                rows,
                users: examples(member, table, &slots.into_iter().collect()).await?,
            });
        }
    }
    Ok(findings)
}

fn slot(number: i64) -> Option<Slot> {
    Slot::new(u16::try_from(number).ok()?).ok()
}

async fn examples(member: &Member, table: &str, slots: &SlotSet) -> Result<Vec<Uuid>, AuditError> {
    let condition = slots.condition();
    let query = format!(
        "select distinct user_id from {table} where {condition} order by 1 limit {EXAMPLES_MAX}"
    );
    let rows = member.client.query(&query, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
