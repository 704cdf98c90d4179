//! Who says to own what: identities, catalogs, frozen slots, fences.

use std::collections::BTreeMap;

use shardlane_router::{Epoch, ShardId, Slot};

use super::members::{Member, Members};
use super::{AuditError, Finding};
use crate::identity::ShardIdentity;
use crate::slots::SlotSet;

/// What can be said without another question to a server.
pub(super) fn find(members: &Members) -> Vec<Finding> {
    let mut findings = under_way(members);
    let databases = members.unlisted.iter().cloned();
    findings.extend(databases.map(|database| Finding::DatabaseUnlisted { database }));
    findings.extend(members.list.iter().filter_map(identity));
    findings.extend(owners(members));
    let catalogs = members.list.iter();
    findings.extend(catalogs.filter_map(|member| catalog(members, member)));
    findings
}

fn under_way(members: &Members) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(journal) = &members.journal {
        findings.push(Finding::ReshardUnderWay {
            next: journal
                .next()
                .map_or_else(|| "nothing".to_owned(), |step| step.to_string()),
            done: journal.done,
        });
    }
    if !members.catalog.frozen.is_empty() {
        findings.push(Finding::SlotsFrozen {
            slots: members.catalog.frozen.clone(),
            under_way: members.journal.is_some(),
        });
    }
    findings
}

fn identity(member: &Member) -> Option<Finding> {
    let Some(found) = &member.identity else {
        return Some(Finding::IdentityMissing {
            shard: member.shard,
            database: member.database.clone(),
        });
    };
    (!member.is_agreed()).then(|| Finding::IdentityDiffers {
        shard: member.shard,
        found: sentence(found),
        expected: sentence(&member.expected),
    })
}

fn sentence(identity: &ShardIdentity) -> String {
    format!(
        "shard {} of epoch {} with slots {} by {}",
        identity.shard, identity.epoch.0, identity.slots, identity.hash_id
    )
}

/// Each slot has one shard that takes it, unless it is frozen.
fn owners(members: &Members) -> Vec<Finding> {
    let mut takers: Vec<(ShardId, SlotSet)> = Vec::new();
    for member in &members.list {
        // A text that is no set is an identity that differs.
        let slots = member.identity.as_ref().map(|it| it.slots.parse());
        if let Some(Ok(slots)) = slots {
            takers.push((member.shard, slots));
        }
    }
    let takers_of = |slot: Slot| -> Vec<ShardId> {
        let holds = takers.iter().filter(|(_, slots)| slots.contains(slot));
        holds.map(|(shard, _)| *shard).collect()
    };
    let mut by_takers: BTreeMap<Vec<ShardId>, Vec<Slot>> = BTreeMap::new();
    for slot in Slot::all() {
        by_takers.entry(takers_of(slot)).or_default().push(slot);
    }
    let mut findings = Vec::new();
    for (shards, slots) in by_takers {
        let slots: SlotSet = slots.into_iter().collect();
        match shards.len() {
            0 => {
                let slots = slots.without(&members.catalog.frozen);
                if !slots.is_empty() {
                    findings.push(Finding::SlotsWithoutOwner { slots });
                }
            }
            1 => {}
            _ => findings.push(Finding::SlotsOfTwoShards { slots, shards }),
        }
    }
    findings
}

fn catalog(members: &Members, member: &Member) -> Option<Finding> {
    let newest = members.catalog.epoch();
    let shard = member.shard;
    match &member.catalog {
        Some(own) if *own == members.catalog => None,
        Some(own) if own.epoch() == newest => Some(Finding::CatalogsDiffer {
            shard,
            epoch: newest,
        }),
        // Where no slot has ever moved nobody has a document.
        None if members.list.iter().all(|it| it.catalog.is_none()) => None,
        older => Some(Finding::CatalogBehind {
            shard,
            epoch: older.as_ref().map(crate::Catalog::epoch),
            newest,
        }),
    }
}

/// Fences of an epoch that the shard has not reached. Those of an older one say nothing, and stay until the next batch
/// of their partition.
pub(super) async fn fences(member: &Member) -> Result<Vec<Finding>, AuditError> {
    let query =
        "select topic, kafka_partition, epoch from kafka_fence where epoch > $1 order by 1, 2";
    let shard_epoch = member.expected.epoch;
    let epoch = i64::try_from(shard_epoch.0).unwrap_or(i64::MAX);
    let rows = member.client.query(query, &[&epoch]).await?;
    let ahead = rows.iter().map(|row| Finding::FenceAhead {
        shard: member.shard,
        topic: row.get(0),
        partition: row.get(1),
        epoch: Epoch(row.get::<_, i64>(2).unsigned_abs()),
        shard_epoch,
    });
    Ok(ahead.collect())
}
