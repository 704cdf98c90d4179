//! The skew experiment on real servers, as small as it can be.

use shardlane_bench::skew::{SkewSettings, run};
use shardlane_bench::study::Stop;
use shardlane_local::require;
use shardlane_sql::Layout;

/// Takes 20 s, more on a busy machine: two layouts and a broker have to start, and shards to move.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cure_gives_a_hot_user_room_and_keeps_its_rows() {
    if require("citus").is_none() || require("kafka").is_none() {
        return;
    }
    let settings = SkewSettings {
        layouts: vec![Layout::Shards, Layout::Citus],
        zipf: Vec::new(),
        events: 2_000,
        users: 500,
        partitions: 4,
        batch_rows_max: 500,
        connections: 2,
        runs: 1,
    };
    let study = run(&settings, "shardlane experiment skew", Stop::never())
        .await
        .unwrap();
    // The rows of both streams are where they were, and right.
    assert_eq!(study.faults, Vec::<String>::new());
    let figure = |layout: &str, path: &str, name: &str| {
        let mut cells = study.results.iter();
        let cell = cells
            .find(|cell| (&*cell.layout, &*cell.path) == (layout, path))
            .unwrap();
        cell.figures[name].median
    };
    for (layout, before, after) in [
        ("shards", "aligned", "neighbours-moved"),
        ("citus", "owner", "isolated"),
    ] {
        // Half of the orders are the user's, and half of the others lie beside it; then it is alone.
        let [hot, cured] = [before, after].map(|path| figure(layout, path, "busiest_server"));
        assert!((68.0..82.0).contains(&hot), "{layout}: {hot}");
        assert!((50.0..57.0).contains(&cured), "{layout}: {cured}");
        assert!(figure(layout, after, "cure_s") > 0.0);
        assert!(figure(layout, after, "events_per_s") > 0.0);
        assert!(figure(layout, before, "p50_ms") <= figure(layout, before, "p99_ms"));
    }
    assert_eq!(study.findings.len(), 2, "{:?}", study.findings);
}
