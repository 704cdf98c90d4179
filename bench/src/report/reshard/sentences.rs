//! Sentences that follow from the data and from nothing else, as plain text.

use super::{LayoutRun, name, percent};
use crate::report::text::{DASH, count, list, num, plural};
use crate::reshard::{ChangeResult, Settings};

/// What was done under load, what was lost, and how long anything stood still.
pub(super) fn headline(layout: &LayoutRun<'_>) -> String {
    let done: Vec<String> = layout.changes.iter().map(|change| done(change)).collect();
    let wrong = wrong(&layout.changes);
    let outcome = if wrong.is_empty() {
        "nothing was lost".to_owned()
    } else {
        list(&wrong)
    };
    format!(
        "{}: under full load {}, and {outcome}; the longest stall was {} ms.",
        title(layout.name),
        list(&done),
        num(longest_stall(&layout.changes), 0)
    )
}

/// Throughput around the changes, what the stalls were, and how well the router kept up.
pub(super) fn rates(layout: &LayoutRun<'_>) -> String {
    let of = |value: fn(&ChangeResult) -> f64| range(layout.changes.iter().map(|c| value(c)));
    let mut text = format!(
        "{} events/s before a change, {} during it, {} after it. Before a change the longest stall was {} ms",
        of(|change| change.events_per_s_before),
        of(|change| change.events_per_s_during),
        of(|change| change.events_per_s_after),
        of(|change| change.stall_before_ms),
    );
    let unmoved = layout.changes.iter().filter_map(|c| c.stall_unmoved_ms);
    if let Some(unmoved) = unmoved.reduce(f64::max) {
        text.push_str(&format!(
            "; users that did not move waited {} ms at most",
            num(unmoved, 0)
        ));
    }
    text.push('.');
    let hits = layout.changes.iter().filter_map(|c| c.owner_hit_min);
    if let Some(lowest) = hits.reduce(f64::min) {
        text.push_str(&format!(
            " At worst {} of the events went straight to the node that owns them; {}.",
            percent(lowest),
            recovery(&layout.changes)
        ));
    }
    text
}

fn recovery(changes: &[&ChangeResult]) -> String {
    let late: Vec<String> = changes
        .iter()
        .filter(|change| never_recovered(change))
        .map(|change| name(change))
        .collect();
    if !late.is_empty() {
        return format!(
            "after {} it was not back above 99 % within 10 s",
            list(&late)
        );
    }
    let slowest = changes.iter().filter_map(|c| c.owner_hit_recovered_s);
    slowest.reduce(f64::max).map_or_else(
        || "it was not asked again afterwards".to_owned(),
        |seconds| {
            format!(
                "it was back above 99 % {} s after the change at the latest",
                num(seconds, 1)
            )
        },
    )
}

/// Whether owner hits were counted and did not come back.
pub(super) fn never_recovered(change: &ChangeResult) -> bool {
    change.owner_hit_min.is_some() && change.owner_hit_recovered_s.is_none()
}

/// Each change with what is wrong about it.
pub(super) fn faults(layout: &LayoutRun<'_>) -> Vec<String> {
    let wrong_ones = layout.changes.iter().filter(|change| !change.is_right());
    wrong_ones
        .map(|change| {
            format!(
                "WRONG: {}, {}: {}.",
                title(layout.name),
                name(change),
                list(&wrong(&[change]))
            )
        })
        .collect()
}

/// That all is well, where it is.
pub(super) fn verdict(layout: &LayoutRun<'_>) -> Option<String> {
    let events = layout.changes.iter().map(|change| change.events).sum();
    wrong(&layout.changes).is_empty().then(|| {
        format!(
            "Of {} events none is missing, none stands twice, each user's were applied in order, and the final rows are \
             those of an undisturbed run.",
            count(events)
        )
    })
}

/// What is wrong about these changes of one layout.
fn wrong(changes: &[&ChangeResult]) -> Vec<String> {
    let sum = |value: fn(&ChangeResult) -> u64| changes.iter().map(|c| value(c)).sum::<u64>();
    // Of the whole run: each change has the same.
    let misplaced = changes.iter().map(|c| c.misplaced).max().unwrap_or(0);
    let counted = [
        (sum(|c| c.lost), "event was lost", "events were lost"),
        (sum(|c| c.twice), "event stands twice", "events stand twice"),
        (
            sum(|c| c.out_of_order),
            "event was applied out of order",
            "events were applied out of order",
        ),
        (
            misplaced,
            "user has rows on a shard that does not own them",
            "users have rows on a shard that does not own them",
        ),
    ];
    let mut wrong: Vec<String> = counted
        .into_iter()
        .filter(|(n, _, _)| *n > 0)
        .map(|(n, one, many)| plural(n, one, many))
        .collect();
    if changes.iter().any(|change| !change.equal_state) {
        wrong.push("the final rows are not those of an undisturbed run".to_owned());
    }
    wrong
}

/// The size of the experiment in one line.
pub(super) fn size(settings: &Settings) -> String {
    let pace = match settings.rate {
        Some(rate) => format!("{} come each second", plural(rate, "event", "events")),
        None => format!(
            "{} always wait, so the worker is never idle",
            plural(settings.backlog, "event", "events")
        ),
    };
    format!(
        "{} take turns, over {} and in batches of up to {}; {pace}.",
        plural(settings.users, "user", "users"),
        plural(
            u64::from(settings.partitions),
            "Kafka partition",
            "Kafka partitions"
        ),
        plural(settings.batch_rows_max as u64, "record", "records"),
    )
}

/// The layout's name at the start of a sentence.
pub(super) fn title(layout: &str) -> String {
    match layout {
        "shards" => "Manual shards".to_owned(),
        "citus" => "Citus".to_owned(),
        other => other.to_owned(),
    }
}

fn done(change: &ChangeResult) -> String {
    if let Some((from, to)) = change.change.split_once("->") {
        return format!("{from} shards became {to}");
    }
    match change.change.as_str() {
        "move" => "a shard moved to another node".to_owned(),
        "rebalance" => "a node joined and took its part".to_owned(),
        "split" => "a shard was split".to_owned(),
        "isolate-tenant" => "one user got a shard alone".to_owned(),
        other => format!("{other} ran"),
    }
}

fn longest_stall(changes: &[&ChangeResult]) -> f64 {
    let stalls = changes.iter().map(|change| change.stall_max_ms);
    stalls.reduce(f64::max).unwrap_or(f64::NAN)
}

/// `2 100`, or `2 100 to 2 600` where they differ.
fn range(values: impl Iterator<Item = f64>) -> String {
    let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let (Some(low), Some(high)) = (values.first(), values.last()) else {
        return DASH.to_owned();
    };
    let (low, high) = (num(*low, 0), num(*high, 0));
    if low == high {
        low
    } else {
        format!("{low} to {high}")
    }
}
