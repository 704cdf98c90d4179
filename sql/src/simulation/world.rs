//! A schedule, step by step, and the calm at its end.

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

use super::Defect;
use super::check::check;
use super::events::Said;
use super::ground::{Ground, LANES, Struck, WORKERS, index};
use super::lane::Lane;
use super::places::PLACES;
use super::stage::Staged;

/// What may happen next. Numbers are dice: they mean something in every world, so that steps can be left out.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    /// The next webhooks come.
    Produce(usize),
    /// A lane goes on: it polls, stages, commits, or ends a round.
    Lane(usize, usize),
    /// So does one that has lost its partition and does not know.
    Zombie(usize, usize),
    /// A lane's offset is committed.
    Offset(usize),
    /// A worker is killed; `true`: behind the dead letters of what it has staged.
    Crash(usize, bool),
    /// A partition goes to a worker: drained, or taken from one that stands still.
    HandOver(usize, usize, bool),
    /// Somebody sets the group's offset of a partition to the beginning.
    Rewind(usize),
    /// Or ahead, to the last record of the log: it is noticed when a record comes.
    Skip(usize),
    /// Postgres ends a lane's transaction.
    Terminate(usize),
    /// A sweep of a shard by a worker.
    Sweep(usize, usize),
    /// The older of two sweeps commits.
    SweepCommits,
    /// Time passes: whatever waits has waited too long.
    Deadline,
    /// Slots freeze, or thaw elsewhere.
    Reshard,
    /// A worker hears of the newest map.
    Refresh(usize),
}

impl Step {
    pub(super) fn random(rng: &mut ChaCha8Rng) -> Step {
        let (a, b) = (rng.random_range(0..60), rng.random_range(0..60));
        match rng.random_range(0..1000) {
            0..170 => Step::Produce(1 + a % 3),
            170..640 => Step::Lane(a, b),
            640..700 => Step::Zombie(a, b),
            700..780 => Step::Offset(a),
            780..805 => Step::Crash(a, b < 20),
            805..850 => Step::HandOver(a, b, a % 7 < 3),
            850..870 => Step::Rewind(a),
            870..880 => Step::Skip(a),
            880..900 => Step::Terminate(a),
            900..935 => Step::Sweep(a, b),
            935..955 => Step::SweepCommits,
            955..965 => Step::Deadline,
            965..980 => Step::Reshard,
            _ => Step::Refresh(a),
        }
    }
}

pub(super) struct World<'s> {
    ground: Ground,
    lanes: [Lane; LANES],
    zombies: Vec<Lane>,
    sweeps: Vec<Staged>,
    said: std::slice::Iter<'s, Said>,
}

impl<'s> World<'s> {
    pub(super) fn new(said: &'s [Said], defect: Option<Defect>) -> World<'s> {
        World {
            ground: Ground::new(defect),
            lanes: std::array::from_fn(|place| Lane::new(place, place % WORKERS, 0)),
            zombies: Vec::new(),
            sweeps: Vec::new(),
            said: said.iter(),
        }
    }

    pub(super) fn take(&mut self, step: Step) {
        let ground = &mut self.ground;
        match step {
            Step::Produce(count) => self
                .said
                .by_ref()
                .take(count)
                .for_each(|it| ground.produce(it.clone())),
            Step::Lane(lane, dice) => self.lanes[lane % LANES].step(ground, dice),
            Step::Zombie(lane, dice) => {
                let count = self.zombies.len().max(1);
                if let Some(zombie) = self.zombies.get_mut(lane % count) {
                    zombie.step(ground, dice);
                }
            }
            Step::Offset(lane) => commit_offset(ground, &mut self.lanes[lane % LANES]),
            Step::Crash(worker, letters) => self.crash(worker % WORKERS, letters),
            Step::HandOver(lane, worker, drained) => {
                self.hand_over(lane % LANES, worker % WORKERS, drained)
            }
            Step::Rewind(place) => self.rewind(place % LANES),
            Step::Skip(place) => self.skip(place % LANES),
            Step::Terminate(lane) => {
                if let Some(staged) = self.lanes[lane % LANES].staged() {
                    *staged = None;
                }
            }
            Step::Sweep(shard, worker) => {
                // The advisory lock.
                let mut places = self.sweeps.iter().map(|it| index(it.target));
                if !places.any(|it| it == shard % 2) {
                    self.sweeps
                        .extend(ground.sweep(shard % 2, worker % WORKERS));
                }
            }
            Step::SweepCommits => self.commit_sweep(),
            Step::Deadline => {
                ground.deadlines = true;
                ground.pass_deadlines();
            }
            Step::Reshard => ground.reshard(),
            Step::Refresh(worker) => ground.views[worker % WORKERS] = ground.version,
        }
    }

    /// Lets everything come to its end, and compares.
    pub(super) fn end(mut self) -> Result<Struck, String> {
        for said in self.said.by_ref() {
            self.ground.produce(said.clone());
        }
        if self.ground.version % 2 == 1 {
            self.ground.reshard();
        }
        // What takes longer goes round in a circle.
        let rounds_max = 400;
        let mut rounds = 0;
        while !self.lanes.iter().all(|lane| lane.is_idle(&self.ground)) {
            for lane in self.lanes.iter_mut().chain(&mut self.zombies) {
                lane.step(&mut self.ground, rounds);
            }
            self.commit_sweep();
            if rounds % 8 == 7 {
                self.ground.views = [self.ground.version; WORKERS];
            }
            rounds += 1;
            if rounds == rounds_max {
                return Err("the lanes do not come to an end".to_owned());
            }
        }
        self.ground.views = [self.ground.version; WORKERS];
        for lane in &mut self.lanes {
            commit_offset(&mut self.ground, lane);
        }
        self.settle();
        self.ground.pass_deadlines();
        self.settle();
        check(&self.ground)
    }

    fn settle(&mut self) {
        self.sweeps.clear();
        for shard in 0..self.ground.shards.len() {
            let mut left = usize::MAX;
            // A sweep that moves nothing is the last one.
            while self.ground.shards[shard].parked.len() < left {
                left = self.ground.shards[shard].parked.len();
                self.sweeps.extend(self.ground.sweep(shard, 0));
                self.commit_sweep();
            }
        }
    }

    fn commit_sweep(&mut self) {
        if !self.sweeps.is_empty() {
            // A sweep that is refused is forgotten; the next one finds what is left.
            self.ground.commit(self.sweeps.remove(0)).ok();
        }
    }

    fn crash(&mut self, worker: usize, letters: bool) {
        for place in 0..LANES {
            if self.lanes[place].worker != worker {
                continue;
            }
            let staged = self.lanes[place].staged().and_then(Option::take);
            if let Some(staged) = staged.filter(|_| letters) {
                self.ground.publish_and_die(&staged);
            }
            self.restart(place, (worker + 1) % WORKERS);
        }
        self.ground.views[worker] = self.ground.version;
    }

    fn hand_over(&mut self, place: usize, worker: usize, drained: bool) {
        let lane = &mut self.lanes[place];
        if drained {
            if self.ground.defect == Some(Defect::LostRevokeDrain) {
                lane.done = Some(lane.position());
            }
            commit_offset(&mut self.ground, lane);
            self.restart(place, worker);
        } else {
            let lane = Lane::new(place, worker, self.ground.committed[place]);
            self.zombies
                .push(std::mem::replace(&mut self.lanes[place], lane));
        }
    }

    fn rewind(&mut self, place: usize) {
        self.ground.committed[place] = 0;
        self.restart(place, place % WORKERS);
    }

    /// The lane's net catches this, whatever its worker knows of the map and whatever happens meanwhile. Not for a record
    /// of whose slot and partition no shard has ever seen one: nobody can say then what the database lacks.
    fn skip(&mut self, place: usize) {
        let last = self.ground.log_end(place) - 1;
        if last > 0 && self.ground.can_tell(place, last) {
            self.ground.committed[place] = last;
            self.restart(place, place % WORKERS);
        }
    }

    fn restart(&mut self, place: usize, worker: usize) {
        self.lanes[place] = Lane::new(place, worker, self.ground.committed[place]);
    }
}

fn commit_offset(ground: &mut Ground, lane: &mut Lane) {
    if let Some(done) = lane.done {
        ground.committed[lane.place] = done;
    }
}

/// Users of a schedule.
pub(super) fn users(rng: &mut ChaCha8Rng) -> Vec<uuid::Uuid> {
    let all = &PLACES.users;
    let count = rng.random_range(1..=2);
    let first = rng.random_range(0..all.len());
    (0..count)
        .map(|index| all[(first + index) % all.len()].0)
        .collect()
}
