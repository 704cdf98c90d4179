//! [`GrowthPlan`]: the way to another number of owners with the fewest slots moved.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::Serialize;

use crate::{SLOT_COUNT, ShardId, Slot, SlotMap};

/// What has to move, and the map that holds afterwards.
///
/// `T` is what owns slots: [`ShardId`] or [`PartitionId`](crate::PartitionId).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GrowthPlan<T = ShardId> {
    /// The slots that change their owner, in order of slots. All others stay where they are.
    pub moves: Vec<SlotMove<T>>,
    /// The map after the moves, one epoch later (also when nothing moves).
    pub map: SlotMap,
}

/// One slot that changes its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub struct SlotMove<T = ShardId> {
    /// The slot.
    pub slot: Slot,
    /// Who owns it now.
    pub from: T,
    /// Who will own it.
    pub to: T,
}

/// Gives the slots in `owner_of` to exactly `owners`, evenly, moving as few as possible.
///
/// An owner that is to have one slot more than the others is one that has most now, so that nobody
/// gives a slot away only to make room for a rounding. Owners give their last slots, and these are
/// dealt out in order, so that runs stay runs: doubling the owners of contiguous runs halves each.
pub(crate) fn rebalance<T: Copy + Ord>(owner_of: &mut [T], owners: &[T]) -> Vec<SlotMove<T>> {
    let mut held: BTreeMap<T, Vec<Slot>> = owners.iter().map(|&owner| (owner, vec![])).collect();
    let mut loose: Vec<Slot> = Vec::new();
    for slot in Slot::all() {
        match held.get_mut(&owner_of[slot.index()]) {
            Some(slots) => slots.push(slot),
            None => loose.push(slot),
        }
    }

    let (share, one_more) = (SLOT_COUNT / owners.len(), SLOT_COUNT % owners.len());
    let mut by_load: Vec<(Reverse<usize>, T)> = held
        .iter()
        .map(|(&owner, slots)| (Reverse(slots.len()), owner))
        .collect();
    by_load.sort_unstable();
    let target_of: BTreeMap<T, usize> = by_load
        .into_iter()
        .enumerate()
        .map(|(rank, (_, owner))| (owner, share + usize::from(rank < one_more)))
        .collect();

    for (owner, slots) in &mut held {
        if slots.len() > target_of[owner] {
            loose.extend(slots.split_off(target_of[owner]));
        }
    }
    loose.sort_unstable();

    let mut moves = Vec::with_capacity(loose.len());
    let mut loose = loose.into_iter();
    for (&to, slots) in &held {
        for slot in loose.by_ref().take(target_of[&to] - slots.len()) {
            let from = std::mem::replace(&mut owner_of[slot.index()], to);
            moves.push(SlotMove { slot, from, to });
        }
    }
    moves
}
