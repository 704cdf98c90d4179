//! One Postgres: start, query, stop, restart, options, failures.

mod support;

use std::net::TcpListener;

use shardlane_local::{
    DataDir, Postgres, PostgresOptions, ServerError, create_database, drop_database, require,
};
use support::{ask, assert_gone, connect, process};

#[tokio::test]
async fn starts_answers_and_leaves_nothing() {
    let Some(()) = require("postgres") else {
        return;
    };
    let server = Postgres::start(PostgresOptions::fast()).await.unwrap();
    let (postmaster, directory) = (process(server.pid()), server.directory().to_owned());
    assert!(server.log_path().is_file());

    create_database(&server.url("postgres"), "a \"b\"")
        .await
        .unwrap();
    let names: Vec<String> = ask(
        &server.url("postgres"),
        "SELECT array_agg(datname::text) FROM pg_database",
    )
    .await;
    assert!(names.contains(&"a \"b\"".to_owned()), "{names:?}");
    drop_database(&server.url("postgres"), "a \"b\"")
        .await
        .unwrap();
    drop_database(&server.url("postgres"), "a \"b\"")
        .await
        .unwrap();

    server.stop().await.unwrap();
    assert_gone(postmaster, &directory);
}

#[tokio::test]
async fn drop_leaves_nothing() {
    let Some(()) = require("postgres") else {
        return;
    };
    let server = Postgres::start(PostgresOptions::fast()).await.unwrap();
    let (postmaster, directory) = (process(server.pid()), server.directory().to_owned());
    drop(server);
    assert_gone(postmaster, &directory);
}

#[tokio::test]
async fn settings_hold_and_alter_system_is_stronger() {
    let Some(()) = require("postgres") else {
        return;
    };
    let mut options = PostgresOptions::fast();
    options.settings = vec![("work_mem".into(), "7MB".into())];
    let server = Postgres::start(options).await.unwrap();
    let url = server.url("postgres");
    for (setting, value) in [
        ("work_mem", "7MB"),
        ("fsync", "off"),
        ("wal_level", "logical"),
        ("listen_addresses", "127.0.0.1"),
        ("jit", "off"),
    ] {
        assert_eq!(
            ask::<String>(&url, &format!("SHOW {setting}")).await,
            value,
            "{setting}"
        );
    }
    let client = connect(&url).await;
    client
        .batch_execute("ALTER SYSTEM SET max_connections = 33")
        .await
        .unwrap();
    server.restart().await.unwrap();
    assert_eq!(ask::<String>(&url, "SHOW max_connections").await, "33");
}

#[tokio::test]
async fn the_default_is_durable() {
    let Some(()) = require("postgres") else {
        return;
    };
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    assert_eq!(
        ask::<String>(&server.url("postgres"), "SHOW fsync").await,
        "on"
    );
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_killed_server_recovers_with_its_data() {
    let Some(()) = require("postgres") else {
        return;
    };
    let server = Postgres::start(PostgresOptions::fast()).await.unwrap();
    let url = server.url("postgres");
    let (first, port) = (process(server.pid()), server.port());
    connect(&url)
        .await
        .batch_execute("CREATE TABLE kept AS SELECT 42 AS answer")
        .await
        .unwrap();

    server.kill().await.unwrap();
    assert!(!first.is_alive());
    assert!(
        tokio_postgres::connect(&url, tokio_postgres::NoTls)
            .await
            .is_err()
    );

    server.restart().await.unwrap();
    assert_ne!(process(server.pid()), first);
    assert_eq!(server.port(), port);
    assert_eq!(ask::<i32>(&url, "SELECT answer FROM kept").await, 42);

    let directory = server.directory().to_owned();
    server.stop().await.unwrap();
    assert!(!directory.exists());
}

#[tokio::test]
async fn a_named_directory_stays_with_its_data() {
    let Some(()) = require("postgres") else {
        return;
    };
    let parent = reachable_directory();
    let named = parent.path().join("it's named");
    let options = PostgresOptions {
        data: DataDir::Named(named.clone()),
        ..PostgresOptions::fast()
    };
    let server = Postgres::start(options.clone()).await.unwrap();
    connect(&server.url("postgres"))
        .await
        .batch_execute("CREATE TABLE kept ()")
        .await
        .unwrap();

    // The same directory twice at once is refused, by Postgres itself.
    let twice = Postgres::start(options.clone()).await.err().unwrap();
    assert!(twice.to_string().contains("postmaster.pid"), "{twice}");

    server.stop().await.unwrap();
    assert!(named.join("server.log").is_file());

    let server = Postgres::start(options).await.unwrap();
    assert_eq!(
        ask::<i64>(&server.url("postgres"), "SELECT count(*) FROM kept").await,
        0
    );
}

#[tokio::test]
async fn a_fixed_port_that_is_taken_is_an_error() {
    let Some(()) = require("postgres") else {
        return;
    };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let options = PostgresOptions {
        port: Some(port),
        ..PostgresOptions::fast()
    };
    let error = Postgres::start(options).await.err().unwrap();
    assert!(
        matches!(error, ServerError::PortTaken { port: taken } if taken == port),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .starts_with(&format!("port {port} is taken by another program"))
    );
}

#[tokio::test]
async fn a_failed_start_keeps_the_log_and_nothing_else() {
    let Some(()) = require("postgres") else {
        return;
    };
    let mut options = PostgresOptions::fast();
    options.settings = vec![("shared_buffers".into(), "a lot".into())];
    let error = Postgres::start(options).await.err().unwrap();
    let ServerError::Ended {
        status, log, tail, ..
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(*status, 1);
    assert!(tail.contains("shared_buffers"), "{error}");
    assert!(
        std::fs::read_to_string(log)
            .unwrap()
            .contains("shared_buffers")
    );
    std::fs::remove_file(log).unwrap();
}

#[tokio::test]
async fn cpu_time_counts_backends_that_have_ended() {
    let Some(()) = require("postgres") else {
        return;
    };
    let server = Postgres::start(PostgresOptions::fast()).await.unwrap();
    let url = server.url("postgres");
    let before = server.cpu_seconds();
    let burn = "SELECT count(*) FROM generate_series(1, 3000000)";
    assert_eq!(ask::<i64>(&url, burn).await, 3_000_000);
    let burnt = server.cpu_seconds();
    assert!(burnt - before > 0.05, "{before} .. {burnt}");
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
    // The backend that burnt has ended by the time that only the asking one is left.
    while ask::<i64>(&url, idle).await > 1 {}
    assert!(server.cpu_seconds() >= burnt);
}

#[tokio::test]
async fn partman_can_be_preloaded_and_created() {
    let Some(()) = require("partman") else { return };
    let mut options = PostgresOptions::fast();
    options.preload = vec!["pg_partman_bgw".into()];
    let server = Postgres::start(options).await.unwrap();
    let client = connect(&server.url("postgres")).await;
    client
        .batch_execute("CREATE SCHEMA p; CREATE EXTENSION pg_partman SCHEMA p")
        .await
        .unwrap();
}

#[tokio::test]
async fn many_start_side_by_side() {
    let Some(()) = require("postgres") else {
        return;
    };
    let starts = (0..4).map(|_| tokio::spawn(Postgres::start(PostgresOptions::fast())));
    let mut ports = Vec::new();
    let mut servers = Vec::new();
    for start in starts.collect::<Vec<_>>() {
        let server = start.await.unwrap().unwrap();
        ports.push(server.port());
        servers.push(server);
    }
    for server in &servers {
        let data: String = ask(&server.url("postgres"), "SHOW data_directory").await;
        assert_eq!(data, server.directory().join("data").to_string_lossy());
    }
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 4);
}

/// A temporary directory that the user of Postgres can enter.
fn reachable_directory() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let everyone = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.path(), everyone).unwrap();
    directory
}

#[tokio::test]
async fn a_directory_out_of_reach_is_an_error() {
    use std::os::unix::fs::PermissionsExt;
    let Some(()) = require("postgres") else {
        return;
    };
    if !nix::unistd::geteuid().is_root() {
        return; // Postgres runs as oneself then, who can reach the directory.
    }
    let closed = tempfile::tempdir().unwrap();
    let only_root = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(closed.path(), only_root).unwrap();
    let data = DataDir::Named(closed.path().join("inside"));
    let options = PostgresOptions {
        data,
        ..PostgresOptions::fast()
    };
    let error = Postgres::start(options).await.err().unwrap();
    assert!(matches!(error, ServerError::Unreachable { .. }), "{error}");
}
