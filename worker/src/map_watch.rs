//! [`MapWatch`]: the newest map, and until when it is known to be the newest.
//!
//! The lease: when the broker has said where the map's topic ends, and all before that was read, nobody can have
//! written a newer map *before that question was asked*. So for `lease` from then on this process may place records;
//! whoever writes a newer map waits so long before anyone acts on it. A process that cannot ask places nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use shardlane_router::{Epoch, PartitionId, RouteKey, SlotMap};
use tokio::sync::watch;

use crate::map_document::MapDocument;
use crate::map_topic::{BROKER_TIMEOUT, MapReader, MapTopicError, Read, succeeds};
use crate::topics::TopicSet;

/// How long the broker may take for an answer. Longer than a lease is of no use to the lease, but a broker that is slow
/// for a moment is not asked again and again.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// What all processes on one map's topic must agree on, or a growth waits too short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapTiming {
    /// How long a map may be used after the broker was asked whether it is the newest.
    pub lease: Duration,
    /// How long a record may take from its publisher to the broker's acknowledgement.
    pub message_timeout: Duration,
    /// How long an event of a frozen slot waits in its publisher before it is refused.
    pub hold_max: Duration,
}

impl MapTiming {
    /// The house's. Lease and message timeout are the stall of a growth; they may be raised from one release to the
    /// next only with all ingests stopped, because a growth of the older release would not wait for the newer.
    pub const HOUSE: MapTiming = MapTiming {
        lease: Duration::from_secs(2),
        message_timeout: Duration::from_secs(5),
        hold_max: Duration::from_secs(3),
    };

    /// How long after a newer map was written records placed by the older one may still be acknowledged.
    pub fn settle(&self) -> Duration {
        self.lease + self.message_timeout
    }
}

/// The map at one moment: what to place by, what not to place, and until when.
#[derive(Debug)]
pub struct Snapshot {
    /// The document.
    pub document: Arc<MapDocument>,
    /// When the lease ends; `None` for a map that never changes.
    pub lease_until: Option<Instant>,
}

/// Where publishers and workers have their map from.
#[derive(Debug, Clone)]
pub enum MapSource {
    /// A map that never changes: its partitions cannot grow.
    Static(Arc<Snapshot>),
    /// The map's topic.
    Watched(Arc<MapWatch>),
}

impl MapSource {
    /// The map now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        match self {
            MapSource::Static(snapshot) => Arc::clone(snapshot),
            MapSource::Watched(watch) => watch.snapshot(),
        }
    }

    /// The partition of a key by the newest map known here, with or without a lease: to count, not to place.
    pub fn partition_for(&self, key: &RouteKey<'_>) -> PartitionId {
        match self {
            MapSource::Static(snapshot) => snapshot.document.map().partition_for(key),
            MapSource::Watched(watch) => {
                let snapshot = watch.shared.snapshot.load();
                snapshot.document.map().partition_for(key)
            }
        }
    }
}

impl From<&SlotMap> for MapSource {
    fn from(map: &SlotMap) -> Self {
        MapSource::Static(Arc::new(Snapshot {
            document: Arc::new(MapDocument::open(map)),
            lease_until: None,
        }))
    }
}

impl From<SlotMap> for MapSource {
    fn from(map: SlotMap) -> Self {
        MapSource::from(&map)
    }
}

impl From<Arc<MapWatch>> for MapSource {
    fn from(watch: Arc<MapWatch>) -> Self {
        MapSource::Watched(watch)
    }
}

/// Follows the map's topic on a thread of its own. Readers take a snapshot and never lock.
#[derive(Debug)]
pub struct MapWatch {
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Debug)]
struct Shared {
    snapshot: ArcSwap<Snapshot>,
    epoch: watch::Sender<Epoch>,
    in_topic: AtomicBool,
    ignored: AtomicU64,
    stop: AtomicBool,
    timing: MapTiming,
}

impl MapWatch {
    /// Reads the map's topic and follows it. `fallback` is the map for as long as there is no such topic; should it
    /// appear, it is followed, so that nobody who started before it places by a map that others have left. Blocks on
    /// the broker.
    ///
    /// # Errors
    /// [`MapTopicError`]; without a fallback an empty topic is one.
    pub fn start(
        bootstrap: &str,
        topics: &TopicSet,
        timing: MapTiming,
        fallback: Option<&SlotMap>,
    ) -> Result<MapWatch, MapTopicError> {
        let mut reader = MapReader::open(bootstrap, topics)?;
        let asked = Instant::now();
        let mut known = Known::new(fallback.map(MapDocument::open));
        known.take(reader.read_new(BROKER_TIMEOUT)?);
        let document = Arc::clone(known.usable(reader.topic())?);
        let shared = Arc::new(Shared {
            epoch: watch::Sender::new(document.map().epoch()),
            snapshot: ArcSwap::from_pointee(Snapshot {
                document,
                lease_until: Some(asked + timing.lease),
            }),
            in_topic: AtomicBool::new(known.in_topic),
            ignored: AtomicU64::new(known.ignored),
            stop: AtomicBool::new(false),
            timing,
        });
        let follower = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("shardlane-map".into())
            .spawn(move || follower.follow(reader, known))
            .map_err(|_| MapTopicError::Kafka {
                topic: topics.map(),
                source: rdkafka::error::KafkaError::Canceled,
            })?;
        Ok(MapWatch {
            shared,
            thread: thread.thread().clone(),
        })
    }

    /// The newest map known here, with its lease.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    /// Whether the map comes from the topic; otherwise it is the fallback, and its partitions cannot grow.
    pub fn is_in_topic(&self) -> bool {
        self.shared.in_topic.load(Ordering::Acquire)
    }

    /// How many records of the topic were ignored, because they were no document or an older one.
    pub fn ignored(&self) -> u64 {
        self.shared.ignored.load(Ordering::Relaxed)
    }

    /// What it was started with.
    pub fn timing(&self) -> MapTiming {
        self.shared.timing
    }

    /// Returns when a map newer than `epoch` is known here.
    pub async fn newer_than(&self, epoch: Epoch) {
        let mut epochs = self.shared.epoch.subscribe();
        // The sender lives as long as `self`.
        epochs.wait_for(|newest| *newest > epoch).await.ok();
    }

    /// Follows no longer: the last map stays, and its lease ends.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl Drop for MapWatch {
    /// Does not wait: the broker may be in no hurry to answer.
    fn drop(&mut self) {
        self.stop();
    }
}

/// What has been read so far.
struct Known {
    document: Option<Arc<MapDocument>>,
    /// Whether the document comes from the topic.
    in_topic: bool,
    /// Why the newest record cannot be followed. It may freeze slots, so nothing may be placed after it.
    refused: Option<String>,
    ignored: u64,
}

impl Known {
    fn new(document: Option<MapDocument>) -> Known {
        Known {
            document: document.map(Arc::new),
            in_topic: false,
            refused: None,
            ignored: 0,
        }
    }

    /// Takes what was read, in order.
    fn take(&mut self, reads: Vec<Read>) {
        for read in reads {
            let refused = match read {
                Ok(document) if succeeds(self.document.as_deref(), &document) => {
                    self.in_topic = true;
                    if self.document.as_deref() != Some(&document) {
                        self.document = Some(Arc::new(document));
                    }
                    None
                }
                // A straggler of the topic's own history.
                Ok(_) if self.in_topic => {
                    self.ignored += 1;
                    continue;
                }
                Ok(_) => Some("it contradicts the map that we were started with".to_owned()),
                Err(reason) => Some(reason),
            };
            self.ignored += u64::from(refused.is_some());
            self.refused = refused;
        }
    }

    /// The document to place by, if nothing newer is in the way.
    fn usable(&self, topic: &str) -> Result<&Arc<MapDocument>, MapTopicError> {
        if let Some(reason) = self.refused.clone() {
            let topic = topic.to_owned();
            return Err(MapTopicError::Unreadable { topic, reason });
        }
        let none = || MapTopicError::NoMap(topic.to_owned());
        self.document.as_ref().ok_or_else(none)
    }
}

impl Shared {
    fn follow(&self, mut reader: MapReader, mut known: Known) {
        let mut trouble = false;
        while !self.stop.load(Ordering::Acquire) {
            std::thread::park_timeout(self.timing.lease / 4);
            let renewed = self.renew(&mut reader, &mut known);
            match &renewed {
                Ok(()) if trouble => tracing::warn!("the map's lease is renewed again"),
                Err(error) if !trouble => tracing::warn!("the map's lease is not renewed: {error}"),
                _ => {}
            }
            trouble = renewed.is_err();
        }
    }

    /// Asks the broker where the topic ends, reads up to there, and renews the lease from before the question.
    fn renew(&self, reader: &mut MapReader, known: &mut Known) -> Result<(), MapTopicError> {
        let asked = Instant::now();
        known.take(reader.read_new(ANSWER_MAX)?);
        self.ignored.store(known.ignored, Ordering::Relaxed);
        self.in_topic.store(known.in_topic, Ordering::Release);
        let document = Arc::clone(known.usable(reader.topic())?);
        if self.stop.load(Ordering::Acquire) {
            return Ok(());
        }
        let epoch = document.map().epoch();
        self.snapshot.store(Arc::new(Snapshot {
            document,
            lease_until: Some(asked + self.timing.lease),
        }));
        if epoch > *self.epoch.borrow() {
            tracing::info!(%epoch, "the map has changed");
            self.epoch.send_replace(epoch);
        }
        Ok(())
    }
}
