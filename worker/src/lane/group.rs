//! A batch's events to their shards, each group through transactions of its own.

use std::ops::Range;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use shardlane_sql::mutants::{self, Mutant, Point};
use shardlane_sql::{ErrorClass, Record, Report, Routes, SqlError, Target};
use tracing::Instrument as _;

use super::batch::is_covered;
use super::fence::{Known, Read};
use super::retry::Failure;
use super::{Fences, Lane, Pair};
use crate::breaker::Pass;
use crate::dead_letter::Reason;
use crate::error::WorkerError;
use crate::record::RawRecord;
use crate::stats::Stats;
use crate::sweep;

/// The longest pause between two batches for a reshard that asks to hold back.
const HOLD_BACK_MAX: Duration = Duration::from_secs(1);

/// How one target's part of a batch ended.
enum GroupEnd {
    /// All of it is in the database; the target's fence is at this offset.
    Done(Target, i64),
    /// The lane was closed before all of it was done.
    Closed,
    /// The target no longer takes these.
    Rerouted(Vec<Pair>, SqlError),
}

impl Lane {
    /// Takes events to their shards. Back come those whose slot is frozen, in order; `None`: the lane was closed
    /// before all was done.
    ///
    /// All groups of a round are routed by one snapshot, and the next round begins when all have ended: a fence may
    /// then speak for every event that its target's snapshot gave it.
    pub(super) async fn process(
        &self,
        mut events: Vec<Pair>,
        fences: &mut Fences,
    ) -> Result<Option<Vec<Pair>>, WorkerError> {
        let mut reroutes = self.reroutes();
        let seen = events.last().map_or(0, |(_, raw)| raw.offset + 1);
        loop {
            let (routes, round) = (self.shared.store.routes(), Instant::now());
            match self
                .know(&targets_of(&routes, &events), seen, fences)
                .await?
            {
                Known::All => {}
                Known::Closed => return Ok(None),
                Known::Rerouted(refusal) => {
                    if !self.reroute(&mut reroutes, routes.epoch(), refusal).await? {
                        return Ok(None);
                    }
                    continue;
                }
            }
            let hold_back = routes.hold_back(events.iter().map(|(record, _)| record.event.user_id));
            let grouped = group(&routes, events, fences);
            let mut rest = grouped.frozen;
            Stats::add(&self.counters().fenced, grouped.covered);
            let ends = try_join_all(
                grouped
                    .groups
                    .into_iter()
                    .map(|(target, group)| self.apply_group(&routes, target, group)),
            );
            let mut refusal = None;
            for end in ends.await? {
                match end {
                    GroupEnd::Done(target, next) => {
                        fences.entry(target).or_default().fence = Some(next);
                    }
                    GroupEnd::Closed => return Ok(None),
                    GroupEnd::Rerouted(mut pairs, error) => {
                        refusal = Some(error);
                        rest.append(&mut pairs);
                    }
                }
            }
            rest.sort_unstable_by_key(|(_, raw)| raw.offset);
            if hold_back > 0.0 {
                let pause = round.elapsed().mul_f64(hold_back).min(HOLD_BACK_MAX);
                if !self.pause(pause).await {
                    return Ok(None);
                }
            }
            let Some(refusal) = refusal else {
                return Ok(Some(rest));
            };
            if !self.reroute(&mut reroutes, routes.epoch(), refusal).await? {
                return Ok(None);
            }
            events = rest;
        }
    }

    /// Applies one target's records, in order: waits out what passes, halves a batch that fails on data until the
    /// guilty record stands alone, drops what another worker has applied.
    async fn apply_group(
        &self,
        routes: &Routes,
        target: Target,
        group: Vec<Pair>,
    ) -> Result<GroupEnd, WorkerError> {
        let next = group.last().map_or(0, |(_, raw)| raw.offset + 1);
        let (mut records, mut raws): (Vec<Record>, Vec<RawRecord>) = group.into_iter().unzip();
        let counters = &self.shared.stats.counters;
        let mut retry = self.retry();
        let mut attempts = 1;
        // The next range is at the end.
        let mut work = Vec::new();
        work.push(0..records.len());
        while let Some(range) = work.pop() {
            let (part, raw_part) = (&records[range.clone()], &raws[range.clone()]);
            let Some(pass) = self.pass(target.shard()).await else {
                return Ok(GroupEnd::Closed);
            };
            let error = match self.apply(pass, target, part, raw_part, attempts).await {
                Ok(report) => {
                    let way = self.shared.store.way(routes, target);
                    self.shared.stats.batch(self.source, way, &report, part);
                    retry = self.retry();
                    attempts = 1;
                    continue;
                }
                Err(error) => error,
            };
            match error.class() {
                ErrorClass::Data | ErrorClass::Held if range.len() > 1 => {
                    let middle = range.start + range.len() / 2;
                    work.push(middle..range.end);
                    work.push(range.start..middle);
                }
                ErrorClass::Transient | ErrorClass::Held => {
                    Stats::add(&counters.retries, 1);
                    attempts += 1;
                    if !self.wait(&mut retry, &error).await {
                        return Ok(GroupEnd::Closed);
                    }
                    if mutants::is(Mutant::RetryOvertakes) {
                        records[range.clone()].rotate_left(range.len() / 2);
                        raws[range.clone()].rotate_left(range.len() / 2);
                    }
                    work.push(range);
                }
                ErrorClass::Data => {
                    let sentence = error.to_string();
                    let letter = (
                        &raws[range.start],
                        Reason {
                            class: "data",
                            sentence,
                            attempts,
                        },
                    );
                    match self.bury(target, &records[range.start], letter).await {
                        Ok(()) => Stats::add(&self.counters().malformed, 1),
                        Err(error) => {
                            if !self.wait(&mut retry, &error).await {
                                return Ok(GroupEnd::Closed);
                            }
                            work.push(range);
                        }
                    }
                }
                ErrorClass::Fenced => {
                    Stats::add(&counters.zombie_refusals, 1);
                    match self.read_applied(target, next).await? {
                        Read::Applied(applied) => {
                            let fence = applied.fence.unwrap_or(0);
                            let covered =
                                raws[range.clone()].partition_point(|raw| raw.offset < fence);
                            Stats::add(&self.counters().fenced, covered);
                            if range.start + covered < range.end {
                                work.push(range.start + covered..range.end);
                            }
                        }
                        Read::Closed => return Ok(GroupEnd::Closed),
                        Read::Rerouted(error) => {
                            work.push(range);
                            return Ok(rerouted(records, raws, &work, error));
                        }
                    }
                }
                ErrorClass::Rerouted => match error {
                    Failure::Sql(error) => {
                        tracing::info!(topic = %self.topic, partition = self.partition, "routing anew: {error}");
                        work.push(range);
                        return Ok(rerouted(records, raws, &work, error));
                    }
                    Failure::Away(_) | Failure::DeadLetter(_) | Failure::LogEnd(_) => {
                        return Err(error.into());
                    }
                },
                ErrorClass::Permanent => return Err(error.into()),
            }
        }
        Ok(GroupEnd::Done(target, next))
    }

    /// One transaction. What it rejects is a dead letter before it commits.
    async fn apply(
        &self,
        pass: Pass,
        target: Target,
        records: &[Record],
        raws: &[RawRecord],
        attempts: u32,
    ) -> Result<Report, Failure> {
        mutants::reached(Point::BeforeWrite).await;
        let carried = |index: usize| sweep::carried(&raws[index]);
        let store = &self.shared.store;
        let staged = store.stage_carrying(target, records, &carried).await;
        let staged = self.answer(pass, staged)?;
        let letters: Vec<(&RawRecord, Reason)> = staged
            .report()
            .rejected
            .iter()
            .map(|rejected| {
                let (class, sentence) = (rejected.reason.class(), rejected.reason.to_string());
                (
                    &raws[rejected.index],
                    Reason {
                        class,
                        sentence,
                        attempts,
                    },
                )
            })
            .collect();
        self.publish_dead(&letters).await?;
        sweep::publish(&self.shared, &staged.report().letters).await?;
        mutants::reached(Point::Written).await;
        let shard = target.shard();
        let span = tracing::info_span!("commit", %shard);
        Ok(staged.commit().instrument(span).await?)
    }

    /// Publishes a record that the database refuses, and counts it there.
    async fn bury(
        &self,
        target: Target,
        record: &Record,
        letter: (&RawRecord, Reason),
    ) -> Result<(), Failure> {
        self.publish_dead(&[letter]).await?;
        let staged = self
            .shared
            .store
            .stage_dead(target, record.origin.as_slice())
            .await?;
        staged.commit().await?;
        Ok(())
    }

    pub(super) async fn publish_dead(
        &self,
        letters: &[(&RawRecord, Reason)],
    ) -> Result<(), Failure> {
        if letters.is_empty() || mutants::is(Mutant::DeadLetterSwallowed) {
            return Ok(());
        }
        Ok(self
            .shared
            .dead_letters
            .publish(&self.topic, self.partition, letters)
            .await?)
    }
}

/// Events by target, each group in order.
#[derive(Default)]
struct Grouped {
    groups: Vec<(Target, Vec<Pair>)>,
    /// Those whose slot is frozen.
    frozen: Vec<Pair>,
    /// How many a fence covers.
    covered: usize,
}

/// Where these events go: with aligned partitions to one target.
fn targets_of(routes: &Routes, events: &[Pair]) -> Vec<Target> {
    let mut targets = Vec::new();
    for (record, _) in events {
        let target = routes.target_of(record.event.user_id);
        targets.extend(target.filter(|target| !targets.contains(target)));
    }
    targets
}

fn group(routes: &Routes, events: Vec<Pair>, fences: &Fences) -> Grouped {
    let mut grouped = Grouped::default();
    for (record, raw) in events {
        let user = record.event.user_id;
        let Some(target) = routes.target_of(user) else {
            grouped.frozen.push((record, raw));
            continue;
        };
        // Only a record without a key, or one that was routed anew, can be covered here.
        if is_covered(routes, user, raw.offset, fences) {
            grouped.covered += 1;
            continue;
        }
        let groups = &mut grouped.groups;
        match groups.iter_mut().find(|(known, _)| *known == target) {
            Some((_, group)) => group.push((record, raw)),
            None => groups.push((target, vec![(record, raw)])),
        }
    }
    grouped
}

/// The part of a group that is not done, for the next round.
fn rerouted(
    records: Vec<Record>,
    raws: Vec<RawRecord>,
    work: &[Range<usize>],
    error: SqlError,
) -> GroupEnd {
    let left = |index| work.iter().any(|range| range.contains(&index));
    let pairs = records.into_iter().zip(raws).enumerate();
    GroupEnd::Rerouted(
        pairs
            .filter(|(index, _)| left(*index))
            .map(|(_, pair)| pair)
            .collect(),
        error,
    )
}
