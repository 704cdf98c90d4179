//! One Kafka: start, answer, restart, stop.

mod support;

use std::net::{TcpListener, TcpStream};

use shardlane_local::{Kafka, KafkaOptions, ServerError, require};
use support::{assert_gone, process};

#[tokio::test]
async fn starts_restarts_and_leaves_nothing() {
    let Some(()) = require("kafka") else { return };
    let server = Kafka::start(KafkaOptions::default()).await.unwrap();
    let (first, directory) = (process(server.pid()), server.directory().to_owned());
    assert_eq!(server.bootstrap(), format!("127.0.0.1:{}", server.port()));
    TcpStream::connect(server.bootstrap()).unwrap();
    assert!(server.cpu_seconds() > 0.1);
    let identity = std::fs::read_to_string(directory.join("data/meta.properties")).unwrap();

    server.kill().await.unwrap();
    assert!(!first.is_alive());
    assert!(TcpStream::connect(server.bootstrap()).is_err());

    server.restart().await.unwrap();
    let second = process(server.pid());
    assert_ne!(first, second);
    TcpStream::connect(server.bootstrap()).unwrap();
    let same = std::fs::read_to_string(directory.join("data/meta.properties")).unwrap();
    assert_eq!(same, identity);

    server.stop().await.unwrap();
    assert_gone(second, &directory);
}

#[tokio::test]
async fn a_fixed_port_that_is_taken_is_an_error() {
    let Some(()) = require("kafka") else { return };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let options = KafkaOptions {
        port: Some(port),
        ..KafkaOptions::default()
    };
    let error = Kafka::start(options).await.err().unwrap();
    assert!(
        matches!(error, ServerError::PortTaken { port: taken } if taken == port),
        "{error}"
    );
}
