//! The page of a load: what became of the requests, and two plots of how long they took.

use std::path::Path;

use anyhow::Context;

use super::bars::{nice_step, open_svg, polyline};
use super::latency::{quantile_name, short_tick, ticks, x};
use super::look::Look;
use super::page::{self, facts};
use super::text::{clip, count, esc, json_for_script, num, short};
use crate::load::results::{Arrivals, LoadResults, Quantiles};

const TOP: f64 = 8.0;
const HEIGHT: f64 = 200.0;
const AXIS: f64 = 22.0;
/// Per cent of the width where the plots begin and end.
const LEFT: f64 = 8.0;
const RIGHT: f64 = 98.0;
/// A logarithmic axis needs bounds; no request is outside these.
const MS_DRAWN: std::ops::Range<f64> = 1e-6..1e9;
/// Names and looks of the lines over time.
const LINES: [(&str, usize); 3] = [("p50", 0), ("p99", 1), ("max", 2)];

/// Renders the page into a file; a reader never sees half of it.
///
/// # Errors
/// When the results cannot be written as JSON, or the file cannot be written.
pub fn write(results: &LoadResults, path: &Path) -> anyhow::Result<()> {
    page::write(&render(results)?, path)
}

/// Renders the results as one self-contained HTML page, with the raw data in the element with the id `results`.
///
/// # Errors
/// When the results cannot be written as JSON.
pub fn render(results: &LoadResults) -> anyhow::Result<String> {
    let json = json_for_script(results).context("embed the results as JSON")?;
    let verdict = if results.is_good() {
        "<p class=\"verdict\">Each request left in time and was answered with 2xx.</p>\n".to_owned()
    } else {
        page::faults(&faults(results))
    };
    let main = format!(
        "<header>\n<p class=\"eyebrow\">Shardlane · {}</p>\n<h1>Load</h1>\n<p class=\"headline\">{}</p>\n{verdict}</header>\n\
         <section><h2>Results</h2>\n<div class=\"columns\">\n<div><h4>Requests</h4>\n{}</div>\n{}</div>\n</section>\n\
         <section><h2>Latency</h2>\n{}</section>\n\
         <section><h2>How to read this</h2>\n<div class=\"prose\">\n{HOW_TO_READ}</div>\n</section>\n\
         <section><h2>How it was run</h2>\n<p>Repeat it with</p>\n<pre><code>{}</code></pre>\n{}{}</section>\n",
        esc(&results.started_at),
        headline(results),
        counts(results),
        times(results),
        plots(results, "load"),
        esc(&results.command),
        page::where_and_when(
            &results.started_at,
            results.took_s,
            &results.commit,
            &results.machine
        ),
        page::raw_data("load.json"),
    );
    Ok(page::whole("Shardlane: load", &main, &json))
}

const HOW_TO_READ: &str = "<p>The times count from the moment at which the schedule wanted a request to leave, not from \
    the moment at which it left: a server that stands still is felt by all who would have sent meanwhile. A request \
    without an answer in time, and one that found no free connection, count with the time that they waited, which is less \
    than they would have had to wait. A long <b>wait for a connection</b> says that there were too few connections for \
    this rate and this server, or that the sending machine was too busy.</p>\n";

pub(super) fn headline(results: &LoadResults) -> String {
    let settings = &results.settings;
    format!(
        "{} requests a second{}: p50 {} ms, p99 {} ms, p99.9 {} ms.",
        short(settings.rate),
        match settings.arrivals {
            Arrivals::Constant => "",
            Arrivals::Poisson => " (Poisson)",
        },
        short(results.measured.latency_ms.p50),
        short(results.measured.latency_ms.p99),
        short(results.measured.latency_ms.p999),
    )
}

pub(super) fn faults(results: &LoadResults) -> Vec<String> {
    let measured = &results.measured;
    let bad = measured
        .statuses
        .iter()
        .filter(|(status, _)| !(200..300).contains(*status));
    let mut faults: Vec<String> = bad
        .map(|(status, requests)| {
            format!("{} requests were answered with {status}.", count(*requests))
        })
        .collect();
    let errors = measured.errors.iter();
    faults.extend(
        errors.map(|(error, requests)| format!("{} requests failed: {error}.", count(*requests))),
    );
    if measured.missed > 0 {
        faults.push(format!(
            "{} requests were never sent.",
            count(measured.missed)
        ));
    }
    if let Some(rows) = results.rows.as_ref().filter(|rows| rows.missing > 0) {
        faults.push(format!(
            "{} acknowledged events have no row.",
            count(rows.missing)
        ));
    }
    faults
}

fn counts(results: &LoadResults) -> String {
    let measured = &results.measured;
    let mut rows = vec![
        ("scheduled".to_owned(), count(results.scheduled)),
        ("sent".to_owned(), count(measured.sent)),
    ];
    let statuses = measured.statuses.iter();
    rows.extend(
        statuses.map(|(status, requests)| (format!("answered {status}"), count(*requests))),
    );
    let errors = measured.errors.iter();
    rows.extend(errors.map(|(error, requests)| (format!("error: {error}"), count(*requests))));
    rows.push(("missed".to_owned(), count(measured.missed)));
    rows.push(("2xx a second".to_owned(), num(measured.achieved_per_s, 1)));
    if let Some(found) = &results.rows {
        rows.push(("rows found".to_owned(), count(found.found)));
        rows.push(("rows missing".to_owned(), count(found.missing)));
    }
    facts(
        rows.iter()
            .map(|(name, value)| (name.as_str(), value.clone())),
    )
}

fn times(results: &LoadResults) -> String {
    let rows = results.rows.as_ref();
    let all = [
        ("Answer, ms", Some(&results.measured.latency_ms)),
        (
            "Wait for a connection, ms",
            Some(&results.measured.send_delay_ms),
        ),
        ("Row in its shard, ms", rows.map(|rows| &rows.latency_ms)),
        (
            "Resolution of the row, ms",
            rows.map(|rows| &rows.resolution_ms),
        ),
    ];
    let column = |(name, ms): (&str, Option<&Quantiles>)| {
        let ms = ms?;
        let cells = facts(
            [
                ("p50", ms.p50),
                ("p90", ms.p90),
                ("p99", ms.p99),
                ("p99.9", ms.p999),
                ("max", ms.max),
            ]
            .map(|(name, ms)| (name, num(ms, 2))),
        );
        Some(format!("<div><h4>{name}</h4>\n{cells}</div>\n"))
    };
    all.into_iter().filter_map(column).collect()
}

/// A logarithmic axis for ms.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64> + Clone) -> Option<Scale> {
        let drawn = values.filter(|ms| MS_DRAWN.contains(ms));
        let low = drawn.clone().fold(f64::INFINITY, f64::min) / 1.25;
        let high = drawn.fold(0.0, f64::max) * 1.25;
        low.is_finite().then_some(Scale { low, high })
    }

    /// From the top, in per cent.
    fn y(&self, ms: f64) -> f64 {
        100.0 - (ms.max(self.low) / self.low).ln() / (self.high / self.low).ln() * 100.0
    }

    fn lines(&self) -> String {
        let line = |tick: f64| {
            let at = TOP + self.y(tick) / 100.0 * HEIGHT;
            format!(
                r#"<line x1="0" y1="{at:.1}" x2="100%" y2="{at:.1}"/><text class="halo" x="0" y="{:.1}">{}</text>"#,
                at - 3.0,
                short_tick(tick)
            )
        };
        ticks(self.low, self.high).into_iter().map(line).collect()
    }
}

/// The two plots. `id` is unique on the page.
pub(super) fn plots(results: &LoadResults, id: &str) -> String {
    format!(
        "<div class=\"figures\">\n<figure><h3>By quantile</h3>\n{}</figure>\n\
         <figure><h3>Over time</h3>\n{}</figure>\n</div>\n",
        by_quantile(results, &format!("{id}-quantiles")),
        over_time(results, &format!("{id}-time"))
    )
}

fn by_quantile(results: &LoadResults, id: &str) -> String {
    let curve = &results.measured.latency_curve_ms;
    let Some(scale) = Scale::of(curve.iter().map(|(_, ms)| *ms)) else {
        return "<p class=\"none\">Nothing was answered.</p>\n".to_owned();
    };
    let description: Vec<String> = curve
        .iter()
        .map(|(q, ms)| format!("{} {} ms", quantile_name(*q), short(*ms)))
        .collect();
    let mut out = open_svg(
        id,
        "Latency by quantile, ms on a logarithmic scale",
        &description.join(", "),
        TOP + HEIGHT + AXIS,
    );
    out.push_str(&format!(r#"<g class="axis">{}"#, scale.lines()));
    for (q, name) in [(0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9")] {
        out.push_str(&tick_below(x(q), name));
    }
    let points: Vec<(f64, f64)> = curve.iter().map(|(q, ms)| (x(*q), scale.y(*ms))).collect();
    out.push_str(&format!(
        "</g><g class=\"l2\">{}</g></svg>\n",
        polyline("curve", &points, TOP, HEIGHT)
    ));
    out
}

fn over_time(results: &LoadResults, id: &str) -> String {
    let slices = &results.measured.over_time;
    let Some(scale) = Scale::of(slices.iter().flat_map(|slice| [slice.p50_ms, slice.max_ms]))
    else {
        return "<p class=\"none\">Nothing was answered.</p>\n".to_owned();
    };
    let seconds = results.settings.duration_s.max(1e-3);
    let at = |s: f64| LEFT + (s / seconds).clamp(0.0, 1.0) * (RIGHT - LEFT);
    let mut out = open_svg(
        id,
        "Latency over time, ms on a logarithmic scale",
        &format!("{} stretches of the run", slices.len()),
        TOP + HEIGHT + AXIS,
    );
    out.push_str(&format!(r#"<g class="axis">{}"#, scale.lines()));
    let step = nice_step(seconds / 5.0);
    let mut tick = step;
    while tick <= seconds {
        out.push_str(&tick_below(at(tick), &format!("{} s", short(tick))));
        tick += step;
    }
    out.push_str("</g><g class=\"l2\">");
    for (line, variant) in LINES {
        let points: Vec<(f64, f64)> = slices
            .iter()
            .map(|slice| {
                let ms = match line {
                    "p50" => slice.p50_ms,
                    "p99" => slice.p99_ms,
                    _ => slice.max_ms,
                };
                (at(slice.at_s), scale.y(ms))
            })
            .collect();
        out.push_str(&polyline(
            &format!("curve {}", look(variant).dash()),
            &points,
            TOP,
            HEIGHT,
        ));
    }
    out.push_str("</g></svg>\n<ul class=\"key\">");
    for (line, variant) in LINES {
        out.push_str(&format!("<li>{}{line}</li>", look(variant).line_sample()));
    }
    out.push_str("</ul>\n");
    out
}

fn look(variant: usize) -> Look {
    Look { colour: 2, variant }
}

fn tick_below(at: f64, name: &str) -> String {
    let bottom = TOP + HEIGHT;
    format!(
        r#"<line class="faint" x1="{at:.2}%" y1="{TOP}" x2="{at:.2}%" y2="{bottom}"/><text x="{at:.2}%" y="{:.1}" text-anchor="middle">{}</text>"#,
        bottom + 15.0,
        esc(&clip(name, 12))
    )
}
