//! [`MapDocument`]: the value of the map's topic, and which document may follow which.

use serde::{Deserialize, Serialize};
use shardlane_router::{Epoch, MapError, PartitionId, SLOT_COUNT, ShardId, Slot, SlotMap};

/// First and last slot, both included.
type SlotRun = (u16, u16);

/// The map by which records are placed and, while partitions are added, the slots that nobody may place and the map
/// that comes next. Its shard table says nothing: slot -> shard is the shards' own business.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire")]
pub struct MapDocument {
    map: SlotMap,
    frozen: Vec<SlotRun>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<SlotMap>,
}

/// The document as it is written, before it is checked. A field that this version does not know may forbid something,
/// so it is refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    map: SlotMap,
    frozen: Vec<SlotRun>,
    next: Option<SlotMap>,
}

/// A document that contradicts itself.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The frozen slots are not runs in order.
    #[error("the frozen slots are not ascending runs below 4096")]
    Runs,
    /// Slots are frozen and nothing says for what, or the other way round.
    #[error("frozen slots and the next map belong together: one of them is missing")]
    HalfFrozen,
    /// The next map does not follow the map.
    #[error("the next map must have the same hash and the epoch after the map's")]
    Next,
}

impl TryFrom<Wire> for MapDocument {
    type Error = DocumentError;

    fn try_from(wire: Wire) -> Result<Self, DocumentError> {
        let Wire { map, frozen, next } = wire;
        let inside = |run: &SlotRun| run.0 <= run.1 && usize::from(run.1) < SLOT_COUNT;
        if !frozen.iter().all(inside) || !frozen.is_sorted_by(|a, b| a.1 < b.0) {
            return Err(DocumentError::Runs);
        }
        if frozen.is_empty() != next.is_none() {
            return Err(DocumentError::HalfFrozen);
        }
        let follows = |next: &SlotMap| {
            next.hash() == map.hash() && map.epoch().0.checked_add(1) == Some(next.epoch().0)
        };
        if !next.as_ref().is_none_or(follows) {
            return Err(DocumentError::Next);
        }
        Ok(MapDocument { map, frozen, next })
    }
}

impl MapDocument {
    /// A map by which everything may be placed.
    pub fn open(map: &SlotMap) -> MapDocument {
        MapDocument {
            map: partitions_only(map),
            frozen: Vec::new(),
            next: None,
        }
    }

    /// The document behind this one that freezes the slots which move on the way to `partitions` partitions. All
    /// others are placed as before.
    ///
    /// # Errors
    /// [`MapError`]: so many partitions cannot be.
    pub(crate) fn freeze(&self, partitions: u32) -> Result<MapDocument, MapError> {
        let map = with_epoch(&self.map, next_epoch(self.map.epoch())?)?;
        let plan = map.plan_partitions(partitions)?;
        let mut frozen: Vec<SlotRun> = Vec::new();
        for slot in plan.moves.iter().map(|step| step.slot.number()) {
            match frozen.last_mut() {
                Some(run) if run.1 + 1 == slot => run.1 = slot,
                _ => frozen.push((slot, slot)),
            }
        }
        Ok(MapDocument {
            map,
            frozen,
            next: Some(plan.map),
        })
    }

    /// The document behind a frozen one by which growth is complete; `None` if nothing is frozen.
    pub(crate) fn complete(&self) -> Option<MapDocument> {
        self.next.as_ref().map(MapDocument::open)
    }

    /// The document behind a frozen one that takes the freeze back; `None` if nothing is frozen.
    ///
    /// # Errors
    /// [`MapError::EpochExhausted`].
    pub(crate) fn roll_back(&self) -> Result<Option<MapDocument>, MapError> {
        if self.next.is_none() {
            return Ok(None);
        }
        let map = with_epoch(&self.map, next_epoch(self.map.epoch())?)?;
        Ok(Some(MapDocument::open(&map)))
    }

    /// The map in force.
    pub fn map(&self) -> &SlotMap {
        &self.map
    }

    /// The slots that nobody may place now, as ascending runs with both ends included.
    pub fn frozen(&self) -> &[SlotRun] {
        &self.frozen
    }

    /// The map that comes when the frozen slots have drained.
    pub fn next(&self) -> Option<&SlotMap> {
        self.next.as_ref()
    }

    /// Whether `slot` must not be placed now.
    pub fn is_frozen(&self, slot: Slot) -> bool {
        let behind = self.frozen.partition_point(|run| run.1 < slot.number());
        self.frozen
            .get(behind)
            .is_some_and(|run| run.0 <= slot.number())
    }

    /// The partitions that the frozen slots leave: what has to be drained. Ascending.
    pub(crate) fn left_partitions(&self) -> Vec<PartitionId> {
        let frozen = Slot::all().filter(|slot| self.is_frozen(*slot));
        let mut left: Vec<PartitionId> = frozen.map(|slot| self.map.partition_of(slot)).collect();
        left.sort_unstable();
        left.dedup();
        left
    }

    /// Whether `next` may replace this document, as [`SlotMap::check_successor`] says it of maps.
    ///
    /// # Errors
    /// [`MapError::OtherHash`], [`MapError::OlderEpoch`], [`MapError::SameEpochOtherMap`].
    pub fn check_successor(&self, next: &MapDocument) -> Result<(), MapError> {
        self.map.check_successor(&next.map)?;
        if self.map.epoch() == next.map.epoch() && self != next {
            return Err(MapError::SameEpochOtherMap {
                epoch: self.map.epoch(),
            });
        }
        Ok(())
    }
}

/// The map with one shard for all: two maps that place alike are equal, whatever shards their owners know.
fn partitions_only(map: &SlotMap) -> SlotMap {
    with_epoch(map, map.epoch())
        .unwrap_or_else(|error| unreachable!("the tables come from a map: {error}"))
}

fn with_epoch(map: &SlotMap, epoch: Epoch) -> Result<SlotMap, MapError> {
    let partitions: Vec<PartitionId> = Slot::all().map(|slot| map.partition_of(slot)).collect();
    SlotMap::from_tables(epoch, map.hash(), &partitions, &[ShardId(0); SLOT_COUNT])
}

fn next_epoch(epoch: Epoch) -> Result<Epoch, MapError> {
    let next = epoch.0.checked_add(1);
    next.map(Epoch).ok_or(MapError::EpochExhausted { epoch })
}

#[cfg(test)]
mod tests {
    use super::*;
    use shardlane_router::TokenHash;

    fn even(epoch: u64, partitions: u32) -> MapDocument {
        let shards = [ShardId(0), ShardId(1)];
        let map = SlotMap::aligned(Epoch(epoch), TokenHash::Postgres, partitions, &shards);
        MapDocument::open(&map.unwrap())
    }

    fn read(json: &str) -> Result<MapDocument, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn frozen_are_exactly_the_slots_that_move() {
        for (from, to) in [(4, 6), (8, 16), (100, 128), (12, 13), (1, 4096)] {
            let open = even(7, from);
            let frozen = open.freeze(to).unwrap();
            let done = frozen.complete().unwrap();
            assert_eq!(frozen.map().epoch(), Epoch(8));
            assert_eq!(
                (done.map().epoch(), done.map().partition_count()),
                (Epoch(9), to)
            );
            for slot in Slot::all() {
                let (before, after) =
                    (open.map().partition_of(slot), done.map().partition_of(slot));
                assert_eq!(frozen.map().partition_of(slot), before);
                assert_eq!(
                    frozen.is_frozen(slot),
                    before != after,
                    "{from} -> {to}: {slot:?}"
                );
                assert!(!done.is_frozen(slot));
                assert!(before == after || frozen.left_partitions().contains(&before));
            }
            let back = frozen.roll_back().unwrap().unwrap();
            assert_eq!(back.map(), &with_epoch(open.map(), Epoch(9)).unwrap());
            assert_eq!((back.frozen(), back.next()), (&[][..], None));
        }
        assert_eq!(even(1, 4).roll_back().unwrap(), None);
        assert_eq!(even(1, 4).complete(), None);
    }

    #[test]
    fn a_document_survives_being_written_and_what_contradicts_itself_is_refused() {
        let frozen = even(1, 4).freeze(6).unwrap();
        let json = serde_json::to_string(&frozen).unwrap();
        assert_eq!(read(&json).unwrap(), frozen);
        let open = serde_json::to_string(&even(1, 4)).unwrap();
        assert!(open.ends_with(r#","frozen":[]}"#), "{open}");
        for (broken, part) in [
            (
                open.replace(r#""frozen":[]"#, r#""frozen":[[5,4]]"#),
                "ascending",
            ),
            (
                open.replace(r#""frozen":[]"#, r#""frozen":[[0,4096]]"#),
                "ascending",
            ),
            (
                open.replace(r#""frozen":[]"#, r#""frozen":[[0,4],[4,5]]"#),
                "ascending",
            ),
            (
                open.replace(r#""frozen":[]"#, r#""frozen":[[0,4]]"#),
                "belong together",
            ),
            (
                open.replace(r#""frozen":[]"#, r#""frozen":[],"held":[]"#),
                "unknown field",
            ),
            (json.replace(r#""epoch":3"#, r#""epoch":4"#), "epoch after"),
        ] {
            let error = read(&broken).unwrap_err();
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn an_epoch_never_goes_back_and_never_means_two_things() {
        let (one, two) = (even(1, 4), even(2, 4));
        one.check_successor(&two).unwrap();
        one.check_successor(&one).unwrap();
        assert!(matches!(
            two.check_successor(&one),
            Err(MapError::OlderEpoch { .. })
        ));
        let frozen = one.freeze(6).unwrap();
        // The same map, but one freezes.
        for (first, second) in [(&two, &frozen), (&frozen, &two), (&two, &even(2, 5))] {
            let error = first.check_successor(second).unwrap_err();
            assert!(
                matches!(error, MapError::SameEpochOtherMap { .. }),
                "{error}"
            );
        }
    }
}
