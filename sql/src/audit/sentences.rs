//! What findings and repairs say, and what to do.

use std::fmt;

use super::{Finding, LeftoverKind, Repair};

fn list<T: fmt::Display>(items: &[T]) -> String {
    let texts: Vec<String> = items.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

impl fmt::Display for LeftoverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LeftoverKind::Subscription => "subscription",
            LeftoverKind::ReplicationSlot => "replication slot",
            LeftoverKind::Publication => "publication",
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::ForeignRows {
                table,
                shard,
                owner,
                rows,
                users,
            } => write!(
                f,
                "shard {shard}: {rows} rows of {table} belong to shard {owner}, such as of users {}; run with --fix",
                list(users)
            ),
            Finding::ConflictingRows {
                table,
                shard,
                owner,
                rows,
                users,
            } => write!(
                f,
                "shard {shard}: {rows} rows of {table} belong to shard {owner}, which has other rows of users {}; \
                 compare them and delete those on shard {shard} by hand",
                list(users)
            ),
            Finding::CheckMissing { shard, constraint } => {
                write!(
                    f,
                    "shard {shard}: the CHECK {constraint} is missing; run with --fix"
                )
            }
            Finding::CheckNotValid { shard, constraint } => write!(
                f,
                "shard {shard}: the CHECK {constraint} is NOT VALID; run with --fix, which validates it once no row is foreign"
            ),
            Finding::CheckDiffers {
                shard,
                constraint,
                admits,
                expected,
            } => write!(
                f,
                "shard {shard}: the CHECK {constraint} admits slots {admits}, but the shard takes {expected}; run with --fix"
            ),
            Finding::IdentityMissing { shard, database } => write!(
                f,
                "shard {shard}: {database} has no identity row, so no worker connects; restore shard_identity from a backup"
            ),
            Finding::IdentityDiffers {
                shard,
                found,
                expected,
            } => write!(
                f,
                "shard {shard} says {found}, the newest catalog says {expected}; check the order of the DSNs and the map, \
                 then who wrote shard_identity or shard_catalog by hand"
            ),
            Finding::SlotsWithoutOwner { slots } => write!(
                f,
                "no shard takes slots {slots}; see the shards whose identity differs, their writers wait"
            ),
            Finding::SlotsOfTwoShards { slots, shards } => write!(
                f,
                "shards {} all take slots {slots}; stop the workers, and see the shards whose identity differs",
                list(shards)
            ),
            Finding::SlotsFrozen {
                slots,
                under_way: true,
            } => {
                write!(
                    f,
                    "slots {slots} are frozen: the reshard that is under way moves them"
                )
            }
            Finding::SlotsFrozen {
                slots,
                under_way: false,
            } => write!(
                f,
                "slots {slots} are frozen, and no reshard is under way that would thaw them; restore reshard_journal"
            ),
            Finding::FenceAhead {
                shard,
                topic,
                partition,
                epoch,
                shard_epoch,
            } => write!(
                f,
                "shard {shard}: the fence of {topic}/{partition} has epoch {}, the shard has {}, so the partition stands \
                 still; delete that row of kafka_fence, the inbox knows what was taken",
                epoch.0, shard_epoch.0
            ),
            Finding::CatalogsDiffer { shard, epoch } => write!(
                f,
                "shard {shard} has another catalog of epoch {} than the other shards; delete the row of shard_catalog that \
                 does not fit the shards' identities",
                epoch.0
            ),
            Finding::CatalogBehind {
                shard,
                epoch: Some(epoch),
                newest,
            } => {
                write!(
                    f,
                    "shard {shard} has the catalog of epoch {}, the newest is {}",
                    epoch.0, newest.0
                )
            }
            Finding::CatalogBehind {
                shard,
                epoch: None,
                newest,
            } => {
                write!(
                    f,
                    "shard {shard} has no catalog, the newest is of epoch {}",
                    newest.0
                )
            }
            Finding::ReshardUnderWay { next, done } => {
                write!(
                    f,
                    "a reshard is under way: {done} steps are done, next is {next}"
                )
            }
            Finding::DatabaseUnlisted { database } => {
                write!(
                    f,
                    "{database} is no shard of the newest catalog and was not looked at"
                )
            }
            Finding::Leftover {
                shard,
                object,
                name,
                active,
                retained_wal_bytes,
            } => {
                let state = if *active { "active " } else { "" };
                write!(
                    f,
                    "shard {shard}: {state}{object} {name} belongs to no reshard"
                )?;
                if let Some(bytes) = retained_wal_bytes {
                    write!(f, " and holds {bytes} bytes of WAL")?;
                }
                f.write_str("; run with --fix")
            }
            Finding::CitusTable { table, problem } => write!(f, "{table} {problem}"),
            Finding::CitusColocation {
                table,
                colocation,
                first,
                expected,
            } => write!(
                f,
                "{table} is in colocation group {colocation}, {first} in {expected}: one user's rows lie apart; run \
                 update_distributed_table_colocation('{table}', '{first}')"
            ),
            Finding::CitusRanges {
                table,
                first,
                only_here,
                only_there,
            } => write!(
                f,
                "{table} and {first} are cut differently: [{}] against [{}]; run alter_distributed_table('{table}', \
                 colocate_with => '{first}')",
                list(only_here),
                list(only_there)
            ),
            Finding::CitusPlacement {
                table,
                first,
                range,
                node,
                expected,
            } => write!(
                f,
                "range {range} of {table} is on {node}, that of {first} on {expected}; find the rows, then correct \
                 pg_dist_placement or alter_distributed_table('{table}', colocate_with => '{first}')"
            ),
            Finding::CitusShardMissing { table, shard, node } => write!(
                f,
                "{node} does not have shard {shard} of {table}, which pg_dist_placement places there; find its node and \
                 correct the placement"
            ),
            Finding::CitusForeignRows {
                table,
                shard,
                node,
                rows,
                users,
            } => write!(
                f,
                "{rows} rows of {table} in shard {shard} on {node} are outside its range, so nobody sees them, such as of \
                 users {}; insert them through {table}, then delete them there",
                list(users)
            ),
            Finding::CitusMap { problem } => {
                write!(f, "the cluster cannot be routed to: {problem}")
            }
        }
    }
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Repair::CopiesDeleted { shard, owner, rows } => write!(
                f,
                "shard {shard}: deleted {rows} rows whose exact copies are on shard {owner}"
            ),
            Repair::UsersMoved {
                shard,
                owner,
                users,
                rows,
            } => write!(
                f,
                "moved {rows} rows of {users} users from shard {shard} to shard {owner}"
            ),
            Repair::ChecksRestored { shard } => {
                write!(f, "shard {shard}: restored its CHECKs")
            }
            Repair::CheckValidated { shard, constraint } => {
                write!(f, "shard {shard}: validated {constraint}")
            }
            Repair::LeftoverDropped {
                shard,
                object,
                name,
            } => {
                write!(f, "shard {shard}: dropped {object} {name}")
            }
        }
    }
}
