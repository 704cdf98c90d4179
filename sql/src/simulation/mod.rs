//! A worker's state machine under thousands of seeded schedules, in seconds and without a server.
//!
//! What is pure runs as it is: the fold with inbox and queues, grouping of what a batch reads, fence moves, routes and the
//! catalog. The lanes and the statements are modelled; `lane.rs`, `stage.rs` and `shard.rs` name what they mirror. A schedule is a list
//! of steps from a seed; behind it everything is drained, and `model.rs` says what must be there.
//!
//! Not here: what a statement reads within a transaction is one snapshot, and no row is refused by the database. The
//! fault suite has both, with real servers.

mod check;
mod events;
mod ground;
mod lane;
mod model;
mod places;
mod shard;
mod stage;
mod world;

use std::time::Instant;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use self::events::{Said, generate};
use self::ground::Struck;
use self::world::{Step, World, users};

const SCHEDULES: u64 = 10_000;

/// A planted defect, each of which has to be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    /// Every event is new.
    NoInbox,
    /// Neither lanes nor shards look at the fence.
    FenceIgnored,
    /// A shard's fence is compared without its epoch.
    EpochIgnored,
    /// The offset is committed before the batch is written.
    OffsetBeforeWrite,
    /// A partition is handed over with what was only read committed.
    LostRevokeDrain,
    /// What waits is not read before a batch.
    QueueIgnored,
    /// A dead letter's row stays in the inbox.
    DeadLetterKeptInInbox,
    /// Dead letters are counted and not published.
    DeadLetterSwallowed,
    /// Versions, places and counts of rows are not compared.
    ConflictUnchecked,
    /// What left a queue is deleted by its place alone, as it once was: a queue that was empty meanwhile gives
    /// the place to another event, which is then lost.
    PlaceAlone,
    /// What met a conflict is tried again behind what came after it.
    RetryOvertakes,
    /// A shard that has other slots than the worker's map says counts as one that has seen nothing.
    OldMapTrusted,
    /// A lane that catches up begins at the highest fence.
    HighestFence,
    /// What fences of older epochs said is forgotten.
    PastForgotten,
}

impl Defect {
    const ALL: [Defect; 14] = [
        Defect::NoInbox,
        Defect::FenceIgnored,
        Defect::EpochIgnored,
        Defect::OffsetBeforeWrite,
        Defect::LostRevokeDrain,
        Defect::QueueIgnored,
        Defect::DeadLetterKeptInInbox,
        Defect::DeadLetterSwallowed,
        Defect::ConflictUnchecked,
        Defect::PlaceAlone,
        Defect::RetryOvertakes,
        Defect::OldMapTrusted,
        Defect::HighestFence,
        Defect::PastForgotten,
    ];
}

/// What a seed gives.
fn schedule(seed: u64) -> (Vec<Said>, Vec<Step>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let users = users(&mut rng);
    let said = generate(&users, &mut rng);
    let steps = rng.random_range(20..200);
    (said, (0..steps).map(|_| Step::random(&mut rng)).collect())
}

fn run(said: &[Said], steps: &[Step], defect: Option<Defect>) -> Result<Struck, String> {
    let mut world = World::new(said, defect);
    for step in steps {
        world.take(*step);
    }
    world.end()
}

/// The shortest prefix of the steps that fails, without the steps and the webhooks that it does not need.
fn explain(seed: u64, said: &[Said], steps: &[Step], defect: Option<Defect>) -> String {
    let fails = |steps: &[Step]| run(said, steps, defect).is_err();
    let shortest = (0..=steps.len()).find(|length| fails(&steps[..*length]));
    let steps = &steps[..shortest.unwrap_or(steps.len())];
    let said = without_needless(said, |said| run(said, steps, defect).is_err());
    let steps = without_needless(steps, |steps| run(&said, steps, defect).is_err());
    let error = run(&said, &steps, defect).err().unwrap_or_default();
    let steps: Vec<String> = steps.iter().map(|it| format!("  {it:?}\n")).collect();
    let said: Vec<String> = said.iter().map(|it| format!("  {it:?}\n")).collect();
    format!("seed {seed}: {error}\n{}{}", steps.concat(), said.concat())
}

/// Leaves out what can be left out one by one.
fn without_needless<T: Clone>(all: &[T], fails: impl Fn(&[T]) -> bool) -> Vec<T> {
    let mut left = all.to_vec();
    for index in (0..left.len()).rev() {
        let needless = left.remove(index);
        if !fails(&left) {
            left.insert(index, needless);
        }
    }
    left
}

#[test]
fn ten_thousand_schedules_lose_double_and_disorder_nothing() {
    let began = Instant::now();
    let mut all = Struck::default();
    for seed in 0..SCHEDULES {
        let (said, steps) = schedule(seed);
        match run(&said, &steps, None) {
            Ok(struck) => all.add(struck),
            Err(_) => panic!("{}", explain(seed, &said, &steps, None)),
        }
    }
    println!("{SCHEDULES} schedules in {:.1?}: {all:?}", began.elapsed());
    assert!(all.has_everything(50), "something hardly ever struck");
}

#[test]
fn every_planted_defect_is_found() {
    for defect in Defect::ALL {
        let found = (0..SCHEDULES).find_map(|seed| {
            let (said, steps) = schedule(seed);
            run(&said, &steps, Some(defect))
                .err()
                .map(|error| (seed, error))
        });
        let (seed, error) = found.unwrap_or_else(|| panic!("{defect:?} was not found"));
        println!("{defect:?}: seed {seed}: {error}");
    }
}
