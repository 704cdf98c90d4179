//! Results that no machine measured.

use std::collections::BTreeMap;

use crate::reshard::{ChangeResult, Results, Sample, Settings};
use crate::results::{Machine, Skipped};

fn change(layout: &str, change: &str, began_s: f64, took_s: f64) -> ChangeResult {
    let citus = layout == "citus";
    ChangeResult {
        layout: layout.to_owned(),
        change: change.to_owned(),
        began_s,
        ended_s: began_s + took_s,
        events: 30_650,
        lost: 0,
        twice: 0,
        out_of_order: 0,
        misplaced: 0,
        equal_state: true,
        took_s,
        events_per_s_before: 4_211.0,
        events_per_s_during: 2_633.0,
        events_per_s_after: 4_107.0,
        stall_before_ms: 212.0,
        stall_max_ms: 431.0 + began_s,
        stall_unmoved_ms: (!citus).then_some(387.0),
        owner_hit_min: citus.then_some(0.617),
        owner_hit_recovered_s: citus.then_some(0.42),
    }
}

/// A curve that dips within each change.
fn samples(changes: &[ChangeResult], seconds: u32, citus: bool) -> Vec<Sample> {
    let quarter = |n: u32| f64::from(n) / 4.0;
    let at = (1..=seconds * 4).map(quarter);
    at.map(|at_s| {
        let within = changes
            .iter()
            .any(|change| (change.began_s..change.ended_s).contains(&at_s));
        Sample {
            at_s,
            events_per_s: (if within { 2_600.0 } else { 4_150.0 }) + 180.0 * (at_s * 7.0).sin(),
            // The first question has no answer yet.
            owner_hit: (citus && at_s > 1.0).then_some(if within { 0.617 } else { 1.0 }),
        }
    })
    .collect()
}

pub(super) fn sample() -> Results {
    let shards = [
        change("shards", "2->3", 5.0, 6.2),
        change("shards", "3->2", 16.0, 4.9),
    ];
    let citus = [
        change("citus", "move", 5.0, 2.1),
        change("citus", "rebalance", 12.0, 5.5),
        change("citus", "split", 22.5, 1.6),
        change("citus", "isolate-tenant", 29.0, 1.5),
    ];
    Results {
        experiment: "reshard".to_owned(),
        started_at: "2026-11-21T03:58:12Z".to_owned(),
        took_s: 84.2,
        machine: Machine {
            cpu: "A processor".to_owned(),
            cores: 2,
            memory_gib: 7.75,
            kernel: "6.1.0".to_owned(),
            os: "Debian 12".to_owned(),
        },
        commit: "3f2a91c".to_owned(),
        command: "shardlane experiment reshard".to_owned(),
        settings: Settings {
            users: 2_000,
            partitions: 16,
            citus_shards: 16,
            batch_rows_max: 500,
            connections: 4,
            backlog: 10_000,
            rate: None,
            pause_ms: 5_000,
            quick: false,
        },
        samples: BTreeMap::from([
            ("shards".to_owned(), samples(&shards, 26, false)),
            ("citus".to_owned(), samples(&citus, 36, true)),
        ]),
        results: shards.into_iter().chain(citus).collect(),
        skipped: Vec::new(),
    }
}

pub(super) fn without_citus() -> Results {
    let mut results = sample();
    results.results.retain(|change| change.layout == "shards");
    results.samples.remove("citus");
    results.skipped = vec![Skipped {
        layout: "citus".to_owned(),
        reason: "citus: not installed here".to_owned(),
    }];
    results
}

pub(super) fn everything_skipped() -> Results {
    Results {
        results: Vec::new(),
        samples: BTreeMap::new(),
        ..without_citus()
    }
}
