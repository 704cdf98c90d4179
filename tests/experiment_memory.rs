//! `shardlane experiment memory`, small: a worker process before a backlog that is more than it may hold.

use std::process::{Command, Stdio};

use serde_json::Value;
use shardlane_local::require;

/// Takes 15 s: the servers have to start, and the backlog must not fit into the lanes' 64 MiB.
#[test]
fn memory_is_bounded_before_a_backlog() {
    if require("postgres").is_none() || require("kafka").is_none() {
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_shardlane"))
        .args(["experiment", "memory", "--events", "100000"])
        .args(["--payload-bytes", "1500", "--json", "-", "--out"])
        .arg(out.path())
        .env_remove("SHARDLANE_KAFKA")
        .env_remove("SHARDLANE_DATABASE")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(out.path().join("memory.json").exists());

    let results: Value = serde_json::from_slice(&output.stdout).unwrap();
    let result = &results["results"][0];
    let number = |field: &str| result[field].as_u64().unwrap();
    // It was full once, and not fuller than it may be.
    assert!(number("hanging_in_flight_bytes") > 20 << 20, "{result}");
    assert!(number("in_flight_peak_bytes") <= 64 << 20, "{result}");
    assert!(number("peak_mib") <= 200, "{result}");
    assert!(result["points"].as_array().unwrap().len() > 10, "{result}");
}
