//! Workers of one group: what each gets, what a rebalance may lose, and a consumer that loses a partition.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use shardlane_domain::{Event, Source};
use shardlane_router::{Epoch, ShardId, SlotMap, TokenHash};
use shardlane_sql::Layout;
use shardlane_sql::testing::{TestDb, kafka, unique};
use shardlane_worker::{Stats, TopicSet, WorkerSettings};
use uuid::Uuid;

use crate::events::{order, partition_of, user, users_of, walks};
use crate::world::{PATIENCE, Ring, World, until, until_done};

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

const MANY: u32 = 32;

/// Partitions enough that one whose commit is refused has no next record at once.
async fn wide() -> Option<World> {
    let map = SlotMap::aligned(Epoch(1), TokenHash::Postgres, MANY, &[ShardId(0)]).unwrap();
    let ring = Ring {
        bootstrap: kafka().await?,
        topics: TopicSet::with_prefix(&unique("ring")),
        map,
    };
    ring.create(MANY).await;
    Some(World {
        db: TestDb::new(Layout::Single).await?,
        ring,
    })
}

/// Joins and leaves a group, again and again, until it is dropped.
struct Churn(Arc<AtomicBool>);

impl Churn {
    fn start(ring: &Ring, settings: &WorkerSettings) -> Churn {
        let stop = Arc::new(AtomicBool::new(false));
        let (bootstrap, group) = (ring.bootstrap.clone(), settings.group.clone());
        let (topic, stopped) = (ring.topics.dlq_of(Source::Orders), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                let consumer: BaseConsumer = ClientConfig::new()
                    .set("bootstrap.servers", &bootstrap)
                    .set("group.id", &group)
                    .set("partition.assignment.strategy", "cooperative-sticky")
                    .create()
                    .unwrap();
                // A topic that the workers do not consume: their partitions stay where they are.
                consumer.subscribe(&[&topic]).unwrap();
                for _ in 0..20 {
                    if !stopped.load(Ordering::Acquire) {
                        consumer.poll(Duration::from_millis(20));
                    }
                }
            }
        });
        Churn(stop)
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Sends one event after another until the broker refuses an offset commit, as it does while it gives out partitions.
/// Gives how many were sent.
async fn until_a_commit_is_refused(ring: &Ring, settings: &WorkerSettings, stats: &Stats) -> usize {
    let publisher = ring.publisher().await;
    let users: Vec<Uuid> = (0..i32::try_from(MANY).unwrap())
        .flat_map(|partition| users_of(&ring.map, partition, 1))
        .collect();
    let churn = Churn::start(ring, settings);
    let mut sent = 0;
    let deadline = Instant::now() + PATIENCE;
    while stats.counts().commit_failures == 0 {
        assert!(
            Instant::now() < deadline,
            "none is refused: {:?}",
            stats.counts()
        );
        let number = sent / users.len();
        // A few at a time, so that a partition whose commit is refused has no next record at once.
        for some in users.chunks(4) {
            let events = orders_of(some, number);
            try_join_all(events.iter().map(|event| publisher.publish(event)))
                .await
                .unwrap();
            sent += some.len();
            if stats.counts().commit_failures > 0 {
                break;
            }
        }
    }
    drop(churn);
    sent
}

fn quick(ring: &Ring) -> WorkerSettings {
    let mut settings = ring.settings("");
    settings.batch_linger = Duration::from_millis(1);
    settings
}

/// A commit that is refused while the group changes is not repeated by librdkafka, nor by a lane that has nothing to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_offset_commit_is_repeated_while_nothing_else_comes() {
    let Some(world) = wide().await else { return };
    let ring = &world.ring;
    let settings = quick(ring);
    let worker = world.start(settings.clone()).await;
    let stats = worker.stats();
    let sent = until_a_commit_is_refused(ring, &settings, &stats).await;
    until_done(&worker, sent).await;
    until_all_committed(ring, &settings).await;
    let counts = stats.counts();
    assert!(counts.commit_repeats > 0, "{counts:?}");
    assert_eq!(
        (counts.applied, counts.rebuilds),
        (sent as u64, 0),
        "{counts:?}"
    );
    worker.stop().await.unwrap();
}

/// The next owner begins where the last one ended, also if the last commit was refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_commits_what_was_refused_before() {
    let Some(world) = wide().await else { return };
    let ring = &world.ring;
    let mut settings = quick(ring);
    // Nothing else repeats it.
    settings.commit_repeat = Duration::from_secs(3_600);
    let worker = world.start(settings.clone()).await;
    let stats = worker.stats();
    let sent = until_a_commit_is_refused(ring, &settings, &stats).await;
    until_done(&worker, sent).await;
    let behind = ring.offsets(&settings);
    assert!(
        behind.values().any(|(committed, end)| committed < end),
        "a later commit hid the refused one"
    );
    worker.stop().await.unwrap();
    ring.everything_is_committed(&settings);
    assert_eq!(stats.counts().commit_repeats, 0);
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
    let users: Vec<Uuid> = (0..150).map(user).collect();
    let events = walks(users.iter().copied());
    ring.publish(&events).await;
    let mut running = vec![world.start(settings.clone()).await];
    let mut all: Vec<Arc<Stats>> = vec![running[0].stats()];
    for _ in 0..2 {
        let next = world.start(settings.clone()).await;
        let stats = next.stats();
        all.push(Arc::clone(&stats));
        running.push(next);
        until_assigned(&stats, 2).await;
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
        applied += counts.applied;
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
