//! What a worker did, by topic, and how far it is behind.

use std::fmt::Error;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use shardlane_domain::Source;
use shardlane_sql::Way;

use super::sheet::Sheet;
use crate::stats::{Batches, Counts, Stats, TopicCounts};
use crate::topics::TopicSet;

/// Upper bounds of the buckets, in seconds.
const BATCH_SECONDS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];
/// Upper bounds of the buckets, in events.
const BATCH_ROWS: [f64; 10] = [
    1.0, 2.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1_000.0, 2_000.0, 5_000.0,
];

#[derive(Debug)]
pub(crate) struct WorkerCollector {
    pub(crate) stats: Arc<Stats>,
    pub(crate) topics: TopicSet,
}

impl Collector for WorkerCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut sheet = Sheet(encoder);
        let topics: Vec<(String, TopicCounts)> = Source::ALL
            .iter()
            .map(|source| (self.topics.of(*source), self.stats.topic_counts(*source)))
            .collect();
        records(&mut sheet, &topics)?;
        work(&mut sheet, &self.stats.counts())?;
        batches(&mut sheet, &self.stats.batches())?;
        lag(&mut sheet, &self.stats)
    }
}

/// Each record is counted under one outcome, and one that waited in vain under that of its dead letter too. Without `..`: a new counter is not forgotten here.
fn outcomes(counts: &TopicCounts) -> [(&'static str, u64); 10] {
    let TopicCounts {
        applied,
        duplicates,
        stale,
        parked,
        fenced,
        illegal,
        too_early,
        queue_full,
        different_payload,
        malformed,
        done: _,
        misrouted: _,
    } = *counts;
    [
        ("applied", applied),
        ("duplicate", duplicates),
        ("stale", stale),
        ("parked", parked),
        ("fenced", fenced),
        ("illegal", illegal),
        ("out_of_order", too_early),
        ("queue_full", queue_full),
        ("duplicate_with_different_payload", different_payload),
        ("malformed", malformed),
    ]
}

/// Of the outcomes, those that are dead letters.
fn is_dead(outcome: &str) -> bool {
    !matches!(
        outcome,
        "applied" | "duplicate" | "stale" | "parked" | "fenced"
    )
}

fn records(sheet: &mut Sheet<'_>, topics: &[(String, TopicCounts)]) -> Result<(), Error> {
    sheet.counter(
        "shardlane_events",
        "Records that came to an end, by what became of them.",
        topics.iter().flat_map(|(topic, counts)| {
            outcomes(counts)
                .map(|(outcome, count)| ([("topic", &**topic), ("outcome", outcome)], count))
        }),
    )?;
    sheet.counter(
        "shardlane_dead_letters",
        "Dead letters that the broker has acknowledged, by their class.",
        topics.iter().flat_map(|(topic, counts)| {
            let dead = outcomes(counts).into_iter();
            dead.filter(|(outcome, _)| is_dead(outcome))
                .map(|(class, count)| ([("topic", &**topic), ("class", class)], count))
        }),
    )?;
    sheet.counter(
        "shardlane_records_done",
        "Records whose offset may be committed.",
        topics
            .iter()
            .map(|(topic, counts)| ([("topic", &**topic)], counts.done)),
    )?;
    sheet.counter(
        "shardlane_misrouted",
        "Records that stood in another partition than the map gives their user.",
        topics
            .iter()
            .map(|(topic, counts)| ([("topic", &**topic)], counts.misrouted)),
    )
}

/// Without `..`: a new counter is not forgotten here.
fn work(sheet: &mut Sheet<'_>, counts: &Counts) -> Result<(), Error> {
    let Counts {
        done: _,
        applied: _,
        duplicates: _,
        stale: _,
        parked: _,
        illegal: _,
        too_early: _,
        queue_full: _,
        different_payload: _,
        malformed: _,
        fenced: _,
        misrouted: _,
        batches,
        batches_to_former_owner,
        batches_by_coordinator,
        rows,
        released,
        retries,
        reroutes,
        zombie_refusals,
        missing,
        caught_up,
        pauses,
        deferred,
        inbox_removed,
        inbox_visits,
        commit_failures,
        commit_repeats,
        rebalances,
        rebuilds,
        outages,
    } = *counts;
    let elsewhere = batches_to_former_owner + batches_by_coordinator;
    sheet.counter(
        "shardlane_batches",
        "Transactions committed, by the server to which they went.",
        Way::ALL.map(|way| {
            let count = match way {
                // The three are not read at one instant.
                Way::Owner => batches.saturating_sub(elsewhere),
                Way::FormerOwner => batches_to_former_owner,
                Way::Coordinator => batches_by_coordinator,
            };
            ([("way", way.as_str())], count)
        }),
    )?;
    for (name, help, count) in [
        (
            "shardlane_rows_written",
            "Rows inserted or updated, over all tables.",
            rows,
        ),
        (
            "shardlane_released",
            "Events that were parked and are rows now.",
            released,
        ),
        (
            "shardlane_retries",
            "Batches tried again after a transient error.",
            retries,
        ),
        (
            "shardlane_reroutes",
            "Rounds that were routed anew because a shard had taken other slots.",
            reroutes,
        ),
        (
            "shardlane_zombie_refusals",
            "Batches that another worker had applied.",
            zombie_refusals,
        ),
        (
            "shardlane_missing_records",
            "Offsets that were not in the log any more when the worker came to them.",
            missing,
        ),
        (
            "shardlane_caught_up_records",
            "Records before the group's offset that the database had not applied, and now has.",
            caught_up,
        ),
        (
            "shardlane_pauses",
            "Times that a lane paused: a database was away, or its slots were frozen and it held enough of their records.",
            pauses,
        ),
        (
            "shardlane_commit_failures",
            "Offset commits that the broker refused, counted by partition.",
            commit_failures,
        ),
        (
            "shardlane_commit_repeats",
            "Offset commits that were repeated, counted by partition.",
            commit_repeats,
        ),
        (
            "shardlane_rebalances",
            "Times that partitions were given to this worker or taken from it.",
            rebalances,
        ),
        (
            "shardlane_consumer_rebuilds",
            "Consumers that were made anew because a partition stood still.",
            rebuilds,
        ),
        (
            "shardlane_outages",
            "Times that a shard was found to be away.",
            outages,
        ),
        (
            "shardlane_inbox_removed",
            "Inbox rows older than the retention that this worker removed.",
            inbox_removed,
        ),
        (
            "shardlane_inbox_visits",
            "Statements that removed them.",
            inbox_visits,
        ),
    ] {
        sheet.counter(name, help, [([], count)])?;
    }
    sheet.gauge(
        "shardlane_deferred_records",
        "Records that wait in their lanes for a slot that is on its way to another shard.",
        [([], deferred)],
    )
}

fn batches(sheet: &mut Sheet<'_>, batches: &Batches) -> Result<(), Error> {
    sheet.histogram(
        "shardlane_batch_seconds",
        "One transaction, from begin to the answer to commit.",
        &batches.micros,
        1e-6,
        &BATCH_SECONDS,
    )?;
    sheet.histogram(
        "shardlane_batch_rows",
        "Events of one transaction.",
        &batches.rows,
        1.0,
        &BATCH_ROWS,
    )
}

fn lag(sheet: &mut Sheet<'_>, stats: &Stats) -> Result<(), Error> {
    let lags: Vec<_> = stats
        .lags()
        .into_iter()
        .map(|lag| (lag.partition.to_string(), lag))
        .collect();
    sheet.gauge(
        "shardlane_lag_records",
        "Records in the log that are not done.",
        lags.iter().filter_map(|(partition, lag)| {
            let labels = [("topic", &*lag.topic), ("partition", &**partition)];
            Some((labels, lag.records?))
        }),
    )?;
    sheet.gauge(
        "shardlane_lag_seconds",
        "How long ago the oldest record that is not done was accepted.",
        lags.iter().filter_map(|(partition, lag)| {
            let labels = [("topic", &*lag.topic), ("partition", &**partition)];
            Some((labels, lag.seconds?))
        }),
    )
}
