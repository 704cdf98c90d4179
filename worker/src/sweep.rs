//! The sweep of a worker: what waits in the database beyond its time is a dead letter in Kafka.

use std::sync::Arc;

use rdkafka::error::KafkaError;
use rdkafka::message::Header;
use shardlane_router::{PartitionId, RouteKey};
use shardlane_sql::{Carried, KeepLetters, ParkedLetter, Swept, sweep_while};
use tokio::sync::Notify;

use crate::dead_letter::Reason;
use crate::headers::PackedHeaders;
use crate::lane::Shared;
use crate::record::RawRecord;
use crate::stats::Stats;

/// Sweeps until `stop` is told. A letter is acknowledged by the broker before its transaction commits.
pub(crate) async fn run(shared: Arc<Shared>, stop: Arc<Notify>) {
    let counters = &shared.stats.counters;
    let done = |swept: &Swept| {
        Stats::add(&counters.released, swept.released);
        for (source, reason) in &swept.expired {
            shared.stats.dead_letter(*source, *reason);
        }
    };
    let timing = shared.settings.sweep;
    sweep_while(&shared.store, timing, &*shared, stop.notified(), done).await;
}

impl KeepLetters for Shared {
    type Error = KafkaError;

    async fn keep(&self, letters: &[ParkedLetter]) -> Result<(), KafkaError> {
        publish(self, letters).await
    }
}

/// Publishes dead letters of events that waited, as the records that they were.
pub(crate) async fn publish(shared: &Shared, letters: &[ParkedLetter]) -> Result<(), KafkaError> {
    for letter in letters {
        let ParkedLetter { event, origin, .. } = letter;
        // What came in direct mode never stood in Kafka.
        let (topic, partition, offset) = match origin {
            Some(origin) => (origin.topic.to_string(), origin.partition, origin.offset),
            None => {
                let settings = &shared.settings;
                let user = RouteKey::Uuid(event.user_id);
                let PartitionId(partition) = settings.map.partition_for(&user);
                (settings.topics.of(event.source), partition, -1)
            }
        };
        let reason = Reason {
            class: letter.reason.class(),
            sentence: letter.reason.to_string(),
            attempts: 1,
        };
        let record = record_of(letter, offset);
        let letter = [(&record, reason)];
        shared
            .dead_letters
            .publish(&topic, partition, &letter)
            .await?;
    }
    Ok(())
}

/// What must come back if the record becomes a dead letter after it has waited.
pub(crate) fn carried(raw: &RawRecord) -> Carried {
    Carried {
        key: raw.key.clone(),
        headers: raw
            .headers
            .iter()
            .map(|header| shardlane_sql::Header {
                key: header.key.to_owned(),
                value: header.value.map(|value| value.to_vec().into()),
            })
            .collect(),
    }
}

fn record_of(letter: &ParkedLetter, offset: i64) -> RawRecord {
    let Carried { key, headers } = &letter.carried;
    let headers = headers.iter().map(|header| Header {
        key: &header.key,
        value: header.value.as_deref(),
    });
    let event = &letter.event;
    RawRecord::again(
        offset,
        key.clone(),
        event.payload.clone(),
        event.received_at,
        PackedHeaders::of(headers),
    )
}
