//! Slots move between manual shards under workers whose partitions hold moved and unmoved slots alike.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use shardlane_domain::Source;
use shardlane_router::{Epoch, RouteKey, ShardId, SlotMap, TokenHash};
use shardlane_sql::reshard::{Change, Plan, Reshard, ReshardError, ReshardOptions, Step};
use shardlane_sql::testing::load::nothing_is_left;
use shardlane_sql::testing::{TestDb, kafka, spare_database, test_map, unique};
use shardlane_sql::{Backend, Layout, Store, StoreOptions, digest};
use shardlane_worker::{Counts, TopicSet, Worker, WorkerSettings};
use tokio_postgres::NoTls;
use uuid::Uuid;

use crate::events::{order, partition_of, user};
use crate::storm::{Storm, all_in_order};
use crate::world::{Ring, World, until, until_counts, until_done};

const USERS: usize = 24;

/// No multiple of any number of shards.
const PARTITIONS: u32 = 5;

/// Two shards and a database that joins them, behind partitions that fit neither two shards nor three.
pub(crate) struct Ground {
    pub(crate) world: World,
    spare: String,
}

impl Ground {
    pub(crate) async fn new() -> Option<Ground> {
        let shards = [ShardId(0), ShardId(1)];
        let ring = Ring {
            bootstrap: kafka().await?,
            topics: TopicSet::with_prefix(&unique("ring")),
            map: SlotMap::aligned(Epoch(1), TokenHash::Postgres, PARTITIONS, &shards).unwrap(),
        };
        ring.create(PARTITIONS).await;
        let db = TestDb::new(Layout::Shards).await?;
        Some(Ground {
            world: World { db, ring },
            spare: spare_database().await?,
        })
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        [self.world.db.urls(), std::slice::from_ref(&self.spare)].concat()
    }

    pub(crate) async fn reshard(&self) -> Reshard {
        let urls = self.world.db.urls();
        Reshard::connect(urls, test_map(), ReshardOptions::default())
            .await
            .unwrap()
    }

    pub(crate) fn grow(&self) -> Change {
        Change {
            add: vec![self.spare.clone()],
            ..Change::default()
        }
    }

    /// Grows, and dies when all that moves is frozen. Gives what was planned.
    async fn is_frozen(&self) -> Plan {
        let (mut reshard, change) = (self.reshard().await, self.grow());
        let plan = reshard.plan(&change).await.unwrap();
        let dies = tokio::spawn(async move {
            let progress =
                |step, _, _| assert!(!matches!(step, Step::Drain { .. }), "killed at {step}");
            reshard.run(&change, progress).await
        });
        assert!(dies.await.is_err_and(|error| error.is_panic()));
        plan
    }

    /// Goes on; whoever was killed may hold its lock for a moment longer.
    async fn finish(&self) {
        until("the reshard goes on", async || {
            match self.reshard().await.run(&Change::default(), print).await {
                Err(ReshardError::Busy) => Err("busy".to_owned()),
                other => Ok(other.unwrap()),
            }
        })
        .await;
    }

    /// How many events of a user are applied, on whatever shard.
    pub(crate) async fn applied(&self, user: Uuid) -> i64 {
        let mut applied = 0;
        for url in self.urls() {
            let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
            tokio::spawn(connection);
            let query = "select max(version) from orders where user_id = $1";
            // The database that is to join has no table yet.
            if let Ok(row) = client.query_one(query, &[&user]).await {
                applied = applied.max(row.get::<_, Option<i64>>(0).unwrap_or(0));
            }
        }
        applied
    }

    pub(crate) async fn until_applied(&self, user: Uuid, count: i64) {
        until("the user's events are applied", async || {
            let applied = self.applied(user).await;
            (applied >= count)
                .then_some(())
                .ok_or_else(|| format!("{applied} of {count}"))
        })
        .await;
    }

    /// All that was sent is there once and in order, offsets are at the end, and the shards hold what one Postgres holds
    /// that a worker fills from the same log while nothing moves.
    async fn check(&self, sent: &BTreeMap<Uuid, usize>, settings: &WorkerSettings) {
        let ring = &self.world.ring;
        until("the last offsets are committed", async || {
            let offsets = ring.offsets(settings);
            let done = offsets.values().all(|(committed, end)| committed == end);
            done.then_some(()).ok_or_else(|| format!("{offsets:?}"))
        })
        .await;
        all_in_order(&self.urls(), sent).await;
        let undisturbed = TestDb::new(Layout::Single).await.unwrap();
        let store = undisturbed.store().await;
        let worker = Worker::start(ring.settings("undisturbed"), store);
        let worker = worker.await.unwrap();
        until_done(&worker, sent.values().sum()).await;
        worker.stop().await.unwrap();
        let ours = digest(&self.urls()).await.unwrap();
        assert_eq!(ours, digest(undisturbed.urls()).await.unwrap());
        nothing_is_left(&self.urls()).await;
        for source in Source::ALL {
            let dead = format!("{}.DLQ", ring.topics.of(*source));
            assert_eq!(ring.read(&dead), [], "{dead}");
        }
    }
}

pub(crate) fn print(step: Step, number: usize, steps: usize) {
    println!("{number}/{steps} {step}");
}

fn no_disorder(counts: &Counts) {
    let disorder = [
        counts.stale,
        counts.parked,
        counts.illegal,
        counts.malformed,
    ];
    assert_eq!(disorder, [0; 4], "{counts:?}");
}

/// Two users of one partition: one whose slot moves, and one whose slot stays.
fn moved_and_unmoved(ring: &Ring, plan: &Plan) -> (Uuid, Uuid) {
    let moves = |user: &Uuid| {
        let slot = TokenHash::Postgres.token(&RouteKey::Uuid(*user)).slot();
        plan.moves.iter().any(|moved| moved.slots.contains(slot))
    };
    let moved = (0..).map(user).find(|user| {
        moves(user) && {
            let partition = partition_of(&ring.map, *user);
            partition == 1
        }
    });
    let moved = moved.unwrap();
    let same = |user: &Uuid| partition_of(&ring.map, *user) == partition_of(&ring.map, moved);
    let unmoved = (0..).map(user).find(|user| same(user) && !moves(user));
    (moved, unmoved.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_grow_and_shrink_under_workers_new_and_old() {
    let Some(ground) = Ground::new().await else {
        return;
    };
    let world = &ground.world;
    let mut settings = world.ring.settings("");
    settings.batch_rows_max = 50;
    // It hears of nothing unless a shard refuses it.
    let options = StoreOptions {
        poll_interval: Duration::from_secs(3_600),
        ..StoreOptions::default()
    };
    let backend = Backend::Shards {
        urls: world.db.urls().to_vec(),
        map: test_map(),
    };
    let old = Arc::new(Store::connect(backend, options).await.unwrap());
    let worker = world.start(settings.clone()).await;
    let storm = Storm::start(&[world.ring.publisher().await], USERS);
    until_done(&worker, 200).await;

    let mut reshard = ground.reshard().await;
    reshard.run(&ground.grow(), print).await.unwrap();
    assert_eq!(old.routes().epoch(), Epoch(1));
    let late = Worker::start(settings.clone(), Arc::clone(&old)).await;
    let late = late.unwrap();
    // Alone it gets all partitions.
    let first = worker.stats();
    worker.stop().await.unwrap();
    until_counts(&late.stats(), "the late worker is refused", |counts| {
        counts.reroutes > 0 && counts.applied > 0
    })
    .await;
    assert!(old.routes().epoch() > Epoch(1));
    let shrink = Change {
        remove: vec![ShardId(2)],
        ..Change::default()
    };
    reshard.run(&shrink, print).await.unwrap();
    let done = late.stats().counts().done;
    until_done(&late, usize::try_from(done).unwrap() + 100).await;

    let sent = storm.stop().await;
    for (user, count) in &sent {
        let count = i64::try_from(*count).unwrap();
        ground.until_applied(*user, count).await;
    }
    ground.check(&sent, &settings).await;
    for stats in [&first, &late.stats()] {
        no_disorder(&stats.counts());
    }
    late.stop().await.unwrap();
}

/// Sends the next events of a user, and counts them.
async fn send(ring: &Ring, sent: &mut BTreeMap<Uuid, usize>, user: Uuid, count: usize) {
    let first = sent.get(&user).copied().unwrap_or(0);
    let events: Vec<_> = (first..first + count)
        .map(|number| {
            let status = if number == 0 { "created" } else { "updated" };
            let second = i64::try_from(number).unwrap();
            order(user, &format!("e{number}"), "ord", status, second)
        })
        .collect();
    ring.publish(&events).await;
    sent.insert(user, first + count);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_slots_are_frozen_their_neighbours_go_on_and_a_restart_loses_nothing() {
    let Some(ground) = Ground::new().await else {
        return;
    };
    let (world, ring) = (&ground.world, &ground.world.ring);
    let mut settings = ring.settings("");
    settings.batch_rows_max = 10;
    // Much shorter than the freeze: records that wait for a thaw are no reason to make a consumer anew.
    settings.stall_max = Duration::from_millis(400);
    let worker = world.start(settings.clone()).await;
    let plan = ground.reshard().await.plan(&ground.grow()).await.unwrap();
    let (moved, unmoved) = moved_and_unmoved(ring, &plan);
    let partition = (Source::Orders, partition_of(&ring.map, moved));
    let mut sent = BTreeMap::new();
    send(ring, &mut sent, moved, 3).await;
    send(ring, &mut sent, unmoved, 3).await;
    ground.until_applied(moved, 3).await;
    ground.until_applied(unmoved, 3).await;
    let before = until("the offset is committed", async || {
        let (committed, end) = ring.offsets(&settings)[&partition];
        (committed == end)
            .then_some(end)
            .ok_or(committed.to_string())
    })
    .await;

    ground.is_frozen().await;
    send(ring, &mut sent, moved, 2).await;
    send(ring, &mut sent, unmoved, 5).await;
    ground.until_applied(unmoved, 8).await;
    assert_eq!(ground.applied(moved).await, 3);
    // The next owner must find the frozen records.
    worker.stop().await.unwrap();
    assert_eq!(ring.offsets(&settings)[&partition].0, before);
    let worker = world.start(settings.clone()).await;
    send(ring, &mut sent, unmoved, 5).await;
    ground.until_applied(unmoved, 13).await;
    assert_eq!(ground.applied(moved).await, 3);

    // More than the lane keeps: it takes no more, and another restart in the middle of that loses nothing either.
    send(ring, &mut sent, moved, 600).await;
    send(ring, &mut sent, unmoved, 5).await;
    until_counts(&worker.stats(), "the partition is paused", |counts| {
        counts.pauses > 0
    })
    .await;
    assert_eq!(ground.applied(moved).await, 3);
    worker.stop().await.unwrap();
    let worker = world.start(settings.clone()).await;
    until_counts(&worker.stats(), "it is paused again", |counts| {
        counts.pauses > 0
    })
    .await;
    tokio::time::sleep(settings.stall_max * 4).await;
    assert_eq!(worker.stats().counts().rebuilds, 0);

    ground.finish().await;
    ground.until_applied(moved, 605).await;
    ground.until_applied(unmoved, 18).await;
    ground.check(&sent, &settings).await;
    no_disorder(&worker.stats().counts());
    worker.stop().await.unwrap();
}

/// Two workers at once, one of which comes while slots move to a new shard and one of which goes while they move back.
#[tokio::test(flavor = "multi_thread")]
async fn workers_overlap_while_shards_grow_and_shrink() {
    let Some(ground) = Ground::new().await else {
        return;
    };
    let world = &ground.world;
    let mut settings = world.ring.settings("");
    settings.batch_rows_max = 50;
    let first = world.start(settings.clone()).await;
    let storm = Storm::start(&[world.ring.publisher().await], USERS);
    until_done(&first, 200).await;

    let mut reshard = ground.reshard().await;
    let change = ground.grow();
    let (grown, second) = tokio::join!(reshard.run(&change, print), world.start(settings.clone()));
    grown.unwrap();
    until_counts(&second.stats(), "both are at work", |counts| {
        counts.applied > 100
    })
    .await;
    let shrink = Change {
        remove: vec![ShardId(2)],
        ..Change::default()
    };
    let of_first = first.stats();
    let (shrunk, stopped) = tokio::join!(reshard.run(&shrink, print), first.stop());
    shrunk.unwrap();
    stopped.unwrap();

    let sent = storm.stop().await;
    for (user, count) in &sent {
        let count = i64::try_from(*count).unwrap();
        ground.until_applied(*user, count).await;
    }
    ground.check(&sent, &settings).await;
    for stats in [&of_first, &second.stats()] {
        no_disorder(&stats.counts());
    }
    second.stop().await.unwrap();
}
