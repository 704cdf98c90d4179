//! The real routing of the simulation: two shards, two partitions of which each leads to both, and slots that move from
//! one shard to the other and back. The versions are always the same; when they come is the schedule's.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use shardlane_router::{Epoch, RouteKey, ShardId, SlotMap, TokenHash};
use uuid::Uuid;

use super::ground::index;
use crate::catalog::{Catalog, ShardEntry};
use crate::routes::{Routes, Target};
use crate::session::Pool;
use crate::slots::SlotSet;

pub(super) const PARTITIONS: usize = 2;

pub(super) struct Places {
    /// One a version of the catalog. At each odd one slots are frozen.
    pub(super) versions: Vec<Routes>,
    /// With their partition.
    pub(super) users: Vec<(Uuid, i32)>,
}

pub(super) static PLACES: LazyLock<Places> = LazyLock::new(|| {
    let map = SlotMap::modulo(Epoch(1), TokenHash::Postgres, 2, &[ShardId(0), ShardId(1)]).unwrap();
    let entry = |shard| ShardEntry {
        shard,
        epoch: Epoch(1),
        host: String::new(),
        port: 0,
        database: String::new(),
    };
    let first = Catalog {
        map: map.clone(),
        frozen: SlotSet::empty(),
        pace: None,
        shards: vec![entry(ShardId(0)), entry(ShardId(1))],
    };
    // Users of both partitions and both shards, and of slots that stay and that move: the lower half of shard 0.
    let moving = SlotSet::of(|slot| slot.index() < 1024);
    let mut catalogs = vec![first];
    for (from, to) in [(0, 1), (1, 0), (0, 1)] {
        let last = &catalogs[catalogs.len() - 1];
        let frozen = last.freeze(ShardId(from), &moving).unwrap();
        let given = frozen.give(ShardId(to), &moving).unwrap();
        catalogs.extend([frozen, given]);
    }
    // A pool starts a task; nothing ever connects.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let entered = runtime.enter();
    let pool = || {
        let config = "postgres://nobody@localhost/none".parse().unwrap();
        Arc::new(Pool::new(config, None, 1, Duration::from_secs(1)))
    };
    let versions = catalogs
        .into_iter()
        .map(|catalog| Routes::slots(catalog, vec![pool(), pool()]))
        .collect();
    drop(entered);
    let place = |user: Uuid| {
        let key = RouteKey::Uuid(user);
        let slot = map.token(&key).slot();
        (map.partition_for(&key).0, slot.index() / 1024)
    };
    let user = |wanted| {
        (1..)
            .map(Uuid::from_u128)
            .find(|user| place(*user) == wanted)
            .unwrap()
    };
    let wanted = [(0, 0), (0, 1), (0, 2), (1, 0)];
    let users = wanted.map(|it| (user(it), it.0)).to_vec();
    Places { versions, users }
});

/// A shard in a version.
pub(super) fn of_shard(version: usize, shard: usize) -> Target {
    let mut targets = PLACES.versions[version].targets();
    targets.find(|it| index(*it) == shard).unwrap()
}

/// The shard that has a user's slot, also while it is frozen.
pub(super) fn owner(version: usize, user: Uuid) -> Target {
    let map = &PLACES.versions[version].catalog().unwrap().map;
    let shard = map.shard_for(&RouteKey::Uuid(user));
    of_shard(version, usize::try_from(shard.0).unwrap())
}

/// The target of a user in a version.
pub(super) fn target(version: usize, user: Uuid) -> Option<Target> {
    PLACES.versions[version].target_of(user)
}
