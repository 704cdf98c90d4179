//! The door experiment on real servers, as small as it can be.

use shardlane_bench::door::results::{DoorSettings, Way, render};
use shardlane_bench::door::run;
use shardlane_local::require;

fn settings(payload_bytes: usize) -> DoorSettings {
    DoorSettings {
        runs: 1,
        seconds: 0.5,
        open_seconds: 1.0,
        open_share: 0.1,
        connections: 16,
        partitions: 4,
        users: 200,
        payload_bytes,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_way_is_measured_and_every_event_that_is_looked_for_has_its_row() {
    let (Some(()), Some(())) = (require("kafka"), require("postgres")) else {
        return;
    };
    let results = run(&settings(300), "shardlane experiment door")
        .await
        .unwrap();
    let table = render(&results);

    assert!(results.open.is_good(), "{table}");
    let rows = results.open.rows.as_ref().unwrap();
    assert!(
        rows.found >= 1 && rows.missing == 0 && rows.were_there == 0,
        "{table}"
    );
    // A row comes after the acknowledgement of its record.
    assert!(
        rows.latency_ms.max > results.open.measured.latency_ms.p50,
        "{table}"
    );
    assert!(rows.resolution_ms.p50 <= rows.latency_ms.p50, "{table}");
    assert_eq!(
        results.open.scheduled, results.open.measured.sent,
        "{table}"
    );

    let of = |way| {
        results
            .capacity
            .iter()
            .find(|capacity| capacity.way == way)
            .unwrap()
    };
    let rate = |way| of(way).requests_per_s.median;
    // One connection waits for linger and broker each time; without the produce nothing waits. (Nothing is said of the
    // real way: half a second of a broker that has just started may hold anything.)
    assert!(rate(Way::Sequential) < rate(Way::NoProduce), "{table}");
    for capacity in &results.capacity {
        assert!(capacity.server_cpu_us.median > 1.0, "{table}");
    }
    let names: Vec<&str> = results
        .steps
        .iter()
        .map(|step| step.name.as_str())
        .collect();
    assert_eq!(names, ["verification", "validation", "routing", "produce"]);
    assert!(
        results.steps.iter().all(|step| step.cpu_us.median > 0.0),
        "{table}"
    );
    let slow = &results.slow;
    assert_eq!((slow.sockets, slow.runs.len()), (1_000, 1), "{table}");
    let felt = slow.runs[0].beside_p99_ms / slow.runs[0].alone_p99_ms;
    let goal = results.goals.last().unwrap();
    assert!(goal.name.contains("slow sockets") && felt > 0.0, "{table}");
    assert!((goal.value - felt).abs() < 1e-9, "{table}");
    let ratio = &results.goals[0];
    let expected = rate(Way::Kafka) / rate(Way::NoProduce);
    assert!((ratio.value - expected).abs() < 1e-9, "{table}");
    assert_eq!(ratio.met, expected >= 0.5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_fails_says_why() {
    let (Some(()), Some(())) = (require("kafka"), require("postgres")) else {
        return;
    };
    let error = run(&settings(300_000), "shardlane experiment door")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("over the limit"), "{error:#}");
}
