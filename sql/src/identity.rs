//! A manual shard knows who it is: an identity row, and CHECKs that refuse a foreign user's row.

use shardlane_router::{Epoch, ShardId, SlotMap, TokenHash};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, GenericClient, Transaction};

use crate::catalog::{Catalog, ShardEntry, read_catalog};
use crate::slots::SlotSet;
use crate::{SLOT_TABLES, SqlError};

/// What a manual shard says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardIdentity {
    /// Its number in the map.
    pub shard: ShardId,
    /// The map's epoch.
    pub epoch: Epoch,
    /// The id of the hash, as [`TokenHash::id`] gives it.
    pub hash_id: String,
    /// The slots that it owns, as inclusive ranges: `0-2047`.
    pub slots: String,
}

/// A database that is not the shard that the map means.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The identity row is missing.
    #[error(
        "the database {database} says of itself that it is no shard; run `shardlane migrate --layout shards`"
    )]
    Absent {
        /// host:port/name.
        database: String,
    },
    /// Another shard, epoch, hash or slots.
    #[error(
        "{database} is shard {found_shard} of epoch {found_epoch} with slots {found_slots} by {found_hash}, \
         but the map means shard {shard} of epoch {epoch} with slots {slots} by {hash}; check the order of the \
         DSNs and the version of the map",
        found_shard = .found.shard, found_epoch = .found.epoch.0, found_slots = .found.slots,
        found_hash = .found.hash_id, shard = .expected.shard, epoch = .expected.epoch.0,
        slots = .expected.slots, hash = .expected.hash_id
    )]
    Different {
        /// host:port/name.
        database: String,
        /// What the database says.
        found: Box<ShardIdentity>,
        /// What the map says.
        expected: Box<ShardIdentity>,
    },
    /// A CHECK can only compute Postgres's own hash.
    #[error("manual shards need the hash \"postgres\": a CHECK cannot compute {0}")]
    HashNotCheckable(String),
}

impl IdentityError {
    /// It is the shard that was meant, at another time.
    pub(crate) fn is_only_age(&self) -> bool {
        match self {
            IdentityError::Different {
                found, expected, ..
            } => {
                found.shard == expected.shard
                    && found.hash_id == expected.hash_id
                    && found.epoch != expected.epoch
            }
            IdentityError::Absent { .. } | IdentityError::HashNotCheckable(_) => false,
        }
    }
}

impl ShardIdentity {
    /// The identity that `map` gives to `shard` before any slot has moved.
    pub fn of(map: &SlotMap, shard: ShardId) -> ShardIdentity {
        let slots = SlotSet::of(|slot| map.shard_of(slot) == shard);
        ShardIdentity {
            shard,
            epoch: map.epoch(),
            hash_id: map.hash().id().to_owned(),
            slots: slots.to_string(),
        }
    }

    /// The identity that `catalog` gives to one of its shards.
    pub(crate) fn in_catalog(catalog: &Catalog, entry: &ShardEntry) -> ShardIdentity {
        ShardIdentity {
            shard: entry.shard,
            epoch: entry.epoch,
            hash_id: catalog.map.hash().id().to_owned(),
            slots: catalog.accepted(entry.shard).to_string(),
        }
    }
}

/// Writes the identity row and the CHECKs of a new shard. A shard that has them already must be the same one, or one
/// that has taken other slots since.
pub(crate) async fn install(
    transaction: &Transaction<'_>,
    database: &str,
    expected: &ShardIdentity,
) -> Result<(), SqlError> {
    if expected.hash_id != TokenHash::Postgres.id() {
        return Err(IdentityError::HashNotCheckable(expected.hash_id.clone()).into());
    }
    if let Some(found) = read(transaction).await? {
        let moved_since = read_catalog(transaction).await?.is_some();
        if moved_since && found.shard == expected.shard && found.hash_id == expected.hash_id {
            return Ok(());
        }
        // It joined once and was given up: it may become any shard.
        if moved_since && found.slots.is_empty() {
            return become_shard(transaction, expected).await;
        }
        return compare(database, found, expected.clone()).map_err(Into::into);
    }
    become_shard(transaction, expected).await?;
    validate(transaction).await
}

/// Looks at the rows that were there before the CHECKs, and refuses if one belongs elsewhere. Writers go on.
pub(crate) async fn validate(client: &impl GenericClient) -> Result<(), SqlError> {
    let statements = SLOT_TABLES
        .map(|table| format!("alter table {table} validate constraint {table}{SLOT_CHECK}"));
    Ok(client.batch_execute(&statements.join(";")).await?)
}

/// Makes this database the shard `identity` from the end of the transaction on: it refuses all other slots' rows and
/// all fences of an older epoch, of which it has none any more: they speak of other slots. Waits for the batches under
/// way, in the order in which they take their locks.
pub(crate) async fn become_shard(
    transaction: &Transaction<'_>,
    identity: &ShardIdentity,
) -> Result<(), SqlError> {
    let slots: SlotSet = identity.slots.parse()?;
    admit(transaction, &slots).await?;
    let epoch = epoch_as_bigint(identity.epoch);
    transaction
        .batch_execute(&format!(
            "delete from kafka_fence where epoch < {epoch}; \
             alter table kafka_fence drop constraint if exists {EPOCH_CHECK}, \
                 add constraint {EPOCH_CHECK} check (epoch >= {epoch}); \
             alter table outbox alter column seq \
                 set default ({epoch}::bigint << {OUTBOX_EPOCH_SHIFT}) + nextval('outbox_seq')"
        ))
        .await?;
    transaction
        .execute(
            "insert into shard_identity (shard_id, epoch, hash_id, slots) values ($1, $2, $3, $4) \
             on conflict (only_row) do update \
             set shard_id = excluded.shard_id, epoch = excluded.epoch, hash_id = excluded.hash_id, \
                 slots = excluded.slots",
            &[
                &identity.shard.0,
                &epoch,
                &identity.hash_id,
                &identity.slots,
            ],
        )
        .await?;
    Ok(())
}

/// Replaces the CHECKs: rows of `slots` pass, no others. Rows that are there already are not looked at.
pub(crate) async fn admit(transaction: &Transaction<'_>, slots: &SlotSet) -> Result<(), SqlError> {
    let condition = slots.condition();
    let statements: Vec<String> = SLOT_TABLES
        .iter()
        .map(|table| {
            format!(
                "alter table {table} drop constraint if exists {table}{SLOT_CHECK}, \
                     add constraint {table}{SLOT_CHECK} check ({condition}) not valid"
            )
        })
        .collect();
    transaction
        .batch_execute(&format!(
            "lock table kafka_fence, {}",
            SLOT_TABLES.join(", ")
        ))
        .await?;
    Ok(transaction.batch_execute(&statements.join(";")).await?)
}

/// What the name of a CHECK ends in that refuses a foreign slot's row; before it stands the table's name.
pub(crate) const SLOT_CHECK: &str = "_owns_slot";
/// The outbox rows of a shard begin with its epoch, so that those of slots that it has taken stand behind the rows that
/// came with the slots, whatever number the other shard's sequence was at. Below it is room for 17 million million rows.
const OUTBOX_EPOCH_SHIFT: u32 = 44;
/// The CHECK that refuses a worker whose map is older than the shard's.
pub(crate) const EPOCH_CHECK: &str = "kafka_fence_epoch";

/// Refuses a database that is not the shard that the map means.
pub(crate) async fn verify(
    client: &Client,
    database: &str,
    expected: &ShardIdentity,
) -> Result<(), SqlError> {
    let found = read(client).await?;
    let found = found.ok_or_else(|| IdentityError::Absent {
        database: database.to_owned(),
    })?;
    compare(database, found, expected.clone()).map_err(Into::into)
}

/// `None` where the database says nothing of itself.
pub(crate) async fn read(client: &impl GenericClient) -> Result<Option<ShardIdentity>, SqlError> {
    let query = "select shard_id, epoch, hash_id, slots from shard_identity";
    match client.query_opt(query, &[]).await {
        Ok(row) => Ok(row.map(|row| from_row(&row))),
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Which epoch the shard is of, where the caller knows that it is a shard.
pub(crate) async fn read_if(
    client: &Client,
    known: Option<Epoch>,
) -> Result<Option<Epoch>, SqlError> {
    if known.is_none() {
        return Ok(None);
    }
    let row = client
        .query_opt("select epoch from shard_identity", &[])
        .await?;
    Ok(row.map(|row| Epoch(row.get::<_, i64>(0).unsigned_abs())))
}

fn from_row(row: &tokio_postgres::Row) -> ShardIdentity {
    ShardIdentity {
        shard: ShardId(row.get(0)),
        epoch: Epoch(row.get::<_, i64>(1).unsigned_abs()),
        hash_id: row.get(2),
        slots: row.get(3),
    }
}

fn compare(
    database: &str,
    found: ShardIdentity,
    expected: ShardIdentity,
) -> Result<(), IdentityError> {
    if found == expected {
        return Ok(());
    }
    Err(IdentityError::Different {
        database: database.to_owned(),
        found: Box::new(found),
        expected: Box::new(expected),
    })
}

fn epoch_as_bigint(epoch: Epoch) -> i64 {
    i64::try_from(epoch.0).unwrap_or(i64::MAX)
}
