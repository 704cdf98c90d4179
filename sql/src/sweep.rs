//! The sweep: what waits in a shard and can move is taken through the same fold as a batch.
//!
//! Two things move that no batch will: an event whose deadline is over, and a queue that two transactions left behind of
//! which one parked while the other created what it waits for.

use std::pin::pin;
use std::time::Duration;

use jiff::Timestamp;
use rand::RngExt as _;
use shardlane_domain::Source;
use uuid::Uuid;

use crate::fold::RejectReason;
use crate::park::{Carried, ParkedLetter};
use crate::queue::{Drain, Rules};
use crate::routes::{Routes, Target};
use crate::stage::{Staged, stage};
use crate::store::lane_of;
use crate::transaction::Work;
use crate::{ErrorClass, SqlError, Store};

/// How many users one transaction of a sweep takes.
const USERS_MAX: i64 = 100;

/// What a sweep did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Events that are rows now.
    pub released: usize,
    /// Why events are dead letters now.
    pub expired: Vec<(Source, RejectReason)>,
}

/// Who takes the dead letters of a sweep.
pub trait KeepLetters: Sync {
    /// Why one could not be kept.
    type Error: std::error::Error + Send;

    /// Keeps the letters of one transaction, durably: it commits when this has returned.
    fn keep(
        &self,
        letters: &[ParkedLetter],
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Why a sweep did not do all that it could.
#[derive(Debug, thiserror::Error)]
pub enum SweepError<E: std::error::Error> {
    /// The database.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// A dead letter could not be kept; its event waits on.
    #[error("a dead letter was not kept: {0}")]
    Keep(#[source] E),
}

impl Store {
    /// Lets go all that can move at `now`, over all shards. `keeper` takes the dead letters of a transaction, and
    /// only then it commits. A shard that fails does not hold up the others; the first error is told.
    ///
    /// # Errors
    /// [`SweepError`]. What was not let go waits for the next sweep.
    pub async fn sweep<K: KeepLetters>(
        &self,
        now: Timestamp,
        keeper: &K,
    ) -> Result<Swept, (Swept, SweepError<K::Error>)> {
        let mut total = Swept::default();
        let mut first = None;
        for place in places(&self.routes()) {
            let swept = self.sweep_place(place, now, keeper, &mut total).await;
            first = first.or(swept.err());
        }
        match first {
            None => Ok(total),
            Some(error) => Err((total, error)),
        }
    }

    /// Whether a sweep at `now` would find nothing to do.
    ///
    /// # Errors
    /// [`SqlError`].
    pub async fn is_settled(&self, now: Timestamp) -> Result<bool, SqlError> {
        for place in places(&self.routes()) {
            if !self.movable(place, now).await?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn sweep_place<K: KeepLetters>(
        &self,
        place: Target,
        now: Timestamp,
        keeper: &K,
        total: &mut Swept,
    ) -> Result<(), SweepError<K::Error>> {
        loop {
            let mut moved = 0;
            for (target, users) in self.movable(place, now).await? {
                let staged = match self.stage_sweep(target, &users, now).await {
                    // Somebody else moves them.
                    Err(SqlError::SweptElsewhere { .. } | SqlError::Conflict { .. }) => continue,
                    staged => staged?,
                };
                let letters = &staged.report().letters;
                if !letters.is_empty() {
                    keeper.keep(letters).await.map_err(SweepError::Keep)?;
                }
                let report = staged.commit().await?;
                moved += report.released + report.letters.len();
                total.released += report.released;
                let expired = report
                    .letters
                    .iter()
                    .map(|letter| (letter.event.source, letter.reason));
                total.expired.extend(expired);
            }
            if moved == 0 {
                return Ok(());
            }
        }
    }

    /// Users with a queue that can move, by target.
    async fn movable(
        &self,
        place: Target,
        now: Timestamp,
    ) -> Result<Vec<(Target, Vec<Uuid>)>, SqlError> {
        let routes = self.routes();
        let session = lane_of(&routes, place)?.pool.get(place.shard()).await?;
        let statement = &session.statements.find_movable;
        let rows = session.client.query(statement, &[&now, &USERS_MAX]).await?;
        let mut movable: Vec<(Target, Vec<Uuid>)> = Vec::new();
        for user in rows.iter().map(|row| row.get(0)) {
            // Frozen: its rows move to another shard.
            let Some(target) = routes.target_of(user) else {
                continue;
            };
            match movable.iter_mut().find(|(known, _)| *known == target) {
                Some((_, users)) => users.push(user),
                None => movable.push((target, vec![user])),
            }
        }
        Ok(movable)
    }

    /// Writes what these users' queues let go. Where the database refuses a row, fewer are taken, until the guilty event
    /// stands alone and becomes a dead letter.
    async fn stage_sweep(
        &self,
        target: Target,
        mut users: &[Uuid],
        now: Timestamp,
    ) -> Result<Staged, SqlError> {
        let routes = self.routes();
        let lane = lane_of(&routes, target)?;
        let mut drain = Drain::SWEEP;
        loop {
            let work = Work {
                target,
                anchor: lane.anchor,
                records: &[],
                dead: &[],
                carried: &|_| Carried::default(),
                swept: Some(users),
                rules: Rules {
                    limits: self.limits(),
                    now,
                    drain,
                },
            };
            let session = lane.pool.get(target.shard()).await?;
            match stage(session, work).await {
                Err(error) if error.class() == ErrorClass::Data && !drain.refuse => {
                    tracing::warn!(
                        users = users.len(),
                        "the database refuses what waited: {error}"
                    );
                    if users.len() > 1 {
                        users = &users[..users.len() / 2];
                    } else if drain.steps_max > 1 {
                        drain.steps_max = 1;
                    } else {
                        drain.refuse = true;
                    }
                }
                staged => return staged.map_err(|error| self.explain(error, target)),
            }
        }
    }
}

/// Where to ask for all that waits. On Citus each node answers for the whole cluster.
fn places(routes: &Routes) -> Vec<Target> {
    let lanes = routes.databases().iter();
    lanes.map(|lane| lane.target).collect()
}

/// How often is swept.
#[derive(Debug, Clone, Copy)]
pub struct SweepTiming {
    /// From one sweep to the next, jittered by half.
    pub every: Duration,
    /// A sweep takes this share of the time at most: a long one is followed by a long pause.
    pub share_max: f64,
}

impl Default for SweepTiming {
    fn default() -> Self {
        SweepTiming {
            every: Duration::from_secs(1),
            share_max: 0.1,
        }
    }
}

/// Sweeps until `stop` is ready, and ends between two sweeps; dropped, it breaks off, and its transaction is rolled back.
/// `done` hears of each sweep that moved something.
pub async fn sweep_while<K: KeepLetters>(
    store: &Store,
    timing: SweepTiming,
    keeper: &K,
    stop: impl Future<Output = ()>,
    done: impl Fn(&Swept),
) {
    let mut stop = pin!(stop);
    let mut pause = timing.every;
    loop {
        let jitter = rand::rng().random_range(0.5..1.5);
        let stopped = tokio::time::timeout(pause.mul_f64(jitter), &mut stop).await;
        if stopped.is_ok() {
            return;
        }
        let began = tokio::time::Instant::now();
        let swept = match store.sweep(Timestamp::now(), keeper).await {
            Ok(swept) => swept,
            Err((swept, error)) => {
                tracing::warn!("parked events wait on: {error}");
                swept
            }
        };
        if swept != Swept::default() {
            done(&swept);
        }
        pause = timing.every.max(began.elapsed().div_f64(timing.share_max));
    }
}
