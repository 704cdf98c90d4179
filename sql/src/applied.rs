//! [`Applied`]: how far a target has applied a partition, also before it had the slots that it has now.
//!
//! A fence is of the epoch in which it was written, and the next epoch has none. What it said is not forgotten: whenever
//! a shard's slots change, the fences so far are kept slot by slot in `shard_past`, and what moves to another shard takes
//! its part along. So a record that was judged once, on whichever shard, is never judged again.

use std::collections::BTreeMap;

use shardlane_router::{RouteKey, SLOT_COUNT, Slot, TokenHash};
use tokio_postgres::{GenericClient, Row, Transaction};
use uuid::Uuid;

use crate::SqlError;
use crate::identity;
use crate::slots::SlotSet;

/// How far one target has applied one partition of one topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// The next offset for every slot that the target takes; `None` if there was no batch since it takes them.
    pub fence: Option<i64>,
    past: Vec<(SlotSet, i64)>,
}

impl Applied {
    pub(crate) fn new(fence: Option<i64>, past: Vec<(SlotSet, i64)>) -> Applied {
        Applied { fence, past }
    }

    /// Whether the record of a user at this offset was applied. The user's slot is not frozen.
    #[must_use]
    pub fn covers(&self, user: Uuid, offset: i64) -> bool {
        if self.fence.is_some_and(|next| offset < next) {
            return true;
        }
        // Manual shards have Postgres's hash, and nobody else has a past.
        self.past.iter().any(|(slots, next)| {
            let slot = || TokenHash::Postgres.token(&RouteKey::Uuid(user)).slot();
            offset < *next && slots.contains(slot())
        })
    }

    /// The next offset of that of these slots which is furthest behind; `None` if nothing is known of any. A fence says
    /// nothing of those that are frozen.
    #[must_use]
    pub fn lowest(&self, slots: &SlotSet, frozen: &SlotSet) -> Option<i64> {
        let past = |slot: Slot| {
            let known = self.past.iter().filter(|(slots, _)| slots.contains(slot));
            known.map(|(_, next)| *next).max()
        };
        let of = |slot: Slot| {
            self.fence
                .filter(|_| !frozen.contains(slot))
                .max(past(slot))
        };
        slots.iter().filter_map(of).min()
    }

    /// The highest offset that is spoken of.
    #[must_use]
    pub fn highest(&self) -> Option<i64> {
        let past = self.past.iter().map(|(_, next)| *next);
        past.chain(self.fence).max()
    }
}

/// A row of `shard_past`: of these slots, that partition of that topic was applied up to there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Past {
    topic: String,
    partition: i32,
    next: i64,
    slots: SlotSet,
}

/// What a shard remembers of these slots.
pub(crate) async fn read_past(
    client: &impl GenericClient,
    slots: &SlotSet,
) -> Result<Vec<Past>, SqlError> {
    let query = "select topic, kafka_partition, next_offset, slots from shard_past";
    let rows = client.query(query, &[]).await?;
    let past = rows.iter().map(|row| {
        let known: SlotSet = row.get::<_, String>(3).parse()?;
        Ok(of_row(
            row,
            SlotSet::of(|slot| known.contains(slot) && slots.contains(slot)),
        ))
    });
    past.collect()
}

/// Before a shard's slots change: keeps what its fences say of those that it takes, and what comes with others.
pub(crate) async fn keep_past(
    transaction: &Transaction<'_>,
    incoming: &[Past],
) -> Result<(), SqlError> {
    // Waits for the batches under way, which move fences.
    transaction.batch_execute("lock table kafka_fence").await?;
    let Some(identity) = identity::read(transaction).await? else {
        return Ok(());
    };
    let mut all = read_past(transaction, &SlotSet::of(|_| true)).await?;
    let query = "select topic, kafka_partition, next_offset from kafka_fence where epoch = $1";
    let epoch = i64::try_from(identity.epoch.0).unwrap_or(i64::MAX);
    let took: SlotSet = identity.slots.parse()?;
    let fences = transaction.query(query, &[&epoch]).await?;
    all.extend(fences.iter().map(|row| of_row(row, took.clone())));
    all.extend(incoming.iter().cloned());
    transaction.batch_execute("delete from shard_past").await?;
    let insert = "insert into shard_past (topic, kafka_partition, next_offset, slots) values ($1, $2, $3, $4)";
    for past in merged(all) {
        let slots = past.slots.to_string();
        transaction
            .execute(insert, &[&past.topic, &past.partition, &past.next, &slots])
            .await?;
    }
    Ok(())
}

fn of_row(row: &Row, slots: SlotSet) -> Past {
    Past {
        topic: row.get(0),
        partition: row.get(1),
        next: row.get(2),
        slots,
    }
}

/// Each slot once a partition, at the highest offset that was said.
fn merged(all: Vec<Past>) -> Vec<Past> {
    let mut next_of: BTreeMap<(String, i32), Box<[i64; SLOT_COUNT]>> = BTreeMap::new();
    for past in all {
        let known = next_of
            .entry((past.topic, past.partition))
            .or_insert_with(|| Box::new([0; SLOT_COUNT]));
        for slot in past.slots.iter() {
            known[slot.index()] = known[slot.index()].max(past.next);
        }
    }
    let mut merged = Vec::new();
    for ((topic, partition), next_of) in next_of {
        let mut by_offset: BTreeMap<i64, Vec<Slot>> = BTreeMap::new();
        for slot in Slot::all().filter(|slot| next_of[slot.index()] > 0) {
            by_offset
                .entry(next_of[slot.index()])
                .or_default()
                .push(slot);
        }
        merged.extend(by_offset.into_iter().map(|(next, slots)| Past {
            topic: topic.clone(),
            partition,
            next,
            slots: slots.into_iter().collect(),
        }));
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(text: &str) -> SlotSet {
        text.parse().unwrap()
    }

    #[test]
    fn the_past_is_known_slot_by_slot() {
        let past = |text: &str, partition, next| Past {
            topic: "orders".to_owned(),
            partition,
            next,
            slots: slots(text),
        };
        let all = vec![
            past("0-9", 0, 5),
            past("5-14", 0, 3),
            past("8-8", 0, 7),
            past("0-9", 1, 2),
        ];
        let expected = [
            past("10-14", 0, 3),
            past("0-7,9-9", 0, 5),
            past("8-8", 0, 7),
            past("0-9", 1, 2),
        ];
        assert_eq!(merged(all), expected);
    }

    #[test]
    fn the_slot_that_is_furthest_behind_decides() {
        let past = vec![(slots("0-9"), 20), (slots("10-19"), 70)];
        let check = |fence, asked: &str, frozen: &str, lowest| {
            let applied = Applied::new(fence, past.clone());
            assert_eq!(applied.lowest(&slots(asked), &slots(frozen)), lowest);
        };
        check(None, "0-19", "", Some(20));
        check(None, "10-29", "", Some(70));
        check(None, "20-29", "", None);
        check(Some(50), "0-29", "", Some(50));
        check(Some(50), "10-19", "", Some(70));
        check(Some(50), "0-29", "0-9", Some(20));
        check(Some(50), "20-29", "20-29", None);
        assert_eq!(Applied::new(Some(50), past).highest(), Some(70));
        assert_eq!(Applied::default().highest(), None);
    }
}
