//! Batch latency by quantile: a panel a layout, on one scale, the other layouts pale behind.

use super::bars::{open_svg, polyline};
use super::look::{Look, Palette};
use super::text::{clip, esc, median, num, short};
use crate::results::{LayoutResult, Results};

const TOP: f64 = 8.0;
const HEIGHT: f64 = 170.0;
const AXIS: f64 = 22.0;
/// Where the slowest batch stands on an axis that counts nines: p90 is at 1, p99.9 at 3.
const MAX_AT: f64 = 3.9;
/// A logarithmic axis needs bounds; no batch is outside these.
const MS_DRAWN: std::ops::Range<f64> = 1e-6..1e9;
/// Per cent of the width that the numbers of the vertical axis take.
const LEFT: f64 = 17.0;

struct Curve<'a> {
    row: &'a LayoutResult,
    look: Look,
    /// Quantile and ms, both rising.
    points: Vec<(f64, f64)>,
}

/// The panels, or why there are none.
pub(super) fn latency(results: &Results, palette: &Palette, id: &str) -> String {
    let curves: Vec<Curve<'_>> = results
        .results
        .iter()
        .map(|row| Curve {
            row,
            look: palette.look(&row.layout, &row.path),
            points: median_curve(row),
        })
        .filter(|curve| !curve.points.is_empty())
        .collect();
    let ms = || {
        curves
            .iter()
            .flat_map(|curve| curve.points.iter().map(|&(_, ms)| ms))
    };
    let low = ms().fold(f64::INFINITY, f64::min) / 1.25;
    let high = ms().fold(0.0, f64::max) * 1.25;
    if curves.is_empty() || !low.is_finite() {
        return "<p class=\"none\">No batch latency was recorded.</p>".to_owned();
    }
    let y = |ms: f64| 100.0 - (ms / low).ln() / (high / low).ln() * 100.0;

    let mut layouts: Vec<&str> = Vec::new();
    for curve in &curves {
        if !layouts.contains(&curve.row.layout.as_str()) {
            layouts.push(&curve.row.layout);
        }
    }
    let mut out = String::from("<div class=\"panels\">\n");
    for (i, layout) in layouts.into_iter().enumerate() {
        out.push_str(&panel(
            layout,
            &curves,
            &format!("{id}-{i}"),
            &ticks(low, high),
            y,
        ));
    }
    out.push_str("</div>\n");
    out
}

/// The fewest batches of a run: how far the right end of the curves can be trusted.
pub(super) fn batches_min(results: &Results) -> Option<u64> {
    results
        .results
        .iter()
        .flat_map(|row| row.runs.iter().map(|run| run.batches))
        .filter(|batches| *batches > 0)
        .min()
}

fn panel(
    layout: &str,
    curves: &[Curve<'_>],
    id: &str,
    ticks: &[f64],
    y: impl Fn(f64) -> f64,
) -> String {
    let own = || curves.iter().filter(|curve| curve.row.layout == layout);
    let description: Vec<String> = own()
        .map(|curve| {
            let points: Vec<String> = curve
                .points
                .iter()
                .map(|&(q, ms)| format!("{} {} ms", quantile_name(q), short(ms)))
                .collect();
            format!("{}: {}.", curve.row.path, points.join(", "))
        })
        .collect();
    let title = format!("Batch latency of {layout} by quantile, ms on a logarithmic scale");
    let bottom = TOP + HEIGHT;
    let px = |ms: f64| TOP + y(ms) / 100.0 * HEIGHT;

    let mut out = format!("<div class=\"panel\"><h4>{}</h4>\n", esc(&clip(layout, 40)));
    out.push_str(&open_svg(id, &title, &description.join(" "), bottom + AXIS));
    out.push_str(r#"<g class="axis">"#);
    for &tick in ticks {
        let at = px(tick);
        out.push_str(&format!(
            r#"<line x1="0" y1="{at:.1}" x2="100%" y2="{at:.1}"/>"#
        ));
    }
    for (q, name) in [
        (0.5, "p50"),
        (0.9, "p90"),
        (0.99, "p99"),
        (0.999, "p99.9"),
        (1.0, "max"),
    ] {
        let at = x(q);
        let anchor = if q < 1.0 { "middle" } else { "end" };
        out.push_str(&format!(
            r#"<line class="faint" x1="{at:.2}%" y1="{TOP}" x2="{at:.2}%" y2="{bottom}"/><text x="{at:.2}%" y="{:.1}" text-anchor="{anchor}">{name}</text>"#,
            bottom + 15.0
        ));
    }
    out.push_str("</g>");
    for other in curves.iter().filter(|curve| curve.row.layout != layout) {
        out.push_str(&line(other, "ghost", &y));
    }
    for curve in own() {
        out.push_str(&format!(r#"<g class="{}">"#, curve.look.class()));
        out.push_str(&line(curve, &format!("curve {}", curve.look.dash()), &y));
        for &(q, ms) in &curve.points {
            out.push_str(&format!(
                r#"<svg x="{:.2}%" y="{:.1}" overflow="visible"><path class="dot" d="{}"><title>{} {}: {} ms</title></path></svg>"#,
                x(q),
                px(ms),
                curve.look.marker(),
                esc(&curve.row.path),
                quantile_name(q),
                short(ms)
            ));
        }
        out.push_str("</g>");
    }
    // Last, so that no curve hides them.
    out.push_str(r#"<g class="axis">"#);
    for &tick in ticks {
        out.push_str(&format!(
            r#"<text class="halo" x="0" y="{:.1}">{}</text>"#,
            px(tick) - 3.0,
            short_tick(tick)
        ));
    }
    out.push_str("</g></svg>\n<ul class=\"key\">");
    for curve in own() {
        out.push_str(&format!(
            "<li>{}{}</li>",
            curve.look.line_sample(),
            esc(&curve.row.path)
        ));
    }
    out.push_str("</ul></div>\n");
    out
}

fn line(curve: &Curve<'_>, class: &str, y: impl Fn(f64) -> f64) -> String {
    let points: Vec<(f64, f64)> = curve.points.iter().map(|&(q, ms)| (x(q), y(ms))).collect();
    polyline(class, &points, TOP, HEIGHT)
}

/// For each quantile of the first run the median over all runs.
fn median_curve(row: &LayoutResult) -> Vec<(f64, f64)> {
    let Some(first) = row.runs.first() else {
        return Vec::new();
    };
    let mut points = Vec::new();
    for &(q, _) in &first.latency_ms {
        let mut values: Vec<f64> = row
            .runs
            .iter()
            .filter_map(|run| {
                run.latency_ms
                    .iter()
                    .find(|(other, _)| (other - q).abs() < 1e-9)
            })
            .map(|&(_, ms)| ms)
            .filter(|ms| MS_DRAWN.contains(ms))
            .collect();
        values.sort_by(f64::total_cmp);
        let Some(median) = median(&values) else {
            continue;
        };
        if (0.0..=1.0).contains(&q) {
            points.push((q, median));
        }
    }
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

/// Per cent of the width. The axis counts nines, so that the tail, which matters, has room.
pub(super) fn x(q: f64) -> f64 {
    let nines = if q >= 1.0 {
        MAX_AT
    } else {
        (-(1.0 - q).log10()).min(MAX_AT)
    };
    LEFT + nines / MAX_AT * (98.0 - LEFT)
}

pub(super) fn quantile_name(q: f64) -> String {
    if q >= 1.0 {
        "max".to_owned()
    } else if q <= 0.0 {
        "min".to_owned()
    } else {
        let percent = format!("{:.2}", q * 100.0);
        format!("p{}", percent.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// Powers of ten, with 2 and 5 between them where the range is small.
pub(super) fn ticks(low: f64, high: f64) -> Vec<f64> {
    let factors: &[f64] = if high / low < 30.0 {
        &[1.0, 2.0, 5.0]
    } else if high / low < 1000.0 {
        &[1.0, 3.0]
    } else {
        &[1.0]
    };
    let mut ticks = Vec::new();
    let mut decade = 10f64.powf(low.log10().floor());
    while decade <= high {
        ticks.extend(
            factors
                .iter()
                .map(|factor| factor * decade)
                .filter(|tick| (low..=high).contains(tick)),
        );
        decade *= 10.0;
    }
    ticks
}

pub(super) fn short_tick(tick: f64) -> String {
    let decimals = if tick >= 0.95 {
        0
    } else if tick >= 0.095 {
        1
    } else {
        3
    };
    num(tick, decimals)
}
