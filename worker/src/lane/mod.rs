//! A lane: the one task that takes the records of one partition to the database, in order.

mod batch;
mod catch_up;
mod fence;
mod group;
mod part;
mod reroute;
mod retry;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};
use shardlane_domain::Source;
use shardlane_router::Epoch;
use shardlane_sql::mutants::{self, Mutant};
use shardlane_sql::{Applied, Store, Target};
use tracing::{Instrument as _, Span};

use self::batch::Batch;
use self::part::Decoded;
use crate::breaker::Breakers;
use crate::consumer::Context;
use crate::dead_letter::DeadLetters;
use crate::error::WorkerError;
use crate::flow::{InFlight, Progress};
use crate::reader::Reader;
use crate::record::RawRecord;
use crate::settings::WorkerSettings;
use crate::stats::{Stats, TopicCounters};
use crate::trace;

/// How often a lane looks whether its frozen slots have thawed.
const FROZEN_POLL: Duration = Duration::from_millis(20);
/// How many batches of frozen records a lane keeps before it takes no more from Kafka.
const FROZEN_BATCHES_MAX: usize = 2;

/// What all lanes of a worker share.
pub(crate) struct Shared {
    pub(crate) settings: WorkerSettings,
    pub(crate) store: Arc<Store>,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) stats: Arc<Stats>,
    pub(crate) in_flight: Arc<InFlight>,
    pub(crate) breakers: Breakers,
}

/// One partition's lane.
pub(crate) struct Lane {
    pub(crate) shared: Arc<Shared>,
    pub(crate) consumer: Arc<BaseConsumer<Context>>,
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) source: Source,
    pub(crate) progress: Arc<Progress>,
}

/// A lane's part of the gauge of deferred records; given back when the lane ends, however it ends.
struct Deferred {
    stats: Arc<Stats>,
    records: usize,
}

impl Deferred {
    fn new(stats: Arc<Stats>) -> Deferred {
        Deferred { stats, records: 0 }
    }

    fn set(&mut self, records: usize) {
        let before = std::mem::replace(&mut self.records, records);
        Stats::shift(&self.stats.counters.deferred, before, records);
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// How far each target has applied the lane's partition.
type Fences = HashMap<Target, Applied>;

impl Lane {
    /// Runs until the lane is closed.
    pub(crate) async fn run(self, reader: Reader) -> Result<(), WorkerError> {
        let mut fences = Fences::new();
        // Records of slots that are on their way to another shard, in order. The others go on meanwhile; the offset
        // stays at the oldest of these.
        let mut frozen: Vec<Decoded> = Vec::new();
        let mut deferred = Deferred::new(Arc::clone(&self.shared.stats));
        let lag = self.shared.stats.lags.of_lane(&self.topic, self.partition);
        let (mut next, mut seen) = (None, Epoch(0));
        loop {
            let patience = (!frozen.is_empty()).then_some(FROZEN_POLL);
            let room = frozen.len() < FROZEN_BATCHES_MAX * self.shared.settings.batch_rows_max
                && self.progress.has_room();
            let batch = if room {
                self.progress.resume();
                self.next_batch(&reader, &mut fences, patience).await?
            } else {
                self.pauses();
                self.pause(FROZEN_POLL).await.then(Batch::default)
            };
            let Some(batch) = batch else { break };
            if let Some(first) = batch.first.filter(|_| next.is_none())
                && !self.catch_up(first, &mut fences).await?
            {
                break;
            }
            let epoch = self.shared.store.routes().epoch();
            next = batch.next.or(next);
            if batch.records.is_empty() && !frozen.is_empty() && epoch == seen {
                continue;
            }
            seen = epoch;
            let accepted = |record: &RawRecord| record.received_at;
            let waiting = frozen.first().map(Decoded::raw);
            lag.begins(waiting.or(batch.records.first()).map(accepted));
            let last = batch.records.last().map(accepted);
            let taken = batch.records.len() + frozen.len();
            let held = bytes(&batch.records) + bytes(frozen.iter().map(Decoded::raw));
            let span = self.span(&batch.records);
            frozen.extend(span.in_scope(|| self.decode(batch.records)));
            if mutants::is(Mutant::CommitBeforeWrite)
                && let Some(next) = next
            {
                self.commit_now(next);
            }
            let processed = self.process(frozen, &mut fences).instrument(span);
            let Some(waiting) = processed.await? else {
                break;
            };
            frozen = waiting;
            deferred.set(frozen.len());
            let oldest = frozen.first().map(|it| it.raw().offset);
            if let Some(done) = oldest.or(next) {
                self.progress.set_done(done);
            }
            let left = frozen.first().map(|it| accepted(it.raw()));
            lag.ended(oldest.or(next), last, left);
            let left = bytes(frozen.iter().map(Decoded::raw));
            self.progress.release(held - left);
            Stats::add(&self.counters().done, taken - frozen.len());
        }
        Ok(())
    }

    /// A batch's span, tied to the traces of its records.
    fn span(&self, records: &[RawRecord]) -> Span {
        let span = tracing::info_span!(
            "batch",
            otel.kind = "consumer",
            topic = %self.topic,
            partition = self.partition,
            first_offset = records.first().map(|record| record.offset),
            last_offset = records.last().map(|record| record.offset),
            records = records.len(),
        );
        trace::tie(&span, records);
        span
    }

    /// Those of the lane's topic.
    fn counters(&self) -> &TopicCounters {
        self.shared.stats.topic(self.source)
    }

    /// For [`Mutant::CommitBeforeWrite`].
    fn commit_now(&self, next: i64) {
        let mut offsets = TopicPartitionList::with_capacity(1);
        let place = offsets.add_partition_offset(&self.topic, self.partition, Offset::Offset(next));
        place
            .and_then(|()| self.consumer.commit(&offsets, CommitMode::Sync))
            .ok();
    }
}

fn bytes<'a>(records: impl IntoIterator<Item = &'a RawRecord>) -> usize {
    records.into_iter().map(RawRecord::bytes).sum()
}
