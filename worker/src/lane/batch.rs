//! Records to a batch of events.

use std::sync::Arc;
use std::time::Duration;

use shardlane_router::{PartitionId, RouteKey, Slot, anchor_uuid};
use shardlane_sql::{Origin, Record, Routes, Target};
use tokio::time::Instant;
use uuid::Uuid;

use super::fence::Known;
use super::part::{Decoded, Malformed};
use super::{Fences, Lane, bytes};
use crate::error::WorkerError;
use crate::reader::Reader;
use crate::record::RawRecord;
use crate::stats::Stats;

/// What was read of the lane's partition at once.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) records: Vec<RawRecord>,
    /// The offset of the first record taken.
    pub(super) first: Option<i64>,
    /// The offset behind the last record taken, covered ones included; `None` if there was none.
    pub(super) next: Option<i64>,
}

impl Lane {
    /// Records until the batch is full by rows or bytes, or has lingered; `None` when the lane is closed. What a
    /// fence covers is left out: a replay is recognised by the keys alone, without a look at the payloads. With
    /// `patience` it may come back empty after that time.
    pub(super) async fn next_batch(
        &self,
        reader: &Reader,
        fences: &mut Fences,
        patience: Option<Duration>,
    ) -> Result<Option<Batch>, WorkerError> {
        let (settings, counters) = (&self.shared.settings, self.counters());
        let (rows_max, bytes_max) = (settings.batch_rows_max, settings.batch_bytes_max);
        let mut batch = Batch::default();
        let mut taken = 0;
        let mut deadline = patience.map(|patience| Instant::now() + patience);
        while batch.records.len() < rows_max && taken < bytes_max && !self.progress.is_closing() {
            let mut chunk = reader.chunk(rows_max - batch.records.len())?;
            let Some(last) = chunk.last() else {
                // Full, or lingered for long enough: what is here is the batch.
                if !self.progress.has_room() || !reader.news(deadline).await {
                    break;
                }
                continue;
            };
            let (received, next) = (chunk.len(), last.offset + 1);
            batch.first = batch.first.or(chunk.first().map(|raw| raw.offset));
            let received_bytes = bytes(&chunk);
            batch.next = Some(next);
            deadline.get_or_insert_with(|| Instant::now() + settings.batch_linger);
            let Some(routes) = self.known_routes(&chunk, next, fences).await? else {
                return Ok(None);
            };
            chunk.retain(|raw| {
                !raw.key_user()
                    .is_some_and(|user| is_covered(&routes, user, raw.offset, fences))
            });
            let covered = received - chunk.len();
            Stats::add(&counters.fenced, covered);
            Stats::add(&counters.done, covered);
            let uncovered = bytes(&chunk);
            self.progress.release(received_bytes - uncovered);
            taken += uncovered;
            batch.records.append(&mut chunk);
        }
        Ok((!self.progress.is_closing()).then_some(batch))
    }

    /// The newest routes of these records, with fences of all targets; `None`: closed before that.
    pub(super) async fn known_routes(
        &self,
        records: &[RawRecord],
        seen: i64,
        fences: &mut Fences,
    ) -> Result<Option<Arc<Routes>>, WorkerError> {
        let mut reroutes = self.reroutes();
        loop {
            let routes = self.shared.store.routes();
            let unknown = unknown_targets(&routes, records, fences);
            match self.know(&unknown, seen, fences).await? {
                Known::All => return Ok(Some(routes)),
                Known::Closed => return Ok(None),
                Known::Rerouted(refusal) => {
                    if !self.reroute(&mut reroutes, routes.epoch(), refusal).await? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Decodes a batch.
    pub(super) fn decode(&self, batch: Vec<RawRecord>) -> Vec<Decoded> {
        let map = &self.shared.settings.map;
        let mut stand_in = None;
        let mut misrouted = 0;
        let decode = |raw: RawRecord| {
            let origin = Origin {
                topic: Arc::clone(&self.topic),
                partition: self.partition,
                offset: raw.offset,
            };
            let event = match raw.decode(self.source) {
                Ok(event) => event,
                Err(error) => {
                    let user = raw.key_user();
                    return Decoded::Malformed(Malformed {
                        user: user
                            .unwrap_or_else(|| *stand_in.get_or_insert_with(|| self.stand_in())),
                        origin,
                        sentence: error.to_string(),
                        raw,
                    });
                }
            };
            if map.partition_for(&RouteKey::Uuid(event.user_id)) != PartitionId(self.partition) {
                misrouted += 1;
            }
            let origin = Some(origin);
            Decoded::Event(Record { event, origin }, raw)
        };
        let decoded = batch.into_iter().map(decode).collect();
        Stats::add(&self.counters().misrouted, misrouted);
        decoded
    }

    /// Whom a record counts for that names no user: nobody, in the lowest slot of the partition. That is where its
    /// events go anyway, so no other shard can hold the lane up, and it is the same after a restart.
    fn stand_in(&self) -> Uuid {
        let snapshot = self.shared.settings.map.snapshot();
        let (map, partition) = (snapshot.document.map(), PartitionId(self.partition));
        let of_partition = |slot: &Slot| map.partition_of(*slot) == partition;
        // A partition without slots has records of foreign producers only.
        let slot = Slot::all().find(of_partition).or(Slot::all().next());
        slot.map_or(Uuid::nil(), |slot| {
            anchor_uuid(map.hash(), &slot.key_range())
        })
    }
}

/// The targets that the records' keys lead to and whose fence is not known yet: with aligned partitions one, once.
fn unknown_targets(routes: &Routes, records: &[RawRecord], fences: &Fences) -> Vec<Target> {
    let mut unknown = Vec::new();
    for user in records.iter().filter_map(RawRecord::key_user) {
        if let Some(target) = routes.target_of(user)
            && !fences.contains_key(&target)
            && !unknown.contains(&target)
        {
            unknown.push(target);
        }
    }
    unknown
}

/// Whether the user's target, or who had the slot before it, is past this offset. A frozen slot has no target.
pub(super) fn is_covered(routes: &Routes, user: Uuid, offset: i64, fences: &Fences) -> bool {
    let target = routes.target_of(user);
    target
        .and_then(|target| fences.get(&target))
        .is_some_and(|applied| applied.covers(user, offset))
}
