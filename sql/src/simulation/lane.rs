//! A worker's lane, a step at a time. It mirrors `worker/src/lane/`, which needs Kafka; the functions that are mirrored
//! are named where they are.

use std::collections::HashMap;

use uuid::Uuid;

use super::Defect;
use super::ground::Ground;
use super::places::{self, PARTITIONS, PLACES};
use super::shard::{Applied, Refused};
use super::stage::Staged;
use crate::routes::Target;
use crate::stage::Record;

pub(super) struct Lane {
    /// Which partition of which topic.
    pub(super) place: usize,
    pub(super) worker: usize,
    /// What may be committed to the group.
    pub(super) done: Option<i64>,
    /// The next offset to poll.
    position: i64,
    /// `next` of `Lane::run`.
    next: Option<i64>,
    fences: HashMap<Target, Applied>,
    frozen: Vec<Record>,
    seen: usize,
    round: Option<Round>,
}

/// A round of `Lane::process`.
struct Round {
    groups: Vec<Group>,
    rest: Vec<Record>,
    refused: bool,
}

struct Group {
    target: Target,
    /// What is not done yet.
    records: Vec<Record>,
    next: i64,
    staged: Option<Staged>,
}

impl Lane {
    pub(super) fn new(place: usize, worker: usize, position: i64) -> Lane {
        Lane {
            place,
            worker,
            done: None,
            position,
            next: None,
            fences: HashMap::new(),
            frozen: Vec::new(),
            seen: 0,
            round: None,
        }
    }

    pub(super) fn is_idle(&self, ground: &Ground) -> bool {
        self.round.is_none()
            && self.frozen.is_empty()
            && self.position >= ground.log_end(self.place)
    }

    /// How far the lane has read.
    pub(super) fn position(&self) -> i64 {
        self.position
    }

    /// What is staged and not committed.
    pub(super) fn staged(&mut self) -> Option<&mut Option<Staged>> {
        let groups = &mut self.round.as_mut()?.groups;
        groups
            .iter_mut()
            .map(|group| &mut group.staged)
            .find(|staged| staged.is_some())
    }

    /// One step; `dice` decides what is open.
    pub(super) fn step(&mut self, ground: &mut Ground, dice: usize) {
        let Some(mut round) = self.round.take() else {
            return self.poll(ground, dice);
        };
        if round.groups.is_empty() {
            return self.end_round(round, ground);
        }
        let index = dice % round.groups.len();
        let group = &mut round.groups[index];
        let Some(staged) = group.staged.take() else {
            group.stage(ground, dice);
            self.round = Some(round);
            return;
        };
        let taken = staged.taken;
        match ground.commit(staged) {
            Ok(()) => drop(group.records.drain(..taken)),
            Err(Refused::Conflict) => {
                if ground.defect == Some(Defect::RetryOvertakes) {
                    group.records.rotate_left(taken / 2);
                }
            }
            // `apply_group`, where it is fenced.
            Err(Refused::Fenced) => match ground.applied(group.target, self.place) {
                Ok(applied) => {
                    let fence = applied.fence.unwrap_or(0);
                    group.records.retain(|record| offset(record) >= fence);
                }
                Err(_) => group.reroute(&mut round.rest, &mut round.refused),
            },
            Err(Refused::Rerouted) => group.reroute(&mut round.rest, &mut round.refused),
        }
        if group.records.is_empty() {
            let group = round.groups.remove(index);
            if !group.is_rerouted() {
                self.fences.entry(group.target).or_default().fence = Some(group.next);
            }
        }
        self.round = Some(round);
    }

    /// `next_batch`, `catch_up`, and the rest of `Lane::run` before `process`.
    fn poll(&mut self, ground: &mut Ground, dice: usize) {
        let first = self.position;
        let mut records = ground.read(self.place, first, 1 + dice % 6);
        let view = ground.views[self.worker];
        if records.is_empty() && (self.frozen.is_empty() || view == self.seen) {
            return;
        }
        for record in &records {
            if let Some(target) = places::target(view, record.event.user_id)
                && self.read(ground, target).is_err()
            {
                return self.refresh(ground);
            }
        }
        if self.next.is_none() && !records.is_empty() {
            match self.catch_up(ground, first) {
                Ok(false) => {}
                Ok(true) => return,
                Err(_) => return self.refresh(ground),
            }
        }
        if let Some(last) = records.last() {
            self.position = offset(last) + 1;
            self.next = Some(self.position);
        }
        records.retain(|record| !self.is_covered(ground, view, record));
        if ground.defect == Some(Defect::OffsetBeforeWrite) {
            ground.committed[self.place] = self.position;
        }
        self.seen = view;
        let mut events = std::mem::take(&mut self.frozen);
        events.append(&mut records);
        self.begin_round(ground, events);
    }

    /// Whether the group's offset is past what the owners of the partition's slots have judged: then what lies between
    /// is read first.
    fn catch_up(&mut self, ground: &mut Ground, first: i64) -> Result<bool, Refused> {
        // The net that the two defects must not have, as in the worker.
        if matches!(
            ground.defect,
            Some(Defect::OffsetBeforeWrite | Defect::LostRevokeDrain)
        ) {
            return Ok(false);
        }
        let view = ground.views[self.worker];
        let mut judged = Vec::new();
        let partition = i32::try_from(self.place % PARTITIONS).unwrap();
        for (user, _) in PLACES.users.iter().filter(|it| it.1 == partition) {
            let takes = places::target(view, *user).is_some();
            let applied = self.read(ground, places::owner(view, *user))?;
            judged.extend(applied.of(*user, takes));
        }
        let judged = if ground.defect == Some(Defect::HighestFence) {
            judged.into_iter().max()
        } else {
            judged.into_iter().min()
        };
        match judged.filter(|judged| *judged < first) {
            Some(judged) => {
                self.position = judged;
                ground.struck.caught_up += 1;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    fn refresh(&self, ground: &mut Ground) {
        ground.views[self.worker] = ground.version;
    }

    /// `group`.
    fn begin_round(&mut self, ground: &mut Ground, events: Vec<Record>) {
        let view = ground.views[self.worker];
        let (mut groups, mut rest): (Vec<Group>, Vec<Record>) = (Vec::new(), Vec::new());
        let mut refused = false;
        for record in events {
            let Some(target) = places::target(view, record.event.user_id) else {
                rest.push(record);
                continue;
            };
            if self.read(ground, target).is_err() {
                refused = true;
                rest.push(record);
                continue;
            }
            if self.is_covered(ground, view, &record) {
                continue;
            }
            let next = offset(&record) + 1;
            match groups.iter_mut().find(|group| group.target == target) {
                Some(group) => {
                    group.records.push(record);
                    group.next = next;
                }
                None => groups.push(Group {
                    target,
                    records: vec![record],
                    next,
                    staged: None,
                }),
            }
        }
        self.round = Some(Round {
            groups,
            rest,
            refused,
        });
    }

    /// The end of the loop of `process`, and of `Lane::run`.
    fn end_round(&mut self, mut round: Round, ground: &mut Ground) {
        round.rest.sort_unstable_by_key(offset);
        if round.refused {
            self.refresh(ground);
            return self.begin_round(ground, round.rest);
        }
        self.frozen = round.rest;
        self.done = self.frozen.first().map(offset).or(self.next);
    }

    /// `is_covered`.
    fn is_covered(&self, ground: &mut Ground, view: usize, record: &Record) -> bool {
        let user = record.event.user_id;
        let applied = places::target(view, user).and_then(|target| self.fences.get(&target));
        let next = applied.and_then(|applied| applied.of(user, true));
        let is_covered = ground.defect != Some(Defect::FenceIgnored)
            && next.is_some_and(|next| offset(record) < next);
        let by_fence = applied.and_then(|applied| applied.fence);
        if is_covered && by_fence.is_none_or(|next| offset(record) >= next) {
            ground.struck.past += 1;
        }
        is_covered
    }

    /// What a target has judged, read once.
    fn read(&mut self, ground: &Ground, target: Target) -> Result<&Applied, Refused> {
        if !self.fences.contains_key(&target) {
            let mut applied = ground.applied(target, self.place).or_else(|refused| {
                let trusts = ground.defect == Some(Defect::OldMapTrusted);
                trusts.then(Applied::default).ok_or(refused)
            })?;
            if ground.defect == Some(Defect::PastForgotten) {
                applied.past.clear();
            }
            self.fences.insert(target, applied);
        }
        Ok(&self.fences[&target])
    }
}

impl Group {
    /// A transaction of all its records, or of the first ones, as where a batch is halved.
    fn stage(&mut self, ground: &Ground, dice: usize) {
        let records = &self.records;
        let rows = if dice.is_multiple_of(5) {
            records.len().div_ceil(2)
        } else {
            records.len()
        };
        self.staged = Some(ground.stage(self.target, &records[..rows], None::<&[Uuid]>));
    }

    fn reroute(&mut self, rest: &mut Vec<Record>, refused: &mut bool) {
        rest.append(&mut self.records);
        *refused = true;
        self.next = 0;
    }

    fn is_rerouted(&self) -> bool {
        self.next == 0
    }
}

fn offset(record: &Record) -> i64 {
    record.origin.as_ref().map_or(0, |origin| origin.offset)
}
