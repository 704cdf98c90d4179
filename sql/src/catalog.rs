//! [`Catalog`]: which manual shard owns which slot and where the shards are, kept in the shards themselves.
//!
//! Every change of ownership is one local transaction on the one shard whose slots change: it replaces that shard's
//! CHECKs, its identity row and this document together. So there is no moment in which a shard and the newest
//! document disagree, and nothing to repair when the one who changes them is killed. A reader asks all shards that it
//! knows and takes the highest epoch.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shardlane_router::{Epoch, MapError, PartitionId, ShardId, Slot, SlotMap};
use tokio_postgres::GenericClient;

use crate::SqlError;
use crate::follow::connect;
use crate::slots::SlotSet;
use crate::store::parse;

/// One version of who owns what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalog {
    /// Slot -> shard. Its epoch is the document's version.
    pub map: SlotMap,
    /// Slots that nobody takes at the moment: the last step of their move is under way.
    pub frozen: SlotSet,
    /// Slots whose writers hold back, so that those who follow them catch up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pace: Option<Pace>,
    /// The shards, in ascending order. One that has joined and owns no slot yet stands here and not in the map.
    pub shards: Vec<ShardEntry>,
}

/// A request to writers: in batches with these slots, work for a share of the time only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// The slots.
    pub slots: SlotSet,
    /// Of 100.
    pub share: u8,
}

/// Where a shard is, and since when it has taken the slots that it takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// The shard.
    pub shard: ShardId,
    /// The epoch at which the slots that it takes last changed.
    pub epoch: Epoch,
    /// Host name, address or the directory of a Unix socket.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Database name. User, password and TLS are the reader's own.
    pub database: String,
}

impl Catalog {
    /// The version of this document.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.map.epoch()
    }

    /// A shard's entry.
    #[must_use]
    pub fn entry(&self, shard: ShardId) -> Option<&ShardEntry> {
        self.shards.iter().find(|entry| entry.shard == shard)
    }

    /// The slots that the map gives to a shard, frozen ones included.
    #[must_use]
    pub fn owned(&self, shard: ShardId) -> SlotSet {
        SlotSet::of(|slot| self.map.shard_of(slot) == shard)
    }

    /// The slots that a shard takes writes for.
    #[must_use]
    pub fn accepted(&self, shard: ShardId) -> SlotSet {
        self.owned(shard).without(&self.frozen)
    }

    /// The next version, in which `owner` no longer takes `slots`.
    ///
    /// # Errors
    /// [`MapError::EpochExhausted`].
    pub fn freeze(&self, owner: ShardId, slots: &SlotSet) -> Result<Catalog, MapError> {
        self.next(owner, self.frozen.union(slots), |slot| {
            self.map.shard_of(slot)
        })
    }

    /// The next version, in which `slots` belong to `owner`, who takes them.
    ///
    /// # Errors
    /// [`MapError::EpochExhausted`].
    pub fn give(&self, owner: ShardId, slots: &SlotSet) -> Result<Catalog, MapError> {
        self.next(owner, self.frozen.without(slots), |slot| {
            if slots.contains(slot) {
                owner
            } else {
                self.map.shard_of(slot)
            }
        })
    }

    /// The next version, with other shards listed: joiners are known before they own anything.
    ///
    /// # Errors
    /// [`MapError::EpochExhausted`].
    pub fn with_shards(&self, shards: Vec<ShardEntry>) -> Result<Catalog, MapError> {
        let mut next = self.renumbered(|slot| self.map.shard_of(slot))?;
        next.shards = shards;
        Ok(next)
    }

    /// The next version, in which the writers of some slots are asked to hold back, or none are.
    ///
    /// # Errors
    /// [`MapError::EpochExhausted`].
    pub fn with_pace(&self, pace: Option<Pace>) -> Result<Catalog, MapError> {
        let mut next = self.renumbered(|slot| self.map.shard_of(slot))?;
        next.pace = pace;
        Ok(next)
    }

    fn next(
        &self,
        changed: ShardId,
        frozen: SlotSet,
        owner_of: impl Fn(Slot) -> ShardId,
    ) -> Result<Catalog, MapError> {
        let mut next = self.renumbered(owner_of)?;
        next.frozen = frozen;
        let epoch = next.epoch();
        for entry in next
            .shards
            .iter_mut()
            .filter(|entry| entry.shard == changed)
        {
            entry.epoch = epoch;
        }
        Ok(next)
    }

    fn renumbered(&self, owner_of: impl Fn(Slot) -> ShardId) -> Result<Catalog, MapError> {
        let old = self.epoch();
        let epoch = old
            .0
            .checked_add(1)
            .ok_or(MapError::EpochExhausted { epoch: old })?;
        let partitions: Vec<PartitionId> = Slot::all()
            .map(|slot| self.map.partition_of(slot))
            .collect();
        let shards: Vec<ShardId> = Slot::all().map(owner_of).collect();
        let map = SlotMap::from_tables(Epoch(epoch), self.map.hash(), &partitions, &shards)?;
        Ok(Catalog {
            map,
            frozen: self.frozen.clone(),
            pace: self.pace.clone(),
            shards: self.shards.clone(),
        })
    }
}

/// The document that one shard holds; `None` where no slot has ever moved.
///
/// # Errors
/// [`SqlError::Postgres`], [`SqlError::UnknownValue`] for a document of a newer version of this program.
pub async fn read_catalog(client: &impl GenericClient) -> Result<Option<Catalog>, SqlError> {
    let row = client
        .query_opt(
            "select document::text from shard_catalog order by epoch desc limit 1",
            &[],
        )
        .await?;
    row.map(|row| from_json(row.get(0))).transpose()
}

fn from_json(text: &str) -> Result<Catalog, SqlError> {
    serde_json::from_str(text).map_err(|error| SqlError::UnknownValue {
        table: "shard_catalog",
        value: error.to_string(),
    })
}

/// All versions that these shards remember, oldest first.
///
/// # Errors
/// As [`read_catalog`], and where a shard does not answer.
pub async fn catalog_history(urls: &[String]) -> Result<Vec<Catalog>, SqlError> {
    let mut versions = BTreeMap::new();
    for url in urls {
        let client = connect(&parse(url)?).await?;
        let rows = client
            .query("select document::text from shard_catalog", &[])
            .await?;
        for row in rows {
            let version = from_json(row.get(0))?;
            versions.insert(version.epoch(), version);
        }
    }
    Ok(versions.into_values().collect())
}

/// Writes a document beside the older ones, which stay as the history.
pub(crate) async fn write_catalog(
    client: &impl GenericClient,
    catalog: &Catalog,
) -> Result<(), SqlError> {
    let document = serde_json::to_string(catalog)
        .map_err(|error| SqlError::Settings(format!("the catalog cannot be written: {error}")))?;
    let epoch = i64::try_from(catalog.epoch().0).unwrap_or(i64::MAX);
    client
        .execute(
            "insert into shard_catalog (epoch, document) values ($1, $2::text::jsonb) on conflict do nothing",
            &[&epoch, &document],
        )
        .await?;
    Ok(())
}
