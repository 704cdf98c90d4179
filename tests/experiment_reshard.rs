//! `shardlane experiment reshard`, small: shards change under a worker that Kafka keeps busy, and the oracle finds nothing.

use std::process::{Command, Stdio};

use serde_json::Value;
use shardlane_local::require;

/// Runs one layout, and expects its changes to lose, double and disorder nothing.
fn nothing_is_lost(layout: &str, changes: &[&str]) -> Vec<Value> {
    let out = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_shardlane"))
        .args(["experiment", "reshard", "--quick", "--layouts", layout])
        .args(["--users", "300", "--backlog", "300", "--json", "-"])
        .arg("--out")
        .arg(out.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(out.path().join("reshard.json").exists());
    assert!(out.path().join("reshard.html").exists());

    let results: Value = serde_json::from_slice(&output.stdout).unwrap();
    let results = results["results"].as_array().unwrap().clone();
    let made: Vec<&str> = results
        .iter()
        .map(|result| result["change"].as_str().unwrap())
        .collect();
    assert_eq!(made, changes);
    for result in &results {
        for fault in ["lost", "twice", "out_of_order", "misplaced"] {
            assert_eq!(result[fault], 0, "{result}");
        }
        assert_eq!(result["layout"], layout);
        assert_eq!(result["equal_state"], true, "{result}");
        for rate in ["before", "during", "after"] {
            let rate = result[format!("events_per_s_{rate}")].as_f64().unwrap();
            assert!(rate > 0.0, "the worker stood still: {result}");
        }
        assert!(result["stall_max_ms"].as_f64().unwrap() > 0.0, "{result}");
    }
    results
}

#[test]
fn manual_shards_grow_and_shrink_under_load() {
    if require("postgres").is_some() && require("kafka").is_some() {
        nothing_is_lost("shards", &["2->3", "3->2"]);
    }
}

#[test]
fn citus_shards_move_and_split_under_load() {
    if require("citus").is_some() && require("kafka").is_some() {
        for result in nothing_is_lost("citus", &["move", "split"]) {
            let recovered = result["owner_hit_recovered_s"].as_f64();
            assert!(recovered.is_some_and(|seconds| seconds < 10.0), "{result}");
        }
    }
}
