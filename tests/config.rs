//! `--config FILE`, `shardlane config` and `shardlane doctor`, as a script sees them.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Desk {
        Desk {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn file(&self, text: &str) -> PathBuf {
        let path = self.folder.path().join("shardlane.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    fn run(&self, text: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_shardlane"))
            .args(arguments)
            .env_remove("SHARDLANE_KAFKA")
            .env_remove("SHARDLANE_DATABASE")
            .env("SHARDLANE_CONFIG", self.file(text))
            .envs(variables.iter().copied())
            .output()
            .unwrap()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn refused(text: &str, arguments: &[&str], parts: &[&str]) {
    let output = Desk::new().run(text, arguments, &[]);
    let sentence = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{sentence}");
    for part in parts {
        assert!(sentence.contains(part), "{part:?} is not in: {sentence}");
    }
    assert!(!sentence.contains("panicked"), "{sentence}");
    assert_eq!(output.stdout, b"");
}

#[test]
fn the_manual_is_the_program() {
    let output = Desk::new().run("", &["config", "show", "--documented"], &[]);
    let printed = said(&output);
    let manual = include_str!("../docs/settings/shardlane.toml");
    assert_eq!(
        printed, manual,
        "`shardlane config show --documented` makes docs/settings/shardlane.toml"
    );
}

#[test]
fn the_manual_is_a_settings_file() {
    let manual = include_str!("../docs/settings/shardlane.toml");
    let desk = Desk::new();
    let checked = desk.run(manual, &["config", "check"], &[]);
    assert!(said(&checked).contains(": 0 settings"), "{checked:?}");
    // Where there is no default stands what a setting takes, in capitals.
    let is_default = |line: &&str| {
        let (_, value) = line.split_once(" = ").unwrap();
        value == "\"\"" || !value.starts_with('"') || value.chars().any(char::is_lowercase)
    };
    let lines = manual.lines().map(|line| {
        let setting = line.strip_prefix("#: ").filter(is_default);
        setting.unwrap_or(line)
    });
    let all = lines.collect::<Vec<_>>().join("\n");
    let checked = desk.run(&all, &["config", "check"], &[]);
    assert!(checked.status.success(), "{checked:?}");
    let settings = all
        .lines()
        .filter(|line| !line.starts_with(['#', '[']) && !line.is_empty());
    assert!(said(&checked).contains(&format!(": {} settings", settings.count())));
}

#[test]
fn flags_go_before_environment_before_file_before_defaults() {
    let desk = Desk::new();
    let file = "[common]\npartitions = 4\n[route]\nshards = 4\n";
    let slot = "550e8400-e29b-41d4-a716-446655440000";
    let number = |arguments: &[&str], key: &str| {
        let output = desk.run(file, arguments, &[]);
        let route: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        route[key].as_i64().unwrap()
    };
    // Slot 1685 of 4096, in equal ranges.
    assert_eq!(number(&["route", slot, "--json"], "partition"), 1);
    assert_eq!(number(&["route", slot, "--json"], "shard"), 1);
    assert_eq!(
        number(&["route", slot, "--json", "--partitions", "8"], "partition"),
        3
    );

    let shown = said(&desk.run(
        "[common]\nkafka = 'file:1'\n[worker]\nkafka = 'own:1'\nbatch_rows_max = 7\n",
        &["config", "show", "worker"],
        &[("SHARDLANE_DATABASE", "postgres://me:s3cret@a/x")],
    ));
    for line in [
        "kafka = \"own:1\"  # the file, [worker]",
        "batch_rows_max = 7  # the file, [worker]",
        "connections = 8  # default",
        "database = \"postgres://me:***@a/x\"  # SHARDLANE_DATABASE",
    ] {
        assert!(shown.contains(line), "{line:?} is not in:\n{shown}");
    }
    let shown = said(&desk.run(
        "[common]\nkafka = 'file:1'\n",
        &["config", "show", "worker"],
        &[("SHARDLANE_KAFKA", "environment:1")],
    ));
    assert!(
        shown.contains("kafka = \"environment:1\"  # SHARDLANE_KAFKA"),
        "{shown}"
    );
}

#[test]
fn what_is_wrong_is_named_with_its_place_and_what_to_do() {
    let check = &["config", "check"];
    refused(
        "[wroker]\nkafka = 'x'",
        check,
        &["[wroker]", "worker", "common"],
    );
    refused(
        "[worker]\nbatch_rows = 5",
        check,
        &["[worker]", "batch_rows", "--documented"],
    );
    refused(
        "[worker]\nbatch_rows_max = 'many'",
        check,
        &[
            "shardlane.toml",
            "batch_rows_max",
            "[worker]",
            "invalid digit",
            "--batch-rows-max",
        ],
    );
    refused(
        "[worker]\nno_relay = 1",
        check,
        &["no_relay", "true or false"],
    );
    refused(
        "[common]\nlayout = 'triple'",
        check,
        &["layout", "[common]", "single, partman, shards, citus"],
    );
    refused("a = = b", check, &["line 1", "no TOML"]);
    refused(
        "[worker]\nkafka = '127.0.0.1:1'\nbatch_rows_max = 'many'",
        &["worker"],
        &["shardlane.toml", "batch_rows_max", "--batch-rows-max"],
    );
}

#[test]
fn each_setting_has_a_variable() {
    let desk = Desk::new();
    let file = "[worker]\nbatch_rows_max = 7\n";
    let shown = said(&desk.run(
        file,
        &["config", "show", "worker"],
        &[
            ("SHARDLANE_WORKER_BATCH_ROWS_MAX", "9"),
            ("SHARDLANE_WORKER_NO_RELAY", "true"),
        ],
    ));
    for line in [
        "batch_rows_max = \"9\"  # SHARDLANE_WORKER_BATCH_ROWS_MAX",
        "no_relay = true  # SHARDLANE_WORKER_NO_RELAY",
    ] {
        assert!(shown.contains(line), "{line:?} is not in:\n{shown}");
    }
    let wrong = [("SHARDLANE_ROUTE_SHARDS", "several")];
    let output = desk.run("", &["route", "x"], &wrong);
    let sentence = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2));
    for part in [
        "SHARDLANE_ROUTE_SHARDS sets shards",
        "invalid digit",
        "--shards",
    ] {
        assert!(sentence.contains(part), "{part:?} is not in: {sentence}");
    }
}

#[test]
fn what_is_meant_for_one_time_is_no_setting() {
    refused(
        "[audit]\nfix = true",
        &["config", "check"],
        &["[audit]", "fix"],
    );
    refused("[down]\nvolumes = true", &["config", "check"], &["[down]"]);
}

#[test]
fn a_flag_overrules_what_contradicts_it_in_the_file() {
    let desk = Desk::new();
    let file = "[worker]\npartitions = 4\nkafka = '127.0.0.1:1'\n";
    let output = desk.run(file, &["worker", "--map", "nowhere.json"], &[]);
    let sentence = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        sentence.contains("nowhere.json cannot be read"),
        "{sentence}"
    );
}

#[test]
fn the_doctor_names_what_is_missing_and_how_to_get_it() {
    let output = Command::new(env!("CARGO_BIN_EXE_shardlane"))
        .args(["doctor", "--json"])
        .env("PATH", "")
        .env("SHARDLANE_PG_BIN", "/nowhere")
        .output()
        .unwrap();
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let of = |name: &str| findings.iter().find(|it| it["name"] == name).unwrap();
    let docker = of("docker")["missing"].as_str().unwrap();
    assert!(docker.contains("install Docker"), "{docker}");
    let promtool = of("promtool")["missing"].as_str().unwrap();
    assert!(promtool.contains("package prometheus"), "{promtool}");
    let complete = ["postgres", "kafka"]
        .iter()
        .all(|name| of(name)["missing"].is_null());
    assert_eq!(output.status.success(), complete);
}
