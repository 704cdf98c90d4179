//! What outlives a worker: the logs and offsets of Kafka, the shards, the dead letters, the catalog and the clock.

use std::collections::{HashMap, HashSet};

use shardlane_domain::Source;
use shardlane_router::Epoch;
use uuid::Uuid;

use super::Defect;
use super::events::{Said, second};
use super::places::{self, PARTITIONS, PLACES};
use super::shard::{Applied, Refused, Shard};
use super::stage::Staged;
use crate::outcome::EventOutcome;
use crate::routes::Target;
use crate::stage::Record;

/// Partitions of both topics: `source * PARTITIONS + partition`.
pub(super) const LANES: usize = 2 * PARTITIONS;
pub(super) const WORKERS: usize = 3;
/// Longer than anything may wait.
const WAIT_OVER: i64 = 1_000;

pub(super) struct Entry {
    pub(super) said: Said,
    pub(super) record: Record,
    pub(super) number: usize,
}

#[derive(Default)]
pub(super) struct Ground {
    pub(super) defect: Option<Defect>,
    pub(super) logs: [Vec<Entry>; LANES],
    produced: usize,
    pub(super) committed: [i64; LANES],
    pub(super) shards: [Shard; 2],
    /// Of the catalog; and as each worker knows it.
    pub(super) version: usize,
    pub(super) views: [usize; WORKERS],
    now: i64,
    /// Deadlines were over before the end.
    pub(super) deadlines: bool,
    /// Record and class.
    pub(super) letters: HashSet<(usize, &'static str)>,
    /// Records with letters whose transaction did not commit behind them.
    pub(super) doubtful: HashSet<usize>,
    pub(super) struck: Struck,
    /// What became of each record, in the order of the commits. More than one is wrong.
    pub(super) outcomes: HashMap<usize, Vec<EventOutcome>>,
}

/// How often something struck.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Struck {
    pub(super) fenced: usize,
    pub(super) conflicts: usize,
    pub(super) rerouted: usize,
    /// Records that came again and whose shard had not judged them: the slot's owner before it had.
    pub(super) past: usize,
    pub(super) caught_up: usize,
    pub(super) parked: usize,
    pub(super) released: usize,
    pub(super) expired: usize,
    /// Dead letters of a worker that died before its commit.
    pub(super) half_dead: usize,
}

impl Struck {
    pub(super) fn add(&mut self, other: Struck) {
        self.fenced += other.fenced;
        self.conflicts += other.conflicts;
        self.rerouted += other.rerouted;
        self.past += other.past;
        self.caught_up += other.caught_up;
        self.parked += other.parked;
        self.released += other.released;
        self.expired += other.expired;
        self.half_dead += other.half_dead;
    }

    pub(super) fn has_everything(&self, least: usize) -> bool {
        let refused = [self.fenced, self.conflicts, self.rerouted];
        let read_again = [self.past, self.caught_up];
        let queues = [self.parked, self.released, self.expired, self.half_dead];
        let counts = refused.iter().chain(&read_again).chain(&queues);
        counts.min().is_some_and(|count| *count >= least)
    }
}

impl Ground {
    pub(super) fn new(defect: Option<Defect>) -> Ground {
        Ground {
            defect,
            ..Ground::default()
        }
    }

    pub(super) fn produce(&mut self, said: Said) {
        let users = &PLACES.users;
        let partition = users
            .iter()
            .find(|it| it.0 == said.user)
            .map_or(0, |it| it.1);
        let place = said.source as usize * PARTITIONS + usize::try_from(partition).unwrap();
        let (number, log) = (self.produced, &mut self.logs[place]);
        let record = said.record(number, partition, i64::try_from(log.len()).unwrap());
        log.push(Entry {
            said,
            record,
            number,
        });
        self.produced += 1;
    }

    pub(super) fn log_end(&self, place: usize) -> i64 {
        i64::try_from(self.logs[place].len()).unwrap()
    }

    pub(super) fn read(&self, place: usize, from: i64, rows: usize) -> Vec<Record> {
        let log = self.logs[place].iter().skip(usize::try_from(from).unwrap());
        log.take(rows).map(|entry| entry.record.clone()).collect()
    }

    pub(super) fn stage(
        &self,
        target: Target,
        records: &[Record],
        swept: Option<&[Uuid]>,
    ) -> Staged {
        let began_at = self.epoch_of(target);
        let now = second(self.now);
        self.shard(target)
            .stage((target, began_at), records, swept, now, self.defect)
    }

    /// The commit, with the dead letters before it.
    pub(super) fn commit(&mut self, staged: Staged) -> Result<(), Refused> {
        if let Err(refused) = self.publish(&staged) {
            match refused {
                Refused::Fenced => self.struck.fenced += 1,
                Refused::Conflict => self.struck.conflicts += 1,
                Refused::Rerouted => self.struck.rerouted += 1,
            }
            return Err(refused);
        }
        for (number, outcome) in &staged.outcomes {
            self.outcomes.entry(*number).or_default().push(*outcome);
        }
        let shard = index(staged.target);
        self.shards[shard].install(staged, self.defect);
        Ok(())
    }

    /// The dead letters of a transaction that could commit; and the worker dies.
    pub(super) fn publish_and_die(&mut self, staged: &Staged) {
        if self.publish(staged).is_ok() {
            self.doubtful.extend(staged.letters.iter().map(|it| it.0));
        }
    }

    fn publish(&mut self, staged: &Staged) -> Result<(), Refused> {
        let shard = staged.target.shard();
        let epoch = self.epoch_of(staged.target);
        // The CHECK on the fences, which a sweep does not move.
        let is_late = !staged.fences.is_empty() && staged.target.epoch < epoch;
        if staged.began_at != epoch || is_late {
            return Err(Refused::Rerouted);
        }
        let takes = |user| places::target(self.version, user).is_some_and(|it| it.shard() == shard);
        if let Some(refused) = self
            .shard(staged.target)
            .refusal(staged, takes, self.defect)
        {
            return Err(refused);
        }
        if self.defect != Some(Defect::DeadLetterSwallowed) {
            self.letters.extend(&staged.letters);
        }
        Ok(())
    }

    /// As `Store::applied`.
    pub(super) fn applied(&self, target: Target, place: usize) -> Result<Applied, Refused> {
        if self.epoch_of(target) != target.epoch && self.defect != Some(Defect::OldMapTrusted) {
            return Err(Refused::Rerouted);
        }
        self.shard(target).applied(target, place)
    }

    /// What a sweep of a shard would write, as this worker sees the map.
    pub(super) fn sweep(&self, shard: usize, worker: usize) -> Option<Staged> {
        let routed = |user: &Uuid| places::target(self.views[worker], *user);
        let parked = self.shards[shard].parked.keys().map(|key| key.0);
        let here = |user: &Uuid| routed(user).is_some_and(|target| index(target) == shard);
        let mut users: Vec<Uuid> = parked.filter(here).collect();
        users.dedup();
        let target = routed(users.first()?)?;
        Some(self.stage(target, &[], Some(&users)))
    }

    /// Whether each record before this offset was judged, or there is one behind it that was judged for the same slot,
    /// or for another of a shard that has both.
    pub(super) fn can_tell(&self, place: usize, before: i64) -> bool {
        let before = usize::try_from(before).unwrap();
        let mut entries = self.logs[place].iter().take(before);
        entries.all(|entry| {
            self.outcomes.contains_key(&entry.number)
                || self.judged(place, entry.said.user).is_some()
        })
    }

    /// How far a user's slot was judged, if a shard can tell.
    fn judged(&self, place: usize, user: Uuid) -> Option<i64> {
        let owner = places::owner(self.version, user);
        let applied = self.applied(owner, place).ok()?;
        applied.of(user, places::target(self.version, user).is_some())
    }

    pub(super) fn pass_deadlines(&mut self) {
        self.now += WAIT_OVER;
    }

    /// The next version of the catalog: slots freeze, or their rows are on the other shard and it takes them.
    pub(super) fn reshard(&mut self) {
        if self.version + 1 == PLACES.versions.len() {
            return;
        }
        let before = self.version;
        for shard in 0..self.shards.len() {
            let (old, new) = [before, before + 1]
                .map(|version| places::of_shard(version, shard))
                .into();
            if old != new {
                let took = |user| places::target(before, user) == Some(old);
                self.shards[shard].carry(old, took);
            }
        }
        self.version += 1;
        let version = self.version;
        let [first, second] = &mut self.shards;
        let goes_to =
            |shard| move |user| places::target(version, user).is_some_and(|it| index(it) == shard);
        first.take_over(second, goes_to(0));
        second.take_over(first, goes_to(1));
    }

    fn epoch_of(&self, target: Target) -> Epoch {
        places::of_shard(self.version, index(target)).epoch
    }

    fn shard(&self, target: Target) -> &Shard {
        &self.shards[index(target)]
    }
}

pub(super) fn index(target: Target) -> usize {
    usize::try_from(target.shard().0).unwrap()
}

pub(super) fn place_of(topic: &str, partition: i32) -> usize {
    let source = Source::of_topic(topic).unwrap();
    source as usize * PARTITIONS + usize::try_from(partition).unwrap()
}
