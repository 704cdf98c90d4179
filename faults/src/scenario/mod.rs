//! The faults. Each has a world of its own, and proves that it struck while a batch was under way.

mod data;
mod kafka;
mod postgres;
mod process;
mod stage;

use std::pin::Pin;
use std::time::Duration;

use crate::lab::Lab;
use crate::oracle::Verdict;

pub use stage::Stage;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Webhooks a run.
    pub events: u64,
    /// Webhooks a second while faults strike.
    pub rate: f64,
    /// Users.
    pub users: u64,
    /// Strikes of one kind a run.
    pub strikes: usize,
    /// How long a stopped worker stands still.
    pub stopped: Duration,
    /// How long a server is away.
    pub outage: Duration,
    /// Events of one hot user.
    pub hot: u64,
    /// Joins and leaves a run.
    pub changes: usize,
    /// The time between two of them.
    pub between_changes: Duration,
}

impl Sizes {
    /// More than a million events over all scenarios.
    pub const FULL: Sizes = Sizes {
        events: 16_000,
        rate: 1_500.0,
        users: 300,
        strikes: 4,
        stopped: Duration::from_secs(30),
        outage: Duration::from_secs(60),
        hot: 100_000,
        changes: 20,
        between_changes: Duration::from_secs(3),
    };
    /// A look in a few minutes.
    pub const QUICK: Sizes = Sizes {
        events: 4_000,
        rate: 800.0,
        users: 100,
        strikes: 2,
        stopped: Duration::from_secs(9),
        outage: Duration::from_secs(7),
        hot: 10_000,
        changes: 8,
        between_changes: Duration::from_millis(1_500),
    };
}

/// One run of a scenario.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// The servers.
    pub lab: &'a Lab,
    /// Everything random comes from this.
    pub seed: u64,
    /// How much.
    pub sizes: Sizes,
    /// The planted defect, by name.
    pub mutant: Option<&'static str>,
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What the oracle says.
    pub verdict: Verdict,
    /// Workers that were killed with SIGKILL.
    pub kills: u32,
    /// The longest time until every partition moved on.
    pub recovery: Option<Duration>,
    /// Workers that ended by themselves and were started again.
    pub ended: u32,
    /// How the run knows that it struck.
    pub struck: String,
}

type Running<'a> = Pin<Box<dyn Future<Output = anyhow::Result<Outcome>> + 'a>>;

/// A fault.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name on the command line and in the table.
    pub name: &'static str,
    /// What happens.
    pub what: &'static str,
    /// It needs the named points of a build with mutants.
    pub needs_points: bool,
    /// How often a full run repeats it, with other seeds.
    pub times: u32,
    run: for<'a> fn(Run<'a>) -> Running<'a>,
}

impl Scenario {
    /// Runs it once.
    ///
    /// # Errors
    /// The fault did not strike, or a partition stood still for ever.
    pub async fn run(&self, run: Run<'_>) -> anyhow::Result<Outcome> {
        (self.run)(run).await
    }
}

macro_rules! scenarios {
    ($($name:literal, $times:literal, $points:literal, $run:path, $what:literal;)+) => {
        /// All of them, in the order of the table.
        pub const SCENARIOS: &[Scenario] = &[$(Scenario {
            name: $name,
            what: $what,
            needs_points: $points,
            times: $times,
            run: |run| Box::pin($run(run)),
        }),+];
    };
}

scenarios! {
    "steady", 1, false, process::steady, "no fault: the control";
    "kill", 3, false, process::kill, "kill -9 of a worker that has written and not committed";
    "kill-before-write", 3, true, process::kill_before_write, "kill -9 when a batch is decoded";
    "kill-written", 3, true, process::kill_written, "kill -9 between write and commit";
    "kill-committed", 3, true, process::kill_committed, "kill -9 between commit and offset";
    "kill-relayed", 3, true, process::kill_relayed, "kill -9 between a relay's publishing and its deleting";
    "zombie", 2, false, process::zombie, "SIGSTOP until others have the partitions, and back";
    "sigterm", 3, false, process::sigterm, "SIGTERM under load";
    "joins-and-leaves", 2, false, process::joins_and_leaves, "two to eight workers come and go";
    "postgres-fast", 3, false, postgres::restart_fast, "a primary restarts in order";
    "postgres-immediate", 3, false, postgres::restart_immediate, "a primary crashes";
    "terminated", 3, false, postgres::terminated, "backends are terminated in a storm";
    "serialization", 3, false, postgres::serialization, "serializable transactions fail each other";
    "deadlock", 3, false, postgres::deadlock, "a rival takes the tables in another order";
    "timeouts", 3, false, postgres::timeouts, "lock and statement timeouts";
    "shard-down", 2, false, postgres::shard_down, "one of two primaries is away";
    "shard-slow", 2, false, postgres::shard_slow, "one of two primaries takes half a second a batch";
    "shard-refuses", 2, false, postgres::shard_refuses, "one of two primaries refuses authentication";
    "connections-cut", 3, false, postgres::connections_cut, "a proxy cuts within transactions, and behind commits";
    "broker-killed", 2, false, kafka::broker_killed, "the broker is killed and comes back";
    "offsets-to-zero", 2, false, kafka::offsets_to_zero, "the group's offsets are set to the beginning";
    "offsets-ahead", 2, false, kafka::offsets_ahead, "the group's offsets are set past the fence";
    "dlq-missing", 2, false, kafka::dlq_missing, "the dead-letter topics are deleted for a while";
    "duplicates", 3, false, data::duplicates, "each event five times, shuffled, with a restart between";
    "other-body", 3, false, data::other_body, "known ids with other bodies";
    "early", 3, false, data::early, "events before the one that they wait for, and a kill -9";
    "poison", 3, false, data::poison, "poison at the first, a middle and the last place of each batch";
    "hot-user", 1, false, data::hot_user, "one user has most of the events";
    "two-maps", 3, false, data::two_maps, "two producers with different maps";
}

/// The scenario of this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.name == name)
}
