//! A webhook's way through the images that `compose.yaml` names: Postgres, Kafka and ours.
//!
//! Needs a Docker engine that has them (`docker compose --profile single build` and `pull`), and skips visibly where they are not;
//! `SHARDLANE_REQUIRE=containers` turns that into a failure. Other images by the same variables as in compose:
//! `POSTGRES_IMAGE`, `KAFKA_IMAGE`.

use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use testcontainers::core::wait::ExitWaitStrategy;
use testcontainers::core::{ExecCommand, IntoContainerPort as _, WaitFor};
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{ContainerAsync, ContainerRequest, GenericImage, ImageExt as _};

const PATIENCE: Duration = Duration::from_secs(120);
const OURS: &str = "shardlane:local";

fn image(variable: &str, default: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| default.to_owned())
}

/// `None`, said past the test harness's capture: something is not here.
fn images() -> Option<[String; 3]> {
    let images = [
        image("POSTGRES_IMAGE", "postgres:17.6-bookworm"),
        image("KAFKA_IMAGE", "apache/kafka:4.1.1"),
        OURS.to_owned(),
    ];
    let docker = |arguments: &[&str]| {
        let said = Command::new("docker").args(arguments).output();
        said.is_ok_and(|said| said.status.success())
    };
    let missing = if docker(&["version"]) {
        let Some(image) = images
            .iter()
            .find(|image| !docker(&["image", "inspect", image]))
        else {
            return Some(images);
        };
        format!(
            "containers: there is no image {image} here; `docker compose --profile single build` and `pull` get it"
        )
    } else {
        "containers: no Docker engine answers here; https://docs.docker.com/engine/install/"
            .to_owned()
    };
    let promised = std::env::var("SHARDLANE_REQUIRE").unwrap_or_default();
    assert!(
        !promised.split(',').any(|name| name == "containers"),
        "{missing}"
    );
    let thread = std::thread::current();
    let line = format!("skipped: {}: {missing}\n", thread.name().unwrap_or("test"));
    std::io::stderr().write_all(line.as_bytes()).ok();
    None
}

/// Containers that see each other by their names, which are this test's own.
struct Net {
    name: String,
}

impl Net {
    fn new() -> Net {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        Net {
            name: format!(
                "shardlane-test-{}-{}",
                std::process::id(),
                now.subsec_nanos()
            ),
        }
    }

    fn host(&self, service: &str) -> String {
        format!("{}-{service}", self.name)
    }

    fn place(
        &self,
        service: &str,
        image: impl Into<ContainerRequest<GenericImage>>,
    ) -> ContainerRequest<GenericImage> {
        image
            .into()
            .with_network(&self.name)
            .with_container_name(self.host(service))
            .with_startup_timeout(PATIENCE)
    }
}

fn generic(image: &str) -> GenericImage {
    let (name, tag) = image.rsplit_once(':').expect("an image has a tag");
    GenericImage::new(name, tag)
}

/// Until a command in the container ends well.
async fn until_well(container: &ContainerAsync<GenericImage>, command: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let ran = container
            .exec(ExecCommand::new(command.iter().copied()))
            .await
            .unwrap();
        // The exit code is known once the output has ended.
        let code = loop {
            match ran.exit_code().await.unwrap() {
                Some(code) => break code,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        if code == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{command:?} ends with {code}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Our command, to its end.
async fn run(net: &Net, service: &str, arguments: &[&str]) {
    let ended = WaitFor::exit(ExitWaitStrategy::new().with_exit_code(0));
    let image = generic(OURS).with_wait_for(ended);
    let request = net
        .place(service, image)
        .with_cmd(arguments.iter().copied());
    let container = request
        .start()
        .await
        .unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
    container.rm().await.unwrap();
}

/// Our server, whose own health check says that it is well.
async fn serve(
    net: &Net,
    service: &str,
    port: u16,
    arguments: &[&str],
) -> (ContainerAsync<GenericImage>, String) {
    let image = generic(OURS).with_exposed_port(port.tcp());
    let container = net
        .place(service, image)
        .with_cmd(arguments.iter().copied())
        .start()
        .await
        .unwrap();
    let url = format!("http://127.0.0.1:{port}/readyz");
    until_well(&container, &["shardlane", "health", &url]).await;
    let outside = container.get_host_port_ipv4(port.tcp()).await.unwrap();
    (container, format!("http://127.0.0.1:{outside}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_becomes_a_row() {
    let Some([postgres, kafka, _]) = images() else {
        return;
    };
    let net = Net::new();
    let postgres = net
        .place("postgres", generic(&postgres))
        .with_env_var("POSTGRES_USER", "shardlane")
        .with_env_var("POSTGRES_DB", "shardlane")
        .with_env_var("POSTGRES_PASSWORD", "of this test");
    let broker = net.host("kafka");
    let kafka = net
        .place("kafka", generic(&kafka))
        .with_env_var("CLUSTER_ID", "c2hhcmRsYW5lLWNvbXBvc2")
        .with_env_var("KAFKA_NODE_ID", "1")
        .with_env_var("KAFKA_PROCESS_ROLES", "broker,controller")
        .with_env_var("KAFKA_CONTROLLER_QUORUM_VOTERS", format!("1@{broker}:9093"))
        .with_env_var("KAFKA_LISTENERS", "INSIDE://:9092,CONTROLLER://:9093")
        .with_env_var(
            "KAFKA_ADVERTISED_LISTENERS",
            format!("INSIDE://{broker}:9092"),
        )
        .with_env_var(
            "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP",
            "INSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT",
        )
        .with_env_var("KAFKA_CONTROLLER_LISTENER_NAMES", "CONTROLLER")
        .with_env_var("KAFKA_INTER_BROKER_LISTENER_NAME", "INSIDE")
        .with_env_var("KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR", "1")
        .with_env_var("KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "1")
        .with_env_var("KAFKA_TRANSACTION_STATE_LOG_MIN_ISR", "1")
        .with_env_var("KAFKA_HEAP_OPTS", "-Xms256m -Xmx512m");
    let (postgres, kafka) = (
        postgres.start().await.unwrap(),
        kafka.start().await.unwrap(),
    );
    until_well(
        &postgres,
        &[
            "pg_isready",
            "-q",
            "-h",
            "127.0.0.1",
            "-U",
            "shardlane",
            "-d",
            "shardlane",
        ],
    )
    .await;
    until_well(&kafka, &["bash", "-c", "</dev/tcp/127.0.0.1/9092"]).await;

    let dsn = format!(
        "host={} user=shardlane dbname=shardlane password='of this test'",
        net.host("postgres")
    );
    let broker = format!("--kafka={broker}:9092");
    run(&net, "migrate", &["migrate", "--layout=single", &dsn]).await;
    run(
        &net,
        "topics",
        &[
            "topics",
            "create",
            &broker,
            "--retention=1d",
            "--segment=1h",
        ],
    )
    .await;
    let ingest = [
        "ingest",
        "--unsigned",
        "--mode=kafka",
        "--listen=0.0.0.0:8080",
        &broker,
    ];
    let (_ingest, door) = serve(&net, "ingest", 8080, &ingest).await;
    let database = format!("--database={dsn}");
    let worker = ["worker", "--listen=0.0.0.0:9100", &broker, &database];
    let (_worker, worker) = serve(&net, "worker", 9100, &worker).await;

    let body = r#"{"provider_event_id":"e-1","order_id":"o-1","user_id":"550e8400-e29b-41d4-a716-446655440000",
        "status":"created","created_at":"2026-11-01T10:00:00Z","updated_at":"2026-11-01T10:00:00Z","meta":{}}"#;
    let sent = ureq::post(format!("{door}/webhooks/payments/orders"))
        .header("content-type", "application/json")
        .send(body);
    assert_eq!(sent.unwrap().status(), 202);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let stats = ureq::get(format!("{worker}/stats"))
            .call()
            .unwrap()
            .body_mut()
            .read_to_string()
            .unwrap();
        let stats: Value = serde_json::from_str(&stats).unwrap();
        if stats["applied"] == 1 {
            break;
        }
        assert!(Instant::now() < deadline, "{stats}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let row = "psql -qtA -U shardlane -c 'select status from orders' | grep -qx created";
    until_well(&postgres, &["bash", "-c", row]).await;
}
