//! Records to a batch of events.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use shardlane_router::{PartitionId, RouteKey};
use shardlane_sql::{Origin, Record, Routes, Target};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::fence::Known;
use super::{Fences, Lane, Pair, bytes};
use crate::dead_letter::{MALFORMED, Reason};
use crate::error::WorkerError;
use crate::record::RawRecord;
use crate::stats::Stats;

/// How many records the poller hands over at once.
pub(crate) const CHUNK_ROWS_MAX: usize = 128;
/// How many bytes the poller hands over at once, but for one record.
pub(crate) const CHUNK_BYTES_MAX: usize = 256 * 1024;

/// What was taken from the lane's channel at once.
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
    /// fence covers is left out: a replay is recognised by the keys alone, without a look at the payloads. `left` are
    /// the records that the batch before had no room for. With `patience` it may come back empty after that time.
    pub(super) async fn next_batch(
        &self,
        records: &mut mpsc::Receiver<Vec<RawRecord>>,
        left: &mut Vec<RawRecord>,
        fences: &mut Fences,
        patience: Option<Duration>,
    ) -> Result<Option<Batch>, WorkerError> {
        let (settings, counters) = (&self.shared.settings, self.counters());
        let mut batch = Batch::default();
        let bytes_max = self.progress.batch_bytes_max(settings.batch_bytes_max);
        let mut taken = 0;
        let mut deadline = patience.map(|patience| tokio::time::Instant::now() + patience);
        while batch.records.len() < settings.batch_rows_max && (taken == 0 || taken < bytes_max) {
            let mut chunk = match deadline {
                _ if !left.is_empty() => std::mem::take(left),
                None => records.recv().await.unwrap_or_default(),
                // Timed out or closed: what is here is the batch.
                Some(deadline) => tokio::time::timeout_at(deadline, records.recv())
                    .await
                    .ok()
                    .flatten()
                    .unwrap_or_default(),
            };
            let room = settings.batch_rows_max - batch.records.len();
            *left = chunk.split_off(room.min(chunk.len()));
            let Some(last) = chunk.last() else { break };
            let (received, next) = (chunk.len(), last.offset + 1);
            batch.first = batch.first.or(chunk.first().map(|raw| raw.offset));
            let received_bytes = bytes(&chunk);
            batch.next = Some(next);
            deadline.get_or_insert_with(|| tokio::time::Instant::now() + settings.batch_linger);
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
        let open = deadline.is_some() && !self.closing.load(Ordering::Acquire);
        Ok(open.then_some(batch))
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

    /// Decodes a batch. What is no event is a dead letter before this returns; `None`: closed before that.
    pub(super) async fn decode(
        &self,
        batch: Vec<RawRecord>,
    ) -> Result<Option<Vec<Pair>>, WorkerError> {
        let (map, counters) = (&self.shared.settings.map, self.counters());
        let mut events = Vec::with_capacity(batch.len());
        let mut malformed = Vec::new();
        let mut misrouted = 0;
        for raw in batch {
            let event = match raw.decode(self.source) {
                Ok(event) => event,
                Err(error) => {
                    let sentence = error.to_string();
                    let reason = Reason {
                        class: MALFORMED,
                        sentence,
                        attempts: 1,
                    };
                    malformed.push((raw, reason));
                    continue;
                }
            };
            if map.partition_for(&RouteKey::Uuid(event.user_id)) != PartitionId(self.partition) {
                misrouted += 1;
            }
            let origin = Origin {
                topic: Arc::clone(&self.topic),
                partition: self.partition,
                offset: raw.offset,
            };
            let record = Record {
                event,
                origin: Some(origin),
            };
            events.push((record, raw));
        }
        if !malformed.is_empty() {
            let letters: Vec<(&RawRecord, Reason)> = malformed
                .iter()
                .map(|(raw, reason)| (raw, reason.clone()))
                .collect();
            let mut retry = self.retry();
            while let Err(error) = self.publish_dead(&letters).await {
                if !self.wait(&mut retry, &error).await {
                    return Ok(None);
                }
            }
            Stats::add(&counters.malformed, letters.len());
        }
        Stats::add(&counters.misrouted, misrouted);
        Ok(Some(events))
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
