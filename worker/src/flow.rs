//! How much of Kafka is in hand: bounds over all lanes, and what a lane and the poller tell each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Records that were taken from Kafka and are not done, over all lanes.
///
/// Half of what they may hold is shared out equally, so that the lanes of a shard that is down leave the others theirs. The
/// other half is for those that come first: busy lanes have large batches out of what idle ones leave. A lane that holds
/// nothing always gets a record, whatever the others hold.
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

    /// What a lane may hold whatever the others hold.
    fn share(&self) -> usize {
        self.bytes_max / 2 / self.partitions.load(Ordering::Acquire).max(1)
    }

    /// Now, and at most so far.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        let peak = self.bytes_peak.load(Ordering::Relaxed);
        (self.bytes.load(Ordering::Acquire), peak)
    }
}

/// What a lane has read, holds and has done, and what the poller tells it.
#[derive(Debug)]
pub(crate) struct Progress {
    in_flight: Arc<InFlight>,
    bytes: AtomicUsize,
    /// It takes nothing for a while: a database is away, or its slots are frozen and it holds enough of their records.
    paused: AtomicBool,
    /// The partition is revoked or the worker stops: what is not begun stays for the next owner.
    closing: AtomicBool,
    /// Told when there may be records, and when the lane is closed.
    news: Notify,
    /// The offset behind the last record that was read, or [`NOTHING`].
    position: AtomicI64,
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
            paused: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            news: Notify::new(),
            position: AtomicI64::new(NOTHING),
            done: AtomicI64::new(NOTHING),
            acknowledged: AtomicI64::new(NOTHING),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    /// Whether the lane may read another record.
    pub(crate) fn has_room(&self) -> bool {
        let (own, flight) = (self.bytes(), &self.in_flight);
        own == 0
            || own < flight.share()
            || flight.bytes.load(Ordering::Acquire) < flight.bytes_max / 2
    }

    /// A record of so many bytes was read, the one before `next`.
    pub(crate) fn read(&self, next: i64, bytes: usize) {
        self.position.store(next, Ordering::Release);
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        let all = self.in_flight.bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        self.in_flight.bytes_peak.fetch_max(all, Ordering::Relaxed);
    }

    pub(crate) fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.in_flight.bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// The offset behind the last record that was read.
    pub(crate) fn position(&self) -> Option<i64> {
        let position = self.position.load(Ordering::Acquire);
        (position != NOTHING).then_some(position)
    }

    /// True if it was not paused before.
    pub(crate) fn pause(&self) -> bool {
        !self.paused.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn resume(&self) {
        self.paused.store(false, Ordering::Release);
    }

    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.wake();
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// There may be records.
    pub(crate) fn wake(&self) {
        self.news.notify_one();
    }

    /// Waits for the next [`Progress::wake`], or returns at once for one that came before.
    pub(crate) async fn waked(&self) {
        self.news.notified().await;
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
    fn a_lane_that_is_full_leaves_the_others_their_share() {
        let flight = lanes(80, 4);
        let lane = || Progress::new(Arc::clone(&flight));
        let (down, other, third) = (lane(), lane(), lane());
        // More than its share, while all together hold less than half.
        down.read(1, 39);
        assert!(down.has_room());
        down.read(2, 1);
        assert!(!down.has_room() && other.has_room());
        other.read(1, 9);
        assert!(
            other.has_room(),
            "a lane has its share whatever the others hold"
        );
        other.read(2, 1);
        assert!(!other.has_room());
        assert!(third.has_room(), "who holds nothing gets a record");
        third.read(7, 100);
        assert!(!third.has_room());
        assert_eq!((third.position(), lane().position()), (Some(7), None));
        down.release(31);
        assert!(down.has_room());
        assert_eq!(flight.bytes(), (119, 150));
        drop((down, other, third));
        assert_eq!(flight.bytes(), (0, 150), "what they held is let go");
    }

    #[test]
    fn a_pause_is_counted_once() {
        let lane = Progress::new(lanes(80, 4));
        assert!(lane.pause() && !lane.pause());
        lane.resume();
        assert!(lane.pause());
    }
}
