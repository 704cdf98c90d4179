//! However the parent ends, its server and the server's directory are gone.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shardlane_local::{DataDir, Kafka, KafkaOptions, Postgres, PostgresOptions, require};
use support::{Parent, is_parent_to_die, process, report, wait_until};

/// Not a test: the parent that the tests end. See [`Parent`].
#[tokio::test]
#[ignore = "started by the other tests of this file"]
async fn parent_that_waits() {
    if is_parent_to_die() {
        let server = Postgres::start(PostgresOptions::fast()).await.unwrap();
        report(server.pid(), server.directory());
        std::future::pending::<()>().await;
    }
}

/// Not a test: a parent whose server is in a static, which is never dropped.
#[tokio::test]
#[ignore = "started by the other tests of this file"]
async fn parent_with_a_static() {
    static SERVER: tokio::sync::OnceCell<Postgres> = tokio::sync::OnceCell::const_new();
    if is_parent_to_die() {
        let start = || async { Postgres::start(PostgresOptions::fast()).await.unwrap() };
        let server = SERVER.get_or_init(start).await;
        report(server.pid(), server.directory());
    }
}

/// Not a test: a parent that panics while the server runs, and aborts instead of unwinding.
#[tokio::test]
#[ignore = "started by the other tests of this file"]
async fn parent_that_aborts() {
    if is_parent_to_die() {
        let server = Postgres::start(PostgresOptions::fast()).await.unwrap();
        report(server.pid(), server.directory());
        std::process::abort();
    }
}

/// Not a test: a parent with a Kafka.
#[tokio::test]
#[ignore = "started by the other tests of this file"]
async fn parent_with_kafka() {
    if is_parent_to_die() {
        let server = Kafka::start(KafkaOptions::default()).await.unwrap();
        report(server.pid(), server.directory());
        std::future::pending::<()>().await;
    }
}

fn ends_with_its_parent(test: &str, signal: Option<Signal>) {
    let mut parent = Parent::start(test);
    let (server, directory) = parent.server();
    if let Some(signal) = signal {
        assert!(server.is_alive());
        assert!(directory.exists());
        kill(Pid::from_raw(parent.child.id().cast_signed()), signal).unwrap();
    }
    parent.child.wait().unwrap();
    wait_until("the server is gone", || !server.is_alive());
    wait_until("its directory is gone", || !directory.exists());
}

#[test]
fn postgres_ends_with_a_parent_killed_with_kill_9() {
    let Some(()) = require("postgres") else {
        return;
    };
    ends_with_its_parent("parent_that_waits", Some(Signal::SIGKILL));
}

#[test]
fn postgres_ends_with_a_parent_interrupted_with_ctrl_c() {
    let Some(()) = require("postgres") else {
        return;
    };
    ends_with_its_parent("parent_that_waits", Some(Signal::SIGINT));
}

#[test]
fn postgres_in_a_static_ends_with_its_parent() {
    let Some(()) = require("postgres") else {
        return;
    };
    ends_with_its_parent("parent_with_a_static", None);
}

#[test]
fn postgres_ends_with_a_parent_that_aborts() {
    let Some(()) = require("postgres") else {
        return;
    };
    ends_with_its_parent("parent_that_aborts", None);
}

#[test]
fn kafka_ends_with_a_parent_killed_with_kill_9() {
    let Some(()) = require("kafka") else { return };
    ends_with_its_parent("parent_with_kafka", Some(Signal::SIGKILL));
}

#[tokio::test]
async fn a_panic_leaves_nothing_but_the_log() {
    let Some(()) = require("postgres") else {
        return;
    };
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let panics = tokio::spawn(async move {
        let server = Postgres::start(PostgresOptions::fast()).await.unwrap();
        sender
            .send((process(server.pid()), server.directory().to_owned()))
            .unwrap();
        panic!("on purpose");
    });
    let (server, directory) = receiver.await.unwrap();
    assert!(panics.await.unwrap_err().is_panic());
    support::assert_gone(server, &directory);
    let log = directory.with_added_extension("log");
    assert!(
        std::fs::read_to_string(&log)
            .unwrap()
            .contains("ready to accept connections")
    );
    std::fs::remove_file(log).unwrap();
}

#[tokio::test]
async fn a_start_that_is_given_up_leaves_nothing() {
    let Some(()) = require("postgres") else {
        return;
    };
    let parent = tempfile::tempdir().unwrap();
    let everyone = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(parent.path(), everyone).unwrap();
    let data = DataDir::Named(parent.path().join("pg"));
    let options = PostgresOptions {
        data,
        ..PostgresOptions::fast()
    };
    let given_up = tokio::time::timeout(Duration::from_millis(50), Postgres::start(options)).await;
    assert!(given_up.is_err(), "a start takes longer than 50 ms");
    let inside = parent.path().join("pg/data");
    let unfinished = parent.path().join("pg/data.unfinished");
    let running = procfs::process::all_processes()
        .unwrap()
        .flatten()
        .any(|process| {
            process.cmdline().is_ok_and(|arguments| {
                arguments
                    .iter()
                    .map(Path::new)
                    .any(|it| it == inside || it == unfinished)
            })
        });
    assert!(!running, "initdb or postgres lives on");
}
