//! What an audit can say. The `kind` of the JSON is the variant's name in snake case, and stays.

use serde::Serialize;
use shardlane_router::{Epoch, ShardId};
use uuid::Uuid;

use crate::slots::SlotSet;

/// Whether somebody has to do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It is not as it should be.
    Damage,
    /// Good to know, and right as it is.
    Information,
}

/// What may be left of a reshard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftoverKind {
    /// Of a target.
    Subscription,
    /// Of a source; holds its WAL.
    ReplicationSlot,
    /// Of a source.
    Publication,
}

/// One thing that is not as the map says, or that is good to know. It displays itself and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
#[expect(
    missing_docs,
    reason = "the fields are explained by the variant and its sentence"
)]
pub enum Finding {
    /// Rows of another shard's users.
    ForeignRows {
        table: &'static str,
        shard: ShardId,
        owner: ShardId,
        rows: i64,
        users: Vec<Uuid>,
    },
    /// Foreign rows that a repair left: the owner has other rows of these users.
    ConflictingRows {
        table: &'static str,
        shard: ShardId,
        owner: ShardId,
        rows: i64,
        users: Vec<Uuid>,
    },
    /// Nothing refuses foreign rows, or batches of an old map.
    CheckMissing { shard: ShardId, constraint: String },
    /// It refuses new rows; those before it were not looked at.
    CheckNotValid { shard: ShardId, constraint: String },
    /// It lets other slots pass than the shard owns.
    CheckDiffers {
        shard: ShardId,
        constraint: String,
        admits: SlotSet,
        expected: SlotSet,
    },
    /// A shard does not know who it is.
    IdentityMissing { shard: ShardId, database: String },
    /// A shard says of itself what the newest catalog does not.
    IdentityDiffers {
        shard: ShardId,
        found: String,
        expected: String,
    },
    /// No shard takes them.
    SlotsWithoutOwner { slots: SlotSet },
    /// More than one shard takes them.
    SlotsOfTwoShards {
        slots: SlotSet,
        shards: Vec<ShardId>,
    },
    /// Nobody takes them until their move ends, if one is under way.
    SlotsFrozen { slots: SlotSet, under_way: bool },
    /// A fence that no worker can pass.
    FenceAhead {
        shard: ShardId,
        topic: String,
        partition: i32,
        epoch: Epoch,
        shard_epoch: Epoch,
    },
    /// Two documents of one version.
    CatalogsDiffer { shard: ShardId, epoch: Epoch },
    /// A shard has an older document than another; readers take the newest.
    CatalogBehind {
        shard: ShardId,
        epoch: Option<Epoch>,
        newest: Epoch,
    },
    /// A reshard has begun and not ended.
    ReshardUnderWay { next: String, done: usize },
    /// A database that was given and belongs to no shard; it was not looked at.
    DatabaseUnlisted { database: String },
    /// Made by a reshard that is no more.
    Leftover {
        shard: ShardId,
        object: LeftoverKind,
        name: String,
        active: bool,
        retained_wal_bytes: Option<i64>,
    },
    /// A Citus table that is not cut by the hash of `user_id` as a uuid.
    CitusTable { table: String, problem: String },
    /// A Citus table in another colocation group than the first.
    CitusColocation {
        table: String,
        colocation: i32,
        first: String,
        expected: i32,
    },
    /// A colocated table is cut otherwise than the first.
    CitusRanges {
        table: String,
        first: String,
        only_here: Vec<String>,
        only_there: Vec<String>,
    },
    /// One range lies on two nodes.
    CitusPlacement {
        table: String,
        first: String,
        range: String,
        node: String,
        expected: String,
    },
    /// The metadata names a node that does not have the shard.
    CitusShardMissing {
        table: String,
        shard: ShardId,
        node: String,
    },
    /// Rows in a physical shard whose range does not hold them: queries by user do not see them.
    CitusForeignRows {
        table: String,
        shard: ShardId,
        node: String,
        rows: i64,
        users: Vec<Uuid>,
    },
    /// The cluster cannot be routed to, for a reason that is not above.
    CitusMap { problem: String },
}

impl Finding {
    /// Whether somebody has to do something.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Finding::SlotsFrozen { under_way, .. } if *under_way => Severity::Information,
            Finding::CatalogBehind { .. }
            | Finding::ReshardUnderWay { .. }
            | Finding::DatabaseUnlisted { .. } => Severity::Information,
            Finding::ForeignRows { .. }
            | Finding::ConflictingRows { .. }
            | Finding::CheckMissing { .. }
            | Finding::CheckNotValid { .. }
            | Finding::CheckDiffers { .. }
            | Finding::IdentityMissing { .. }
            | Finding::IdentityDiffers { .. }
            | Finding::SlotsWithoutOwner { .. }
            | Finding::SlotsOfTwoShards { .. }
            | Finding::SlotsFrozen { .. }
            | Finding::FenceAhead { .. }
            | Finding::CatalogsDiffer { .. }
            | Finding::Leftover { .. }
            | Finding::CitusTable { .. }
            | Finding::CitusColocation { .. }
            | Finding::CitusRanges { .. }
            | Finding::CitusPlacement { .. }
            | Finding::CitusShardMissing { .. }
            | Finding::CitusForeignRows { .. }
            | Finding::CitusMap { .. } => Severity::Damage,
        }
    }
}

/// Foreign rows that a repair has left are conflicts.
pub(super) fn conflicts(findings: Vec<Finding>) -> Vec<Finding> {
    let conflict = |finding| match finding {
        Finding::ForeignRows {
            table,
            shard,
            owner,
            rows,
            users,
        } => Finding::ConflictingRows {
            table,
            shard,
            owner,
            rows,
            users,
        },
        other => other,
    };
    findings.into_iter().map(conflict).collect()
}

/// Something that a repair did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
#[expect(
    missing_docs,
    reason = "the fields are explained by the variant and its sentence"
)]
pub enum Repair {
    /// Rows whose exact copies are on their owner.
    CopiesDeleted {
        shard: ShardId,
        owner: ShardId,
        rows: u64,
    },
    /// Users of whom the owner had nothing.
    UsersMoved {
        shard: ShardId,
        owner: ShardId,
        users: u64,
        rows: u64,
    },
    /// The CHECKs of a shard whose identity is right.
    ChecksRestored { shard: ShardId },
    /// A CHECK that all rows fulfil.
    CheckValidated { shard: ShardId, constraint: String },
    /// What a reshard left.
    LeftoverDropped {
        shard: ShardId,
        object: LeftoverKind,
        name: String,
    },
}
