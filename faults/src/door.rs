//! Where webhooks are handed in: at the publisher that the front door uses, or over HTTP.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use shardlane_domain::{Event, Source};
use shardlane_ingest::{IngestSettings, Mode, Server, Sources};
use shardlane_router::{RouteKey, SlotMap};
use shardlane_worker::{Publisher, TopicSet, accepted_now};

use crate::webhook::Webhook;

/// What the sender knows of a webhook afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Acknowledged: it must be there.
    Ok,
    /// Refused: it must not be there.
    Fail,
    /// Nobody knows: a time-out, a broken connection, a 5xx.
    Info,
}

/// A way in.
#[derive(Clone)]
pub struct Door {
    way: Way,
    map: Arc<SlotMap>,
    topics: TopicSet,
    /// For what no front door takes.
    foreign: FutureProducer,
}

#[derive(Clone)]
enum Way {
    Publisher(Publisher),
    Http { url: String, agent: ureq::Agent },
    Foreign,
}

impl Door {
    /// A publisher by `map`, for which the broker has `timeout`.
    ///
    /// # Errors
    /// A broker that does not answer, topics that do not fit.
    pub async fn publisher(
        bootstrap: &str,
        topics: &TopicSet,
        map: &SlotMap,
        timeout: Duration,
    ) -> anyhow::Result<Door> {
        let map = Arc::new(map.clone());
        let publisher = {
            let (bootstrap, topics, map) = (bootstrap.to_owned(), topics.clone(), Arc::clone(&map));
            let connect = move || Publisher::connect(&bootstrap, topics, map, timeout);
            tokio::task::spawn_blocking(connect).await??
        };
        Ok(Door {
            way: Way::Publisher(publisher),
            map,
            topics: topics.clone(),
            foreign: ClientConfig::new()
                .set("bootstrap.servers", bootstrap)
                .set("message.timeout.ms", timeout.as_millis().to_string())
                .set("enable.idempotence", "true")
                .create()?,
        })
    }

    /// The same over HTTP: the real front door, in this process. It ends with the runtime.
    ///
    /// # Errors
    /// No free port.
    pub async fn over_http(self) -> anyhow::Result<Door> {
        let Way::Publisher(publisher) = self.way else {
            return Ok(self);
        };
        let settings = IngestSettings {
            listen: "127.0.0.1:0".parse()?,
            ..IngestSettings::new(Sources::unsigned())
        };
        let server = Server::bind(settings, Mode::Kafka(publisher)).await?;
        let url = format!("http://{}", server.address());
        tokio::spawn(server.run(std::future::pending()));
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(15)))
            .http_status_as_error(false)
            .build()
            .new_agent();
        Ok(Door {
            way: Way::Http { url, agent },
            ..self
        })
    }

    /// As a producer that looks at nothing, so that what no front door takes stands in one order with the rest.
    #[must_use]
    pub fn foreign(self) -> Door {
        Door {
            way: Way::Foreign,
            ..self
        }
    }

    /// Hands a webhook in, and waits for the answer.
    pub async fn send(&self, webhook: &Webhook) -> Answer {
        match &self.way {
            Way::Publisher(publisher) => {
                let payload = webhook.payload.clone();
                let Ok(event) = Event::decode(webhook.source, payload, accepted_now()) else {
                    return self.send_foreign(webhook).await;
                };
                match publisher.publish(&event).await {
                    Ok(_) => Answer::Ok,
                    Err(_) => Answer::Info,
                }
            }
            Way::Foreign => self.send_foreign(webhook).await,
            Way::Http { url, agent } => {
                let path = match webhook.source {
                    Source::Orders => "orders",
                    Source::Chargebacks => "chargebacks",
                };
                let (url, agent) = (format!("{url}/webhooks/payments/{path}"), agent.clone());
                let payload = webhook.payload.clone();
                let post = move || {
                    let request = agent.post(&url).header("content-type", "application/json");
                    request
                        .send(&payload[..])
                        .map(|answer| answer.status().as_u16())
                };
                match tokio::task::spawn_blocking(post).await {
                    Ok(Ok(200..=299)) => Answer::Ok,
                    Ok(Ok(400..=407 | 409..=499)) => Answer::Fail,
                    Ok(Ok(_) | Err(_)) | Err(_) => Answer::Info,
                }
            }
        }
    }

    /// As a producer that looks at nothing: what no front door takes comes into the topic all the same.
    async fn send_foreign(&self, webhook: &Webhook) -> Answer {
        let (key, topic) = (webhook.user.to_string(), self.topics.of(webhook.source));
        let partition = self.map.partition_for(&RouteKey::Uuid(webhook.user)).0;
        let record = FutureRecord::to(&topic)
            .partition(partition)
            .key(&key)
            .payload(&webhook.payload[..])
            .timestamp(accepted_now().as_millisecond());
        match self.foreign.send(record, Duration::from_secs(10)).await {
            Ok(_) => Answer::Ok,
            Err(_) => Answer::Info,
        }
    }

    /// Sends many webhooks of one producer into the topics as fast as it goes, in their order, and waits for all.
    ///
    /// # Errors
    /// One that is not acknowledged.
    pub async fn send_all(&self, webhooks: &[Webhook]) -> anyhow::Result<()> {
        for part in webhooks.chunks(2_000) {
            let sent = part.iter().map(|webhook| self.send(webhook));
            let answers = futures_util::future::join_all(sent).await;
            anyhow::ensure!(
                answers.iter().all(|it| *it == Answer::Ok),
                "not all were acknowledged"
            );
        }
        Ok(())
    }
}
