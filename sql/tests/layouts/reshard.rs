//! Slots that move between manual shards while writers write.

use std::sync::Arc;

use shardlane_local::{Postgres, PostgresOptions, create_database};
use shardlane_router::{Epoch, RouteKey, ShardId, SlotMap, TokenHash};
use shardlane_sql::reshard::{Change, Plan, Reshard, ReshardError, ReshardOptions, Step};
use shardlane_sql::testing::load::Writers;
use shardlane_sql::testing::{TestDb, spare_database, test_map};
use shardlane_sql::{Detail, ErrorClass, Layout, SlotSet, SqlError, Store, migrate};
use uuid::Uuid;

use crate::events::{from_kafka, order, user};
use crate::ground::{apply, connect};

pub(crate) const USERS: usize = 120;

/// Two shards, databases that can join, and writers at work.
pub(crate) struct World {
    pub(crate) db: TestDb,
    pub(crate) spares: Vec<String>,
    pub(crate) store: Arc<Store>,
    pub(crate) writers: Writers,
}

impl World {
    pub(crate) async fn new(spares: usize) -> Option<World> {
        let db = TestDb::new(Layout::Shards).await?;
        let mut urls = Vec::new();
        for _ in 0..spares {
            urls.push(spare_database().await?);
        }
        let store = db.store().await;
        let writers = Writers::start(&store, USERS);
        writers.go_on().await;
        Some(World {
            db,
            spares: urls,
            store,
            writers,
        })
    }

    pub(crate) async fn reshard(&self) -> Reshard {
        self.reshard_with(ReshardOptions::default()).await
    }

    pub(crate) async fn reshard_with(&self, options: ReshardOptions) -> Reshard {
        Reshard::connect(self.db.urls(), test_map(), options)
            .await
            .unwrap()
    }

    /// All databases that are or were shards.
    pub(crate) fn urls(&self) -> Vec<String> {
        [self.db.urls(), &self.spares].concat()
    }

    /// Ends the writers, and holds what is there against the oracle.
    pub(crate) async fn check(self) {
        self.writers.go_on().await;
        let urls = self.urls();
        let reshard = self.reshard().await;
        let written = self.writers.stop().await;
        println!("longest wait {:?}", written.stall);
        written.is_what_is_there(&reshard, &urls).await;
    }
}

pub(crate) fn add(urls: &[String]) -> Change {
    Change {
        add: urls.to_vec(),
        ..Change::default()
    }
}

fn remove(shards: &[i64]) -> Change {
    Change {
        remove: shards.iter().copied().map(ShardId).collect(),
        ..Change::default()
    }
}

pub(crate) fn print(step: Step, number: usize, steps: usize) {
    let now = jiff::Timestamp::now();
    println!("{now} {number}/{steps} {step}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_become_three_and_two_again_under_load() {
    let Some(world) = World::new(1).await else {
        return;
    };
    let mut reshard = world.reshard().await;
    let plan = reshard.run(&add(&world.spares), print).await.unwrap();
    assert_eq!(plan.targets(), [ShardId(2)]);
    let grown = world.store.routes().epoch();
    assert!(
        grown > Epoch(1),
        "the store has learned the new map by itself"
    );
    reshard.run(&remove(&[2]), print).await.unwrap();
    assert!(reshard.catalog().await.unwrap().entry(ShardId(2)).is_none());
    world.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_become_four_then_the_first_two_leave_and_a_slot_moves_alone() {
    let Some(world) = World::new(2).await else {
        return;
    };
    let mut reshard = world.reshard().await;
    let plan = reshard.run(&add(&world.spares), print).await.unwrap();
    assert_eq!(plan.targets(), [ShardId(2), ShardId(3)]);
    // The journal's own shard leaves too.
    let plan = reshard.run(&remove(&[0, 1]), print).await.unwrap();
    assert_eq!(plan.leaving, [ShardId(0), ShardId(1)]);
    assert!(reshard.journal().await.unwrap().is_none());
    let slots: SlotSet = "17-17,100-199".parse().unwrap();
    let owner = |plan: &Plan| plan.moves[0].from;
    let change = |to| Change {
        slots: Some((slots.clone(), to)),
        ..Change::default()
    };
    // One DSN suffices once slots have moved; the map is the catalog's.
    let mut reshard = Reshard::connect(&world.spares, test_map(), ReshardOptions::default())
        .await
        .unwrap();
    let plan = reshard.run(&change(ShardId(3)), print).await.unwrap();
    let catalog = reshard.catalog().await.unwrap();
    assert!(slots.without(&catalog.owned(ShardId(3))).is_empty());
    assert_eq!(owner(&plan), ShardId(2));
    let again = reshard.run(&change(ShardId(3)), print).await.unwrap_err();
    assert!(matches!(again, ReshardError::NothingToDo), "{again}");
    world.writers.go_on().await;
    let urls = world.urls();
    world
        .writers
        .stop()
        .await
        .is_what_is_there(&reshard, &urls)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused_before_anything_is_written() {
    let Some(world) = World::new(1).await else {
        return;
    };
    let mut reshard = world.reshard().await;
    let error = reshard.run(&Change::default(), print).await.unwrap_err();
    assert!(matches!(error, ReshardError::NoneUnderWay), "{error}");
    let error = reshard.abort().await.unwrap_err();
    assert!(matches!(error, ReshardError::NoneUnderWay), "{error}");
    let error = reshard.run(&remove(&[7]), print).await.unwrap_err();
    assert!(
        matches!(error, ReshardError::UnknownShard(ShardId(7))),
        "{error}"
    );
    for (joining, part) in [
        (world.db.urls()[1].clone(), "is a shard already"),
        (
            "postgres://shardlane@127.0.0.1:1/none".to_owned(),
            "connecting",
        ),
    ] {
        let error = reshard.run(&add(&[joining]), print).await.unwrap_err();
        assert!(format!("{error:?} {error}").contains(part), "{error:?}");
    }
    assert!(reshard.journal().await.unwrap().is_none());
    assert_eq!(reshard.catalog().await.unwrap().epoch(), Epoch(1));
    world.check_with_those_that_joined().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_holds_something_cannot_join() {
    let (Some(world), Some(others)) = (World::new(1).await, World::new(1).await) else {
        return;
    };
    // A shard of other shards, whose catalog is newer than ours; and one Postgres with the same tables.
    let mut theirs = others.reshard().await;
    theirs.run(&add(&others.spares), print).await.unwrap();
    let single = TestDb::new(Layout::Single).await.unwrap();
    let foreign = spare_database().await.unwrap();
    connect(&foreign)
        .await
        .batch_execute("create table orders (id int)")
        .await
        .unwrap();
    let mut reshard = world.reshard().await;
    for joining in [&others.db.urls()[0], &single.urls()[0], &foreign] {
        let change = add(std::slice::from_ref(joining));
        let error = reshard.run(&change, print).await.unwrap_err();
        assert!(error.to_string().contains("empty"), "{joining}: {error}");
        assert!(reshard.journal().await.unwrap().is_none());
    }
    assert_eq!(reshard.catalog().await.unwrap().epoch(), Epoch(1));
    others.check().await;
    world.check_with_those_that_joined().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_at_once_one_is_told_to_wait() {
    let Some(world) = World::new(1).await else {
        return;
    };
    let mut reshard = world.reshard().await;
    let (mut second, mut third) = (world.reshard().await, world.reshard().await);
    let change = add(&world.spares);
    let mut refusals = Vec::new();
    let during = |step, number, steps| {
        print(step, number, steps);
        if matches!(step, Step::Copy { .. }) {
            now(async {
                refusals.push(second.run(&Change::default(), print).await.unwrap_err());
                refusals.push(second.abort().await.unwrap_err());
                refusals.push(third.run(&change, print).await.unwrap_err());
            });
        }
    };
    reshard.run(&change, during).await.unwrap();
    assert_eq!(refusals.len(), 6);
    for (number, error) in refusals.iter().enumerate() {
        let expected = match number % 3 {
            2 => matches!(error, ReshardError::UnderWay { joining: 1, .. }),
            _ => matches!(error, ReshardError::Busy),
        } || matches!(error, ReshardError::Busy);
        assert!(expected, "{number}: {error}");
    }
    world.check().await;
}

/// Runs a future where only a plain function may stand.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(future))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_begin_at_the_same_time_begin_one_reshard() {
    let Some(world) = World::new(2).await else {
        return;
    };
    let begin = async |spare: &String| {
        let mut reshard = world.reshard().await;
        reshard.run(&add(std::slice::from_ref(spare)), print).await
    };
    let (one, two) = tokio::join!(begin(&world.spares[0]), begin(&world.spares[1]));
    let refused = match (one, two) {
        (Ok(_), Err(error)) | (Err(error), Ok(_)) => error,
        other => panic!("{other:?}"),
    };
    assert!(
        matches!(refused, ReshardError::Busy | ReshardError::UnderWay { .. }),
        "{refused}"
    );
    let reshard = world.reshard().await;
    assert!(reshard.journal().await.unwrap().is_none());
    assert_eq!(reshard.catalog().await.unwrap().shards.len(), 3);
    world.check_with_those_that_joined().await;
}

impl World {
    /// As [`World::check`], where some spare databases are still empty.
    async fn check_with_those_that_joined(mut self) {
        let catalog = self.reshard().await.catalog().await.unwrap();
        let joined = |url: &String| {
            let mut entries = catalog.shards.iter();
            entries.any(|entry| url.ends_with(&entry.database))
        };
        self.spares.retain(joined);
        self.check().await;
    }
}

#[tokio::test]
async fn a_source_without_logical_wal_is_named() {
    let Some(()) = shardlane_local::require("postgres") else {
        return;
    };
    let mut options = PostgresOptions::fast();
    options.settings = vec![("wal_level".to_owned(), "replica".to_owned())];
    let postgres = Postgres::start(options).await.unwrap();
    for name in ["a", "b"] {
        create_database(&postgres.url("postgres"), name)
            .await
            .unwrap();
    }
    let map = SlotMap::aligned(Epoch(1), TokenHash::Postgres, 4, &[ShardId(0)]).unwrap();
    let urls = [postgres.url("a")];
    let detail = Detail::Shard(&map, ShardId(0));
    migrate(&urls[0], Layout::Shards, detail).await.unwrap();
    let mut reshard = Reshard::connect(&urls, map, ReshardOptions::default())
        .await
        .unwrap();
    let change = add(&[postgres.url("b")]);
    let error = reshard.run(&change, print).await.unwrap_err();
    let ReshardError::WalLevel { shard, found } = &error else {
        panic!("{error}")
    };
    assert_eq!((*shard, found.as_str()), (ShardId(0), "replica"));
    assert!(error.to_string().contains("wal_level = logical"), "{error}");
    assert!(reshard.journal().await.unwrap().is_none());
    postgres.stop().await.unwrap();
}

/// A shard that has applied a partition up to an offset may be given slots later whose records stand before it there: its
/// fence of the time before says nothing about them. Two nets hold it: older fences are deleted when slots come, and one that
/// is left is of an older epoch. Without both this fails; without either it passes.
#[tokio::test(flavor = "multi_thread")]
async fn a_fence_says_nothing_about_slots_that_came_later() {
    let Some(db) = TestDb::new(Layout::Shards).await else {
        return;
    };
    let store = db.store().await;
    let shard_of = |user: &Uuid| store.target_of(*user).map(|target| target.shard());
    let mut all = (0..).map(user);
    let stays = all.find(|user| shard_of(user) == Some(ShardId(1))).unwrap();
    let moves = all.find(|user| shard_of(user) == Some(ShardId(0))).unwrap();
    let opened = |user, offset| {
        let event = order(user, "o1", "e1", "created", 1);
        from_kafka(vec![event], "orders.webhooks", 0, offset)
    };
    // One partition with users of both shards; the second shard's worker is far ahead.
    apply(&store, &opened(stays, 100)).await.unwrap();
    let token = TokenHash::Postgres.token(&RouteKey::Uuid(moves));
    let slot = token.slot().number();
    let slots: SlotSet = format!("{slot}-{slot}").parse().unwrap();
    let change = Change {
        slots: Some((slots, ShardId(1))),
        ..Change::default()
    };
    let mut reshard = Reshard::connect(db.urls(), test_map(), ReshardOptions::default())
        .await
        .unwrap();
    let before = store.target_of(moves).unwrap();
    reshard.run(&change, print).await.unwrap();
    store.refresh(store.routes().epoch()).await;
    let target = store.target_of(moves).unwrap();
    assert_eq!((before.shard(), target.shard()), (ShardId(0), ShardId(1)));

    let report = apply(&store, &opened(moves, 50)).await.unwrap();
    assert_eq!(report.applied, 1);
    let applied = store.applied(target, "orders.webhooks", 0).await.unwrap();
    assert_eq!(applied.fence, Some(51));
    let again = apply(&store, &opened(moves, 50)).await.unwrap_err();
    assert!(matches!(again, SqlError::Fenced { .. }), "{again}");
}

/// What a slot's owner has judged is not judged again by the next one, and not by the first one when the slot comes back.
#[tokio::test(flavor = "multi_thread")]
async fn how_far_a_partition_was_applied_moves_along_with_slots() {
    let Some(db) = TestDb::new(Layout::Shards).await else {
        return;
    };
    let store = db.store().await;
    let shard_of = |user: &Uuid| store.target_of(*user).map(|target| target.shard());
    let mut all = (0..).map(user);
    let stays = all.find(|user| shard_of(user) == Some(ShardId(1))).unwrap();
    let moves = all.find(|user| shard_of(user) == Some(ShardId(0))).unwrap();
    let opened = |user, offset: i64| {
        let event = order(user, "o1", &format!("e{offset}"), "created", 1);
        from_kafka(vec![event], "orders.webhooks", 0, offset)
    };
    apply(&store, &opened(moves, 40)).await.unwrap();
    apply(&store, &opened(stays, 100)).await.unwrap();
    let slot_of = |user: Uuid| TokenHash::Postgres.token(&RouteKey::Uuid(user)).slot();
    let moving = SlotSet::of(|slot| slot == slot_of(moves));
    let mut reshard = Reshard::connect(db.urls(), test_map(), ReshardOptions::default())
        .await
        .unwrap();
    let covered = async |user, offset| {
        let target = store.target_of(user).unwrap();
        let applied = store.applied(target, "orders.webhooks", 0).await.unwrap();
        applied.covers(user, offset)
    };
    for (to, moves_done) in [(1, 40), (0, 60)] {
        let old = store.target_of(moves).unwrap();
        let change = Change {
            slots: Some((moving.clone(), ShardId(to))),
            ..Change::default()
        };
        reshard.run(&change, print).await.unwrap();
        let refused = store.applied(old, "orders.webhooks", 0).await.unwrap_err();
        assert_eq!(refused.class(), ErrorClass::Rerouted, "{refused}");
        store.refresh(store.routes().epoch()).await;
        assert_eq!(shard_of(&moves), Some(ShardId(to)));
        assert!(covered(moves, moves_done).await, "to {to}");
        assert!(!covered(moves, moves_done + 1).await, "to {to}");
        assert!(covered(stays, 100).await && !covered(stays, 101).await);
        let owners = store.routes().owners(&SlotSet::of(|slot| {
            [slot_of(moves), slot_of(stays)].contains(&slot)
        }));
        let mut lowest = Vec::new();
        for (target, slots) in owners {
            let applied = store.applied(target, "orders.webhooks", 0).await.unwrap();
            lowest.extend(applied.lowest(&slots, &SlotSet::empty()));
        }
        assert_eq!(lowest.into_iter().min(), Some(moves_done + 1));
        if to == 1 {
            apply(&store, &opened(moves, 60)).await.unwrap();
        }
    }
}
