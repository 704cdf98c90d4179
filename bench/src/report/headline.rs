//! Sentences that follow from the data and from nothing else.

use super::text::{DASH, count, list, median, num, plural, ratio, short, times};
use crate::results::{LayoutResult, Results};

/// Up to here a machine has too few cores for one server to leave any to a second.
const FEW_CORES: usize = 4;

/// The row against which the others are read.
pub(super) fn base(results: &Results) -> Option<&LayoutResult> {
    find(results, "single", "worker")
        .filter(|row| row.events_per_s.is_finite() && row.events_per_s > 0.0)
}

/// The sentence under the title, as plain text.
pub(super) fn headline(results: &Results) -> String {
    let rows = &results.results;
    if rows.is_empty() {
        return nothing_measured(results.skipped.len());
    }
    let mut sentences = Vec::new();
    if let (Some(owner), Some(coordinator)) = (
        find(results, "citus", "owner"),
        find(results, "citus", "coordinator"),
    ) && let Some(claim) = compare(owner, coordinator)
    {
        sentences.push(format!(
            "Citus through the owning node took {claim} the events of the coordinator"
        ));
    }
    if let Some(base) = base(results) {
        let claims: Vec<String> = [
            find(results, "shards", "aligned").or_else(|| find(results, "shards", "worker")),
            find(results, "partman", "worker"),
            find(results, "citus", "owner").or_else(|| find(results, "citus", "coordinator")),
        ]
        .into_iter()
        .flatten()
        .filter_map(|row| Some(format!("{} {}", subject(row), compare(row, base)?)))
        .collect();
        if !claims.is_empty() {
            let against = format!("one Postgres ({} events/s)", short(base.events_per_s));
            sentences.push(format!("Against {against}: {}", list(&claims)));
        }
    }
    if sentences.is_empty() {
        let fastest = rows
            .iter()
            .filter(|row| row.events_per_s.is_finite())
            .max_by(by_rate);
        sentences.push(match fastest {
            Some(row) if rows.len() == 1 => format!(
                "{} by {} took {} events/s; nothing else was measured to set it against",
                row.layout,
                row.path,
                short(row.events_per_s)
            ),
            Some(row) => format!(
                "Fastest was {} by {} with {} events/s",
                row.layout,
                row.path,
                short(row.events_per_s)
            ),
            None => "No rate was measured".to_owned(),
        });
    }
    format!("{}.", sentences.join(". "))
}

/// What the number of cores forbids to conclude.
pub(super) fn cores_note(results: &Results) -> Option<String> {
    let cores = results.machine.cores;
    ((1..=FEW_CORES).contains(&cores) && !results.results.is_empty()).then(|| {
        let cores = if cores == 1 {
            "1 core".to_owned()
        } else {
            format!("{cores} cores")
        };
        format!("On {cores} no layout can show scale-out; read the ratios as overhead.")
    })
}

/// The size of the experiment in one line.
pub(super) fn size(results: &Results) -> String {
    let settings = &results.settings;
    let spread = if settings.skew == 0.0 {
        "evenly".to_owned()
    } else if settings.skew.is_finite() {
        format!("with Zipf exponent {}", settings.skew)
    } else {
        DASH.to_owned()
    };
    format!(
        "{} over {}, spread {spread}; {} of each layout and path; medians.",
        plural(settings.events, "event", "events"),
        plural(u64::from(settings.users), "user", "users"),
        plural(u64::from(settings.runs), "run", "runs"),
    )
}

/// Whether the rates may be compared at all.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing ran.
    NothingRan,
    /// Every layout ended in the same state and no replay changed a row.
    Sound(String),
    /// What went wrong, a sentence each.
    Unsound(Vec<String>),
}

/// Judges the states and the replays.
pub(super) fn verdict(results: &Results) -> Verdict {
    let names = |bad: Vec<(&str, &str)>| {
        list(
            &bad.iter()
                .map(|(l, p)| format!("{l} {p}"))
                .collect::<Vec<_>>(),
        )
    };
    let differ: Vec<_> = results
        .results
        .iter()
        .filter(|r| !r.equal_state)
        .map(|r| (r.layout.as_str(), r.path.as_str()))
        .collect();
    let changed: Vec<_> = results
        .replays
        .iter()
        .filter(|r| r.rows_changed)
        .map(|r| (r.layout.as_str(), r.path.as_str()))
        .collect();
    let mut faults = Vec::new();
    if !differ.is_empty() {
        faults.push(format!(
            "The final state of {} is not that of the first layout: the work differs, so do not compare the rates.",
            names(differ)
        ));
    }
    if !changed.is_empty() {
        faults.push(format!(
            "The replay of {} changed rows, and it must change none.",
            names(changed)
        ));
    }
    if !faults.is_empty() {
        return Verdict::Unsound(faults);
    }
    let replays = match results.replays.len() {
        0 => "",
        1 => " The replay changed no row.",
        _ => " No replay changed a row.",
    };
    match results.results.len() {
        0 => Verdict::NothingRan,
        1 => Verdict::Sound(format!(
            "Only one layout and path ran, so there is no state to compare with.{replays}"
        )),
        n => Verdict::Sound(format!(
            "All {n} layouts and paths ended in the same state, row by row.{replays}"
        )),
    }
}

fn find<'a>(results: &'a Results, layout: &str, path: &str) -> Option<&'a LayoutResult> {
    results
        .results
        .iter()
        .find(|row| row.layout == layout && row.path == path)
}

fn by_rate(a: &&LayoutResult, b: &&LayoutResult) -> std::cmp::Ordering {
    a.events_per_s.total_cmp(&b.events_per_s)
}

/// The rate of one row against another's.
pub(super) struct Against {
    /// The median over the rounds.
    pub(super) ratio: f64,
    /// The lowest and the highest round.
    range: (f64, f64),
}

/// Runs of one number belong to one round, in which the layouts took turns: a machine that drifts harms both alike.
/// So the ratio is taken within a round, then the median of the rounds, as the goals have it. Without common rounds it
/// is the ratio of the medians.
pub(super) fn against(row: &LayoutResult, base: &LayoutResult) -> Option<Against> {
    let mut rounds: Vec<f64> = row
        .runs
        .iter()
        .filter_map(|run| {
            let other = base.runs.iter().find(|other| other.run == run.run)?;
            ratio(run.events_per_s, other.events_per_s)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    match (rounds.first(), rounds.last()) {
        (Some(&low), Some(&high)) => Some(Against {
            ratio: median(&rounds)?,
            range: (low, high),
        }),
        _ => ratio(row.events_per_s, base.events_per_s).map(|ratio| Against {
            ratio,
            range: (ratio, ratio),
        }),
    }
}

/// Why there is no other headline.
pub(super) fn nothing_measured(skipped: usize) -> String {
    match skipped {
        0 => "Nothing was measured.".to_owned(),
        1 => "Nothing was measured: the one layout was skipped.".to_owned(),
        n => format!("Nothing was measured: all {n} layouts were skipped."),
    }
}

/// `0.97×`, and the range where the rounds disagree on which of the two is faster. Nothing where they did different work.
fn compare(row: &LayoutResult, base: &LayoutResult) -> Option<String> {
    if !(row.equal_state && base.equal_state) {
        return None;
    }
    let Against {
        ratio,
        range: (low, high),
    } = against(row, base)?;
    Some(if low < 1.0 && high > 1.0 {
        format!(
            "{} ({} to {} by round)",
            times(ratio),
            times(low),
            times(high)
        )
    } else {
        times(ratio)
    })
}

fn subject(row: &LayoutResult) -> String {
    match (row.layout.as_str(), row.path.as_str()) {
        ("shards", _) => match row.balance.len() {
            0 | 1 => "manual shards".to_owned(),
            2 => "two primaries".to_owned(),
            3 => "three primaries".to_owned(),
            4 => "four primaries".to_owned(),
            n => format!("{n} primaries"),
        },
        ("partman", _) => "pg_partman".to_owned(),
        ("citus", "owner") => "Citus through the owning node".to_owned(),
        ("citus", path) => format!("Citus through the {path}"),
        (layout, path) => format!("{layout} {path}"),
    }
}

/// How evenly rows lie: `8 shards hold 10.7 % to 14.3 %; even is 12.5 %; the fullest has 1.14 times its share`.
pub(super) fn balance_sentence(shares: &[f64]) -> String {
    let even = 100.0 / shares.iter().map(|_| 1.0).sum::<f64>();
    let low = shares.iter().copied().fold(f64::INFINITY, f64::min);
    let high = shares.iter().copied().fold(0.0, f64::max);
    format!(
        "{} shards hold {} % to {} % each; even is {} %; the fullest has {} its even share.",
        count(shares.len() as u64),
        num(low, 1),
        num(high, 1),
        num(even, 1),
        times(high / even)
    )
}
