//! [`MapDiff`]: what changed from one map to the next.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use shardlane_router::{Epoch, KeyRange, Node, ShardId, ShardMap, ShardRange};

/// What changed from one map to the next. `Display` gives a line an item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MapDiff {
    /// The epoch of the older map.
    pub from: Epoch,
    /// The epoch of the newer map.
    pub to: Epoch,
    /// When this process saw it; in JSON as milliseconds since 1970.
    #[serde(rename = "at_unix_ms", serialize_with = "unix_ms")]
    pub at: SystemTime,
    /// The changes: of nodes, then of shards in order of their ranges.
    pub changes: Vec<MapChange>,
}

/// One change of a map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "change", rename_all = "snake_case")]
#[non_exhaustive]
pub enum MapChange {
    /// A node holds its first shard.
    NodeAdded {
        /// The node.
        node: Node,
    },
    /// A node lost its last shard.
    NodeGone {
        /// The node.
        node: Node,
    },
    /// A node is reached at another address.
    NodeAddressChanged {
        /// As it was.
        from: Node,
        /// As it is.
        to: Node,
    },
    /// A shard lives on another node.
    ShardMoved {
        /// The shard.
        shard: ShardId,
        /// Where it was.
        from: Node,
        /// Where it is.
        to: Node,
    },
    /// A shard was cut: by a split, or by the isolation of a tenant.
    ShardSplit {
        /// The shard that is no more.
        shard: ShardId,
        /// What took its range.
        into: Vec<ShardPiece>,
    },
    /// A shard without a predecessor.
    ShardAdded(ShardPiece),
    /// A shard that nobody replaced.
    ShardGone(ShardPiece),
}

/// A shard, its range and its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShardPiece {
    /// The shard.
    pub shard: ShardId,
    /// Its tokens.
    pub range: KeyRange,
    /// Its node.
    pub node: Node,
}

impl ShardPiece {
    fn of(map: &ShardMap, range: &ShardRange) -> ShardPiece {
        ShardPiece {
            shard: range.shard,
            range: range.range,
            node: map.node_of(range).clone(),
        }
    }
}

impl MapDiff {
    /// What makes `new` of `old`, seen now. A node is known by its group, a shard by its number.
    #[must_use]
    pub fn between(old: &ShardMap, new: &ShardMap) -> MapDiff {
        let mut changes = Vec::new();
        node_changes(old, new, &mut changes);
        shard_changes(old, new, &mut changes);
        MapDiff {
            from: old.epoch(),
            to: new.epoch(),
            at: SystemTime::now(),
            changes,
        }
    }

    /// Whether the two maps route alike.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

fn node_changes(old: &ShardMap, new: &ShardMap, changes: &mut Vec<MapChange>) {
    let by_group = |map: &ShardMap| -> BTreeMap<i32, Node> {
        map.nodes()
            .iter()
            .map(|it| (it.group, it.clone()))
            .collect()
    };
    let (before, after) = (by_group(old), by_group(new));
    for (group, from) in &before {
        match after.get(group) {
            None => changes.push(MapChange::NodeGone { node: from.clone() }),
            Some(to) if to != from => changes.push(MapChange::NodeAddressChanged {
                from: from.clone(),
                to: to.clone(),
            }),
            Some(_) => {}
        }
    }
    for (group, node) in after {
        if !before.contains_key(&group) {
            changes.push(MapChange::NodeAdded { node });
        }
    }
}

fn shard_changes(old: &ShardMap, new: &ShardMap, changes: &mut Vec<MapChange>) {
    let by_shard = |map: &ShardMap| -> BTreeMap<ShardId, ShardRange> {
        map.shards().iter().map(|it| (it.shard, *it)).collect()
    };
    let (before, after) = (by_shard(old), by_shard(new));
    let mut born: BTreeMap<ShardId, ShardRange> = after
        .iter()
        .filter(|(shard, it)| before.get(shard).is_none_or(|was| was.range != it.range))
        .map(|(shard, it)| (*shard, *it))
        .collect();
    for was in old.shards() {
        match after.get(&was.shard) {
            Some(is) if is.range == was.range => {
                let (from, to) = (old.node_of(was), new.node_of(is));
                if from.group != to.group {
                    changes.push(MapChange::ShardMoved {
                        shard: was.shard,
                        from: from.clone(),
                        to: to.clone(),
                    });
                }
            }
            _ => changes.push(replaced(old, was, new, &mut born)),
        }
    }
    changes.extend(
        born.values()
            .map(|it| MapChange::ShardAdded(ShardPiece::of(new, it))),
    );
}

/// A shard that is no more: cut, if new shards tile its range, else gone.
fn replaced(
    old: &ShardMap,
    was: &ShardRange,
    new: &ShardMap,
    born: &mut BTreeMap<ShardId, ShardRange>,
) -> MapChange {
    let (first, last) = (was.range.first(), was.range.last());
    // What lies on the range covers it, because a map's ranges tile; it tiles it if nothing sticks out.
    let heirs = new.shards_of_range(first, last);
    let fits = |it: &ShardRange| it.range.first() >= first && it.range.last() <= last;
    if !heirs
        .iter()
        .all(|it| fits(it) && born.contains_key(&it.shard))
    {
        return MapChange::ShardGone(ShardPiece::of(old, was));
    }
    for heir in heirs {
        born.remove(&heir.shard);
    }
    MapChange::ShardSplit {
        shard: was.shard,
        into: heirs.iter().map(|it| ShardPiece::of(new, it)).collect(),
    }
}

fn unix_ms<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    serializer.serialize_u64(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl fmt::Display for MapDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, change) in self.changes.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "epoch {}: {change}", self.to)?;
        }
        Ok(())
    }
}

impl fmt::Display for MapChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MapChange::NodeAdded { node } => write!(f, "node {node} (group {}) added", node.group),
            MapChange::NodeGone { node } => write!(f, "node {node} (group {}) gone", node.group),
            MapChange::NodeAddressChanged { from, to } => {
                write!(
                    f,
                    "node of group {} changed its address from {from} to {to}",
                    to.group
                )
            }
            MapChange::ShardMoved { shard, from, to } => {
                write!(f, "shard {shard} moved from {from} to {to}")
            }
            MapChange::ShardSplit { shard, into } => {
                write!(f, "shard {shard} split into ")?;
                for (index, piece) in into.iter().enumerate() {
                    let comma = if index > 0 { ", " } else { "" };
                    write!(f, "{comma}{piece}")?;
                }
                Ok(())
            }
            MapChange::ShardAdded(piece) => write!(f, "shard {piece} added"),
            MapChange::ShardGone(piece) => write!(f, "shard {piece} gone"),
        }
    }
}

impl fmt::Display for ShardPiece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}] on {}", self.shard, self.range, self.node)
    }
}
