//! A breaker a shard: while a shard is away, one lane at a time asks whether it is back; the others wait for that one.
//! So a shard that comes back meets one connection, not all lanes of all workers at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use shardlane_router::ShardId;

/// How often a lane that waits looks whether it may go on.
pub(crate) const LOOK: Duration = Duration::from_millis(20);

/// A shard that nobody has asked for so long: nobody needs it any more, because its partitions are another worker's.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// The breakers of all shards.
#[derive(Debug)]
pub(crate) struct Breakers {
    delays: ExponentialBuilder,
    shards: Mutex<HashMap<ShardId, Arc<Breaker>>>,
}

impl Breakers {
    /// The delays between two questions: doubled each time, with full jitter.
    pub(crate) fn new(delay_min: Duration, delay_max: Duration) -> Self {
        let delays = ExponentialBuilder::default()
            .with_min_delay(delay_min)
            .with_max_delay(delay_max)
            .without_max_times()
            .with_jitter();
        Breakers {
            delays,
            shards: Mutex::default(),
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<ShardId, Arc<Breaker>>> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a shard was away when it was last asked, as far as somebody still asks.
    pub(crate) fn is_away(&self, shard: ShardId, now: Instant) -> bool {
        let Some(breaker) = self.all().get(&shard).cloned() else {
            return false;
        };
        match breaker.state().phase {
            Phase::Closed => false,
            Phase::Open(until) => now < until + FORGOTTEN,
            Phase::Asking => true,
        }
    }

    pub(crate) fn of(&self, shard: ShardId) -> Arc<Breaker> {
        let mut shards = self.all();
        let new = || Breaker {
            delays: self.delays,
            state: Mutex::new(State {
                phase: Phase::Closed,
                delays: self.delays.build(),
            }),
        };
        Arc::clone(shards.entry(shard).or_insert_with(|| Arc::new(new())))
    }
}

/// One shard's.
#[derive(Debug)]
pub(crate) struct Breaker {
    delays: ExponentialBuilder,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// The delays that are left, since it broke.
    delays: ExponentialBackoff,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// The shard answers.
    Closed,
    /// It did not; who comes later than this may ask.
    Open(Instant),
    /// Somebody asks.
    Asking,
}

/// Leave to use the shard.
#[derive(Debug)]
pub(crate) struct Pass {
    breaker: Arc<Breaker>,
    asks: bool,
}

impl Breaker {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leave to use the shard now, if there is any.
    pub(crate) fn pass(self: &Arc<Self>) -> Option<Pass> {
        let mut state = self.state();
        let asks = match state.phase {
            Phase::Closed => false,
            Phase::Open(until) if Instant::now() >= until => {
                state.phase = Phase::Asking;
                true
            }
            Phase::Open(_) | Phase::Asking => return None,
        };
        let breaker = Arc::clone(self);
        Some(Pass { breaker, asks })
    }
}

impl State {
    fn open(&mut self) {
        let delay = self.delays.next().unwrap_or_default();
        self.phase = Phase::Open(Instant::now() + delay);
    }
}

impl Pass {
    /// The shard answered, if only to refuse the batch.
    pub(crate) fn answered(mut self) {
        self.asks = false;
        let mut state = self.breaker.state();
        if !matches!(state.phase, Phase::Closed) {
            state.phase = Phase::Closed;
            state.delays = self.breaker.delays.build();
        }
    }

    /// The shard is away. True: that is news.
    pub(crate) fn away(mut self) -> bool {
        let asks = std::mem::take(&mut self.asks);
        let mut state = self.breaker.state();
        let news = matches!(state.phase, Phase::Closed);
        // Those who were under way when it broke say nothing new, and do not end another's question.
        if news || asks {
            state.open();
        }
        news
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        // Who asked was broken off, without an answer: the next one asks.
        if self.asks {
            self.breaker.state().open();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId(7);

    fn breakers() -> Breakers {
        Breakers::new(Duration::from_millis(1), Duration::from_millis(2))
    }

    fn until_pass(breaker: &Arc<Breaker>) -> Pass {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(pass) = breaker.pass() {
                return pass;
            }
            assert!(Instant::now() < deadline, "{breaker:?}");
        }
    }

    #[test]
    fn while_a_shard_is_away_one_asks_and_the_others_wait() {
        let breakers = breakers();
        let breaker = breakers.of(SHARD);
        let (first, second) = (breaker.pass().unwrap(), breaker.pass().unwrap());
        assert!(first.away());
        assert!(!second.away(), "known already");
        let asks = until_pass(&breaker);
        assert!(breaker.pass().is_none() && breakers.of(SHARD).pass().is_none());
        assert!(breakers.of(ShardId(8)).pass().is_some());
        assert!(!asks.away());
        until_pass(&breaker).answered();
        assert!(breaker.pass().is_some() && breaker.pass().is_some());
    }

    #[test]
    fn a_question_that_is_broken_off_is_asked_again() {
        let breaker = breakers().of(SHARD);
        assert!(breaker.pass().unwrap().away());
        drop(until_pass(&breaker));
        until_pass(&breaker).answered();
        assert!(breaker.pass().is_some());
    }

    #[test]
    fn one_who_was_under_way_does_not_end_the_question() {
        let breaker = breakers().of(SHARD);
        let (late, first) = (breaker.pass().unwrap(), breaker.pass().unwrap());
        first.away();
        let asks = until_pass(&breaker);
        assert!(!late.away());
        assert!(breaker.pass().is_none(), "still asking");
        asks.answered();
        assert!(breaker.pass().is_some());
    }

    #[test]
    fn who_is_away_is_known_for_as_long_as_somebody_asks() {
        let breakers = breakers();
        let now = Instant::now();
        assert!(!breakers.is_away(SHARD, now), "nobody has asked");
        let breaker = breakers.of(SHARD);
        breaker.pass().unwrap().away();
        assert!(breakers.is_away(SHARD, now));
        assert!(!breakers.is_away(ShardId(8), now));
        assert!(!breakers.is_away(SHARD, now + 2 * FORGOTTEN), "nobody asks");
        until_pass(&breaker).answered();
        assert!(!breakers.is_away(SHARD, Instant::now()));
    }
}
