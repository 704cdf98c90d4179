//! Do the records of the topics lie in the partitions that the map gives their keys?
//!
//! A record in a foreign partition is applied all the same, but not in order with its user's other records.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::Message;
use rdkafka::consumer::Consumer;
use rdkafka::message::{BorrowedMessage, Headers as _};
use serde::Serialize;
use shardlane_router::{RouteKey, SlotMap};
use shardlane_sql::audit::{EXAMPLES_MAX, Severity};
use uuid::Uuid;

use crate::log_scan::{log_reader, scan};
use crate::topics::partition_count;
use crate::{HEADER_EPOCH, TopicSet, WorkerError};

/// How many records of each partition are looked at by default, the newest ones.
pub const RECORDS_MAX: u64 = 100_000;

/// What is looked at.
#[derive(Debug, Clone)]
pub struct TopicAudit {
    /// `host:port`, comma-separated.
    pub bootstrap: String,
    /// Which topics.
    pub topics: TopicSet,
    /// Slot -> partition.
    pub map: SlotMap,
    /// How many records of each partition, the newest ones; `None`: all.
    pub records_max: Option<u64>,
}

/// Something in a topic that is not as the map says, or that is good to know. It displays itself and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
#[expect(
    missing_docs,
    reason = "the fields are explained by the variant and its sentence"
)]
pub enum TopicFinding {
    /// Records whose keys belong to another partition.
    ForeignRecords {
        topic: String,
        partition: i32,
        records: u64,
        /// Where they belong, with how many.
        belong_to: BTreeMap<i32, u64>,
        offsets: Vec<i64>,
    },
    /// As before, placed by an older map: legal until they have drained.
    RecordsOfOlderEpoch {
        topic: String,
        partition: i32,
        records: u64,
        offsets: Vec<i64>,
    },
    /// Records without a key, or whose key is no uuid.
    UnkeyedRecords {
        topic: String,
        partition: i32,
        records: u64,
        offsets: Vec<i64>,
    },
    /// The topic has more partitions than the map.
    ExtraPartitions {
        topic: String,
        found: u32,
        expected: u32,
    },
    /// The topic has fewer partitions than the map.
    MissingPartitions {
        topic: String,
        found: u32,
        expected: u32,
    },
}

impl TopicFinding {
    /// Whether somebody has to do something.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            TopicFinding::RecordsOfOlderEpoch { .. } => Severity::Information,
            TopicFinding::ForeignRecords { .. }
            | TopicFinding::UnkeyedRecords { .. }
            | TopicFinding::ExtraPartitions { .. }
            | TopicFinding::MissingPartitions { .. } => Severity::Damage,
        }
    }
}

impl fmt::Display for TopicFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TopicFinding::ForeignRecords {
                topic,
                partition,
                records,
                belong_to,
                offsets,
            } => {
                let partitions: Vec<String> = belong_to
                    .iter()
                    .map(|(partition, records)| format!("{records} to {partition}"))
                    .collect();
                write!(
                    f,
                    "{topic}/{partition}: {records} records belong elsewhere ({}), such as at offsets {offsets:?}: \
                     their producer has another map or hash; they are applied, but not in order with their users' others",
                    partitions.join(", ")
                )
            }
            TopicFinding::RecordsOfOlderEpoch {
                topic,
                partition,
                records,
                offsets,
            } => write!(
                f,
                "{topic}/{partition}: {records} records were placed by an older map, such as at offsets {offsets:?}"
            ),
            TopicFinding::UnkeyedRecords {
                topic,
                partition,
                records,
                offsets,
            } => write!(
                f,
                "{topic}/{partition}: {records} records have no uuid as their key, such as at offsets {offsets:?}; \
                 producers must key by user_id"
            ),
            TopicFinding::ExtraPartitions {
                topic,
                found,
                expected,
            } => write!(
                f,
                "{topic} has {found} partitions, the map knows {expected}; give the map the others with `shardlane topics \
                 grow`, or see who added them"
            ),
            TopicFinding::MissingPartitions {
                topic,
                found,
                expected,
            } => write!(
                f,
                "{topic} has {found} partitions, the map knows {expected}, so some users' records are refused; add \
                 partitions"
            ),
        }
    }
}

/// Looks at the keys of the webhook topics' records. Blocks on the broker; joins no group and commits nothing.
///
/// # Errors
/// [`WorkerError`]: a broker that does not answer, a topic that does not exist.
pub fn audit_topics(audit: &TopicAudit) -> Result<Vec<TopicFinding>, WorkerError> {
    let consumer = log_reader(&audit.bootstrap)?;
    let mut findings = Vec::new();
    for topic in audit.topics.webhooks() {
        let found = partition_count(consumer.client(), &audit.bootstrap, &topic)?;
        let expected = audit.map.partition_count();
        let name = topic.clone();
        match found.cmp(&expected) {
            std::cmp::Ordering::Less => findings.push(TopicFinding::MissingPartitions {
                topic: name,
                found,
                expected,
            }),
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater => findings.push(TopicFinding::ExtraPartitions {
                topic: name,
                found,
                expected,
            }),
        }
        let mut seen: BTreeMap<i32, Seen> = BTreeMap::new();
        scan(&consumer, &topic, found, audit.records_max, |message| {
            let partition = seen.entry(message.partition()).or_default();
            partition.look_at(message, &audit.map);
        })?;
        for (partition, seen) in seen {
            findings.extend(seen.findings(&topic, partition));
        }
    }
    Ok(findings)
}

/// How many records of one sort, with some of their offsets.
#[derive(Debug, Default)]
struct Sample {
    records: u64,
    offsets: Vec<i64>,
}

impl Sample {
    fn add(&mut self, offset: i64) {
        self.records += 1;
        if self.offsets.len() < EXAMPLES_MAX {
            self.offsets.push(offset);
        }
    }
}

/// What was seen in one partition.
#[derive(Debug, Default)]
struct Seen {
    foreign: Sample,
    belong_to: BTreeMap<i32, u64>,
    older: Sample,
    unkeyed: Sample,
}

impl Seen {
    fn look_at(&mut self, message: &BorrowedMessage<'_>, map: &SlotMap) {
        let offset = message.offset();
        let key = message
            .key()
            .and_then(|key| Uuid::try_parse_ascii(key).ok());
        let Some(user) = key else {
            self.unkeyed.add(offset);
            return;
        };
        let home = map.partition_for(&RouteKey::Uuid(user)).0;
        if home == message.partition() {
            return;
        }
        if epoch_of(message).is_some_and(|epoch| epoch < map.epoch().0) {
            self.older.add(offset);
            return;
        }
        self.foreign.add(offset);
        *self.belong_to.entry(home).or_default() += 1;
    }

    fn findings(self, topic: &str, partition: i32) -> Vec<TopicFinding> {
        let topic = || topic.to_owned();
        let (foreign, older, unkeyed) = (self.foreign, self.older, self.unkeyed);
        let findings = [
            TopicFinding::ForeignRecords {
                topic: topic(),
                partition,
                records: foreign.records,
                belong_to: self.belong_to,
                offsets: foreign.offsets,
            },
            TopicFinding::RecordsOfOlderEpoch {
                topic: topic(),
                partition,
                records: older.records,
                offsets: older.offsets,
            },
            TopicFinding::UnkeyedRecords {
                topic: topic(),
                partition,
                records: unkeyed.records,
                offsets: unkeyed.offsets,
            },
        ];
        let counts = [foreign.records, older.records, unkeyed.records];
        let told = findings.into_iter().zip(counts);
        told.filter(|(_, records)| *records > 0)
            .map(|(finding, _)| finding)
            .collect()
    }
}

/// The epoch of the map by which our own producers placed a record.
fn epoch_of(message: &BorrowedMessage<'_>) -> Option<u64> {
    let headers = message.headers()?;
    let header = headers.iter().find(|header| header.key == HEADER_EPOCH)?;
    std::str::from_utf8(header.value?).ok()?.parse().ok()
}
