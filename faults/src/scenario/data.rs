//! What is wrong with the events themselves.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use shardlane_router::{Epoch, PartitionId, RouteKey, Slot, SlotMap};

use super::{Outcome, Run, Stage};
use crate::door::{Answer, Door};
use crate::load::Sent;
use crate::oracle::Rules;
use crate::webhook::{Mixture, User, Webhook};

/// Every user's first webhooks, one user after the other by turns.
fn sequences(run: Run<'_>, mixture: Mixture, events: u64, users: u64) -> Vec<Webhook> {
    let mut users: Vec<User> = (0..users)
        .map(|number| User::new(run.seed, number, mixture))
        .collect();
    let mut webhooks = Vec::new();
    while (webhooks.len() as u64) < events {
        webhooks.extend(users.iter_mut().map(User::next_webhook));
    }
    for user in &mut users {
        while user.owes() {
            webhooks.push(user.next_webhook());
        }
    }
    webhooks
}

/// Sends in this order, and writes it down.
async fn send(stage: &mut Stage<'_>, door: &Door, webhooks: &[Webhook]) -> anyhow::Result<()> {
    door.send_all(webhooks).await?;
    stage.sent.extend(webhooks.iter().map(|webhook| Sent {
        webhook: webhook.clone(),
        answer: Answer::Ok,
    }));
    Ok(())
}

pub(super) async fn duplicates(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::set(run, "duplicates").await?;
    let mut webhooks = sequences(run, Mixture::USUAL, run.sizes.events / 5, run.sizes.users);
    let door = stage.world.door().await?;
    stage.crew = stage.world.crew(2).await?;
    send(&mut stage, &door, &webhooks).await?;
    let mut rng = ChaCha8Rng::seed_from_u64(run.seed);
    for _ in 0..2 {
        stage.drain().await?;
        stage.dismiss().await?;
        stage.crew = stage.world.crew(2).await?;
        for _ in 0..2 {
            webhooks.shuffle(&mut rng);
            send(&mut stage, &door, &webhooks).await?;
        }
    }
    stage
        .end(
            Rules::default(),
            "workers without a memory got each event again",
        )
        .await
}

pub(super) async fn other_body(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::set(run, "other_body").await?;
    let mixture = Mixture {
        other_body: 200,
        redelivered: 100,
        ..Mixture::USUAL
    };
    stage.crew = stage.world.crew(2).await?;
    let door = stage.world.door().await?;
    stage.send(&[door], mixture);
    stage
        .end(Rules::default(), "one in five came with another body")
        .await
}

pub(super) async fn early(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::set(run, "early").await?;
    let slow = std::time::Duration::from_millis(15);
    stage.world.slow_down(&[0, 1], slow).await?;
    stage.crew = stage.world.crew(2).await?;
    let mixture = Mixture {
        early: 250,
        ..Mixture::USUAL
    };
    let door = stage.world.door().await?;
    stage.send(&[door], mixture);
    for _ in 0..run.sizes.strikes.div_ceil(2) {
        stage.world.stop_in_flight(&stage.crew[0]).await?;
        stage.kill(0).await?;
        let next = stage.world.spawn(&[])?;
        stage.crew.push(next);
        stage.recover().await?;
    }
    let struck = "one in four came early, and its worker was killed within a transaction";
    stage.end(Rules::default(), struck).await
}

pub(super) async fn poison(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::set(run, "poison").await?;
    stage.world.shape.batch_rows_max = 5;
    stage.world.refuse_poison().await?;
    let good = sequences(run, Mixture::USUAL, run.sizes.events / 4, run.sizes.users);
    let bad = Mixture {
        garbage: 500,
        refused: 400,
        ..Mixture::PLAIN
    };
    let bad = sequences(
        Run {
            seed: run.seed + 1,
            ..run
        },
        bad,
        run.sizes.events / 4,
        run.sizes.users,
    );
    // A partition's backlog falls into batches of five: bad, good, bad, good, bad.
    let mut lanes: Vec<Vec<Webhook>> = Vec::new();
    let (mut good, mut bad) = (by_lane(&stage, good), by_lane(&stage, bad));
    for (good, bad) in good.iter_mut().zip(&mut bad) {
        let mut lane = Vec::new();
        while good.len() >= 2 && bad.len() >= 3 {
            for place in 0..5 {
                let from = if place % 2 == 0 {
                    &mut *bad
                } else {
                    &mut *good
                };
                lane.extend(from.pop());
            }
        }
        // What others may wait for.
        lane.extend(std::mem::take(good).into_iter().rev());
        lanes.push(lane);
    }
    let door = stage.world.door().await?.foreign();
    for lane in &lanes {
        send(&mut stage, &door, lane).await?;
    }
    stage.crew = stage.world.crew(2).await?;
    let rules = Rules {
        refuses: true,
        ..Rules::default()
    };
    stage
        .end(rules, "bad, good, bad, good, bad in batches of five")
        .await
}

/// By topic and partition, the first one last.
fn by_lane(stage: &Stage<'_>, webhooks: Vec<Webhook>) -> Vec<Vec<Webhook>> {
    let map = &stage.world.map;
    let count = usize::try_from(map.partition_count()).unwrap_or(1);
    let mut lanes: Vec<Vec<Webhook>> = (0..2 * count).map(|_| Vec::new()).collect();
    for webhook in webhooks.into_iter().rev() {
        let PartitionId(partition) = map.partition_for(&RouteKey::Uuid(webhook.user));
        let topic = usize::from(webhook.source.as_str() == "orders");
        lanes[topic * count + usize::try_from(partition).unwrap_or(0)].push(webhook);
    }
    lanes
}

pub(super) async fn hot_user(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::set(run, "hot_user").await?;
    stage.world.shape.batch_rows_max = 2_000;
    stage.crew = stage.world.crew(2).await?;
    let door = stage.world.door().await?;
    stage.send(std::slice::from_ref(&door), Mixture::USUAL);
    let hot = Run {
        seed: run.seed + 7,
        ..run
    };
    let webhooks = sequences(hot, Mixture::PLAIN, run.sizes.hot, 1);
    send(&mut stage, &door, &webhooks).await?;
    stage
        .end(
            Rules::default(),
            &format!("{} events of one user", run.sizes.hot),
        )
        .await
}

pub(super) async fn two_maps(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::begin(run, "two_maps", 2).await?;
    stage.world.aligned = false;
    let map = &stage.world.map;
    let count = i32::try_from(map.partition_count())?;
    let partitions: Vec<PartitionId> = Slot::all()
        .map(|slot| PartitionId((map.partition_of(slot).0 + 1) % count))
        .collect();
    let shards: Vec<_> = Slot::all().map(|slot| map.shard_of(slot)).collect();
    let other = SlotMap::from_tables(Epoch(2), map.hash(), &partitions, &shards)?;
    let timeout = std::time::Duration::from_secs(10);
    let foreign = Door::publisher(
        &stage.world.bootstrap(),
        &stage.world.topics,
        &other,
        timeout,
    )
    .await?;
    // Users of its own: nobody promises the order of one user's events by two maps.
    let seed = Run {
        seed: run.seed + 7,
        ..run
    };
    let webhooks = sequences(seed, Mixture::USUAL, run.sizes.events / 2, run.sizes.users);
    send(&mut stage, &foreign, &webhooks).await?;
    stage
        .end(
            Rules::default(),
            "half of the events lay in partitions of the other shard",
        )
        .await
}
