//! An endless stream of order events, as fast as a worker's backlog or a rate allows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use shardlane_domain::Source;
use shardlane_router::{RouteKey, SlotMap};
use shardlane_worker::{Stats, TopicSet};
use uuid::Uuid;

use crate::stream::Webhook;

/// Events of one order: created, updated..., success.
const ORDER_EVENTS: u64 = 8;
/// 2026-01-01; the n-th event was accepted n ms later.
const START_MS: i64 = 1_767_225_600_000;

/// Events that are sent between two looks at the clock or the backlog.
const SENT_AT_ONCE: u64 = 100;

/// One event of the stream: everything about it follows from its number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbered {
    pub(crate) user: Uuid,
    /// Which of the user's events, from 0.
    pub(crate) sequence: u64,
    pub(crate) number: u64,
}

impl Numbered {
    pub(crate) fn new(number: u64, users: u64) -> Numbered {
        Numbered {
            user: user(number % users),
            sequence: number / users,
            number,
        }
    }

    /// The number of a user's event.
    pub(crate) fn number_of(index: u64, sequence: u64, users: u64) -> u64 {
        sequence * users + index
    }

    /// Where it stands in its order, from 0.
    pub(crate) fn step(sequence: u64) -> u64 {
        sequence % ORDER_EVENTS
    }

    pub(crate) fn webhook(self) -> Webhook {
        let Numbered {
            user,
            sequence,
            number,
        } = self;
        let status = match Self::step(sequence) {
            0 => "created",
            last if last == ORDER_EVENTS - 1 => "success",
            _ => "updated",
        };
        let millis = START_MS + i64::try_from(number).unwrap_or(i64::MAX);
        let at = Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH);
        let order = sequence / ORDER_EVENTS;
        let payload = format!(
            r#"{{"provider_event_id":"{sequence}","order_id":"{order}","user_id":"{user}","status":"{status}","created_at":"{at}","updated_at":"{at}","meta":{{"amount":"12.50","currency":"EUR","note":"{:0>120}"}}}}"#,
            number
        );
        Webhook {
            is_duplicate: false,
            source: Source::Orders,
            path: "/webhooks/payments/orders",
            event_id: sequence.to_string(),
            user_id: user,
            received_at: at,
            payload: payload.into(),
        }
    }
}

/// The n-th user; the same in every run.
pub(crate) fn user(index: u64) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &index.to_le_bytes())
}

/// How fast events are sent.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// So many wait at any time: the worker is never idle.
    Backlog(u64),
    /// So many a second, whatever the worker does.
    Rate(u64),
}

impl Pace {
    /// How many events should have been sent by now.
    fn due(self, stats: &Stats, began: Instant) -> u64 {
        match self {
            // What waits for a slot on its way is no work that the others could do meanwhile: without the last term
            // they would starve for events.
            Pace::Backlog(waiting) => {
                let counts = stats.counts();
                counts.done + waiting + counts.deferred
            }
            Pace::Rate(rate) => {
                let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                rate.saturating_mul(millis) / 1_000
            }
        }
    }
}

/// The running stream.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<anyhow::Result<()>>,
}

impl Load {
    pub(crate) fn start(
        bootstrap: &str,
        topics: &TopicSet,
        map: &SlotMap,
        users: u64,
        pace: Pace,
        stats: Arc<Stats>,
    ) -> anyhow::Result<Load> {
        let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "5")
            .set("compression.type", "lz4")
            .set("message.timeout.ms", "60000")
            .create()?;
        let (stop, sent): (Arc<AtomicBool>, Arc<AtomicU64>) = Default::default();
        let (map, topic) = (map.clone(), topics.of(Source::Orders));
        let thread = std::thread::Builder::new().name("load".into()).spawn({
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            move || {
                let (mut number, began) = (0, Instant::now());
                while !stop.load(Ordering::Relaxed) {
                    if number >= pace.due(&stats, began) {
                        std::thread::sleep(Duration::from_millis(2));
                        continue;
                    }
                    for _ in 0..SENT_AT_ONCE {
                        send(&producer, &topic, &map, Numbered::new(number, users))?;
                        number += 1;
                    }
                    sent.store(number, Ordering::Relaxed);
                }
                Ok(producer.flush(Duration::from_secs(60))?)
            }
        })?;
        Ok(Load { stop, sent, thread })
    }

    /// Whether it has ended by itself, for an error that [`Load::stop`] tells.
    pub(crate) fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }

    /// A view of how many events were sent so far.
    pub(crate) fn counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.sent)
    }

    /// How many events were sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Stops, and waits until the broker has all. How many there are.
    pub(crate) async fn stop(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = tokio::task::spawn_blocking(move || self.thread.join()).await?;
        ended.map_err(|_| anyhow::anyhow!("the load panicked"))??;
        Ok(self.sent.load(Ordering::Relaxed))
    }
}

fn send(
    producer: &ThreadedProducer<DefaultProducerContext>,
    topic: &str,
    map: &SlotMap,
    event: Numbered,
) -> anyhow::Result<()> {
    let webhook = event.webhook();
    let key = webhook.user_id.to_string();
    let mut record = BaseRecord::to(topic)
        .key(&key)
        .payload(&webhook.payload[..])
        .partition(map.partition_for(&RouteKey::Uuid(webhook.user_id)).0)
        .timestamp(webhook.received_at.as_millisecond());
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                std::thread::sleep(Duration::from_millis(2));
            }
            Err((error, _)) => return Err(error.into()),
        }
    }
}
