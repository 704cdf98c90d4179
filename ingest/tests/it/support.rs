//! Requests to send, and brokers to stand on.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode, header};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::OwnedMessage;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::{Value, json};
use shardlane_domain::Source;
use shardlane_ingest::{
    IngestSettings, Mode, PROBLEM_TYPE_PREFIX, RETRY_AFTER_SECONDS, Sources, router,
};
use shardlane_sql::testing::{TEST_PARTITIONS, test_map};
use shardlane_worker::{Publisher, TopicError, TopicSet};
use standardwebhooks::Webhook;
use tempfile::NamedTempFile;
use tower::ServiceExt;
use uuid::Uuid;

pub(crate) const ORDERS: &str = "/webhooks/payments/orders";
pub(crate) const CHARGEBACKS: &str = "/webhooks/payments/chargebacks";
pub(crate) const PAYMENTS: &str = "/webhooks/silvergate";
pub(crate) const JSON: &str = "application/json";

/// The built-in routes without verification, with the default bounds.
pub(crate) fn unsigned() -> IngestSettings {
    IngestSettings::new(Sources::unsigned())
}

/// Base64 of 24 to 32 bytes: the secrets of two keys, and one that nobody gave us.
pub(crate) const OLD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
pub(crate) const NEW: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD0QRm3k3nF5I=";
pub(crate) const STRANGER: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";

/// The orders' route with these secrets, and more settings, in which `{secret}` is the first of them.
pub(crate) fn signed_settings(secrets: &[&str], more: &str) -> IngestSettings {
    let files: Vec<NamedTempFile> = secrets
        .iter()
        .map(|secret| {
            let file = NamedTempFile::new().unwrap();
            std::fs::write(file.path(), secret).unwrap();
            file
        })
        .collect();
    let list: Vec<String> = files
        .iter()
        .map(|file| format!("{{ file = {:?} }}", file.path()))
        .collect();
    let more = more.replace("{secret}", &list[0]);
    let text = format!("[sources.orders]\nsecrets = [{}]\n{more}", list.join(", "));
    IngestSettings::from_toml(&text).unwrap()
}

/// Unix seconds.
pub(crate) fn now() -> i64 {
    shardlane_worker::accepted_now().as_second()
}

/// An order's request, signed as Standard Webhooks' own crate does it.
pub(crate) fn sign(secret: &str, id: &str, at: i64, body: impl Into<String>) -> Request<Body> {
    let body = body.into();
    let signature = Webhook::new(secret)
        .unwrap()
        .sign(id, at, body.as_bytes())
        .unwrap();
    let mut request = post(ORDERS, body);
    for (name, value) in [
        ("webhook-id", id),
        ("webhook-timestamp", &at.to_string()),
        ("webhook-signature", &signature),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    request
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Reply {
    pub(crate) fn header(&self, name: header::HeaderName) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// An error with all that an error must have. `name` is the type's last part.
    #[track_caller]
    pub(crate) fn is_problem(&self, status: u16, name: &str) {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(
            self.body["type"],
            format!("{PROBLEM_TYPE_PREFIX}{name}"),
            "{self:?}"
        );
        assert_eq!(self.body["status"], status, "{self:?}");
        assert_eq!(
            self.header(header::CONTENT_TYPE),
            "application/problem+json"
        );
        for member in ["title", "detail"] {
            assert!(
                self.body[member]
                    .as_str()
                    .is_some_and(|text| !text.is_empty()),
                "{self:?}"
            );
        }
        let retry_after = self.header(header::RETRY_AFTER);
        match status {
            503 => assert_eq!(retry_after, RETRY_AFTER_SECONDS.to_string(), "{self:?}"),
            429 => assert!(retry_after.parse::<u64>().unwrap() > 0, "{self:?}"),
            _ => assert_eq!(retry_after, "", "{self:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn is(&self, status: u16, body: &Value) {
        assert_eq!(
            (self.status.as_u16(), &self.body),
            (status, body),
            "{self:?}"
        );
        assert_eq!(self.header(header::CONTENT_TYPE), JSON);
    }
}

pub(crate) async fn send(app: &Router, request: Request<Body>) -> Reply {
    let (parts, body) = app.clone().oneshot(request).await.unwrap().into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let body = serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{error}: {body:?}"));
    Reply {
        status: parts.status,
        headers: parts.headers,
        body,
    }
}

pub(crate) fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path)
        .header(header::CONTENT_TYPE, JSON)
        .body(body.into())
        .unwrap()
}

pub(crate) fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

/// An order's webhook: what happened at `minute` of one hour.
pub(crate) fn order(user: Uuid, event_id: &str, status: &str, minute: u8) -> String {
    json!({
        "provider_event_id": event_id,
        "order_id": "o-1",
        "user_id": user,
        "status": status,
        "created_at": "2026-11-01T10:00:00Z",
        "updated_at": format!("2026-11-01T10:{minute:02}:00Z"),
        "meta": {"amount": "12.34", "currency": "EUR"},
    })
    .to_string()
}

pub(crate) fn chargeback(user: Uuid, event_id: &str, status: &str, minute: u8) -> String {
    json!({
        "provider_event_id": event_id,
        "order_id": "o-1",
        "user_id": user,
        "status": status,
        "reason": "fraud",
        "amount": 12.34,
        "currency": "EUR",
        "occurred_at": format!("2026-11-02T10:{minute:02}:00Z"),
    })
    .to_string()
}

/// A payment's webhook: what happened to the money of the order at `minute` of its hour.
pub(crate) fn payment(user: Uuid, transaction: &str, status: &str, minute: u8) -> String {
    json!({
        "event": format!("payment.{status}"),
        "transaction_id": transaction,
        "order_id": "o-1",
        "merchant_id": "m-1",
        "status": status,
        "amount": 1234,
        "currency": "EUR",
        "timestamp": format!("2026-11-01T10:{minute:02}:00Z"),
        "metadata": {"user_id": user},
    })
    .to_string()
}

/// librdkafka's own broker inside this process: enough to acknowledge, and to be away on command.
pub(crate) struct FakeBroker(MockCluster<'static, DefaultProducerContext>);

impl FakeBroker {
    pub(crate) fn start() -> FakeBroker {
        let cluster = MockCluster::new(1).unwrap();
        for topic in topics() {
            cluster
                .create_topic(&topic, i32::try_from(TEST_PARTITIONS).unwrap(), 1)
                .unwrap();
        }
        FakeBroker(cluster)
    }

    pub(crate) fn mode(&self, timeout: Duration) -> Mode {
        publisher(&self.0.bootstrap_servers(), "", timeout)
    }

    pub(crate) fn go_away(&self) {
        self.0.broker_down(1).unwrap();
    }

    /// A front door on this broker, unsigned, with the default bounds.
    pub(crate) fn router(&self) -> Router {
        self.router_with(&unsigned())
    }

    pub(crate) fn router_with(&self, settings: &IngestSettings) -> Router {
        router(self.mode(Duration::from_secs(5)), settings)
    }

    /// How many records all topics have.
    pub(crate) fn records(&self) -> i64 {
        let consumer = self.consumer();
        let ends = topics()
            .into_iter()
            .map(|topic| ends(&consumer, &topic).iter().sum::<i64>());
        ends.sum()
    }

    /// The dead letters of the source that is posted to `path`.
    pub(crate) fn dead_letters(&self, path: &str) -> Vec<OwnedMessage> {
        let source = match path {
            ORDERS | PAYMENTS => Source::Orders,
            _ => Source::Chargebacks,
        };
        let topic = TopicSet::with_prefix("").dlq_of(source);
        let consumer = self.consumer();
        let ends = ends(&consumer, &topic);
        let mut all = TopicPartitionList::new();
        for partition in (0..).take(ends.len()) {
            all.add_partition_offset(&topic, partition, Offset::Beginning)
                .unwrap();
        }
        consumer.assign(&all).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        let mut letters = Vec::new();
        while i64::try_from(letters.len()).unwrap() < ends.iter().sum() {
            assert!(Instant::now() < until, "{ends:?} letters, read {letters:?}");
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                letters.push(message.detach());
            }
        }
        letters
    }

    fn consumer(&self) -> BaseConsumer {
        ClientConfig::new()
            .set("bootstrap.servers", self.0.bootstrap_servers())
            .set("group.id", "test")
            .create()
            .unwrap()
    }
}

/// The webhook topics and their dead-letter topics.
fn topics() -> Vec<String> {
    let set = TopicSet::with_prefix("");
    Source::ALL
        .iter()
        .flat_map(|source| [set.of(*source), set.dlq_of(*source)])
        .collect()
}

/// The ends of a topic's partitions.
fn ends(consumer: &BaseConsumer, topic: &str) -> Vec<i64> {
    (0..i32::try_from(TEST_PARTITIONS).unwrap())
        .map(|partition| {
            let deadline = Duration::from_secs(10);
            consumer
                .fetch_watermarks(topic, partition, deadline)
                .unwrap()
                .1
        })
        .collect()
}

pub(crate) fn publisher(bootstrap: &str, prefix: &str, timeout: Duration) -> Mode {
    let topics = TopicSet::with_prefix(prefix);
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match Publisher::connect(bootstrap, topics.clone(), test_map().into(), timeout) {
            Ok(publisher) => return Mode::Kafka(publisher),
            // Made by the controller; the broker that is asked next may not have heard of them yet.
            Err(TopicError::Missing(_)) if Instant::now() < until => {}
            Err(error) => panic!("{error}"),
        }
    }
}
