//! A shard map as it is written.

use serde::{Deserialize, Serialize};

use super::{Node, ShardMap, ShardRange};
use crate::{Epoch, KeyType, MapError, TokenHash};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wire {
    epoch: Epoch,
    hash: TokenHash,
    key_type: KeyType,
    nodes: Vec<Node>,
    ranges: Vec<ShardRange>,
}

impl From<ShardMap> for Wire {
    fn from(map: ShardMap) -> Wire {
        Wire {
            epoch: map.epoch,
            hash: map.hash,
            key_type: map.key_type,
            nodes: map.nodes,
            ranges: map.ranges,
        }
    }
}

impl TryFrom<Wire> for ShardMap {
    type Error = MapError;

    fn try_from(wire: Wire) -> Result<ShardMap, MapError> {
        ShardMap::new(
            wire.epoch,
            wire.hash,
            wire.key_type,
            wire.nodes,
            wire.ranges,
        )
    }
}
