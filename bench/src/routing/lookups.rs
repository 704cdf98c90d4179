//! What a route costs from the watch's snapshot, against a map that never changes.

use std::hint::black_box;
use std::time::{Duration, Instant};

use shardlane_citus::Watch;
use shardlane_router::{RouteKey, ShardMap};
use uuid::Uuid;

use super::results::{LookupRun, Lookups, Spread};

/// How long each way is measured, in a run.
const TIME: Duration = Duration::from_millis(100);

/// One thread, while the watch polls; the ways take turns.
pub(super) fn measure(watch: &Watch, users: &[Uuid], runs: u32) -> Lookups {
    let fixed = watch.current();
    let fixed: &ShardMap = &fixed;
    let runs: Vec<LookupRun> = (0..runs.max(3))
        .map(|_| LookupRun {
            plain_per_s: rate(users, |user| fixed.route(user).node),
            peek_per_s: rate(users, |user| watch.peek().route(user).node),
            current_per_s: rate(users, |user| watch.current().route(user).node),
        })
        .collect();
    let spread = |value: fn(&LookupRun) -> f64| Spread::of(runs.iter().map(value));
    Lookups {
        plain_per_s: spread(|run| run.plain_per_s),
        peek_per_s: spread(|run| run.peek_per_s),
        current_per_s: spread(|run| run.current_per_s),
        runs,
    }
}

/// Routes a second. Each takes its map anew, as each statement of a client does.
fn rate(users: &[Uuid], route: impl Fn(&RouteKey<'_>) -> usize) -> f64 {
    let started = Instant::now();
    let mut routes = 0.0;
    let mut took = Duration::ZERO;
    while took < TIME {
        for user in users {
            black_box(route(&RouteKey::Uuid(black_box(*user))));
            routes += 1.0;
        }
        took = started.elapsed();
    }
    routes / took.as_secs_f64()
}
