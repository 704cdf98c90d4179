//! Looking at processes, and waiting on conditions.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use shardlane_local::ProcessId;
use tokio_postgres::NoTls;

/// Waits until the condition holds; panics with its name after half a minute.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "still not so after 30 s: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn process(pid: u32) -> ProcessId {
    ProcessId::of(pid).unwrap_or_else(|| panic!("process {pid} does not live"))
}

pub(crate) fn assert_gone(process: ProcessId, directory: &Path) {
    assert!(!process.is_alive(), "{process:?} lives on");
    assert!(!directory.exists(), "{} is left", directory.display());
}

pub(crate) async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

pub(crate) async fn ask<T>(url: &str, sql: &str) -> T
where
    T: for<'a> tokio_postgres::types::FromSql<'a>,
{
    connect(url).await.query_one(sql, &[]).await.unwrap().get(0)
}

/// This test program once more, for one ignored test of it: a parent that is to die.
pub(crate) struct Parent {
    pub(crate) child: Child,
    scratch: tempfile::TempDir,
}

const REPORT: &str = "SHARDLANE_TEST_REPORT";

impl Parent {
    pub(crate) fn start(test: &str) -> Parent {
        let scratch = tempfile::tempdir().unwrap();
        // Whoever started the tests in the background has had them ignore SIGINT, and so would the parent.
        let child = Command::new("env")
            .arg("--default-signal=INT")
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env(REPORT, scratch.path().join("report"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Parent { child, scratch }
    }

    /// Waits until the parent has reported a server. Returns its process and directory.
    pub(crate) fn server(&mut self) -> (ProcessId, PathBuf) {
        let report = self.scratch.path().join("report");
        wait_until("the parent reports its server", || {
            assert!(
                report.exists() || self.child.try_wait().unwrap().is_none(),
                "parent ended"
            );
            report.exists()
        });
        let report = std::fs::read_to_string(report).unwrap();
        let (process, directory) = report.split_once('\n').unwrap();
        (serde_json::from_str(process).unwrap(), directory.into())
    }
}

/// In the parent that is to die: tells the test about the server.
pub(crate) fn report(pid: u32, directory: &Path) {
    let path = PathBuf::from(std::env::var_os(REPORT).unwrap());
    let unfinished = path.with_extension("unfinished");
    let process = serde_json::to_string(&process(pid)).unwrap();
    std::fs::write(&unfinished, format!("{process}\n{}", directory.display())).unwrap();
    std::fs::rename(unfinished, path).unwrap();
}

pub(crate) fn is_parent_to_die() -> bool {
    std::env::var_os(REPORT).is_some()
}
