//! The listening server: its port, its bounds, its end.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use shardlane_ingest::{IngestError, IngestSettings, Server, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::support::{FakeBroker, ORDERS, order, unsigned};

const PATIENCE: Duration = Duration::from_secs(10);

/// A server that runs until it is told.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    ended: JoinHandle<Result<(), IngestError>>,
    _broker: FakeBroker,
}

impl Running {
    pub(crate) async fn start(settings: IngestSettings) -> Running {
        let broker = FakeBroker::start();
        let server = Server::bind(settings, broker.mode(Duration::from_secs(5)))
            .await
            .unwrap();
        let address = server.address();
        let (stop, stopped) = oneshot::channel::<()>();
        let ended = tokio::spawn(server.run(async {
            stopped.await.ok();
        }));
        Running {
            address,
            stop: Some(stop),
            ended,
            _broker: broker,
        }
    }

    fn tell_to_stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// A connection that has sent a request but for its last byte.
    async fn all_but_one_byte(&self) -> (TcpStream, u8) {
        let body = order(Uuid::now_v7(), "e-1", "created", 10);
        let length = body.len();
        let request = format!(
            "POST {ORDERS} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        let (last, most) = request.as_bytes().split_last().unwrap();
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(most).await.unwrap();
        (stream, *last)
    }

    /// Waits until nobody listens any more.
    async fn is_closed(&self) {
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(self.address).await.is_ok() {
            assert!(Instant::now() < until, "still listening after {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

pub(crate) fn settings() -> IngestSettings {
    IngestSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        ..unsigned()
    }
}

pub(crate) async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    read_all(&mut stream).await
}

async fn read_all(stream: &mut TcpStream) -> String {
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_server_tells_its_port_and_answers() {
    let mut running = Running::start(settings()).await;
    let request = "GET /readyz HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
    let answer = exchange(running.address, request).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("{\"status\":\"ready\"}"),
        "{answer}"
    );
    running.tell_to_stop();
    running.ended.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_and_bad_settings_stop_the_start_with_a_sentence() {
    let running = Running::start(settings()).await;
    let broker = FakeBroker::start();
    let taken = IngestSettings {
        listen: running.address,
        ..settings()
    };
    let error = serve(taken, broker.mode(PATIENCE), std::future::pending())
        .await
        .unwrap_err();
    let start = format!("port {} is taken: ", running.address.port());
    assert!(error.to_string().starts_with(&start), "{error}");

    let unbounded = IngestSettings {
        connections_max: 0,
        ..settings()
    };
    let error = serve(unbounded, broker.mode(PATIENCE), std::future::pending())
        .await
        .unwrap_err();
    assert!(matches!(error, IngestError::Settings(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_under_way_finishes_when_the_server_stops() {
    let mut running = Running::start(settings()).await;
    let (mut stream, last) = running.all_but_one_byte().await;
    // An idle connection does not hold the server up.
    let _idle = TcpStream::connect(running.address).await.unwrap();
    // Connections are taken in order, so one that is answered shows that those before it were taken.
    let live = "GET /livez HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
    exchange(running.address, live).await;

    running.tell_to_stop();
    running.is_closed().await;
    assert!(!running.ended.is_finished(), "a request is under way");
    stream.write_all(&[last]).await.unwrap();
    let answer = read_all(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 202 Accepted"), "{answer}");
    tokio::time::timeout(PATIENCE, running.ended)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_does_not_finish_is_cut_off_at_the_bound() {
    let settings = IngestSettings {
        drain_deadline: Duration::from_millis(200),
        ..settings()
    };
    let mut running = Running::start(settings).await;
    let (mut stream, _) = running.all_but_one_byte().await;
    let live = "GET /livez HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
    exchange(running.address, live).await;
    running.tell_to_stop();
    tokio::time::timeout(Duration::from_secs(3), running.ended)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let mut rest = Vec::new();
    // Closed or reset, but never acknowledged.
    stream.read_to_end(&mut rest).await.ok();
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_does_not_come_closes_the_connection() {
    let settings = IngestSettings {
        header_deadline: Duration::from_millis(200),
        ..settings()
    };
    let running = Running::start(settings).await;
    let answer = exchange(running.address, "POST /webhooks").await;
    assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_over_the_bound_wait_for_a_place() {
    let running = Running::start(IngestSettings {
        connections_max: 1,
        ..settings()
    })
    .await;
    let (mut first, last) = running.all_but_one_byte().await;
    let live = "GET /livez HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
    let second = tokio::spawn(exchange(running.address, live));
    first.write_all(&[last]).await.unwrap();
    let mut start = [0; 12];
    first.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 202");
    assert!(
        !second.is_finished(),
        "the first connection is kept alive and holds the only place"
    );
    drop(first);
    let answer = second.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}
