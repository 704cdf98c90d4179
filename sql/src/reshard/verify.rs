//! Whether a target has exactly the rows of its source.

use std::collections::BTreeMap;

use futures_util::future::try_join;
use shardlane_router::Slot;
use tokio_postgres::Client;

use super::{Move, ReshardError};
use crate::SLOT_TABLES;
use crate::slots::{SLOT_OF_ROW, SlotSet};

/// Slot -> rows and the exclusive or of their 64-bit hashes. Keys are unique, so no two rows cancel out.
type Sums = BTreeMap<i64, (i64, i64)>;

/// A place to read from, and which of its rows count.
pub(super) struct Side<'a> {
    pub(super) client: &'a Client,
    /// Only rows that were written by this transaction or later ones.
    pub(super) since: Option<u32>,
}

/// Compares each table and slot of a move. Both sides must be quiet, or snapshots that hold the same.
pub(super) async fn compare(
    moved: &Move,
    from: Side<'_>,
    to: Side<'_>,
) -> Result<(), ReshardError> {
    for table in SLOT_TABLES {
        let (expected, found) = try_join(
            sums(&from, table, &moved.slots),
            sums(&to, table, &moved.slots),
        )
        .await?;
        for slot in moved.slots.iter() {
            let number = i64::from(slot.number());
            let (ours, theirs) = (expected.get(&number), found.get(&number));
            if ours != theirs {
                return Err(different(table, slot, moved, ours, theirs));
            }
        }
    }
    Ok(())
}

fn different(
    table: &'static str,
    slot: Slot,
    moved: &Move,
    expected: Option<&(i64, i64)>,
    found: Option<&(i64, i64)>,
) -> ReshardError {
    ReshardError::Different {
        table,
        slot,
        from: moved.from,
        to: moved.to,
        expected: expected.map_or(0, |(rows, _)| *rows),
        found: found.map_or(0, |(rows, _)| *rows),
    }
}

async fn sums(side: &Side<'_>, table: &str, slots: &SlotSet) -> Result<Sums, ReshardError> {
    let mut condition = slots.condition();
    if let Some(since) = side.since {
        condition = format!("age(xmin) <= age('{since}'::xid) and {condition}");
    }
    let query = format!(
        "select {SLOT_OF_ROW}, count(*), bit_xor(hashtextextended(t::text, 0)) from {table} t \
         where {condition} group by 1"
    );
    let rows = side.client.query(&query, &[]).await?;
    Ok(rows
        .iter()
        .map(|row| (row.get(0), (row.get(1), row.get(2))))
        .collect())
}
