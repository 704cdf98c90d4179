//! How much of Kafka is in hand: bounds over all lanes, and what a lane and the poller tell each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Records that were taken from Kafka and are not done, over all lanes.
///
/// Each partition has an equal share, so that the lanes of a shard that is down hold theirs and no more: the others
/// go on. A lane that holds nothing always gets a chunk, whatever the others hold.
#[derive(Debug)]
pub(crate) struct InFlight {
    bytes_max: usize,
    bytes: AtomicUsize,
    bytes_peak: AtomicUsize,
    partitions: AtomicUsize,
}

impl InFlight {
    pub(crate) fn new(bytes_max: usize) -> Self {
        InFlight {
            bytes_max,
            bytes: AtomicUsize::new(0),
            bytes_peak: AtomicUsize::new(0),
            partitions: AtomicUsize::new(0),
        }
    }

    /// Partitions were given to this worker.
    pub(crate) fn assigned(&self, partitions: usize) {
        self.partitions.fetch_add(partitions, Ordering::AcqRel);
    }

    /// Partitions were taken from this worker.
    pub(crate) fn revoked(&self, partitions: usize) {
        self.partitions.fetch_sub(partitions, Ordering::AcqRel);
    }

    /// What one lane may hold.
    pub(crate) fn share(&self) -> usize {
        self.bytes_max / self.partitions.load(Ordering::Acquire).max(1)
    }

    /// Now, and at most so far.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        let peak = self.bytes_peak.load(Ordering::Relaxed);
        (self.bytes.load(Ordering::Acquire), peak)
    }
}

/// What a lane has done, holds and waits for.
#[derive(Debug)]
pub(crate) struct Progress {
    in_flight: Arc<InFlight>,
    bytes: AtomicUsize,
    /// Told when the lane lets go of records.
    released: Notify,
    /// It waits for a database that is away; room will not come soon.
    waits: AtomicBool,
    /// The offset before which all is done, or [`NOTHING`].
    done: AtomicI64,
    /// The offset that the broker acknowledged last, or [`NOTHING`].
    acknowledged: AtomicI64,
}

const NOTHING: i64 = -1;

impl Progress {
    pub(crate) fn new(in_flight: Arc<InFlight>) -> Self {
        Progress {
            in_flight,
            bytes: AtomicUsize::new(0),
            released: Notify::new(),
            waits: AtomicBool::new(false),
            done: AtomicI64::new(NOTHING),
            acknowledged: AtomicI64::new(NOTHING),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    /// Whether the lane may take so much more.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        let (own, flight) = (self.bytes(), &self.in_flight);
        own == 0
            || own + bytes <= flight.share()
                && flight.bytes.load(Ordering::Acquire) + bytes <= flight.bytes_max
    }

    /// Whether a lane that was full has drained enough to be worth a fetch.
    pub(crate) fn is_half_empty(&self) -> bool {
        self.bytes() <= self.in_flight.share() / 2
    }

    /// The bytes at which a batch is full: three of the chunks that the poller hands over, which are a quarter of a share.
    /// Not all of it: what is a little less would wait for the rest that cannot come.
    pub(crate) fn batch_bytes_max(&self, setting: usize) -> usize {
        setting.min(self.in_flight.share() / 4 * 3)
    }

    pub(crate) fn took(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        let all = self.in_flight.bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        self.in_flight.bytes_peak.fetch_max(all, Ordering::Relaxed);
    }

    pub(crate) fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.in_flight.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.released.notify_one();
    }

    /// Waits for room; only the poller does.
    pub(crate) async fn room(&self, bytes: usize) {
        // A release between the look and the wait leaves its permit.
        while !self.has_room(bytes) {
            self.released.notified().await;
        }
    }

    pub(crate) fn set_waits(&self, waits: bool) {
        self.waits.store(waits, Ordering::Release);
    }

    pub(crate) fn waits(&self) -> bool {
        self.waits.load(Ordering::Acquire)
    }

    /// All before this offset is done.
    pub(crate) fn set_done(&self, next: i64) {
        self.done.store(next, Ordering::Release);
    }

    /// The broker's answer to a commit. Not the highest: a retry inside librdkafka may overtake a later commit, and the
    /// broker keeps what came last.
    pub(crate) fn acknowledged(&self, next: i64) {
        self.acknowledged.store(next, Ordering::Release);
    }

    /// What is done and not acknowledged.
    pub(crate) fn uncommitted(&self) -> Option<i64> {
        let done = self.done.load(Ordering::Acquire);
        (done != NOTHING && done != self.acknowledged.load(Ordering::Acquire)).then_some(done)
    }
}

/// When a consumer may commit: one request for all its partitions, and the next one when that was answered.
///
/// A request a batch would be simpler, and the broker answers fewer of them in a second than busy lanes make: they would
/// pile up in the client without bound, and each hand-over would wait for all of them.
#[derive(Debug, Default)]
pub(crate) struct Commits {
    /// A request was sent, and its answer has not come. It comes, if only as an error.
    under_way: bool,
    /// When the last answer came, if that was a refusal.
    refused: Option<Instant>,
}

/// Whether to commit now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    No,
    Yes,
    /// The request before was refused.
    Again,
}

impl Commits {
    /// After a refusal it is due again when `patience` is over.
    pub(crate) fn due(&self, now: Instant, patience: Duration) -> Due {
        match self.refused {
            _ if self.under_way => Due::No,
            None => Due::Yes,
            Some(refused) if now.saturating_duration_since(refused) >= patience => Due::Again,
            Some(_) => Due::No,
        }
    }

    pub(crate) fn is_under_way(&self) -> bool {
        self.under_way
    }

    pub(crate) fn sent(&mut self) {
        self.under_way = true;
    }

    pub(crate) fn answered(&mut self, now: Instant, refused: bool) {
        self.under_way = false;
        self.refused = refused.then_some(now);
    }
}

/// What a lane held when it ended stays with Kafka.
impl Drop for Progress {
    fn drop(&mut self) {
        self.release(self.bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(bytes_max: usize, partitions: usize) -> Arc<InFlight> {
        let flight = Arc::new(InFlight::new(bytes_max));
        flight.assigned(partitions);
        flight
    }

    #[test]
    fn what_is_done_is_committed_until_the_broker_has_it() {
        let lane = Progress::new(lanes(100, 1));
        assert_eq!(lane.uncommitted(), None, "nothing is done");
        lane.set_done(5);
        assert_eq!(lane.uncommitted(), Some(5));
        lane.acknowledged(5);
        assert_eq!(lane.uncommitted(), None);
        // A retry of an older commit that the broker took last.
        lane.acknowledged(3);
        assert_eq!(lane.uncommitted(), Some(5));
    }

    #[test]
    fn one_request_at_a_time_and_a_refusal_is_repeated_after_a_while() {
        let patience = Duration::from_secs(1);
        let (began, mut commits) = (Instant::now(), Commits::default());
        let at = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(commits.due(began, patience), Due::Yes);
        commits.sent();
        assert_eq!(commits.due(at(100), patience), Due::No, "an answer comes");
        commits.answered(at(100), true);
        assert_eq!(commits.due(at(100), patience), Due::No, "not at once again");
        assert_eq!(commits.due(at(101), patience), Due::Again);
        commits.sent();
        assert_eq!(commits.due(at(102), patience), Due::No);
        commits.answered(at(102), false);
        assert_eq!(commits.due(at(102), patience), Due::Yes);
    }

    #[test]
    fn a_lane_that_holds_its_share_leaves_the_others_theirs() {
        let flight = lanes(100, 4);
        let (full, other) = (
            Progress::new(Arc::clone(&flight)),
            Progress::new(Arc::clone(&flight)),
        );
        full.took(25);
        assert!(!full.has_room(1) && other.has_room(25));
        assert!(!full.is_half_empty());
        full.release(13);
        assert!(full.is_half_empty() && full.has_room(13) && !full.has_room(14));
        // Longer than a share: alone.
        assert!(other.has_room(90));
        other.took(90);
        assert!(!full.has_room(1), "all together hold too much");
        assert_eq!(flight.bytes(), (102, 102));
        drop((full, other));
        assert_eq!(flight.bytes(), (0, 102), "what they held is let go");
    }
}
