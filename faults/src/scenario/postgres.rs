//! What happens to shards and to the connections that lead there.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{Outcome, Run, Stage};
use crate::oracle::Rules;
use crate::proxy::Proxy;

pub(super) async fn restart_fast(run: Run<'_>) -> anyhow::Result<Outcome> {
    restart(run, false).await
}

pub(super) async fn restart_immediate(run: Run<'_>) -> anyhow::Result<Outcome> {
    restart(run, true).await
}

async fn restart(run: Run<'_>, crash: bool) -> anyhow::Result<Outcome> {
    let mut stage = Stage::begin(run, "pg_restart", 2).await?;
    for strike in 0..run.sizes.strikes {
        let shard = strike % 2;
        stage.world.until_in_flight(shard).await?;
        if crash {
            run.lab.postgres[shard].kill().await?;
        }
        run.lab.postgres[shard].restart().await?;
        stage.recover().await?;
    }
    end_with_retries(
        stage,
        "transactions were open, and batches were tried again",
    )
    .await
}

/// The workers must have noticed.
async fn end_with_retries(mut stage: Stage<'_>, struck: &str) -> anyhow::Result<Outcome> {
    stage.dismiss().await?;
    let struck = format!("{struck}: {} retries", stage.retries);
    ensure!(
        stage.retries > 0 || stage.outcome.ended > 0,
        "no worker has noticed anything"
    );
    stage.crew = stage.world.crew(2).await?;
    stage.end(Rules::default(), &struck).await
}

pub(super) async fn terminated(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::begin(run, "terminated", 2).await?;
    let query = "select count(*) filter (where pg_terminate_backend(pid)) from pg_stat_activity \
                 where datname = current_database() and application_name like '%-w%' and backend_xid is not null";
    let mut ended = 0;
    for _ in 0..run.sizes.strikes * 10 {
        for shard in 0..2 {
            ended += stage
                .world
                .client(shard)
                .await?
                .query_one(query, &[])
                .await?
                .get::<_, i64>(0);
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    ensure!(ended > 0, "no backend was within a transaction");
    stage.recover().await?;
    end_with_retries(
        stage,
        &format!("{ended} backends ended within a transaction"),
    )
    .await
}

pub(super) async fn serialization(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::begin(run, "serialization", 2).await?;
    set(&stage, "default_transaction_isolation = 'serializable'").await?;
    let until = Instant::now() + run.sizes.between_changes * 2;
    while Instant::now() < until {
        // Reads what the workers write, and writes what they read.
        for shard in 0..2 {
            let rival = stage.world.client(shard).await?;
            rival
                .batch_execute(
                    "begin isolation level serializable; select count(*) from inbox; select count(*) from orders; \
                     update kafka_fence set epoch = epoch; commit",
                )
                .await
                .ok();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    reset(&stage).await?;
    stage.recover().await?;
    end_with_retries(stage, "serializable transactions failed").await
}

pub(super) async fn deadlock(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::begin(run, "deadlock", 2).await?;
    let deadlocks = async |stage: &Stage<'_>| {
        let mut sum = 0;
        for shard in 0..2 {
            let query = "select deadlocks from pg_stat_database where datname = current_database()";
            sum += stage
                .world
                .client(shard)
                .await?
                .query_one(query, &[])
                .await?
                .get::<_, i64>(0);
        }
        anyhow::Ok(sum)
    };
    let deadline = Instant::now() + crate::world::PATIENCE / 2;
    let wanted = i64::try_from(run.sizes.strikes)?;
    while deadlocks(&stage).await? < wanted {
        ensure!(Instant::now() < deadline, "nobody waits for the rival");
        for shard in 0..2 {
            // A worker comes from the inbox to the outbox.
            let rival = stage.world.client(shard).await?;
            let outbox_first = "begin; lock table outbox in share row exclusive mode; select pg_sleep(0.1); \
                                lock table inbox in share row exclusive mode; commit";
            if rival.batch_execute(outbox_first).await.is_err() {
                rival.batch_execute("rollback").await?;
            }
        }
    }
    let found = deadlocks(&stage).await?;
    stage.recover().await?;
    stage
        .end(
            Rules::default(),
            &format!("Postgres counts {found} deadlocks"),
        )
        .await
}

pub(super) async fn timeouts(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::begin(run, "timeouts", 2).await?;
    for setting in ["lock_timeout = '50ms'", "statement_timeout = '80ms'"] {
        set(&stage, setting).await?;
        for _ in 0..run.sizes.strikes {
            for shard in 0..2 {
                let rival = stage.world.client(shard).await?;
                rival
                    .batch_execute("set lock_timeout = '5s'; set statement_timeout = 0")
                    .await?;
                let hold =
                    "begin; lock table orders in exclusive mode; select pg_sleep(0.4); commit";
                rival.batch_execute(hold).await?;
            }
        }
        reset(&stage).await?;
    }
    stage.recover().await?;
    end_with_retries(stage, "statements were canceled").await
}

/// A setting for new sessions of the workers; those that are there are ended.
async fn set(stage: &Stage<'_>, setting: &str) -> anyhow::Result<()> {
    let name = stage.world.name();
    stage
        .world
        .execute(&format!("alter database {name} set {setting}"))
        .await?;
    end_sessions(stage).await
}

async fn reset(stage: &Stage<'_>) -> anyhow::Result<()> {
    let name = stage.world.name();
    stage
        .world
        .execute(&format!("alter database {name} reset all"))
        .await?;
    end_sessions(stage).await
}

const END_SESSIONS: &str = "select pg_terminate_backend(pid) from pg_stat_activity \
                            where datname = current_database() and pid <> pg_backend_pid()";

async fn end_sessions(stage: &Stage<'_>) -> anyhow::Result<()> {
    stage.world.execute(END_SESSIONS).await
}

pub(super) async fn shard_down(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::begin(run, "shard_down", 2).await?;
    stage.world.until_in_flight(1).await?;
    run.lab.postgres[1].kill().await?;
    let stood = the_other_goes_on(&mut stage, run.sizes.outage).await;
    run.lab.postgres[1].restart().await?;
    stood?;
    stage.recover().await?;
    stage
        .end(
            Rules::default(),
            "its transactions were open; the other shard went on",
        )
        .await
}

pub(super) async fn shard_slow(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::begin(run, "shard_slow", 2).await?;
    stage.world.until_in_flight(1).await?;
    stage
        .world
        .slow_down(&[1], Duration::from_millis(500))
        .await?;
    the_other_goes_on(&mut stage, run.sizes.outage / 3).await?;
    stage
        .world
        .slow_down(&[1], Duration::from_millis(15))
        .await?;
    stage.recover().await?;
    stage
        .end(
            Rules::default(),
            "its batches took 0.5 s; the other shard went on",
        )
        .await
}

/// For so long, every partition of shard 0 has less than two seconds of backlog.
async fn the_other_goes_on(stage: &mut Stage<'_>, long: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + long;
    while Instant::now() < until {
        let wanted = stage.world.ends()?;
        let began = Instant::now();
        loop {
            let (fences, committed) = (stage.world.fences().await?, stage.world.committed()?);
            let behind = wanted.iter().find(|((source, partition), end)| {
                stage.world.shard_of(*partition) == 0
                    && fences.get(&(*source, *partition)) < Some(end)
                    && committed.get(&(*source, *partition)) < Some(end)
            });
            let Some(behind) = behind else { break };
            stage.outcome.ended += stage.world.replace_ended(&mut stage.crew).await?;
            // A worker that ended for the sake of the other shard has to come back, which takes a session timeout.
            ensure!(
                began.elapsed() < Duration::from_secs(15),
                "the healthy shard stands still at {behind:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

pub(super) async fn shard_refuses(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::begin(run, "shard_refuses", 2).await?;
    stage.world.until_in_flight(1).await?;
    let rules = run.lab.postgres[1].directory().join("data/pg_hba.conf");
    let allowed = std::fs::read_to_string(&rules)?;
    let reject = format!(
        "host {} all 127.0.0.1/32 reject\n{allowed}",
        stage.world.name()
    );
    let (admin, connection) =
        tokio_postgres::connect(&run.lab.postgres[1].url("postgres"), tokio_postgres::NoTls)
            .await?;
    tokio::spawn(connection);
    let reload = async |text: &str| -> anyhow::Result<()> {
        std::fs::write(&rules, text)?;
        admin.batch_execute("select pg_reload_conf()").await?;
        Ok(())
    };
    reload(&reject).await?;
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1";
    admin.execute(end, &[&stage.world.name()]).await?;
    let stood = the_other_goes_on(&mut stage, run.sizes.outage / 3).await;
    reload(&allowed).await?;
    stood?;
    stage.recover().await?;
    stage
        .end(
            Rules::default(),
            "its transactions were open; the other shard went on",
        )
        .await
}

pub(super) async fn connections_cut(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::set(run, "connections_cut").await?;
    let proxy = Proxy::start(run.lab.postgres[0].port()).await?;
    let direct = format!(":{}/", run.lab.postgres[0].port());
    let by_proxy = format!(":{}/", proxy.port());
    stage.world.worker_urls[0] = stage.world.worker_urls[0].replace(&direct, &by_proxy);
    stage
        .world
        .slow_down(&[0, 1], Duration::from_millis(15))
        .await?;
    stage.crew = stage.world.crew(2).await?;
    let door = stage.world.door().await?;
    stage.send(&[door], crate::webhook::Mixture::USUAL);
    let mut cut = 0;
    for _ in 0..run.sizes.strikes {
        stage.world.until_in_flight(0).await?;
        cut += proxy.cut();
        let before = proxy.swallowed();
        proxy.swallow_commits(3);
        let swallowed = async || Ok(proxy.swallowed() >= before + 3);
        stage.world.until("commits to swallow", swallowed).await?;
        stage.recover().await?;
    }
    let swallowed = proxy.swallowed();
    end_with_retries(
        stage,
        &format!("{cut} connections cut, {swallowed} commits without an answer"),
    )
    .await
}
