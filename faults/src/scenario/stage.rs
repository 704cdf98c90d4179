//! What most scenarios share: workers, senders, and the end at which the oracle is asked.

use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::{Outcome, Run};
use crate::crew::Member;
use crate::door::Door;
use crate::load::{Load, LoadSettings, Sent};
use crate::oracle::{Rules, Wrong, judge};
use crate::webhook::Mixture;
use crate::world::World;

/// A world with workers and senders.
pub struct Stage<'a> {
    /// The world.
    pub world: World<'a>,
    /// The workers.
    pub crew: Vec<Member>,
    /// The senders, while they send.
    pub load: Option<Load>,
    /// What was sent by the scenario itself.
    pub sent: Vec<Sent>,
    /// What the run has come to so far.
    pub outcome: Outcome,
    /// The sum of the counters of workers that ended in order.
    pub retries: u64,
    /// Where partitions stood still, if they did.
    stands_still: Option<String>,
    run: Run<'a>,
}

impl<'a> Stage<'a> {
    /// A world, without workers or senders.
    ///
    /// # Errors
    /// A server that does not answer.
    pub async fn set(run: Run<'a>, name: &str) -> anyhow::Result<Stage<'a>> {
        let mut world = World::new(run.lab, name).await?;
        if let Some(mutant) = run.mutant {
            world
                .environment
                .push(("SHARDLANE_MUTANT".to_owned(), mutant.to_owned()));
        }
        Ok(Stage {
            world,
            crew: Vec::new(),
            load: None,
            sent: Vec::new(),
            outcome: Outcome::default(),
            retries: 0,
            stands_still: None,
            run,
        })
    }

    /// A world with workers, and users who send what providers send. Batches take a little longer than they would, so that
    /// there is something to strike.
    ///
    /// # Errors
    /// A server that does not answer.
    pub async fn begin(run: Run<'a>, name: &str, workers: usize) -> anyhow::Result<Stage<'a>> {
        let mut stage = Stage::set(run, name).await?;
        stage
            .world
            .slow_down(&[0, 1], Duration::from_millis(15))
            .await?;
        stage.crew = stage.world.crew(workers).await?;
        let door = stage.world.door().await?;
        stage.send(&[door], Mixture::USUAL);
        Ok(stage)
    }

    /// Lets users send through these doors.
    pub fn send(&mut self, doors: &[Door], mixture: Mixture) {
        let settings = LoadSettings {
            seed: self.run.seed,
            users: self.run.sizes.users,
            rate: self.run.sizes.rate,
            mixture,
        };
        self.load = Some(Load::start(doors, settings));
    }

    /// Replaces a worker that is gone by a new one, and waits until every partition moves on.
    ///
    /// # Errors
    /// One stands still.
    pub async fn recover(&mut self) -> anyhow::Result<()> {
        let recovery = self.world.recovery(&mut self.crew).await?;
        self.outcome.recovery = self.outcome.recovery.max(Some(recovery));
        Ok(())
    }

    /// kill -9.
    ///
    /// # Errors
    /// The worker was gone before.
    pub async fn kill(&mut self, index: usize) -> anyhow::Result<()> {
        let killed = self.crew.swap_remove(index);
        killed.kill().await?;
        self.outcome.kills += 1;
        Ok(())
    }

    /// Ends all workers in order, and adds their counters up.
    ///
    /// # Errors
    /// One that does not end in order.
    pub async fn dismiss(&mut self) -> anyhow::Result<()> {
        for mut member in std::mem::take(&mut self.crew) {
            member
                .started()
                .await
                .context("a worker that should end had not begun")?;
            let counts = member.terminate().await?;
            self.retries += counts["retries"].as_u64().unwrap_or(0);
        }
        Ok(())
    }

    /// Stops the senders, and waits until all is quiet.
    ///
    /// # Errors
    /// A user who panicked, a worker that cannot be started.
    pub async fn finish_sending(&mut self) -> anyhow::Result<()> {
        if let Some(load) = self.load.take() {
            let mut sent = load.stop_at(self.run.sizes.events).await?;
            self.sent.append(&mut sent);
        }
        self.drain().await
    }

    /// Waits until all is quiet. A partition that stands still is a finding.
    ///
    /// # Errors
    /// A worker that cannot be started.
    pub async fn drain(&mut self) -> anyhow::Result<()> {
        let drained = self.world.drain(&mut self.crew).await?;
        self.outcome.ended += drained.ended;
        self.stands_still = self.stands_still.take().or(drained.stands_still);
        Ok(())
    }

    /// Stops the senders, waits until all is quiet, ends the workers, and asks the oracle.
    ///
    /// # Errors
    /// A worker that does not end in order.
    pub async fn end(mut self, rules: Rules, struck: &str) -> anyhow::Result<Outcome> {
        self.finish_sending().await?;
        self.dismiss().await?;
        self.outcome.verdict = judge(&self.world, &self.sent, rules).await?;
        if let Some(still) = self.stands_still.take() {
            self.outcome.verdict.add(Wrong::Lost, None, still);
        }
        struck.clone_into(&mut self.outcome.struck);
        let events = self.outcome.verdict.events;
        ensure!(events > 0, "nothing was sent");
        if self.outcome.verdict.findings.is_empty() {
            self.world.finish().await?;
        }
        Ok(self.outcome)
    }
}
