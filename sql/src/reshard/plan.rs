//! What has to be done, before anything is.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use shardlane_router::{ShardId, Slot, SlotMap};
use uuid::Uuid;

use super::ReshardError;
use crate::SqlError;
use crate::catalog::{Catalog, ShardEntry};
use crate::slots::SlotSet;

/// Which shards there shall be.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// DSNs of databases that join, each an empty one.
    pub add: Vec<String>,
    /// Shards that give all their slots away.
    pub remove: Vec<ShardId>,
    /// Just these slots go to that shard: how a hot one gets a shard with room. Alone, without the others.
    pub slots: Option<(SlotSet, ShardId)>,
}

impl Change {
    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty() && self.slots.is_none()
    }
}

/// Slots that go from one shard to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// Who owns them.
    pub from: ShardId,
    /// Who will.
    pub to: ShardId,
    /// Which.
    pub slots: SlotSet,
}

/// A reshard, before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Names the publications and slots of this reshard.
    pub id: Uuid,
    /// Who owned what when it was planned.
    pub before: Catalog,
    /// Databases that become shards.
    pub joining: Vec<ShardEntry>,
    /// Shards that own nothing afterwards.
    pub leaving: Vec<ShardId>,
    /// In order of targets, then of sources.
    pub moves: Vec<Move>,
}

/// One thing to do; each can be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Schema and identity of joining shards; targets admit what will come.
    Prepare,
    /// Publication, subscription, first copy.
    Copy {
        /// The source.
        from: ShardId,
        /// The target.
        to: ShardId,
    },
    /// Until the target is right behind its sources.
    CatchUp {
        /// The target.
        to: ShardId,
    },
    /// All rows that are there, while writers write.
    Compare {
        /// The target.
        to: ShardId,
    },
    /// The source takes the slots no more.
    Freeze {
        /// The source.
        from: ShardId,
        /// The target.
        to: ShardId,
    },
    /// Until the target has the last row.
    Drain {
        /// The target.
        to: ShardId,
    },
    /// The rows since then.
    Verify {
        /// The target.
        to: ShardId,
    },
    /// The target takes the slots.
    Switch {
        /// The target.
        to: ShardId,
    },
    /// Subscriptions, publications and replication slots go.
    Detach,
    /// The source's copy of what has moved goes.
    Clean {
        /// The source.
        from: ShardId,
    },
    /// Shards without slots leave the catalog.
    Finish,
}

impl Plan {
    /// Plans the fewest moves from `before` to a balanced map over the shards that `change` leaves.
    pub(super) fn new(
        before: Catalog,
        addresses: Vec<(String, u16, String)>,
        change: &Change,
    ) -> Result<Plan, ReshardError> {
        let remove = &change.remove;
        let target = change.slots.iter().map(|(_, to)| to);
        let mut named = remove.iter().chain(target);
        if let Some(unknown) = named.find(|shard| before.entry(**shard).is_none()) {
            return Err(ReshardError::UnknownShard(*unknown));
        }
        if let Some((host, port, database)) = addresses.iter().find(|address| {
            before
                .shards
                .iter()
                .any(|entry| entry.address() == **address)
                || addresses.iter().filter(|other| other == address).count() > 1
        }) {
            return Err(SqlError::Settings(format!(
                "{host}:{port}/{database} is a shard already; each shard needs a database of its own"
            ))
            .into());
        }
        let highest = before.shards.iter().map(|entry| entry.shard.0).max();
        let first_free = highest.map_or(0, |highest| highest + 1);
        let joining: Vec<ShardEntry> = (first_free..)
            .zip(addresses)
            .map(|(shard, (host, port, database))| ShardEntry {
                shard: ShardId(shard),
                // Set when it is announced.
                epoch: before.epoch(),
                host,
                port,
                database,
            })
            .collect();
        let goal: Vec<ShardId> = before
            .shards
            .iter()
            .chain(&joining)
            .map(|entry| entry.shard)
            .filter(|shard| !remove.contains(shard))
            .collect();
        let after = match &change.slots {
            Some((slots, to)) => {
                let numbers = slots.iter().map(Slot::number);
                before.map.with_slots_moved(numbers, *to)?
            }
            None => before.map.plan_shards(&goal)?.map,
        };
        let moves = moves_between(&before.map, &after);
        if moves.is_empty() && joining.is_empty() && remove.is_empty() {
            return Err(ReshardError::NothingToDo);
        }
        Ok(Plan {
            id: Uuid::now_v7(),
            before,
            joining,
            leaving: remove.clone(),
            moves,
        })
    }

    /// The targets in order.
    pub fn targets(&self) -> Vec<ShardId> {
        let mut targets: Vec<ShardId> = self.moves.iter().map(|moved| moved.to).collect();
        targets.dedup();
        targets
    }

    /// The sources in order.
    pub fn sources(&self) -> Vec<ShardId> {
        let mut sources: Vec<ShardId> = self.moves.iter().map(|moved| moved.from).collect();
        sources.sort_unstable();
        sources.dedup();
        sources
    }

    /// What comes to a target.
    pub(super) fn incoming(&self, to: ShardId) -> impl Iterator<Item = &Move> {
        self.moves.iter().filter(move |moved| moved.to == to)
    }

    /// All steps in order.
    pub fn steps(&self) -> Vec<Step> {
        let mut steps = vec![Step::Prepare];
        steps.extend(self.moves.iter().map(|moved| Step::Copy {
            from: moved.from,
            to: moved.to,
        }));
        for to in self.targets() {
            let catch_up = Step::CatchUp { to };
            steps.extend([catch_up, Step::Compare { to }, catch_up]);
            let froms = self.incoming(to).map(|moved| moved.from);
            steps.extend(froms.map(|from| Step::Freeze { from, to }));
            steps.extend([Step::Drain { to }, Step::Verify { to }, Step::Switch { to }]);
        }
        steps.push(Step::Detach);
        steps.extend(self.sources().into_iter().map(|from| Step::Clean { from }));
        steps.push(Step::Finish);
        steps
    }
}

impl Step {
    /// The target whose slots this step takes nearer to it.
    pub(super) fn target(self) -> Option<ShardId> {
        match self {
            Step::CatchUp { to }
            | Step::Compare { to }
            | Step::Freeze { to, .. }
            | Step::Drain { to }
            | Step::Verify { to }
            | Step::Switch { to } => Some(to),
            Step::Prepare
            | Step::Copy { .. }
            | Step::Detach
            | Step::Clean { .. }
            | Step::Finish => None,
        }
    }
}

fn moves_between(before: &SlotMap, after: &SlotMap) -> Vec<Move> {
    let mut slots: BTreeMap<(ShardId, ShardId), Vec<Slot>> = BTreeMap::new();
    for slot in Slot::all() {
        let (from, to) = (before.shard_of(slot), after.shard_of(slot));
        if from != to {
            slots.entry((to, from)).or_default().push(slot);
        }
    }
    slots
        .into_iter()
        .map(|((to, from), slots)| Move {
            from,
            to,
            slots: slots.into_iter().collect(),
        })
        .collect()
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Prepare => f.write_str("prepare"),
            Step::Copy { from, to } => write!(f, "copy {from} -> {to}"),
            Step::CatchUp { to } => write!(f, "catch up {to}"),
            Step::Compare { to } => write!(f, "compare {to}"),
            Step::Freeze { from, to } => write!(f, "freeze {from} -> {to}"),
            Step::Drain { to } => write!(f, "drain {to}"),
            Step::Verify { to } => write!(f, "verify {to}"),
            Step::Switch { to } => write!(f, "switch {to}"),
            Step::Detach => f.write_str("detach"),
            Step::Clean { from } => write!(f, "clean {from}"),
            Step::Finish => f.write_str("finish"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in &self.joining {
            let ShardEntry {
                shard,
                host,
                port,
                database,
                ..
            } = entry;
            writeln!(f, "shard {shard} joins: {host}:{port}/{database}")?;
        }
        for moved in &self.moves {
            let Move { from, to, slots } = moved;
            writeln!(f, "shard {from} -> {to}: {} slots ({slots})", slots.len())?;
        }
        for shard in &self.leaving {
            writeln!(f, "shard {shard} leaves")?;
        }
        Ok(())
    }
}
