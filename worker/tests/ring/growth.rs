//! Partitions grow under load: nothing is lost, nothing is taken twice, and each user's order is kept.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use shardlane_router::{Epoch, SlotMap};
use shardlane_sql::Layout;
use shardlane_worker::{
    GrowthError, GrowthOutcome, GrowthSettings, GrowthStep, MapDocument, MapTiming, PublishError,
    Worker, WorkerSettings, abort_growth, grow, read_map,
};

use crate::events::{order, partition_of, user};
use crate::storm::{Storm, TIMING, log_is_in_order};
use crate::world::{Ring, World, until, until_counts, until_done};

const USERS: usize = 24;

pub(crate) async fn document(ring: &Ring) -> MapDocument {
    read_map(&ring.bootstrap, &ring.topics)
        .await
        .unwrap()
        .unwrap()
}

/// A worker that counts by the map's topic.
pub(crate) async fn watching(world: &World, mut settings: WorkerSettings) -> Worker {
    let (_, watch) = world.ring.follower().await;
    settings.map = watch.into();
    world.start(settings).await
}

/// A user whose slot moves on the way to `partitions`.
pub(crate) fn moving_user(map: &SlotMap, partitions: u32) -> uuid::Uuid {
    let next = map.plan_partitions(partitions).unwrap().map;
    (0..)
        .map(user)
        .find(|user| partition_of(map, *user) != partition_of(&next, *user))
        .unwrap()
}

/// Waits until all that was sent is applied, and holds it against the oracle.
async fn check(world: &World, worker: Worker, storm: Storm, settings: &WorkerSettings) {
    let sent = storm.stop().await;
    let total: usize = sent.values().sum();
    let counts = until_counts(&worker.stats(), "all is applied", |counts| {
        counts.applied + counts.stale + counts.parked >= total as u64
    })
    .await;
    worker.stop().await.unwrap();
    let disorder = [
        counts.stale,
        counts.parked,
        counts.illegal,
        counts.malformed,
    ];
    assert_eq!(disorder, [0; 4], "{counts:?}");
    world.has_all_in_order(&sent).await;
    let grown = document(&world.ring).await;
    assert_eq!(grown.frozen(), []);
    let moved = log_is_in_order(&world.ring, &world.ring.map, grown.map());
    assert!(moved > 3, "{moved} of {USERS} users have moved");
    let grown = world.ring.under(grown.map().clone());
    until("the last offsets are committed", async || {
        let offsets = grown.offsets(settings);
        let done = offsets.values().all(|(committed, end)| committed == end);
        if done {
            Ok(())
        } else {
            Err(format!("{offsets:?}"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_each_users_order_is_kept() {
    let Some(world) = World::new(Layout::Shards).await else {
        return;
    };
    world.ring.create_map().await;
    // A worker that lags behind: what is not waited for would be overtaken.
    world.slow_down(0.1).await;
    let mut settings = world.ring.settings("");
    settings.batch_rows_max = 20;
    let worker = watching(&world, settings.clone()).await;
    // A long lease: whoever did not wait for its end would see the last publisher misplace.
    let timing = MapTiming {
        lease: Duration::from_secs(4),
        ..TIMING
    };
    let mut publishers = Vec::new();
    let mut watches = Vec::new();
    for _ in 0..3 {
        let (publisher, watch) = world.ring.follower_with(timing).await;
        publishers.push(publisher);
        watches.push(watch);
    }
    let storm = Storm::start(&publishers, USERS);
    until_done(&worker, 200).await;
    let mut steps = Vec::new();
    let mut growth = world.ring.growth(&settings);
    growth.timing = timing;
    let outcome = grow(&growth, 6, |step| {
        // The last publisher hears nothing of what is coming.
        if matches!(step, GrowthStep::Assigned { .. }) {
            watches[2].stop();
        }
        steps.push(step.clone());
    })
    .await
    .unwrap();
    assert_eq!(outcome, GrowthOutcome::Grown { epoch: Epoch(3) });
    let group = settings.group.clone();
    assert!(
        steps.contains(&GrowthStep::Assigned { group, now: true }),
        "{steps:?}"
    );
    let after = worker.stats().counts().done;
    until_done(&worker, usize::try_from(after).unwrap() + 500).await;

    let (stats, refusals) = (worker.stats(), Arc::clone(&storm.refusals));
    check(&world, worker, storm, &settings).await;
    // What nobody acknowledged may come late, and lie where the old map wants it; see decision 7.
    let unacknowledged: u64 = refusals
        .iter()
        .map(|of| of.late.load(Ordering::Relaxed) + of.unknown.load(Ordering::Relaxed))
        .sum();
    let misrouted = stats.counts().misrouted;
    assert!(
        misrouted <= unacknowledged,
        "{misrouted} misrouted: {refusals:?}"
    );
    let refused = &refusals[2];
    assert!(refused.lease.load(Ordering::Relaxed) > 0, "{refused:?}");
    assert_eq!(watches[2].snapshot().document.map().epoch(), Epoch(1));
    for watch in &watches[..2] {
        let snapshot = watch.snapshot();
        assert_eq!(snapshot.document.map().epoch(), Epoch(3));
        assert_eq!(snapshot.document.map().partition_count(), 6);
    }
}

/// Grows, and dies at the moment at which `deadly` is told. Gives whether it did.
pub(crate) async fn dies_at(settings: &GrowthSettings, deadly: fn(&GrowthStep) -> bool) -> bool {
    let settings = settings.clone();
    let growth = async move {
        let mut progress = |step: &GrowthStep| assert!(!deadly(step), "killed at {step:?}");
        grow(&settings, 6, &mut progress).await
    };
    let ended = tokio::spawn(growth).await;
    ended.is_err_and(|error| error.is_panic())
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_each_step_it_is_finished_by_the_next_run() {
    let Some(world) = World::new(Layout::Single).await else {
        return;
    };
    let ring = &world.ring;
    ring.create_map().await;
    let settings = ring.settings("");
    let growth = ring.growth(&settings);
    let worker = watching(&world, settings.clone()).await;
    let (one, _) = ring.follower().await;
    let (two, _) = ring.follower().await;
    let storm = Storm::start(&[one, two], USERS);
    until_done(&worker, 200).await;

    let before_the_freeze: [fn(&GrowthStep) -> bool; 3] = [
        |step| matches!(step, GrowthStep::Planned { .. }),
        |step| matches!(step, GrowthStep::PartitionsAdded),
        |step| matches!(step, GrowthStep::Assigned { .. }),
    ];
    for deadly in before_the_freeze {
        assert!(dies_at(&growth, deadly).await);
        let document = document(ring).await;
        assert_eq!(
            (document.map().epoch(), document.frozen()),
            (Epoch(1), &[][..])
        );
    }
    let after_it: [fn(&GrowthStep) -> bool; 4] = [
        |step| matches!(step, GrowthStep::Frozen { .. }),
        |step| matches!(step, GrowthStep::Planned { resumed: true, .. }),
        |step| matches!(step, GrowthStep::Settled),
        |step| matches!(step, GrowthStep::Drained),
    ];
    for deadly in after_it {
        assert!(dies_at(&growth, deadly).await);
        let document = document(ring).await;
        assert_eq!(document.map().epoch(), Epoch(2));
        assert_eq!(document.next().unwrap().partition_count(), 6);
    }
    let other = grow(&growth, 8, |_| {}).await.unwrap_err();
    assert!(
        matches!(other, GrowthError::UnderWay { under_way: 6, .. }),
        "{other:?}"
    );
    assert!(other.to_string().contains("--abort"), "{other}");

    let outcome = grow(&growth, 6, |_| {}).await.unwrap();
    assert_eq!(outcome, GrowthOutcome::Grown { epoch: Epoch(3) });
    let done = usize::try_from(worker.stats().counts().done).unwrap();
    until_done(&worker, done + 300).await;
    check(&world, worker, storm, &settings).await;
    let again = grow(&growth, 6, |_| {}).await.unwrap_err();
    let sentence = again.to_string();
    assert!(
        sentence.contains("has 6 partitions") && sentence.contains("6 is not more"),
        "{sentence}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_growth_leaves_the_old_partitions_in_force() {
    let Some(world) = World::new(Layout::Single).await else {
        return;
    };
    let ring = &world.ring;
    ring.create_map().await;
    let settings = ring.settings("");
    let growth = ring.growth(&settings);
    let (publisher, watch) = ring.follower().await;
    assert_eq!(abort_growth(&growth).await.unwrap(), None);
    assert!(dies_at(&growth, |step| matches!(step, GrowthStep::Frozen { .. })).await);
    watch.newer_than(Epoch(1)).await;

    let moving = moving_user(&ring.map, 6);
    let created = order(moving, "e0", "ord", "created", 0);
    let error = publisher.publish(&created).await.unwrap_err();
    assert!(
        matches!(
            error,
            PublishError::Frozen {
                epoch: Epoch(2),
                ..
            }
        ),
        "{error:?}"
    );
    let waiting = tokio::spawn({
        let (publisher, created) = (publisher.clone(), created.clone());
        async move { publisher.publish(&created).await }
    });
    // Others are not held up.
    let next = ring.map.plan_partitions(6).unwrap().map;
    let staying = (0..)
        .map(user)
        .find(|user| partition_of(&ring.map, *user) == partition_of(&next, *user));
    let other = order(staying.unwrap(), "e0", "ord", "created", 0);
    publisher.publish(&other).await.unwrap();
    // It waits as long as it may; whether the abort is quicker is its luck.
    waiting.await.unwrap().ok();

    assert_eq!(abort_growth(&growth).await.unwrap(), Some(Epoch(3)));
    assert_eq!(abort_growth(&growth).await.unwrap(), None);
    watch.newer_than(Epoch(2)).await;
    let published = publisher.publish(&created).await.unwrap();
    assert_eq!(published.partition, partition_of(&ring.map, moving));
    // The partitions that were added are there, and a worker does not mind.
    let worker = watching(&world, settings).await;
    until_counts(&worker.stats(), "both orders", |counts| counts.applied == 2).await;
    worker.stop().await.unwrap();
    // Now to another number.
    let outcome = grow(&growth, 5, |_| {}).await.unwrap();
    assert_eq!(outcome, GrowthOutcome::Grown { epoch: Epoch(5) });
}
