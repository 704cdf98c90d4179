//! The reads experiment on real servers, as small as it can be.

use std::collections::BTreeSet;

use shardlane_bench::reads::{ReadsSettings, run};
use shardlane_bench::study::Stop;
use shardlane_local::require;
use shardlane_sql::Layout;

/// Takes 10 s: three layouts have to start, one of them a cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_finds_the_same_rows() {
    let Some(()) = require("citus") else { return };
    let settings = ReadsSettings {
        layouts: vec![Layout::Single, Layout::Shards, Layout::Citus],
        users: 60,
        orders_a_user: 3,
        events_an_order: 10,
        clients: vec![2],
        seconds: 0.05,
        shards: 2,
        citus_shards: 4,
        runs: 2,
    };
    let study = run(&settings, "shardlane experiment reads", Stop::never())
        .await
        .unwrap();

    assert_eq!(study.faults, Vec::<String>::new());
    assert!(study.skipped.is_empty() && !study.is_interrupted);
    // By user: one server, the shard, and Citus's three ways; without the user there is no owner.
    assert_eq!(study.results.len(), 3 * 5 + 2 * 4);
    for cell in &study.results {
        assert_eq!(cell.runs.len(), 2);
        assert!(cell.figures["reads_per_s"].min > 0.0, "{cell:?}");
        let [p50, p99] = ["p50_us", "p99_us"].map(|name| cell.figures[name].median);
        assert!(p50 > 0.0 && p50 <= p99, "{cell:?}");
        assert_eq!(cell.figures["failed"].max, 0.0, "{cell:?}");
    }
    let parts: BTreeSet<&str> = study
        .results
        .iter()
        .map(|cell| cell.part.as_str())
        .collect();
    assert_eq!(
        parts.into_iter().collect::<Vec<_>>(),
        [
            "latest-2",
            "order-directory-2",
            "order-scan-2",
            "page-2",
            "user-2"
        ]
    );
    assert_eq!(study.findings.len(), 3, "{:?}", study.findings);
}
