//! Events into Kafka: the partition comes from the map, and the answer only after the broker has the record.
//!
//! With a map that may change, an event is placed only while the map's lease lasts and its slot is not frozen, and an
//! acknowledgement counts only within the message timeout from the lease's end. So a record that was *acknowledged*
//! entered the log before whoever changed the map acted on it, however long this process was suspended in between. One
//! that was not acknowledged may enter later; its sender was promised nothing and sends it again.

mod refused;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer};
use shardlane_domain::{Event, Source};
use shardlane_router::{Epoch, RouteKey, SlotMap};
use shardlane_sql::mutants::{self, Mutant};
use tokio::sync::Semaphore;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::cloud_event::with_webhook;
use crate::map_watch::{MapSource, MapWatch};
use crate::topics::{TopicError, TopicReport, TopicSet, verify_topics};
use crate::trace::TraceContext;
use crate::{HEADER_ACCEPTED_AT, HEADER_EPOCH, HEADER_HASH_ID, HEADER_SLOT};

pub use refused::Refused;

/// How many events of frozen slots may wait at one time; more would keep those of other slots from the front door.
const HELD_MAX: usize = 256;
/// How long the broker may take to say what partitions a topic has.
const METADATA_MAX: Duration = Duration::from_secs(2);
const METADATA_PAUSE: Duration = Duration::from_millis(20);

/// Where a record lies, now that the broker has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The Kafka partition.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
}

/// The event is not acknowledged, so its sender should send it again.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The broker does not have the record, or has not said so in time.
    #[error("Kafka did not acknowledge the record: {0}")]
    Kafka(#[from] KafkaError),
    /// Nobody knows whether the map is still the newest.
    #[error(
        "the map's lease has expired: the broker has not said lately whether epoch {epoch} is still the newest"
    )]
    LeaseExpired {
        /// The map's epoch.
        epoch: Epoch,
    },
    /// The slot's partition is about to change.
    #[error("slot {slot} is frozen in epoch {epoch} while partitions are added")]
    Frozen {
        /// The user's slot.
        slot: u16,
        /// The map's epoch.
        epoch: Epoch,
    },
    /// The broker has the record, but its answer came so late that the map may have changed meanwhile.
    #[error("Kafka acknowledged the record too late: this process or the broker stood still")]
    Late,
}

/// Publishes webhooks by the map.
#[derive(Clone)]
pub struct Publisher {
    producer: FutureProducer,
    topics: TopicSet,
    map: MapSource,
    report: TopicReport,
    held: Arc<Semaphore>,
    /// Whether records are thrown away instead of sent; see [`Publisher::discarding`].
    #[cfg(feature = "measure")]
    discards: bool,
}

/// The settings of every producer of the house: acknowledged by all replicas, no duplicate and no reordering by
/// the client's own retries.
pub(crate) fn producer_config(bootstrap: &str, timeout: Duration) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("client.id", "shardlane")
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "5")
        .set("compression.type", "lz4")
        // Partitions that are added are known soon; by default it takes five minutes.
        .set("topic.metadata.refresh.interval.ms", "5000")
        .set("message.timeout.ms", timeout.as_millis().to_string());
    config
}

impl Publisher {
    /// Connects with a map that never changes, and checks that the topics fit it. `timeout` is how long a record may
    /// wait for the broker. Blocks on the broker.
    ///
    /// # Errors
    /// [`TopicError`].
    pub fn connect(
        bootstrap: &str,
        topics: TopicSet,
        map: Arc<SlotMap>,
        timeout: Duration,
    ) -> Result<Publisher, TopicError> {
        Publisher::open(bootstrap, topics, MapSource::from(&*map), timeout)
    }

    /// Connects with the map that is watched, and checks that the topics fit it. How long a record may take is in the
    /// watch's timing. Blocks on the broker.
    ///
    /// # Errors
    /// [`TopicError`].
    pub fn follow(
        bootstrap: &str,
        topics: TopicSet,
        watch: Arc<MapWatch>,
    ) -> Result<Publisher, TopicError> {
        let timeout = watch.timing().message_timeout;
        Publisher::open(bootstrap, topics, MapSource::from(watch), timeout)
    }

    fn open(
        bootstrap: &str,
        topics: TopicSet,
        map: MapSource,
        timeout: Duration,
    ) -> Result<Publisher, TopicError> {
        let producer: FutureProducer =
            producer_config(bootstrap, timeout)
                .create()
                .map_err(|source| TopicError::Broker {
                    bootstrap: bootstrap.to_owned(),
                    source,
                })?;
        let snapshot = map.snapshot();
        let names = topics.webhooks();
        let report = verify_topics(
            producer.client(),
            bootstrap,
            &names,
            snapshot.document.map(),
        )?;
        Ok(Publisher {
            producer,
            topics,
            map,
            report,
            held: Arc::new(Semaphore::new(HELD_MAX)),
            #[cfg(feature = "measure")]
            discards: false,
        })
    }

    /// The same without the produce: a record is placed and made, then thrown away, and `publish` says offset 0. For
    /// measuring what all the rest costs.
    #[cfg(feature = "measure")]
    #[must_use]
    pub fn discarding(self) -> Publisher {
        Publisher {
            discards: true,
            ..self
        }
    }

    /// What the check of the topics found at the start.
    pub fn topic_report(&self) -> &TopicReport {
        &self.report
    }

    /// Publishes one event and waits until all replicas have it. An event of a frozen slot waits for its turn.
    ///
    /// # Errors
    /// [`PublishError`]: the broker may or may not have the record; the provider should send it again.
    pub async fn publish(&self, event: &Event) -> Result<Published, PublishError> {
        self.publish_in(event, None).await
    }

    /// The same, for an event that belongs to a trace: the record carries `trace` on. Where spans are exported it carries
    /// the place of the publish's own span.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub async fn publish_in(
        &self,
        event: &Event,
        trace: Option<&TraceContext>,
    ) -> Result<Published, PublishError> {
        let span = tracing::info_span!(
            "publish",
            otel.kind = "producer",
            topic = self.topics.of(event.source),
            partition = tracing::field::Empty,
            offset = tracing::field::Empty,
        );
        let own = TraceContext::of(&span);
        let headers = own.as_ref().or(trace).map(TraceContext::headers);
        let headers = headers.unwrap_or_default();
        let place = self.place(event, event.received_at, &headers);
        let published = place.instrument(span.clone()).await?;
        span.record("partition", published.partition);
        span.record("offset", published.offset);
        Ok(published)
    }

    /// Publishes an event that was accepted before, with these headers beside our own. In the log it is of now, or
    /// retention could delete it before anybody reads it; when it was accepted travels in a header.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub async fn republish(
        &self,
        event: &Event,
        headers: &[(String, Option<Bytes>)],
    ) -> Result<Published, PublishError> {
        let accepted = event.received_at.to_string().into();
        let mut headers = headers.to_vec();
        headers.push((HEADER_ACCEPTED_AT.to_owned(), Some(accepted)));
        self.place(event, accepted_now(), &headers).await
    }

    async fn place(
        &self,
        event: &Event,
        time: Timestamp,
        headers: &[(String, Option<Bytes>)],
    ) -> Result<Published, PublishError> {
        let give_up = match &self.map {
            MapSource::Static(_) => Instant::now(),
            MapSource::Watched(watch) => Instant::now() + watch.timing().hold_max,
        };
        loop {
            let refused = match self.hand_over(event, time, headers) {
                Ok(handed_over) if mutants::is(Mutant::AckBeforeDelivery) => {
                    drop(handed_over);
                    Ok(Published {
                        partition: 0,
                        offset: 0,
                    })
                }
                Ok(handed_over) => handed_over.acknowledged().await,
                Err(error) => Err(error),
            };
            match (refused, &self.map) {
                (Err(error), MapSource::Watched(watch)) if Instant::now() < give_up => {
                    self.overcome(error, event, watch, give_up).await?;
                }
                (answer, _) => return answer,
            }
        }
    }

    /// Places the record by the map of this moment and gives it to the client, with nothing to wait for in between.
    fn hand_over(
        &self,
        event: &Event,
        time: Timestamp,
        headers: &[(String, Option<Bytes>)],
    ) -> Result<HandedOver, PublishError> {
        let topic = self.topics.of(event.source);
        let mut key = Uuid::encode_buffer();
        let key = &*event.user_id.hyphenated().encode_lower(&mut key);
        let snapshot = self.map.snapshot();
        let map = snapshot.document.map();
        let route = map.route(&RouteKey::Uuid(event.user_id));
        if snapshot
            .lease_until
            .is_some_and(|until| Instant::now() >= until)
        {
            return Err(PublishError::LeaseExpired { epoch: map.epoch() });
        }
        if snapshot.document.is_frozen(route.slot) {
            return Err(PublishError::Frozen {
                slot: route.slot.number(),
                epoch: map.epoch(),
            });
        }
        let record = FutureRecord::to(&topic)
            .key(key)
            .payload(&event.payload[..])
            .partition(route.partition.0)
            .timestamp(time.as_millisecond())
            .headers(with_headers(
                with_webhook(event, address_headers(map, route.slot.index())),
                headers,
            ));
        #[cfg(feature = "measure")]
        if self.discards {
            return Ok(HandedOver::Discarded(Published {
                partition: route.partition.0,
                offset: 0,
            }));
        }
        // A full queue is an answer at once, not a wait without bound.
        let delivery = self
            .producer
            .send_result(record)
            .map_err(|(error, _)| error)?;
        let message_timeout = match &self.map {
            MapSource::Static(_) => Duration::ZERO,
            MapSource::Watched(watch) => watch.timing().message_timeout,
        };
        Ok(HandedOver::Sent {
            delivery,
            in_time_until: snapshot.lease_until.map(|until| until + message_timeout),
        })
    }

    /// Waits for what passes while partitions are added; gives back every other error.
    async fn overcome(
        &self,
        error: PublishError,
        event: &Event,
        watch: &MapWatch,
        give_up: Instant,
    ) -> Result<(), PublishError> {
        match error {
            PublishError::Frozen { epoch, .. } => {
                let Ok(_place) = self.held.try_acquire() else {
                    return Err(error);
                };
                tokio::time::timeout_at(give_up.into(), watch.newer_than(epoch))
                    .await
                    .map_err(|_| error)
            }
            // The map has grown, and our client has not heard of the topic's new partitions. Nothing was sent.
            PublishError::Kafka(KafkaError::MessageProduction(
                RDKafkaErrorCode::UnknownPartition,
            )) => {
                let (producer, topic) = (self.producer.clone(), self.topics.of(event.source));
                let ask = move || {
                    let client = producer.client();
                    client.fetch_metadata(Some(&topic), METADATA_MAX).map(drop)
                };
                let asked = tokio::task::spawn_blocking(ask).await;
                asked.unwrap_or(Err(KafkaError::Canceled))?;
                // The broker may not show them yet either; all who wait must not ask without a pause.
                tokio::time::sleep(METADATA_PAUSE).await;
                Ok(())
            }
            other => Err(other),
        }
    }

    /// The topic of a source, with its prefix.
    pub(crate) fn topic_of(&self, source: Source) -> String {
        self.topics.of(source)
    }

    /// Waits until nothing is under way, at most `timeout`.
    ///
    /// # Errors
    /// [`PublishError`] if something still is.
    pub fn flush(&self, timeout: Duration) -> Result<(), PublishError> {
        Ok(self.producer.flush(timeout)?)
    }

    /// Asks the broker for anything at all: is it there, and may we place records?
    ///
    /// # Errors
    /// [`PublishError`] if it does not answer in time, or the map's lease has expired. Blocks.
    pub fn ping(&self, timeout: Duration) -> Result<(), PublishError> {
        let snapshot = self.map.snapshot();
        if snapshot
            .lease_until
            .is_some_and(|until| Instant::now() >= until)
        {
            let epoch = snapshot.document.map().epoch();
            return Err(PublishError::LeaseExpired { epoch });
        }
        self.producer.client().fetch_metadata(None, timeout)?;
        Ok(())
    }
}

/// A record that is on its way.
enum HandedOver {
    /// The client has it, and the broker has not acknowledged it yet.
    Sent {
        delivery: DeliveryFuture,
        /// Until when an acknowledgement counts; `None` for ever.
        in_time_until: Option<Instant>,
    },
    #[cfg(feature = "measure")]
    Discarded(Published),
}

impl HandedOver {
    async fn acknowledged(self) -> Result<Published, PublishError> {
        let (delivery, in_time_until) = match self {
            HandedOver::Sent {
                delivery,
                in_time_until,
            } => (delivery, in_time_until),
            #[cfg(feature = "measure")]
            HandedOver::Discarded(published) => return Ok(published),
        };
        let delivered = delivery.await.map_err(|_| KafkaError::Canceled)?;
        let delivery = delivered.map_err(|(error, _)| error)?;
        if in_time_until.is_some_and(|until| Instant::now() > until) {
            return Err(PublishError::Late);
        }
        Ok(Published {
            partition: delivery.partition,
            offset: delivery.offset,
        })
    }
}

/// The headers that say by which map a record was placed.
pub(crate) fn address_headers(map: &SlotMap, slot: usize) -> OwnedHeaders {
    OwnedHeaders::new()
        .insert(Header {
            key: HEADER_HASH_ID,
            value: Some(map.hash().id()),
        })
        .insert(Header {
            key: HEADER_EPOCH,
            value: Some(&map.epoch().0.to_string()),
        })
        .insert(Header {
            key: HEADER_SLOT,
            value: Some(&slot.to_string()),
        })
}

fn with_headers(owned: OwnedHeaders, more: &[(String, Option<Bytes>)]) -> OwnedHeaders {
    more.iter().fold(owned, |headers, (key, value)| {
        headers.insert(Header {
            key,
            value: value.as_deref(),
        })
    })
}

/// Now, cut to what a Kafka timestamp holds, so that an event is the same before and after Kafka.
pub fn accepted_now() -> Timestamp {
    Timestamp::from_millisecond(Timestamp::now().as_millisecond()).unwrap_or(Timestamp::UNIX_EPOCH)
}
