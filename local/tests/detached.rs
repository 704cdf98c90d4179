//! `up`, `status` and `down`, and what they do about runs that were killed.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shardlane_local::detached::{Kind, Layout, Server, UpOptions, down, status, table, up};
use shardlane_local::{ServerError, require};
use support::{ask, wait_until};

const HOME: &str = "SHARDLANE_TEST_HOME";

/// A home in a directory that the user of Postgres can enter. Stops its servers when dropped.
struct TestHome {
    parent: tempfile::TempDir,
}

impl TestHome {
    fn new() -> TestHome {
        let parent = tempfile::tempdir().unwrap();
        let everyone = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(parent.path(), everyone).unwrap();
        TestHome { parent }
    }

    fn path(&self) -> PathBuf {
        self.parent.path().join("home")
    }
}

impl Drop for TestHome {
    fn drop(&mut self) {
        let home = self.path();
        let stop = move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(down(&home, true)).unwrap();
        };
        std::thread::spawn(stop).join().unwrap();
    }
}

fn options(layouts: &[Layout]) -> UpOptions {
    UpOptions {
        layouts: layouts.to_vec(),
        shards: 2,
        kafka: false,
    }
}

async fn up_saying(home: &Path, options: &UpOptions) -> (Vec<Server>, String) {
    let said = Mutex::new(String::new());
    let say = |line: &str| *said.lock().unwrap() += &format!("{line}\n");
    let servers = up(home, options, &say).await.unwrap();
    (servers, said.into_inner().unwrap())
}

#[tokio::test]
async fn up_is_idempotent_and_down_keeps_the_data() {
    let Some(()) = require("postgres") else {
        return;
    };
    let home = TestHome::new();
    let home = home.path();
    assert!(status(&home).unwrap().is_empty());
    let wanted = options(&[Layout::Single, Layout::Shards]);
    let (first, said) = up_saying(&home, &wanted).await;
    let names: Vec<&str> = first.iter().map(|server| server.name.as_str()).collect();
    assert_eq!(
        {
            let mut names = names.clone();
            names.sort_unstable();
            names
        },
        ["shard-0", "shard-1", "single"]
    );
    assert_eq!(said.lines().count(), 3, "{said}");

    let (again, said) = up_saying(&home, &wanted).await;
    assert_eq!((again, said.as_str()), (first.clone(), ""));

    let rows = status(&home).unwrap();
    assert!(rows.iter().all(|row| row.state == "running"), "{rows:?}");
    assert!(table(&rows).contains("shard-1"), "{}", table(&rows));

    let single = first.iter().find(|server| server.name == "single").unwrap();
    let client = support::connect(&single.url).await;
    client.batch_execute("CREATE TABLE kept ()").await.unwrap();
    drop(client);

    assert_eq!(
        down(&home, false).await.unwrap(),
        ["shard-0", "shard-1", "single"]
    );
    assert!(
        first
            .iter()
            .all(|server| !server.process.unwrap().is_alive())
    );
    assert!(
        status(&home)
            .unwrap()
            .iter()
            .all(|row| row.state == "stopped" && row.pid.is_none())
    );

    // The same URL and the same data.
    let (third, _) = up_saying(&home, &options(&[Layout::Single])).await;
    let single_again = third.iter().find(|server| server.name == "single").unwrap();
    assert_eq!(single_again.url, single.url);
    assert_eq!(
        ask::<i64>(&single.url, "SELECT count(*) FROM kept").await,
        0
    );

    assert_eq!(down(&home, true).await.unwrap(), ["single"]);
    assert!(!home.exists());
    assert!(down(&home, true).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_server_that_was_killed_is_brought_back() {
    let Some(()) = require("postgres") else {
        return;
    };
    let home = TestHome::new();
    let (first, _) = up_saying(&home.path(), &options(&[Layout::Single])).await;
    let process = first[0].process.unwrap();
    kill(Pid::from_raw(process.pid.cast_signed()), Signal::SIGQUIT).unwrap();
    wait_until("the server is gone", || !process.is_alive());
    assert_eq!(status(&home.path()).unwrap()[0].state, "stopped");

    let (second, said) = up_saying(&home.path(), &options(&[Layout::Single])).await;
    assert!(
        said.starts_with("single: has ended since it was brought up\n"),
        "{said}"
    );
    assert_ne!(second[0].process, first[0].process);
    assert_eq!(second[0].url, first[0].url);
}

/// Not a test: an `up` that is killed while it is at work.
#[tokio::test]
#[ignore = "started by the other tests of this file"]
async fn up_that_is_killed() {
    if let Some(home) = std::env::var_os(HOME) {
        up(Path::new(&home), &options(&[Layout::Single]), &|_| {})
            .await
            .unwrap();
    }
}

/// Runs `up` in a process of its own and kills it as soon as the file exists.
fn kill_up_at(home: &Path, file: &Path) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "up_that_is_killed", "--ignored"])
        .env(HOME, home)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("up is at work", || file.exists());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn an_up_that_was_killed_is_cleaned_up_after() {
    let Some(()) = require("postgres") else {
        return;
    };
    let home = TestHome::new();
    let postmaster = home.path().join("servers/single/data/postmaster.pid");
    kill_up_at(&home.path(), &postmaster);
    let (servers, said) = up_saying(&home.path(), &options(&[Layout::Single])).await;
    assert!(
        said.starts_with("single: an earlier run ended half-way"),
        "{said}"
    );
    assert_eq!(ask::<i32>(&servers[0].url, "SELECT 1").await, 1);
}

#[tokio::test]
async fn an_up_that_was_killed_in_initdb_is_cleaned_up_after() {
    let Some(()) = require("postgres") else {
        return;
    };
    let home = TestHome::new();
    let unfinished = home
        .path()
        .join("servers/single/data.unfinished/PG_VERSION");
    kill_up_at(&home.path(), &unfinished);
    let (servers, _) = up_saying(&home.path(), &options(&[Layout::Single])).await;
    assert_eq!(ask::<i32>(&servers[0].url, "SELECT 1").await, 1);
}

#[tokio::test]
async fn two_at_once_are_refused() {
    let Some(()) = require("postgres") else {
        return;
    };
    let home = TestHome::new();
    let home = home.path();
    let wanted = options(&[Layout::Single]);
    let (one, two) = tokio::join!(up(&home, &wanted, &|_| {}), up(&home, &wanted, &|_| {}));
    let errors: Vec<ServerError> = [one, two].into_iter().filter_map(Result::err).collect();
    assert_eq!(errors.len(), 1);
    assert!(
        errors[0]
            .to_string()
            .starts_with("another shardlane up or down is at work")
    );
}

#[tokio::test]
async fn citus_and_partman_and_kafka_come_up() {
    let Some(()) = require("citus") else { return };
    let Some(()) = require("partman") else { return };
    let Some(()) = require("kafka") else { return };
    let home = TestHome::new();
    let home = home.path();
    let wanted = UpOptions {
        kafka: true,
        ..options(&[Layout::Partman, Layout::Citus])
    };
    for _ in 0..2 {
        let (servers, _) = up_saying(&home, &wanted).await;
        assert_eq!(servers.len(), 5);
        let coordinator = servers
            .iter()
            .find(|it| it.kind == Kind::CitusCoordinator)
            .unwrap();
        let sql = "SELECT count(*) FROM pg_dist_node WHERE metadatasynced";
        assert_eq!(ask::<i64>(&coordinator.url, sql).await, 3);
        let kafka = servers.iter().find(|it| it.kind == Kind::Kafka).unwrap();
        std::net::TcpStream::connect(&kafka.url).unwrap();
        assert_eq!(down(&home, false).await.unwrap().len(), 5);
        assert!(std::net::TcpStream::connect(&kafka.url).is_err());
    }
}
