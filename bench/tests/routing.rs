//! The routing experiment on real servers, as small as it can be.

use serde_json::Value;
use shardlane_bench::report;
use shardlane_bench::routing::results::{RoutingResult, RoutingResults, RoutingSettings};
use shardlane_bench::routing::{run, table};
use shardlane_local::require;

const WRITES: [&str; 3] = ["insert", "batch", "read-modify-write"];

fn settings() -> RoutingSettings {
    RoutingSettings {
        users: 200,
        seconds: 0.1,
        clients: vec![2],
        citus_shards: 4,
        batch_rows: 20,
        runs: 1,
    }
}

fn of<'a>(results: &'a RoutingResults, path: &'a str) -> impl Iterator<Item = &'a RoutingResult> {
    results
        .results
        .iter()
        .filter(move |result| result.path == path)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_path_is_measured_and_no_row_is_lost() {
    let Some(()) = require("citus") else { return };
    let results = run(&settings(), "shardlane experiment routing")
        .await
        .unwrap();

    // Four ways for three workloads, two grouped ones more for batches, a watched one for reads.
    assert_eq!(results.results.len(), 4 * 4 + 2 + 1);
    for result in &results.results {
        assert!(result.ops_per_s > 0.0, "{result:?}");
        assert!(
            result.p50_us > 0.0 && result.p50_us <= result.p99_us,
            "{result:?}"
        );
        assert_eq!((result.failed_ops, result.runs.len()), (0, 1), "{result:?}");
        for run in &result.runs {
            let is_write = WRITES.contains(&result.workload.as_str());
            assert_eq!(run.stored_rows > 0, is_write, "{result:?}");
            assert!(!is_write || run.stored_rows >= run.rows, "{result:?}");
        }
    }
    // The paths are what they are called: Citus itself says how often a node asked another.
    for owner in ["owner", "owner-watched"] {
        for result in of(&results, owner) {
            assert_eq!(result.hops_per_op, Some(0.0), "{result:?}");
            assert_eq!(result.backends, 2.0, "{result:?}");
        }
    }
    for result in of(&results, "any-node").filter(|result| result.workload != "batch") {
        let hops = result.hops_per_op.unwrap();
        assert!((0.05..0.95).contains(&hops), "{result:?}");
    }
    for result in of(&results, "coordinator") {
        assert!(result.hops_per_op.unwrap() >= 1.0, "{result:?}");
        assert!(result.backends > 2.0, "{result:?}");
    }
    // Each ratio is the quotient of what stands beside it.
    let rate = |path| {
        of(&results, path)
            .find(|result| result.workload == "insert")
            .unwrap()
            .ops_per_s
    };
    let ratio = results
        .ratios
        .iter()
        .find(|ratio| ratio.workload == "insert" && ratio.name == "owner/coordinator")
        .unwrap();
    let expected = rate("owner") / rate("coordinator");
    assert!(
        (ratio.ops_per_s.median / expected - 1.0).abs() < 1e-9,
        "{ratio:?}"
    );
    assert!(
        results.lookups.peek_per_s.min > 0.0,
        "{:?}",
        results.lookups
    );

    let json = serde_json::to_value(&results).unwrap();
    for key in [
        "machine", "commit", "command", "versions", "settings", "results", "ratios", "lookups",
    ] {
        assert!(!json[key].is_null(), "{key}");
    }
    assert!(
        json["versions"]["citus"]
            .as_str()
            .unwrap()
            .starts_with(char::is_numeric)
    );
    for key in [
        "workload",
        "path",
        "clients",
        "ops_per_s",
        "rows_per_s",
        "p50_us",
        "p95_us",
        "p99_us",
        "server_cpu_us_per_row",
        "runs",
    ] {
        let rows = json["results"].as_array().unwrap();
        assert!(rows.iter().all(|row| row.get(key).is_some()), "{key}");
    }

    let page = report::routing::render(&results).unwrap();
    let data = page
        .split_once("id=\"results\">")
        .and_then(|(_, rest)| rest.split_once("</script>"))
        .unwrap()
        .0;
    let data: Value = serde_json::from_str(data).unwrap();
    assert_eq!(data["started_at"], json["started_at"]);
    assert_eq!(
        data["results"].as_array().map(Vec::len),
        Some(results.results.len())
    );
    // It can be read without a network. The name of an XML namespace is no link.
    let links = page.replace("http://www.w3.org/2000/svg", "");
    assert!(
        !links.contains("http:") && !links.contains("https:"),
        "{page}"
    );
    assert!(table::render(&results).contains("owner/any-node-grouped"));
}

#[tokio::test]
async fn settings_that_measure_nothing_are_refused_before_a_server_starts() {
    for settings in [
        RoutingSettings {
            clients: vec![],
            ..settings()
        },
        RoutingSettings {
            clients: vec![1, 0],
            ..settings()
        },
        RoutingSettings {
            runs: 0,
            ..settings()
        },
    ] {
        let refused = run(&settings, "").await.unwrap_err().to_string();
        assert!(refused.contains("1 or more"), "{refused}");
    }
}
