//! A server that went away, in the frames that others have: a timeline a server, and a table.

use crate::report::look::Look;
use crate::report::reshard::{LayoutRun, timeline};
use crate::report::study;
use crate::report::text::num;
use crate::reshard;
use crate::shard_down::{OutageResult, Results, Sample};
use crate::study::{CellResult, Figure, Part};

pub(super) fn finding(outage: &OutageResult) -> String {
    format!(
        "{}: while one of two servers was away for {} s the other one had {} of its rate; the backlog was gone {} s after the \
         return.",
        outage.layout,
        num(outage.outage_s, 1),
        num(
            outage.healthy_events_per_s_during / outage.healthy_events_per_s_before,
            2
        ),
        num(outage.drained_s, 1)
    )
}

pub(super) fn fault(outage: &OutageResult) -> Option<String> {
    (!outage.is_right()).then(|| {
        format!(
            "WRONG: {}: {} events lost, {} twice, {} out of order; the final rows are {} an undisturbed run's.",
            outage.layout,
            outage.lost,
            outage.twice,
            outage.out_of_order,
            if outage.equal_state { "" } else { "not" }
        )
    })
}

pub(super) fn body(results: &Results, id: &str) -> String {
    let (part, cells) = part(results);
    format!(
        "<section><h2>Over time</h2>\n{}</section>\n{}",
        curves(results, id),
        study::body(&[part], &cells, id)
    )
}

/// Both servers of each layout.
#[expect(clippy::cast_precision_loss, reason = "ms of an experiment")]
fn curves(results: &Results, id: &str) -> String {
    let began_s = results.settings.lead_ms as f64 / 1e3;
    let mut curves = Vec::new();
    for outage in &results.results {
        let samples = results
            .samples
            .get(&outage.layout)
            .map_or(&[][..], Vec::as_slice);
        let span = reshard::ChangeResult {
            change: "outage".to_owned(),
            began_s,
            ended_s: began_s + outage.outage_s,
            equal_state: outage.equal_state,
            lost: outage.lost + outage.twice + outage.out_of_order,
            events_per_s_before: outage.healthy_events_per_s_before,
            events_per_s_during: outage.healthy_events_per_s_during,
            events_per_s_after: outage.healthy_events_per_s_drain,
            stall_max_ms: outage.healthy_stall_during_ms,
            ..reshard::ChangeResult::default()
        };
        let of = |rate: fn(&Sample) -> f64| -> Vec<reshard::Sample> {
            let point = |sample: &Sample| reshard::Sample {
                at_s: sample.at_s,
                events_per_s: rate(sample),
                owner_hit: None,
            };
            samples.iter().map(point).collect()
        };
        let colour = if outage.layout == "citus" { 3 } else { 2 };
        for (server, samples) in [
            (
                "the server that stays",
                of(|sample| sample.healthy_events_per_s),
            ),
            (
                "the server that goes away",
                of(|sample| sample.victim_events_per_s),
            ),
        ] {
            curves.push((
                format!("{}: {server}", outage.layout),
                colour,
                span.clone(),
                samples,
            ));
        }
    }
    let runs: Vec<LayoutRun<'_>> = curves
        .iter()
        .map(|(name, colour, span, samples)| LayoutRun {
            name,
            look: Look {
                colour: *colour,
                variant: 0,
            },
            changes: vec![span],
            samples,
        })
        .collect();
    timeline::timelines(&runs, id)
}

fn part(results: &Results) -> (Part, Vec<CellResult>) {
    let mut cells = Vec::new();
    for outage in &results.results {
        let mut row = |path: &str, figures: [(&str, f64); 3]| {
            let run = figures.map(|(name, value)| (name.to_owned(), value)).into();
            cells.push(CellResult::new("outage", &outage.layout, path, vec![run]));
        };
        row(
            "stays",
            [
                ("during", outage.healthy_events_per_s_during),
                ("before", outage.healthy_events_per_s_before),
                ("drain", outage.healthy_events_per_s_drain),
            ],
        );
        row(
            "goes away",
            [
                ("during", 0.0),
                ("before", outage.victim_events_per_s_before),
                ("drain", outage.victim_events_per_s_drain),
            ],
        );
    }
    let part = Part::new(
        "outage",
        "Rates",
        "Events that each server committed: before the outage, in it, and while the backlog drained.",
        [
            Figure::new("during", "events/s in the outage", "events/s", 0),
            Figure::new("before", "before", "events/s", 0),
            Figure::new("drain", "while it drained", "events/s", 0),
        ],
    );
    (part, cells)
}
