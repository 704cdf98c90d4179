//! The cost experiment on real servers, as small as it can be.

use shardlane_bench::cost::{CostSettings, run};
use shardlane_bench::study::{Stop, Study};
use shardlane_local::require;
use shardlane_sql::Layout;

fn figure(study: &Study, part: &str, (layout, path): (&str, &str), name: &str) -> f64 {
    let mut cells = study.results.iter();
    let cell = cells.find(|cell| (&*cell.part, &*cell.layout, &*cell.path) == (part, layout, path));
    cell.unwrap().figures[name].median
}

/// Takes 20 s, more on a busy machine: three layouts and a broker have to start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_layout_has_its_costs_and_the_model_follows_from_them() {
    if require("citus").is_none() || require("kafka").is_none() {
        return;
    }
    let settings = CostSettings {
        layouts: vec![Layout::Single, Layout::Shards, Layout::Citus],
        events: 2_000,
        users: 500,
        payload_bytes: 300,
        partitions: 4,
        batch_rows_max: 500,
        connections: 2,
        shards: 2,
        runs: 1,
    };
    let study = run(&settings, "shardlane experiment cost", Stop::never())
        .await
        .unwrap();
    assert_eq!(study.faults, Vec::<String>::new());
    let measured = |cell, name| figure(&study, "cost", cell, name);
    let [single, shards] = [("single", "worker"), ("shards", "aligned")];
    let [owner, grouped] = [("citus", "owner"), ("citus", "coordinator-grouped")];
    for cell in [single, shards, owner, grouped, ("citus", "coordinator")] {
        for name in ["server_cpu_us", "client_cpu_us", "kafka_cpu_us"] {
            assert!(measured(cell, name) > 0.0, "{cell:?} {name}");
        }
        // An event writes a row or more in five tables, with a payload of 300 bytes.
        let wal = measured(cell, "wal_bytes");
        assert!((500.0..10_000.0).contains(&wal), "{cell:?} {wal}");
        assert!(measured(cell, "memory_mib") > 10.0, "{cell:?}");
        assert!(
            (1.0..=500.0).contains(&measured(cell, "batch_events")),
            "{cell:?}"
        );
    }
    // A session a connection of ours at least; on Citus those between nodes beside.
    assert!(measured(single, "connections") >= 1.0);
    assert!(measured(grouped, "connections") > measured(single, "connections"));
    // Three servers take more than one.
    assert!(measured(owner, "memory_mib") > measured(single, "memory_mib"));
    assert_eq!(measured(single, "coordinator_cpu_us"), 0.0);
    assert!(measured(grouped, "coordinator_cpu_us") > 0.0);

    let model = |cell, name| figure(&study, "model", cell, name);
    assert_eq!(model(single, "nodes_16"), model(single, "nodes_1"));
    for cell in [shards, owner] {
        let times = model(cell, "nodes_16") / model(cell, "nodes_2");
        assert!((7.999..8.001).contains(&times), "{cell:?} {times}");
    }
    // Four cores of 1e6 us.
    let rate = 4e6 / measured(single, "server_cpu_us");
    assert!((model(single, "nodes_1") / rate - 1.0).abs() < 1e-9);
    assert!(study.findings.len() >= 5, "{:?}", study.findings);
}
