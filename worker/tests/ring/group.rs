//! Workers of one group: what each gets, what a rebalance may lose, and a consumer that loses a partition.

use std::sync::Arc;
use std::time::Duration;

use shardlane_domain::{Event, Source};
use shardlane_sql::Layout;
use shardlane_worker::{Stats, WorkerSettings};
use uuid::Uuid;

use crate::events::{order, partition_of, user, walks};
use crate::world::{Ring, World, until, until_done};

/// Waits until a worker has so many partitions of each topic.
async fn until_assigned(stats: &Stats, each: usize) {
    until("partitions", async || {
        let assignment = stats.assignment();
        let counts: Vec<usize> = assignment.values().map(Vec::len).collect();
        let expected = vec![each; Source::ALL.len()];
        (counts == expected)
            .then_some(())
            .ok_or_else(|| format!("{assignment:?}"))
    })
    .await;
}

async fn until_all_committed(ring: &Ring, settings: &WorkerSettings) {
    until("all is committed", async || {
        let offsets = ring.offsets(settings);
        let done = offsets.values().all(|(committed, end)| committed == end);
        done.then_some(()).ok_or_else(|| format!("{offsets:?}"))
    })
    .await;
}

/// With one consumer for both topics the second worker would get all disputes and no order, and have nothing to do.
#[tokio::test(flavor = "multi_thread")]
async fn two_workers_share_each_topic() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    let settings = ring.settings("");
    let first = world.start(settings.clone()).await;
    until_assigned(&first.stats(), 4).await;
    let second = world.start(settings.clone()).await;
    until_assigned(&second.stats(), 2).await;
    until_assigned(&first.stats(), 2).await;
    let users: Vec<Uuid> = (0..60).map(user).collect();
    let created = |user: &Uuid| order(*user, "o1", "ord", "created", 1);
    ring.publish(&users.iter().map(created).collect::<Vec<_>>())
        .await;
    let in_database =
        async || -> i64 { world.ask("select count(*) from inbox").await.iter().sum() };
    until("all are applied", async || {
        let rows = in_database().await;
        (rows == 60).then_some(()).ok_or_else(|| rows.to_string())
    })
    .await;
    let (a, b) = (first.stats().counts(), second.stats().counts());
    let of = |stats: &Stats| {
        let own = &stats.assignment()[&ring.topics.of(Source::Orders)];
        let is_own = |user: &&Uuid| own.contains(&partition_of(&ring.map, **user));
        users.iter().filter(is_own).count() as u64
    };
    assert_eq!(
        (a.applied, b.applied),
        (of(&first.stats()), of(&second.stats()))
    );
    assert!(a.applied > 0 && b.applied > 0, "{a:?} {b:?}");
    until_all_committed(ring, &settings).await;
    first.stop().await.unwrap();
    second.stop().await.unwrap();
}

/// Batches under way are finished, and what they did is committed, before a partition changes hands: so the next owner
/// meets no record that is done.
#[tokio::test(flavor = "multi_thread")]
async fn workers_that_come_and_go_do_no_record_twice() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    world.slow_down(0.05).await;
    let mut settings = ring.settings("");
    settings.batch_rows_max = 5;
    let users: Vec<Uuid> = (0..180).map(user).collect();
    let events = walks(users.iter().copied());
    let mut waves = events.chunks(events.len() / 3);
    ring.publish(waves.next().unwrap()).await;
    let mut running = vec![world.start(settings.clone()).await];
    let mut all: Vec<Arc<Stats>> = vec![running[0].stats()];
    for _ in 0..2 {
        let next = world.start(settings.clone()).await;
        let stats = next.stats();
        all.push(Arc::clone(&stats));
        running.push(next);
        until_assigned(&stats, 2).await;
        ring.publish(waves.next().unwrap()).await;
        running.remove(0).stop().await.unwrap();
    }
    until("all are applied", async || {
        let rows: i64 = world.ask("select count(*) from inbox").await.iter().sum();
        (rows.unsigned_abs() == events.len() as u64)
            .then_some(())
            .ok_or_else(|| rows.to_string())
    })
    .await;
    until_all_committed(ring, &settings).await;
    for worker in running {
        worker.stop().await.unwrap();
    }
    let mut applied = 0;
    for stats in all {
        let counts = stats.counts();
        applied += counts.applied + counts.released;
        let again = [counts.fenced, counts.duplicates, counts.zombie_refusals];
        assert_eq!(again, [0; 3], "{counts:?}");
        assert!(counts.applied > 0, "{counts:?}");
    }
    assert_eq!(applied, events.len() as u64);
    world.has_walks_of(&users).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_members_restart_moves_no_partition() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    let named = |name: &str| {
        let mut settings = ring.settings("");
        settings.group_instance_id = Some(name.to_owned());
        settings
    };
    let first = world.start(named("first")).await;
    until_assigned(&first.stats(), 4).await;
    let second = world.start(named("second")).await;
    until_assigned(&second.stats(), 2).await;
    until_assigned(&first.stats(), 2).await;
    let (had, before) = (first.stats().assignment(), second.stats().counts());

    first.stop().await.unwrap();
    let users: Vec<Uuid> = (0..40).map(user).collect();
    let events = walks(users.iter().copied());
    ring.publish(&events).await;
    let again = world.start(named("first")).await;
    until_assigned(&again.stats(), 2).await;
    assert_eq!(again.stats().assignment(), had);
    until("all are applied", async || {
        let rows: i64 = world.ask("select count(*) from inbox").await.iter().sum();
        (rows == 240).then_some(()).ok_or_else(|| rows.to_string())
    })
    .await;
    let counts = second.stats().counts();
    assert_eq!(counts.rebalances, before.rebalances, "{counts:?}");
    assert!(counts.applied > 0, "{counts:?}");
    until_all_committed(ring, &named("first")).await;
    again.stop().await.unwrap();
    second.stop().await.unwrap();
    world.has_walks_of(&users).await;
}

fn orders_of(users: &[Uuid], number: usize) -> Vec<Event> {
    let status = if number == 0 { "created" } else { "updated" };
    let second = i64::try_from(number).unwrap();
    let next = |user: &Uuid| order(*user, &format!("e{number}"), "ord", status, second);
    users.iter().map(next).collect()
}

/// librdkafka forgets to fetch some partitions. Nothing tells so, but that their logs grow and no record comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_loses_its_partitions_is_made_anew() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    let mut settings = ring.settings("");
    settings.stall_max = Duration::from_secs(2);
    let worker = world.start(settings.clone()).await;
    let stats = worker.stats();
    until_assigned(&stats, 4).await;
    let users: Vec<Uuid> = (0..40).map(user).collect();
    ring.publish(&orders_of(&users, 0)).await;
    until_done(&worker, 40).await;

    worker
        .pause_unnoticed(&ring.topics.of(Source::Orders))
        .unwrap();
    ring.publish(&orders_of(&users, 1)).await;
    let counts = until_done(&worker, 80).await;
    assert_eq!(counts.rebuilds, 1, "{counts:?}");
    // The other topic's consumer was not at fault.
    until_assigned(&stats, 4).await;
    ring.publish(&orders_of(&users, 2)).await;
    let counts = until_done(&worker, 120).await;
    let clean = (counts.applied, counts.rebuilds, counts.fenced);
    assert_eq!(clean, (120, 1, 0), "{counts:?}");
    until_all_committed(ring, &settings).await;
    worker.stop().await.unwrap();
}
