//! `shardlane experiment shard-down`, small: one of two primaries goes away under load, and the oracle finds nothing.

use std::process::{Command, Stdio};

use serde_json::Value;
use shardlane_local::require;

/// Takes 15 s: an outage has to be longer than a batch, and the servers have to start.
#[test]
fn the_other_shard_goes_on_and_the_backlog_drains() {
    if require("postgres").is_none() || require("kafka").is_none() {
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_shardlane"))
        .args(["experiment", "shard-down", "--quick", "--layouts", "shards"])
        .args(["--rate", "500", "--users", "300", "--outage-seconds", "3"])
        .args(["--json", "-", "--out"])
        .arg(out.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(out.path().join("shard-down.json").exists());

    let results: Value = serde_json::from_slice(&output.stdout).unwrap();
    let result = &results["results"][0];
    for fault in ["lost", "twice", "out_of_order"] {
        assert_eq!(result[fault], 0, "{result}");
    }
    assert_eq!(result["equal_state"], true, "{result}");
    let number = |field: &str| result[field].as_f64().unwrap();
    assert!(number("outage_s") >= 3.0, "{result}");
    // Two shards share 500 events a second; what one of them gets piles up for three seconds.
    assert!(number("waiting_max") >= 400.0, "nobody was away: {result}");
    assert!(
        number("healthy_events_per_s_during") > 0.5 * number("healthy_events_per_s_before"),
        "the healthy shard was held up: {result}"
    );
    assert!(number("first_commit_s") <= number("drained_s"), "{result}");
    assert_eq!(results["ratios"].as_array().unwrap().len(), 2);
}
