//! What happens to worker processes.

use std::time::{Duration, Instant};

use anyhow::ensure;
use nix::sys::signal::Signal;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Outcome, Run, Stage};
use crate::oracle::Rules;
use crate::webhook::Mixture;
use crate::world::PATIENCE;

pub(super) async fn steady(run: Run<'_>) -> anyhow::Result<Outcome> {
    let stage = Stage::begin(run, "steady", 2).await?;
    // Whether the oracle can find a wrong shard, and not only the shard itself.
    stage.world.execute(DROP_SLOT_CHECKS).await?;
    stage.end(Rules::default(), "no fault").await
}

/// As a shard that was set up by hand would be.
const DROP_SLOT_CHECKS: &str = "do $$ declare c record; begin \
    for c in select conrelid::regclass as t, conname from pg_constraint where contype = 'c' and conname like '%owns_slot' \
    loop execute format('alter table %s drop constraint %I', c.t, c.conname); end loop; end $$";

pub(super) async fn kill(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::begin(run, "kill", 3).await?;
    for _ in 0..run.sizes.strikes {
        stage.world.stop_in_flight(&stage.crew[0]).await?;
        stage.kill(0).await?;
        let next = stage.world.spawn(&[])?;
        stage.crew.push(next);
        stage.recover().await?;
    }
    stage
        .end(
            Rules::default(),
            "its transaction was open while it stood still",
        )
        .await
}

pub(super) async fn kill_before_write(run: Run<'_>) -> anyhow::Result<Outcome> {
    kill_at(run, "before-write").await
}

pub(super) async fn kill_written(run: Run<'_>) -> anyhow::Result<Outcome> {
    kill_at(run, "written").await
}

pub(super) async fn kill_committed(run: Run<'_>) -> anyhow::Result<Outcome> {
    kill_at(run, "committed").await
}

async fn kill_at(run: Run<'_>, point: &str) -> anyhow::Result<Outcome> {
    let mut stage = Stage::begin(run, point, 1).await?;
    let mut rng = ChaCha8Rng::seed_from_u64(run.seed);
    for _ in 0..run.sizes.strikes {
        let times = rng.random_range(3..40);
        let armed = format!("{point}:{times}");
        let mut victim = stage.world.spawn(&[("SHARDLANE_POINT", &armed)])?;
        victim.started().await?;
        victim.at_point(PATIENCE).await?;
        victim.kill().await?;
        stage.outcome.kills += 1;
        stage.recover().await?;
    }
    stage
        .end(Rules::default(), "it said that it stood at the point")
        .await
}

pub(super) async fn kill_relayed(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::begin(run, "relayed", 1).await?;
    let mut rng = ChaCha8Rng::seed_from_u64(run.seed);
    stage.world.relay = true;
    for _ in 0..run.sizes.strikes {
        let armed = format!("relayed:{}", rng.random_range(1..10));
        let mut victim = stage.world.spawn(&[("SHARDLANE_POINT", &armed)])?;
        victim.started().await?;
        victim.at_point(PATIENCE).await?;
        victim.kill().await?;
        stage.outcome.kills += 1;
        stage.recover().await?;
    }
    let relaying = stage.world.spawn(&[])?;
    stage.crew.push(relaying);
    stage.finish_sending().await?;
    let empty = async || {
        let mut waiting = 0;
        for shard in 0..2 {
            let client = stage.world.client(shard).await?;
            let row = client.query_one("select count(*) from outbox", &[]).await?;
            waiting += row.get::<_, i64>(0);
        }
        Ok(waiting == 0)
    };
    stage.world.until("empty outboxes", empty).await?;
    let rules = Rules {
        relayed: true,
        ..Rules::default()
    };
    let struck = "it said that its batch was in the feed and not deleted";
    stage.end(rules, struck).await
}

/// After this a server has ended a transaction whose worker stands still, and the group has other owners.
const ABANDONED_MAX: Duration = Duration::from_secs(20);

pub(super) async fn zombie(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::begin(run, "zombie", 2).await?;
    stage.world.stop_in_flight(&stage.crew[0]).await?;
    let stopped = Instant::now();
    if run.sizes.stopped > ABANDONED_MAX {
        // Others take the partitions over although it holds their fences.
        stage.recover().await?;
        let recovery = stage.outcome.recovery.unwrap_or_default();
        ensure!(
            recovery < run.sizes.stopped,
            "nobody took over for {recovery:?}"
        );
    }
    tokio::time::sleep(run.sizes.stopped.saturating_sub(stopped.elapsed())).await;
    stage.crew[0].signal(Signal::SIGCONT)?;
    stage.recover().await?;
    stage
        .end(
            Rules::default(),
            "its transaction was open while it stood still",
        )
        .await
}

pub(super) async fn sigterm(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::set(run, "sigterm").await?;
    stage
        .world
        .slow_down(&[0, 1], Duration::from_millis(15))
        .await?;
    stage.crew = stage.world.crew(3).await?;
    let door = stage.world.door().await?;
    let http = door.clone().over_http().await?;
    stage.send(&[door, http], Mixture::USUAL);
    for _ in 0..run.sizes.strikes {
        stage.world.stop_in_flight(&stage.crew[0]).await?;
        let next = stage.world.spawn(&[])?;
        let leaving = std::mem::replace(&mut stage.crew[0], next);
        stage.crew.rotate_left(1);
        leaving.signal(Signal::SIGTERM)?;
        leaving.signal(Signal::SIGCONT)?;
        let counts = leaving.terminate().await?;
        stage.retries += counts["retries"].as_u64().unwrap_or(0);
        stage.recover().await?;
    }
    stage
        .end(
            Rules::default(),
            "its transaction was open when the signal came",
        )
        .await
}

pub(super) async fn joins_and_leaves(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::begin(run, "joins", 2).await?;
    let mut rng = ChaCha8Rng::seed_from_u64(run.seed);
    let mut leaving = Vec::new();
    for _ in 0..run.sizes.changes {
        stage.world.until_in_flight(rng.random_range(0..2)).await?;
        let join = match stage.crew.len() {
            ..=2 => true,
            8.. => false,
            _ => rng.random_bool(0.5),
        };
        if join {
            let joining = stage.world.spawn(&[])?;
            stage.crew.push(joining);
        } else {
            let index = rng.random_range(0..stage.crew.len());
            let mut member = stage.crew.swap_remove(index);
            leaving.push(tokio::spawn(async move {
                member.started().await?;
                member.terminate().await
            }));
        }
        tokio::time::sleep(run.sizes.between_changes).await;
    }
    for member in leaving {
        member.await??;
    }
    stage.recover().await?;
    stage
        .end(Rules::default(), "batches were under way at each change")
        .await
}
