//! What reshards that are no more have left behind. An inactive replication slot holds its server's WAL for ever.

use shardlane_router::ShardId;
use tokio_postgres::Client;

use super::{AuditError, Finding, LeftoverKind, Repair};
use crate::SqlError;
use crate::reshard::Plan;

/// How long a subscription may take to be dropped: it asks its source, which may be gone.
const DROP_MAX: &str = "20s";

/// Subscriptions, replication slots and publications of this database with our name, except those of `plan`.
pub(super) async fn find(
    client: &Client,
    shard: ShardId,
    plan: Option<&Plan>,
) -> Result<Vec<Finding>, AuditError> {
    let rows = client
        .query(include_str!("../statements/audit_leftovers.sql"), &[])
        .await?;
    let mut findings = Vec::new();
    for row in rows {
        let name: String = row.get(1);
        if plan.is_some_and(|plan| plan.has_made(&name)) {
            continue;
        }
        findings.push(Finding::Leftover {
            shard,
            object: match row.get(0) {
                "subscription" => LeftoverKind::Subscription,
                "publication" => LeftoverKind::Publication,
                _ => LeftoverKind::ReplicationSlot,
            },
            name,
            active: row.get(2),
            retained_wal_bytes: row.get(3),
        });
    }
    Ok(findings)
}

/// Drops all of them: subscriptions first, because they drop their replication slots and keep them active.
pub(super) async fn drop_all(
    shards: &[(ShardId, &Client)],
    repairs: &mut Vec<Repair>,
) -> Result<(), AuditError> {
    for wanted in [
        LeftoverKind::Subscription,
        LeftoverKind::ReplicationSlot,
        LeftoverKind::Publication,
    ] {
        for (shard, client) in shards {
            for leftover in find(client, *shard, None).await? {
                let Finding::Leftover { object, name, .. } = leftover else {
                    continue;
                };
                if object == wanted && dropped(client, object, &name).await? {
                    repairs.push(Repair::LeftoverDropped {
                        shard: *shard,
                        object,
                        name,
                    });
                }
            }
        }
    }
    Ok(())
}

/// False where somebody uses it.
async fn dropped(client: &Client, object: LeftoverKind, name: &str) -> Result<bool, AuditError> {
    let quoted = format!("\"{}\"", name.replace('"', "\"\""));
    match object {
        LeftoverKind::Subscription => {
            drop_subscription(client, &quoted).await?;
            Ok(true)
        }
        LeftoverKind::Publication => {
            let drop = format!("drop publication if exists {quoted}");
            client.batch_execute(&drop).await?;
            Ok(true)
        }
        LeftoverKind::ReplicationSlot => {
            let drop = "select pg_drop_replication_slot(slot_name) from pg_replication_slots \
                        where slot_name = $1::text::name and not active";
            Ok(client.execute(drop, &[&name]).await? > 0)
        }
    }
}

/// With its replication slot; without it where the source is gone.
async fn drop_subscription(client: &Client, quoted: &str) -> Result<(), SqlError> {
    let timeout = format!("set statement_timeout = '{DROP_MAX}'");
    client.batch_execute(&timeout).await?;
    let dropped = client
        .batch_execute(&format!("drop subscription if exists {quoted}"))
        .await;
    client.batch_execute("reset statement_timeout").await?;
    if let Err(error) = dropped {
        tracing::warn!(
            "a subscription's source does not let go: {}",
            SqlError::from(error)
        );
        client
            .batch_execute(&format!(
                "alter subscription {quoted} disable; alter subscription {quoted} set (slot_name = none); \
                 drop subscription {quoted}"
            ))
            .await?;
    }
    Ok(())
}
