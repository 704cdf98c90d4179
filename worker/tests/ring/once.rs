//! Once, and in order: through replays, restarts and hand-overs.

use std::collections::BTreeSet;
use std::time::Duration;

use shardlane_domain::{Event, Source};
use shardlane_sql::Layout;
use uuid::Uuid;

use crate::events::{WALK, order_with_note, user, walks};
use crate::world::{World, until, until_counts, until_done};

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_changes_nothing_with_and_without_the_fence() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    let users: Vec<Uuid> = (0..50).map(user).collect();
    let events = walks(users.iter().copied());
    ring.publish(&events).await;
    let all = events.len() as u64;
    let worker = world.start(ring.settings("first")).await;
    let counts = until_done(&worker, events.len()).await;
    worker.stop().await.unwrap();
    assert_eq!(
        (
            counts.applied + counts.parked,
            counts.fenced,
            counts.duplicates
        ),
        (all, 0, 0),
        "{counts:?}"
    );
    let before = world.digest().await;
    assert_eq!(before.0["inbox"].0, i64::try_from(all).unwrap());

    let settings = ring.settings("second");
    let worker = world.start(settings.clone()).await;
    let counts = until_done(&worker, events.len()).await;
    worker.stop().await.unwrap();
    assert_eq!(
        (counts.applied, counts.fenced, counts.batches),
        (0, all, 0),
        "{counts:?}"
    );
    // By the fence that the lane read, before anything went to the database.
    assert_eq!(counts.zombie_refusals, 0, "{counts:?}");
    assert_eq!(world.digest().await, before);
    ring.everything_is_committed(&settings);

    // The fence is an optimisation; the inbox is the guarantee.
    world.execute("truncate kafka_fence").await;
    let settings = ring.settings("third");
    let worker = world.start(settings.clone()).await;
    let counts = until_done(&worker, events.len()).await;
    worker.stop().await.unwrap();
    assert_eq!(
        (counts.applied, counts.fenced, counts.duplicates),
        (0, 0, all),
        "{counts:?}"
    );
    assert_eq!(world.digest().await, before);
    ring.everything_is_committed(&settings);
    world.has_walks_of(&users).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_on_where_its_predecessor_stopped() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    let users: Vec<Uuid> = (0..60).map(user).collect();
    let events = walks(users.iter().copied());
    ring.publish(&events).await;
    world.slow_down(0.05).await;
    let mut settings = ring.settings("");
    settings.batch_rows_max = 7;
    let (mut done, mut applied, mut starts) = (0, 0, 0);
    while done < events.len() as u64 {
        let worker = world.start(settings.clone()).await;
        let (stats, more) = (worker.stats(), (events.len() as u64 - done).min(40));
        until_counts(&stats, "some more", |counts| counts.done >= more).await;
        worker.stop().await.unwrap();
        let counts = stats.counts();
        // A stop that is in order leaves nothing to be done again.
        assert_eq!(
            (counts.fenced, counts.duplicates, counts.stale),
            (0, 0, 0),
            "{counts:?}"
        );
        done += counts.done;
        applied += counts.applied + counts.parked;
        starts += 1;
        let offsets = ring.offsets(&settings);
        let committed: i64 = offsets.values().map(|(committed, _)| committed).sum();
        assert_eq!(committed.unsigned_abs(), done, "{offsets:?}");
    }
    assert!(starts >= 3, "one of {starts} workers did nearly all");
    assert_eq!((done, applied), (events.len() as u64, events.len() as u64));
    world.has_walks_of(&users).await;
    ring.everything_is_committed(&settings);
}

/// What is lost at the worst moment: the database has committed, Kafka has not. As after a `kill -9`.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_commit_of_offsets_is_made_good_by_the_fence() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    let users: Vec<Uuid> = (0..40).map(user).collect();
    let events = walks(users.iter().copied());
    ring.publish(&events).await;
    world.slow_down(0.05).await;
    let mut settings = ring.settings("killed");
    settings.batch_rows_max = 7;
    let worker = world.start(settings.clone()).await;
    until_done(&worker, 50).await;
    worker.stop().await.unwrap();
    // Another group has no offsets at all, and the database has some of the events.
    let before: i64 = world.ask("select count(*) from inbox").await.iter().sum();
    assert!((50..240).contains(&before), "{before}");
    settings.group.push_str("again");
    let worker = world.start(settings.clone()).await;
    let counts = until_done(&worker, events.len()).await;
    worker.stop().await.unwrap();
    assert_eq!(counts.fenced, before.unsigned_abs(), "{counts:?}");
    let taken = counts.applied + counts.parked;
    assert_eq!(taken, 240 - before.unsigned_abs(), "{counts:?}");
    world.has_walks_of(&users).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_share_and_one_takes_over() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let Some(undisturbed) = World::new(Layout::Shards).await else {
        return;
    };
    let users: Vec<Uuid> = (0..150).map(user).collect();
    let events = walks(users.iter().copied());
    let third = |n: usize| &events[n * 50 * WALK..(n + 1) * 50 * WALK];
    let ring = &world.ring;
    let mut settings = ring.settings("");
    settings.batch_rows_max = 20;
    world.slow_down(0.05).await;

    let first = world.start(settings.clone()).await;
    ring.publish(third(0)).await;
    until_done(&first, 10).await;
    // Joins while the first is at work: partitions are taken from it with batches under way.
    let second = world.start(settings.clone()).await;
    let (of_first, of_second) = (first.stats(), second.stats());
    let mut sent: Vec<Event> = third(0).to_vec();
    ring.publish(third(1)).await;
    sent.extend_from_slice(third(1));
    // A new member waits for the others' heartbeats; whatever comes until it has a share goes to the first.
    until("the second worker's share", async || {
        let counts = of_second.counts();
        if counts.done > 0 {
            return Ok(());
        }
        let more = walks([user(1_000 + sent.len())]);
        ring.publish(&more).await;
        sent.extend(more);
        Err(format!("{counts:?}"))
    })
    .await;
    let in_database =
        async |world: &World| -> i64 { world.ask("select count(*) from inbox").await.iter().sum() };
    until("all of it is applied", async || {
        let rows = in_database(&world).await;
        if rows.unsigned_abs() == sent.len() as u64 {
            Ok(())
        } else {
            Err(format!("{rows} rows"))
        }
    })
    .await;
    let before = (of_first.counts().done, of_second.counts().done);
    // The first leaves in the middle of the last third.
    sent.extend_from_slice(third(2));
    let ((), ()) = tokio::join!(ring.publish(third(2)), async {
        until_counts(&of_first, "the first goes on", |counts| {
            counts.done > before.0
        })
        .await;
        first.stop().await.unwrap();
    });
    until("the second has taken over", async || {
        let rows = in_database(&world).await;
        if rows.unsigned_abs() == sent.len() as u64 {
            Ok(())
        } else {
            Err(format!("{rows} rows, {:?}", of_second.counts()))
        }
    })
    .await;
    until("all is committed", async || {
        let offsets = ring.offsets(&settings);
        if offsets.values().all(|(committed, end)| committed == end) {
            Ok(())
        } else {
            Err(format!("{offsets:?}"))
        }
    })
    .await;
    second.stop().await.unwrap();
    let (a, b) = (of_first.counts(), of_second.counts());
    assert!(a.done > 0 && b.done > before.1, "{a:?} {b:?}");
    let taken = a.applied + a.parked + b.applied + b.parked;
    assert_eq!(taken, sent.len() as u64, "{a:?} {b:?}");
    assert_eq!(
        (a.stale, b.stale, a.duplicates, b.duplicates),
        (0, 0, 0, 0),
        "{a:?} {b:?}"
    );
    let users: BTreeSet<Uuid> = sent.iter().map(|event| event.user_id).collect();
    world
        .has_walks_of(&users.into_iter().collect::<Vec<_>>())
        .await;

    undisturbed.ring.publish(&sent).await;
    let worker = undisturbed.start(undisturbed.ring.settings("")).await;
    until_done(&worker, sent.len()).await;
    worker.stop().await.unwrap();
    assert_eq!(world.digest().await, undisturbed.digest().await);
}

/// More records than lanes and their queues hold: the client fetches again and again, and nothing is skipped.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_lane_lets_its_queue_fill_and_goes_on() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    let users: Vec<Uuid> = (0..100).map(user).collect();
    let events = walks(users.iter().copied());
    ring.publish(&events).await;
    world.slow_down(0.3).await;
    let mut settings = ring.settings("");
    settings.batch_rows_max = 8;
    // The least that there is: less than half of a partition's records.
    settings.fetch_ahead_bytes_max = 0;
    let worker = world.start(settings.clone()).await;
    let counts = until_done(&worker, events.len()).await;
    worker.stop().await.unwrap();
    let taken = counts.applied + counts.parked;
    assert_eq!((taken, counts.done), (600, 600), "{counts:?}");
    world.has_walks_of(&users).await;
    ring.everything_is_committed(&settings);
}

/// A transaction that hangs: the stop is bounded, and the partitions are free for the next worker.
#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_database_does_not_hold_up_a_stop() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    let users: Vec<Uuid> = (0..20).map(user).collect();
    let events = walks(users.iter().copied());
    let mut settings = ring.settings("");
    settings.drain_max = std::time::Duration::from_millis(500);
    let worker = world.start(settings.clone()).await;
    let mut lockers = Vec::new();
    for index in 0..2 {
        let locker = world.db.client(index).await;
        locker
            .batch_execute("begin; lock table inbox in access exclusive mode")
            .await
            .unwrap();
        lockers.push(locker);
    }
    ring.publish(&events).await;
    until("a batch hangs", async || {
        let query = "select count(*) from pg_locks where not granted and database = \
                     (select oid from pg_database where datname = current_database())";
        // Not through `inbox`, which is locked.
        let waiting: i64 = world.ask(query).await.iter().sum();
        if waiting > 0 {
            Ok(())
        } else {
            Err(format!("{waiting} wait"))
        }
    })
    .await;
    let stopping = std::time::Instant::now();
    worker.stop().await.unwrap();
    let took = stopping.elapsed();
    assert!(took < std::time::Duration::from_secs(15), "{took:?}");
    drop(lockers);
    let next = world.start(settings.clone()).await;
    until_done(&next, events.len()).await;
    next.stop().await.unwrap();
    world.has_walks_of(&users).await;
    ring.everything_is_committed(&settings);
}

/// A slow transaction is finished, and its offset committed, before the worker ends: nothing is left to do again.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_drains_what_a_slow_shard_is_at() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    let users: Vec<Uuid> = (0..40).map(user).collect();
    let events = walks(users.iter().copied());
    world.slow_down(1.5).await;
    let mut settings = ring.settings("");
    settings.batch_rows_max = 10;
    let worker = world.start(settings.clone()).await;
    ring.publish(&events).await;
    // What pg_sleep holds has not committed.
    let asleep = "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'";
    until("a batch is under way on each shard", async || {
        let asleep = world.ask(asleep).await;
        (asleep.iter().all(|count| *count > 0))
            .then_some(())
            .ok_or_else(|| format!("{asleep:?}"))
    })
    .await;
    let (stats, stopping) = (worker.stats(), std::time::Instant::now());
    worker.stop().await.unwrap();
    let took = stopping.elapsed();
    assert!(took < settings.drain_max, "{took:?}");
    let rows: i64 = world.ask("select count(*) from inbox").await.iter().sum();
    let committed: i64 = ring.offsets(&settings).values().map(|it| it.0).sum();
    let counts = stats.counts();
    assert!(counts.done > 0 && counts.done < 240, "{counts:?}");
    assert_eq!((rows, committed), (committed, counts.done.cast_signed()));
}

/// What lanes hold is bounded by bytes, whatever the records' number and length.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_in_flight_are_bounded_over_all_lanes() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    let ring = &world.ring;
    let mut settings = ring.settings("");
    settings.in_flight_bytes_max = 1024 * 1024;
    // A lane's first batch is not over before it is full.
    settings.batch_linger = Duration::from_secs(3);
    let worker = world.start(settings.clone()).await;
    let stats = worker.stats();
    let mut lockers = Vec::new();
    for index in 0..2 {
        let locker = world.db.client(index).await;
        locker
            .batch_execute("begin; lock table inbox in access exclusive mode")
            .await
            .unwrap();
        lockers.push(locker);
    }
    let users: Vec<Uuid> = (0..100).map(user).collect();
    let mut sent = 0;
    let publisher = ring.publisher().await;
    for number in 0..10 {
        let status = if number == 0 { "created" } else { "updated" };
        let sends = users.iter().map(async |user| {
            let event = order_with_note(*user, &format!("e{number}"), status, number, 8 * 1024);
            publisher.publish(&event).await.unwrap();
        });
        sent += futures_util::future::join_all(sends).await.len();
    }
    // Half is for those that come first, and is taken.
    until("lanes are full", async || {
        let (now, _) = stats.in_flight_bytes();
        let full = now >= settings.in_flight_bytes_max / 2;
        full.then_some(()).ok_or_else(|| now.to_string())
    })
    .await;
    // Each of the lanes may end with a record that goes beyond it.
    let lanes = Source::ALL.len() * ring.map.partition_count() as usize;
    let most = settings.in_flight_bytes_max + lanes * 12 * 1024;
    let (_, peak) = stats.in_flight_bytes();
    assert!(peak <= most, "{peak}");
    drop(lockers);
    let counts = until_done(&worker, sent).await;
    assert_eq!(counts.applied, sent as u64, "{counts:?}");
    until("all is let go", async || {
        let (now, _) = stats.in_flight_bytes();
        (now == 0).then_some(()).ok_or_else(|| now.to_string())
    })
    .await;
    let (_, peak) = stats.in_flight_bytes();
    assert!(peak <= most, "{peak}");
    worker.stop().await.unwrap();
    ring.everything_is_committed(&settings);
}
