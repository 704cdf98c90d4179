//! The built `shardlane`, as a script sees it: exit codes, sentences, JSON, and nothing left behind.

mod command;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use shardlane_local::{Postgres, PostgresOptions, create_database, require};

use crate::command::shardlane;

const UUID: &str = "550e8400-e29b-41d4-a716-446655440000";

fn run(arguments: &[&str]) -> Output {
    shardlane(arguments).output().unwrap()
}

/// Runs, and expects exit code 2 with a sentence that holds all of `parts` and nothing on standard output.
#[track_caller]
fn refused(arguments: &[&str], parts: &[&str]) {
    let output = run(arguments);
    let sentence = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {sentence}");
    for part in parts {
        assert!(sentence.contains(part), "{part:?} is not in: {sentence}");
    }
    assert!(!sentence.contains("panicked"), "{sentence}");
    assert_eq!(output.stdout, b"");
}

#[test]
fn an_unknown_layout_is_refused_with_the_choices() {
    let choices = ["triple", "single", "partman", "shards", "citus"];
    refused(
        &["experiment", "ingest", "--layouts", "single,triple"],
        &choices,
    );
    refused(
        &["migrate", "--layout", "triple", "postgres://x@127.0.0.1/x"],
        &choices,
    );
    refused(
        &["worker", "--layout", "triple", "--kafka", "127.0.0.1:1"],
        &choices,
    );
}

#[test]
fn a_route_has_the_golden_values() {
    let output = run(&["route", UUID, "--json"]);
    assert_eq!(output.status.code(), Some(0));
    let route: Value = serde_json::from_slice(&output.stdout).unwrap();
    let keys: Vec<&str> = route
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    for key in [
        "hash_i32",
        "token",
        "slot",
        "partition",
        "shard",
        "placement",
    ] {
        assert!(keys.contains(&key), "{key}: {keys:?}");
    }
    // token = hash ^ 2^31, slot = token >> 20; 8 partitions and 2 shards in equal ranges of 4096 slots.
    assert_eq!(route["hash_i32"], -379_807_113);
    assert_eq!(route["token"], 1_767_676_535);
    assert_eq!(route["slot"], 1685);
    assert_eq!(route["partition"], 3);
    assert_eq!(route["shard"], 0);
    assert_eq!(route["placement"], Value::Null);

    // An uppercase uuid is the same user.
    let upper = run(&["route", &UUID.to_uppercase(), "--json"]);
    assert_eq!(upper.stdout, output.stdout);
    let other = run(&["route", UUID, "--json", "--hash", "murmur3"]);
    let other: Value = serde_json::from_slice(&other.stdout).unwrap();
    // 3062766882, as 32 bits with a sign.
    assert_eq!(other["hash_i32"], -1_232_200_414);
    let text = run(&["route", "user-1", "--type", "text"]);
    assert!(
        String::from_utf8(text.stdout)
            .unwrap()
            .contains("-558825088")
    );
}

#[test]
fn a_bad_key_is_refused_with_a_sentence() {
    refused(&["route", "not-a-uuid"], &["error:", "not-a-uuid", "uuid"]);
    refused(&["route", "007", "--type", "int8"], &["error:", "007"]);
    refused(&["route", "", "--type", "text"], &["error:", "empty"]);
    refused(
        &["route", UUID, "--partitions", "0"],
        &["error:", "partition"],
    );
}

#[test]
fn settings_that_are_missing_or_contradict_each_other_are_refused() {
    refused(
        &["ingest", "--mode", "kafka", "--kafka", "127.0.0.1:1"],
        &["error:", "--settings FILE", "--unsigned"],
    );
    refused(
        &["ingest", "--mode", "kafka", "--unsigned", "--settings", "x"],
        &["error:", "--unsigned", "--settings", "cannot be used with"],
    );
    refused(
        &["ingest", "--mode", "kafka", "--settings", "/no/such.toml"],
        &["error:", "/no/such.toml cannot be read"],
    );
    refused(
        &["ingest", "--unsigned", "--mode", "kafka"],
        &["error:", "--kafka", "SHARDLANE_KAFKA"],
    );
    refused(
        &["ingest", "--unsigned", "--mode", "direct"],
        &["error:", "--database", "SHARDLANE_DATABASE"],
    );
    refused(
        &["worker", "--kafka", "127.0.0.1:1"],
        &["error:", "--database"],
    );
    let one = "postgres://shardlane@127.0.0.1:1/one";
    let twins = [
        "worker",
        "--kafka",
        "127.0.0.1:1",
        "--layout",
        "shards",
        "--database",
        one,
        "--database",
        one,
    ];
    refused(&twins, &["error:", "same database", "127.0.0.1:1/one"]);
    let two = format!("{one},{one}2");
    refused(
        &[
            "worker",
            "--kafka",
            "127.0.0.1:1",
            "--layout",
            "single",
            "--database",
            &two,
        ],
        &["error:", "single takes one database", "2"],
    );
}

#[test]
fn a_report_is_made_of_folders_and_an_empty_one_is_refused() {
    let out = tempfile::tempdir().unwrap();
    let page = out.path().join("report.html");
    let committed = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/bench/runs/2026-11-21-2-core-vm-nets"
    );
    let memory = format!("{}-outage-and-memory", committed.trim_end_matches("-nets"));
    let output = run(&[
        "report",
        &memory,
        committed,
        "--out",
        page.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    // What is not on the page is said.
    assert!(String::from_utf8_lossy(&output.stderr).contains("alternations.json"));
    // Each of the other folder's files is a result.
    let files = std::fs::read_dir(&memory).unwrap();
    let is_result = |file: &std::fs::DirEntry| file.path().extension() == Some("json".as_ref());
    let results = files.map(Result::unwrap).filter(is_result).count();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains(&format!("results: {results}")), "{said}");
    assert!(
        std::fs::read_to_string(&page)
            .unwrap()
            .starts_with("<!DOCTYPE html>")
    );
    refused(
        &["report", out.path().to_str().unwrap()],
        &["no results of an experiment"],
    );
    refused(
        &["report", "/no/such/folder"],
        &["/no/such/folder", "cannot be read"],
    );
}

#[test]
fn a_worker_without_a_broker_ends_in_bounded_time() {
    let Some(()) = require("postgres") else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(async {
        let server = Postgres::start(PostgresOptions::fast()).await.unwrap();
        create_database(&server.url("postgres"), "one")
            .await
            .unwrap();
        server
    });
    let url = server.url("one");
    let migrated = run(&["migrate", "--layout", "single", &url]);
    assert!(migrated.status.success(), "{migrated:?}");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let began = Instant::now();
    refused(
        &["worker", "--kafka", &nobody, "--database", &url],
        &["error:", &nobody, "broker", "is it running?"],
    );
    refused(
        &["topics", "create", "--kafka", &nobody],
        &["error:", &nobody],
    );
    assert!(
        began.elapsed() < Duration::from_secs(90),
        "{:?}",
        began.elapsed()
    );

    // The same server under another name is no second shard either: a shard knows which one it is.
    let map = run(&["migrate", "--layout", "shards", &url]);
    assert_eq!(
        map.status.code(),
        Some(2),
        "a single database became a shard: {map:?}"
    );
    runtime
        .block_on(create_database(&server.url("postgres"), "shard"))
        .unwrap();
    let shard = server.url("shard");
    let other_name = shard.replace("127.0.0.1", "localhost");
    let both = run(&["migrate", "--layout", "shards", &shard, &other_name]);
    let sentence = String::from_utf8_lossy(&both.stderr).into_owned();
    assert_eq!(
        both.status.code(),
        Some(2),
        "two shards are one database: {sentence}"
    );
    refused(
        &[
            "worker",
            "--kafka",
            &nobody,
            "--layout",
            "shards",
            "--database",
            &shard,
            "--database",
            &other_name,
        ],
        &["error:", "shard"],
    );
    runtime.block_on(server.stop()).unwrap();
}

/// A folder for the temporary files of one run. Every server of the run works in it, so whoever is at work in it
/// belongs to the run, and no server of another test does.
struct RunFolder(tempfile::TempDir);

impl RunFolder {
    fn new() -> RunFolder {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::Builder::new()
            .prefix("shardlane-cli-")
            .tempdir()
            .unwrap();
        // As /tmp is: PostgreSQL runs as another user when we are root, and removes its own folder here. Not through
        // the builder, whose permissions the umask cuts.
        let open = std::fs::Permissions::from_mode(0o1777);
        std::fs::set_permissions(folder.path(), open).unwrap();
        RunFolder(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Command lines of the processes that work in the folder, or were told of it.
    fn processes(&self, except: u32) -> Vec<String> {
        let here = self.0.path();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok())
            else {
                continue;
            };
            if pid == except || pid == std::process::id() {
                continue;
            }
            let works_here =
                std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(here));
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if works_here || command.contains(&*here.to_string_lossy()) {
                found.push(format!("{pid}: {command}"));
            }
        }
        found
    }

    /// Starts the command with its temporary files here. Output goes to files: a full pipe would stop it.
    fn spawn(&self, arguments: &[&str]) -> Child {
        let file = |name| std::fs::File::create(self.path(name)).unwrap();
        shardlane(arguments)
            .env("TMPDIR", self.0.path())
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .spawn()
            .unwrap()
    }

    /// Waits for the end, and expects to see the run's own servers before it and none of them after it.
    fn finish(&self, mut child: Child) -> (ExitStatus, String, String) {
        let deadline = Instant::now() + Duration::from_secs(300);
        let (mut postgres, mut java) = (false, false);
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            for process in self.processes(child.id()) {
                postgres |= process.contains("postgres");
                java |= process.contains("java");
            }
            if Instant::now() > deadline {
                child.kill().unwrap();
                panic!("it does not end: {}", self.text("stderr"));
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let (stdout, stderr) = (self.text("stdout"), self.text("stderr"));
        assert!(
            postgres && java,
            "the run's servers were not seen, so nothing is known of their end: {stderr}"
        );
        // The command waits for its servers; the kernel may need a moment to forget them.
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let left = self.processes(0);
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "left behind: {left:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        let names = std::fs::read_dir(self.0.path())
            .unwrap()
            .flatten()
            .map(|entry| entry.file_name());
        let left: Vec<_> = names
            .filter(|name| name.to_string_lossy().starts_with("shardlane-"))
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        (status, stdout, stderr)
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn an_experiment_measures_and_leaves_nothing_but_its_results() {
    let (Some(()), Some(())) = (require("postgres"), require("kafka")) else {
        return;
    };
    let folder = RunFolder::new();
    let (out, x) = (folder.path("out"), folder.path("x.json"));
    let child = folder.spawn(&[
        "experiment",
        "ingest",
        "--events",
        "2000",
        "--users",
        "200",
        "--runs",
        "1",
        "--layouts",
        "single,shards",
        "--out",
        out.to_str().unwrap(),
        "--json",
        x.to_str().unwrap(),
    ]);
    let (status, stdout, stderr) = folder.finish(child);
    assert_eq!(status.code(), Some(0), "{stdout}{stderr}");

    let results = json(&x);
    assert_eq!(json(&out.join("results.json")), results);
    let rows = results["results"].as_array().unwrap();
    let ways: Vec<(&str, &str)> = rows
        .iter()
        .map(|row| {
            (
                row["layout"].as_str().unwrap(),
                row["path"].as_str().unwrap(),
            )
        })
        .collect();
    let expected = [
        ("single", "worker"),
        ("single", "raw-sql"),
        ("shards", "aligned"),
        ("shards", "modulo"),
        ("shards", "raw-sql"),
    ];
    assert_eq!(ways, expected);
    for row in rows {
        assert!(row["events_per_s"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["p99_ms"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!(row["runs"].as_array().unwrap().len(), 1);
        assert_eq!(row["equal_state"], true, "{row}");
    }
    assert_eq!(results["skipped"], Value::Array(Vec::new()));
    let replays = results["replays"].as_array().unwrap();
    assert_eq!(replays.len(), 3);
    assert!(
        replays.iter().all(|replay| replay["rows_changed"] == false),
        "{replays:?}"
    );

    let report = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(
        report.contains("single") && report.contains("shards"),
        "{report}"
    );
    // It can be read without a network. The name of an XML namespace is no link.
    let links = report.replace("http://www.w3.org/2000/svg", "");
    assert!(
        !links.contains("http:") && !links.contains("https:"),
        "{report}"
    );
    for where_to in [out.join("results.json"), out.join("report.html")] {
        assert!(stdout.contains(where_to.to_str().unwrap()), "{stdout}");
    }
}

#[test]
fn a_check_agrees_and_leaves_nothing() {
    let (Some(()), Some(())) = (require("postgres"), require("kafka")) else {
        return;
    };
    let folder = RunFolder::new();
    let child = folder.spawn(&["check", "--keys", "300", "--json"]);
    let (status, stdout, stderr) = folder.finish(child);
    assert_eq!(status.code(), Some(0), "{stdout}{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    // Three hashes, the slot CHECKs, the topic, the worker; more where Citus is.
    assert!(checks.len() >= 6, "{report}");
    for check in checks {
        assert!(check["asked"].as_u64().unwrap() > 0, "{check}");
        assert_eq!(check["asked"], check["agreed"], "{check}");
    }
}

#[test]
fn an_interrupted_experiment_stops_its_servers() {
    let (Some(()), Some(())) = (require("postgres"), require("kafka")) else {
        return;
    };
    let folder = RunFolder::new();
    let out = folder.path("out");
    // Long enough not to end by itself.
    let child = folder.spawn(&[
        "experiment",
        "ingest",
        "--events",
        "50000",
        "--runs",
        "100",
        "--layouts",
        "single",
        "--out",
        out.to_str().unwrap(),
    ]);
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let seen = folder.processes(child.id());
        let is = |name: &str| seen.iter().any(|process| process.contains(name));
        // Servers that run, not those that are being set up.
        if is("java") && is("/postgres -D") {
            break;
        }
        assert!(Instant::now() < deadline, "{seen:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let interrupted = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(interrupted.success());
    let (status, _, stderr) = folder.finish(child);
    assert_eq!(status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("interrupted"), "{stderr}");
    assert!(!out.join("results.json").exists());
}
