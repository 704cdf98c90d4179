//! A layout's limit: the same statements from memory, without Kafka and without JSON.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use hdrhistogram::Histogram;
use jiff::Timestamp;
use shardlane_domain::{Event, Source};
use shardlane_router::{RouteKey, SlotMap};
use shardlane_sql::{
    ErrorClass, KeepLetters, Origin, ParkedLetter, Record, Report, Routes, Store, Target,
};

use crate::ingest::Outcome;
use crate::stream::Webhook;

/// The records of each partition of each source, in order: what the lanes of a worker would take.
pub(crate) type Lanes = Vec<Vec<Record>>;

/// Decodes the stream and cuts it as a topic with the map's partitions would.
pub(crate) fn lanes(stream: &[Webhook], map: &SlotMap) -> anyhow::Result<Lanes> {
    let partitions = usize::try_from(map.partition_count())?;
    let mut lanes: Lanes = vec![Vec::new(); partitions * Source::ALL.len()];
    let topics: Vec<Arc<str>> = Source::ALL
        .iter()
        .map(|source| Arc::from(source.topic()))
        .collect();
    for webhook in stream {
        let payload = Bytes::clone(&webhook.payload);
        let event = Event::decode(webhook.source, payload, webhook.received_at)?;
        let partition = map.partition_for(&RouteKey::Uuid(event.user_id)).0;
        let source = Source::ALL
            .iter()
            .position(|source| *source == webhook.source)
            .unwrap_or(0);
        let lane = &mut lanes[source * partitions + usize::try_from(partition)?];
        let origin = Origin {
            topic: Arc::clone(&topics[source]),
            partition,
            offset: i64::try_from(lane.len())?,
        };
        lane.push(Record {
            event,
            origin: Some(origin),
        });
    }
    Ok(lanes)
}

/// Applies all lanes at once, each in order; the store's pools bound how many transactions run.
pub(crate) async fn run(
    store: Arc<Store>,
    lanes: Arc<Lanes>,
    batch_rows_max: usize,
) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let mut tasks = Vec::new();
    for index in 0..lanes.len() {
        let (store, lanes) = (Arc::clone(&store), Arc::clone(&lanes));
        tasks.push(tokio::spawn(async move {
            let mut outcome = Outcome::new();
            for batch in lanes[index].chunks(batch_rows_max) {
                for (target, records) in by_target(&store.routes(), batch) {
                    outcome.batch(&apply(&store, target, &records).await?);
                }
            }
            anyhow::Ok(outcome)
        }));
    }
    let mut total = Outcome::new();
    for task in tasks {
        total.add(task.await??)?;
    }
    total.seconds = started.elapsed().as_secs_f64();
    // A dispute whose order was being created at the same moment is left to the sweep.
    while !store.is_settled(Timestamp::now()).await? {
        store
            .sweep(Timestamp::now(), &Dropped)
            .await
            .map_err(|(_, error)| error)?;
    }
    Ok(total)
}

/// As the rejected events of the batches: nobody keeps them.
struct Dropped;

impl KeepLetters for Dropped {
    type Error = Infallible;

    async fn keep(&self, _: &[ParkedLetter]) -> Result<(), Infallible> {
        Ok(())
    }
}

fn by_target(routes: &Routes, batch: &[Record]) -> Vec<(Target, Vec<Record>)> {
    let mut groups: Vec<(Target, Vec<Record>)> = Vec::new();
    for record in batch {
        let Some(target) = routes.target_of(record.event.user_id) else {
            unreachable!("nothing moves in this experiment");
        };
        match groups.iter_mut().find(|(known, _)| *known == target) {
            Some((_, group)) => group.push(record.clone()),
            None => groups.push((target, vec![record.clone()])),
        }
    }
    groups
}

async fn apply(store: &Store, target: Target, records: &[Record]) -> anyhow::Result<Report> {
    loop {
        let staged = match store.stage(target, records).await {
            Ok(staged) => staged,
            // All lanes want a connection at once; the pool's patience is shorter than a slow layout's turn.
            Err(error) if error.class() == ErrorClass::Transient => {
                tracing::debug!("trying again: {error}");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        return Ok(staged.commit().await?);
    }
}

/// A histogram of microseconds, as the worker's.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3)
        .unwrap_or_else(|error| unreachable!("constant bounds are valid: {error}"))
}
