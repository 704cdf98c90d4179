//! [`group_by_shard`]: a batch cut into one batch a shard.

use std::collections::HashMap;

use crate::ShardId;

/// Cuts `items` into one group a shard.
///
/// Inside a group the items keep their order, so events of one user stay in order. The groups come
/// in order of first appearance, so the shard of the oldest item comes first.
///
/// ```
/// use shardlane_router::{ShardId, group_by_shard};
///
/// let groups = group_by_shard([5, 2, 7, 4], |n| ShardId(n % 2));
/// assert_eq!(groups, [(ShardId(1), vec![5, 7]), (ShardId(0), vec![2, 4])]);
/// ```
#[must_use]
pub fn group_by_shard<T>(
    items: impl IntoIterator<Item = T>,
    mut shard_of: impl FnMut(&T) -> ShardId,
) -> Vec<(ShardId, Vec<T>)> {
    let mut groups: Vec<(ShardId, Vec<T>)> = Vec::new();
    let mut place_of: HashMap<ShardId, usize> = HashMap::new();
    // In an aligned batch neighbours share a shard: then the place of the last item serves again.
    let mut last: Option<(ShardId, usize)> = None;
    for item in items {
        let shard = shard_of(&item);
        let place = match last {
            Some((last_shard, place)) if last_shard == shard => place,
            _ => *place_of.entry(shard).or_insert_with(|| {
                groups.push((shard, Vec::new()));
                groups.len() - 1
            }),
        };
        last = Some((shard, place));
        groups[place].1.push(item);
    }
    groups
}
