//! A manual shard knows who it is: an identity row, and CHECKs that refuse a foreign user's row.

use shardlane_router::{Epoch, ShardId, SlotMap, TokenHash};
use tokio_postgres::{Client, Transaction};

use crate::TABLES;

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
    HashNotCheckable(TokenHash),
}

impl ShardIdentity {
    /// The identity that `map` gives to `shard`.
    pub fn of(map: &SlotMap, shard: ShardId) -> ShardIdentity {
        let slots: Vec<String> = map
            .slot_ranges_of(shard)
            .iter()
            .map(|range| format!("{}-{}", range.start(), range.end()))
            .collect();
        ShardIdentity {
            shard,
            epoch: map.epoch(),
            hash_id: map.hash().id().to_owned(),
            slots: slots.join(","),
        }
    }

    /// The condition that a row of this shard fulfils.
    fn condition(map: &SlotMap, shard: ShardId) -> String {
        // ROUTING: token = hash with the sign bit flipped, slot = token >> 20.
        let ranges: Vec<String> = map
            .slot_ranges_of(shard)
            .iter()
            .map(|range| {
                format!(
                    "((uuid_hash(user_id)::bigint + 2147483648) >> 20) between {} and {}",
                    range.start(),
                    range.end()
                )
            })
            .collect();
        if ranges.is_empty() {
            "false".to_owned()
        } else {
            ranges.join(" or ")
        }
    }
}

/// Writes the identity row and the CHECKs of a new shard. A shard that has them already must be the same one.
pub(crate) async fn install(
    transaction: &Transaction<'_>,
    database: &str,
    map: &SlotMap,
    shard: ShardId,
) -> Result<(), crate::SqlError> {
    if map.hash() != TokenHash::Postgres {
        return Err(IdentityError::HashNotCheckable(map.hash()).into());
    }
    let expected = ShardIdentity::of(map, shard);
    let found = transaction
        .query_opt(READ, &[])
        .await?
        .map(|row| from_row(&row));
    if let Some(found) = found {
        return compare(database, found, expected).map_err(Into::into);
    }
    transaction
        .execute(
            "insert into shard_identity (shard_id, epoch, hash_id, slots) values ($1, $2, $3, $4)",
            &[
                &expected.shard.0,
                &epoch_as_bigint(expected.epoch),
                &expected.hash_id,
                &expected.slots,
            ],
        )
        .await?;
    let condition = ShardIdentity::condition(map, shard);
    for table in TABLES {
        transaction
            .batch_execute(&format!(
                "alter table {table} add constraint {table}_owns_slot check ({condition})"
            ))
            .await?;
    }
    Ok(())
}

/// Refuses a database that is not the shard that the map means.
pub(crate) async fn verify(
    client: &Client,
    database: &str,
    expected: &ShardIdentity,
) -> Result<(), crate::SqlError> {
    let found = match client.query_opt(READ, &[]).await {
        Ok(row) => row.map(|row| from_row(&row)),
        Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::UNDEFINED_TABLE) => {
            None
        }
        Err(error) => return Err(error.into()),
    };
    let found = found.ok_or_else(|| IdentityError::Absent {
        database: database.to_owned(),
    })?;
    compare(database, found, expected.clone()).map_err(Into::into)
}

const READ: &str = "select shard_id, epoch, hash_id, slots from shard_identity";

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
