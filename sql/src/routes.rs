//! [`Routes`]: one moment's answer to where a user's rows live.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use shardlane_router::{
    Epoch, RouteKey, SLOT_COUNT, ShardId, ShardMap, Slot, TokenHash, anchor_uuid,
};
use uuid::Uuid;

use crate::catalog::Catalog;
use crate::mutants::{self, Mutant};
use crate::session::Pool;
use crate::slots::SlotSet;

/// A place to which one transaction can go: a shard, as the layout cuts it, since it has taken the slots that it
/// takes. It stays the same while that does, through any number of refreshes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    pub(crate) shard: ShardId,
    pub(crate) epoch: Epoch,
}

impl Target {
    /// The shard: 0 where the layout is not cut.
    #[must_use]
    pub fn shard(self) -> ShardId {
        self.shard
    }
}

/// Of layouts whose fences know no epoch, because their shards never take other slots under one name.
const NO_EPOCH: Epoch = Epoch(0);

pub(crate) struct Lane {
    pub(crate) target: Target,
    /// The `user_id` of the shard's fences: on Citus it decides where they lie.
    pub(crate) anchor: Uuid,
    pub(crate) pool: Arc<Pool>,
}

enum Table {
    One,
    /// The lane of each slot.
    Slots(Box<[u16; SLOT_COUNT]>, Box<Catalog>),
    Ranges(Arc<ShardMap>),
}

/// In a table of slots: nobody takes this one at the moment.
const FROZEN: u16 = u16::MAX;

/// Where every user's rows live, at one moment. It does not change; [`Store::routes`](crate::Store::routes) gives the
/// newest.
pub struct Routes {
    table: Table,
    lanes: Vec<Lane>,
    lane_of_shard: HashMap<ShardId, usize>,
    /// On Citus: nothing goes straight to the node that owns it.
    by_coordinator: bool,
}

/// Where a batch went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the server that owns its users, as far as anybody here knows.
    Owner,
    /// To a server that, as the newest map has it, no longer owned them: on Citus that cost a hop.
    FormerOwner,
    /// To the Citus coordinator, which sends it on.
    Coordinator,
}

impl Way {
    /// Every one.
    pub const ALL: [Way; 3] = [Way::Owner, Way::FormerOwner, Way::Coordinator];

    /// For counting.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Way::Owner => "owner",
            Way::FormerOwner => "former_owner",
            Way::Coordinator => "coordinator",
        }
    }
}

impl Routes {
    pub(crate) fn one(pool: Arc<Pool>) -> Routes {
        let target = Target {
            shard: ShardId(0),
            epoch: NO_EPOCH,
        };
        let lane = Lane {
            target,
            anchor: Uuid::nil(),
            pool,
        };
        Routes::new(Table::One, vec![lane])
    }

    /// `pools` has one entry for each entry of the catalog.
    pub(crate) fn slots(catalog: Catalog, pools: Vec<Arc<Pool>>) -> Routes {
        let lanes: Vec<Lane> = catalog
            .shards
            .iter()
            .zip(pools)
            .map(|(entry, pool)| Lane {
                target: Target {
                    shard: entry.shard,
                    epoch: entry.epoch,
                },
                anchor: Uuid::nil(),
                pool,
            })
            .collect();
        let lane_of = |slot: Slot| {
            let owner = catalog.map.shard_of(slot);
            let lane = lanes.iter().position(|lane| lane.target.shard == owner);
            lane.filter(|_| !catalog.frozen.contains(slot))
                .and_then(|lane| u16::try_from(lane).ok())
                .unwrap_or(FROZEN)
        };
        let mut table = Box::new([FROZEN; SLOT_COUNT]);
        for slot in Slot::all() {
            table[slot.index()] = lane_of(slot);
        }
        Routes::new(Table::Slots(table, Box::new(catalog)), lanes)
    }

    /// `pool_of` gives the pool of a node, as the map counts them.
    pub(crate) fn ranges(map: Arc<ShardMap>, pool_of: impl Fn(usize) -> Arc<Pool>) -> Routes {
        let lanes = map
            .shards()
            .iter()
            .map(|range| Lane {
                target: Target {
                    shard: range.shard,
                    epoch: NO_EPOCH,
                },
                anchor: anchor_uuid(map.hash(), &range.range),
                pool: pool_of(range.node),
            })
            .collect();
        Routes::new(Table::Ranges(map), lanes)
    }

    fn new(table: Table, lanes: Vec<Lane>) -> Routes {
        let lane_of_shard = lanes
            .iter()
            .enumerate()
            .map(|(index, lane)| (lane.target.shard, index))
            .collect();
        Routes {
            table,
            lanes,
            lane_of_shard,
            by_coordinator: false,
        }
    }

    /// The same, of a path that leaves it to the Citus coordinator to find the owner.
    pub(crate) fn by_coordinator(self) -> Routes {
        Routes {
            by_coordinator: true,
            ..self
        }
    }

    /// Where a batch for `target` went that these routes sent, as `now` has it.
    pub(crate) fn way(&self, target: Target, now: &Routes) -> Way {
        if self.by_coordinator {
            return Way::Coordinator;
        }
        match (self.lane(target), now.lane(target)) {
            (Some(then), Some(now)) if Arc::ptr_eq(&then.pool, &now.pool) => Way::Owner,
            _ => Way::FormerOwner,
        }
    }

    /// Each server once, with the targets that lie there.
    pub(crate) fn servers(&self) -> Vec<(&Pool, Vec<ShardId>)> {
        let mut servers: Vec<(&Pool, Vec<ShardId>)> = Vec::new();
        for lane in &self.lanes {
            let known = servers
                .iter_mut()
                .find(|(pool, _)| std::ptr::eq(*pool, &*lane.pool));
            match known {
                Some((_, shards)) => shards.push(lane.target.shard),
                None => servers.push((&lane.pool, vec![lane.target.shard])),
            }
        }
        servers
    }

    /// One lane a database. On Citus the first, because any node sees the whole tables.
    pub(crate) fn databases(&self) -> &[Lane] {
        match self.shard_map() {
            Some(_) => &self.lanes[..1],
            None => &self.lanes,
        }
    }

    /// The target that holds a user; `None` while the user's slot is frozen. No I/O, no allocation.
    #[must_use]
    pub fn target_of(&self, user: Uuid) -> Option<Target> {
        let seed = u128::from(mutants::is(Mutant::WrongHashSeed));
        let key = RouteKey::Uuid(Uuid::from_u128(user.as_u128() ^ seed));
        match &self.table {
            Table::One => Some(self.lanes[0].target),
            Table::Slots(table, _) => {
                // Manual shards have Postgres's hash: their CHECKs compute it.
                let slot = TokenHash::Postgres.token(&key).slot();
                let lane = self.lanes.get(usize::from(table[slot.index()]));
                lane.map(|lane| lane.target)
            }
            Table::Ranges(map) => {
                let range = map.shard_for(map.hash().token(&key));
                Some(self.lanes[self.lane_of_shard[&range.shard]].target)
            }
        }
    }

    /// The targets that have users of these slots, each with its slots among them, frozen ones included. On Citus and on
    /// one Postgres, where a target is not cut into slots, with all of them.
    #[must_use]
    pub fn owners(&self, slots: &SlotSet) -> Vec<(Target, SlotSet)> {
        let of = |shard, slots: &SlotSet| {
            let lane = self.lane_of_shard.get(&shard)?;
            Some((self.lanes[*lane].target, slots.clone()))
        };
        match &self.table {
            Table::One => vec![(self.lanes[0].target, slots.clone())],
            Table::Slots(_, catalog) => {
                let mut owners: BTreeMap<ShardId, Vec<Slot>> = BTreeMap::new();
                for slot in slots.iter() {
                    let shard = catalog.map.shard_of(slot);
                    owners.entry(shard).or_default().push(slot);
                }
                let owners = owners.into_iter();
                owners
                    .filter_map(|(shard, slots)| of(shard, &slots.into_iter().collect()))
                    .collect()
            }
            Table::Ranges(map) => {
                let ranges = slots.runs().into_iter().flat_map(|run| {
                    let [first, last] = [*run.start(), *run.end()].map(Slot::new);
                    first.ok().zip(last.ok()).map_or(&[][..], |(first, last)| {
                        let (first, last) = (first.key_range().first(), last.key_range().last());
                        map.shards_of_range(first, last)
                    })
                });
                let shards: BTreeSet<ShardId> = ranges.map(|range| range.shard).collect();
                shards
                    .into_iter()
                    .filter_map(|shard| of(shard, slots))
                    .collect()
            }
        }
    }

    /// Every target.
    pub fn targets(&self) -> impl Iterator<Item = Target> {
        self.lanes.iter().map(|lane| lane.target)
    }

    /// The version of who owns what: of the shards' catalog, or of the cluster's placement as this process has seen it.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        match &self.table {
            Table::One => NO_EPOCH,
            Table::Slots(_, catalog) => catalog.epoch(),
            Table::Ranges(map) => map.epoch(),
        }
    }

    /// The placement on Citus.
    #[must_use]
    pub fn shard_map(&self) -> Option<&Arc<ShardMap>> {
        match &self.table {
            Table::Ranges(map) => Some(map),
            Table::One | Table::Slots(..) => None,
        }
    }

    /// Who owns what, on manual shards.
    #[must_use]
    pub fn catalog(&self) -> Option<&Catalog> {
        match &self.table {
            Table::Slots(_, catalog) => Some(catalog),
            Table::One | Table::Ranges(_) => None,
        }
    }

    /// How much longer than the batch itself a writer should pause after a batch of these users: 0 unless a reshard
    /// asks to hold back.
    #[must_use]
    pub fn hold_back(&self, mut users: impl Iterator<Item = Uuid>) -> f64 {
        let pace = self.catalog().and_then(|catalog| catalog.pace.as_ref());
        let Some(pace) = pace else { return 0.0 };
        let is_slowed = |user: Uuid| {
            let token = TokenHash::Postgres.token(&RouteKey::Uuid(user));
            pace.slots.contains(token.slot())
        };
        if users.any(is_slowed) {
            f64::from(100 - pace.share.min(100)) / f64::from(pace.share.max(1))
        } else {
            0.0
        }
    }

    /// Whether somebody waits for slots that nobody takes at the moment.
    pub(crate) fn has_frozen(&self) -> bool {
        self.catalog()
            .is_some_and(|catalog| !catalog.frozen.is_empty())
    }

    pub(crate) fn lane(&self, target: Target) -> Option<&Lane> {
        let lane = &self.lanes[*self.lane_of_shard.get(&target.shard)?];
        (lane.target == target).then_some(lane)
    }

    pub(crate) fn lanes(&self) -> &[Lane] {
        &self.lanes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shardlane_router::{KeyType, Node};

    use super::*;

    fn pool() -> Arc<Pool> {
        let config = "postgres://nobody@localhost/none".parse().unwrap();
        Arc::new(Pool::new(config, None, 1, Duration::from_secs(1)))
    }

    #[tokio::test]
    async fn a_batch_went_to_its_owner_unless_the_map_has_changed_or_there_is_a_coordinator() {
        let node = |group| Node {
            group,
            host: format!("node{group}"),
            port: 5432,
        };
        let (nodes, first) = (vec![node(1), node(2)], ShardId(100));
        let hash = TokenHash::Postgres;
        let map = ShardMap::uniform(Epoch(1), hash, KeyType::Uuid, nodes, first, 4).unwrap();
        let moved = map.with_shard_moved(first, 1).unwrap();
        let pools = [pool(), pool()];
        let of =
            |map: &ShardMap| Routes::ranges(Arc::new(map.clone()), |node| Arc::clone(&pools[node]));
        let (sent, now) = (of(&map), of(&moved));
        let targets: Vec<Target> = sent.targets().collect();
        assert_eq!(targets[0].shard(), first);
        assert_eq!(sent.way(targets[0], &sent), Way::Owner);
        assert_eq!(sent.way(targets[0], &now), Way::FormerOwner);
        assert_eq!(sent.way(targets[1], &now), Way::Owner);
        let asked = of(&map).by_coordinator();
        assert_eq!(asked.way(targets[1], &asked), Way::Coordinator);
        assert_eq!(Routes::one(pool()).servers().len(), 1);
        let shards: Vec<usize> = sent.servers().iter().map(|(_, it)| it.len()).collect();
        assert_eq!(shards, [2, 2]);
    }
}
