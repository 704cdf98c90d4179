//! A batch's events to their shards, each group through transactions of its own.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use shardlane_sql::mutants::{self, Mutant, Point};
use shardlane_sql::{ErrorClass, Report, Routes, SqlError, Target};
use tracing::Instrument as _;

use super::batch::is_covered;
use super::fence::{Known, Read};
use super::part::{Decoded, Group, Part};
use super::retry::Failure;
use super::{Fences, Lane};
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
    Rerouted(Vec<Decoded>, SqlError),
}

impl Lane {
    /// Takes records to their shards, also those that are no events: they are counted there. Back come those whose slot
    /// is frozen, in order; `None`: the lane was closed before all was done.
    ///
    /// All groups of a round are routed by one snapshot, and the next round begins when all have ended: a fence may
    /// then speak for every event that its target's snapshot gave it.
    pub(super) async fn process(
        &self,
        mut events: Vec<Decoded>,
        fences: &mut Fences,
    ) -> Result<Option<Vec<Decoded>>, WorkerError> {
        let mut reroutes = self.reroutes();
        let seen = events.last().map_or(0, |it| it.raw().offset + 1);
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
            let hold_back = routes.hold_back(events.iter().map(Decoded::user));
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
            rest.sort_unstable_by_key(|it| it.raw().offset);
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
        mut group: Group,
    ) -> Result<GroupEnd, WorkerError> {
        let next = group.next();
        let counters = &self.shared.stats.counters;
        let mut retry = self.retry();
        let mut attempts = 1;
        // The next part is at the end.
        let mut work = vec![group.all()];
        while let Some(part) = work.pop() {
            let Some(pass) = self.pass(target.shard()).await else {
                return Ok(GroupEnd::Closed);
            };
            let error = match self.apply(pass, target, &group, &part, attempts).await {
                Ok(report) => {
                    let way = self.shared.store.way(routes, target);
                    let records = &group.records[part.events.clone()];
                    self.shared.stats.batch(self.source, way, &report, records);
                    Stats::add(&self.counters().malformed, part.len() - records.len());
                    retry = self.retry();
                    attempts = 1;
                    continue;
                }
                Err(error) => error,
            };
            match error.class() {
                ErrorClass::Data | ErrorClass::Held if part.events.len() > 1 => {
                    let (first, second) = group.halves(&part);
                    work.push(second);
                    work.push(first);
                }
                ErrorClass::Transient | ErrorClass::Held => {
                    Stats::add(&counters.retries, 1);
                    attempts += 1;
                    if !self.wait(&mut retry, &error).await {
                        return Ok(GroupEnd::Closed);
                    }
                    if mutants::is(Mutant::RetryOvertakes) {
                        let middle = part.events.len() / 2;
                        group.records[part.events.clone()].rotate_left(middle);
                        group.raws[part.events.clone()].rotate_left(middle);
                    }
                    if !mutants::is(Mutant::StaleResume) {
                        work.push(part);
                    }
                }
                ErrorClass::Data => {
                    let sentence = error.to_string();
                    match self.bury(target, &group, &part, sentence, attempts).await {
                        Ok(()) => Stats::add(&self.counters().malformed, part.len()),
                        Err(error) => {
                            if !self.wait(&mut retry, &error).await {
                                return Ok(GroupEnd::Closed);
                            }
                            work.push(part);
                        }
                    }
                }
                ErrorClass::Fenced => {
                    Stats::add(&counters.zombie_refusals, 1);
                    match self.read_applied(target, next).await? {
                        Read::Applied(applied) => {
                            let left = group.from(&part, applied.fence.unwrap_or(0));
                            Stats::add(&self.counters().fenced, part.len() - left.len());
                            if left.len() > 0 {
                                work.push(left);
                            }
                        }
                        Read::Closed => return Ok(GroupEnd::Closed),
                        Read::Rerouted(error) => {
                            work.push(part);
                            return Ok(GroupEnd::Rerouted(group.into_parts(&work), error));
                        }
                    }
                }
                ErrorClass::Rerouted => match error {
                    Failure::Sql(error) => {
                        tracing::info!(topic = %self.topic, partition = self.partition, "routing anew: {error}");
                        work.push(part);
                        return Ok(GroupEnd::Rerouted(group.into_parts(&work), error));
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

    /// One transaction. What is no event, and what it rejects, is a dead letter before it commits.
    async fn apply(
        &self,
        pass: Pass,
        target: Target,
        group: &Group,
        part: &Part,
        attempts: u32,
    ) -> Result<Report, Failure> {
        mutants::reached(Point::BeforeWrite).await;
        let raws = &group.raws[part.events.clone()];
        let (records, dead) = (&group.records[part.events.clone()], group.dead(part));
        let carried = |index: usize| sweep::carried(&raws[index]);
        let store = &self.shared.store;
        let staged = store.stage_carrying(target, records, &dead, &carried).await;
        let staged = self.answer(pass, staged)?;
        let rejected = staged.report().rejected.iter().map(|rejected| {
            let (class, sentence) = (rejected.reason.class(), rejected.reason.to_string());
            let reason = Reason {
                class,
                sentence,
                attempts,
            };
            (&raws[rejected.index], reason)
        });
        let mut letters: Vec<(&RawRecord, Reason)> = rejected.collect();
        letters.extend(group.letters(part, attempts));
        letters.sort_by_key(|(raw, _)| raw.offset);
        self.publish_dead(&letters).await?;
        sweep::publish(&self.shared, &staged.report().letters).await?;
        mutants::reached(Point::Written).await;
        let shard = target.shard();
        let span = tracing::info_span!("commit", %shard);
        Ok(staged.commit().instrument(span).await?)
    }

    /// Publishes a record that the database refuses, with those that are no events around it, and counts them there.
    async fn bury(
        &self,
        target: Target,
        group: &Group,
        part: &Part,
        sentence: String,
        attempts: u32,
    ) -> Result<(), Failure> {
        let (mut letters, mut dead) = (group.letters(part, attempts), group.dead(part));
        for index in part.events.clone() {
            let reason = Reason {
                class: "data",
                sentence: sentence.clone(),
                attempts,
            };
            letters.push((&group.raws[index], reason));
            dead.extend(group.records[index].origin.clone());
        }
        letters.sort_by_key(|(raw, _)| raw.offset);
        self.publish_dead(&letters).await?;
        let staged = self.shared.store.stage_dead(target, &dead).await?;
        staged.commit().await?;
        Ok(())
    }

    async fn publish_dead(&self, letters: &[(&RawRecord, Reason)]) -> Result<(), Failure> {
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

/// Records by target.
#[derive(Default)]
struct Grouped {
    groups: Vec<(Target, Group)>,
    /// Those whose slot is frozen.
    frozen: Vec<Decoded>,
    /// How many a fence covers.
    covered: usize,
}

/// Where these records go: with aligned partitions to one target.
fn targets_of(routes: &Routes, records: &[Decoded]) -> Vec<Target> {
    let mut targets = Vec::new();
    for record in records {
        let target = routes.target_of(record.user());
        targets.extend(target.filter(|target| !targets.contains(target)));
    }
    targets
}

fn group(routes: &Routes, records: Vec<Decoded>, fences: &Fences) -> Grouped {
    let mut grouped = Grouped::default();
    for record in records {
        let Some(target) = routes.target_of(record.user()) else {
            grouped.frozen.push(record);
            continue;
        };
        // Only a record whose key names no user, or one that was routed anew, can be covered here.
        if is_covered(routes, record.user(), record.raw().offset, fences) {
            grouped.covered += 1;
            continue;
        }
        let groups = &mut grouped.groups;
        match groups.iter_mut().find(|(known, _)| *known == target) {
            Some((_, group)) => group.push(record),
            None => {
                let mut group = Group::default();
                group.push(record);
                groups.push((target, group));
            }
        }
    }
    grouped
}
