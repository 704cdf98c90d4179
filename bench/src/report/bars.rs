//! Horizontal bars with their names above them.
//!
//! A plot has no view box: it is as wide as its place, x is in per cent of that and y in pixels, so that text keeps its
//! size from a phone to a wide screen.

use super::look::Look;
use super::text::{clip, esc, num};

/// Pixels that one bar takes, its name included.
const ROW: f64 = 41.0;
const BAR_TOP: f64 = 20.0;
const BAR_HEIGHT: f64 = 13.0;
const AXIS: f64 = 22.0;
/// Per cent of the width that the longest bar takes, so that the dots of its runs stay inside.
const REACH: f64 = 97.0;

/// One bar.
pub(super) struct Bar {
    pub(super) layout: String,
    pub(super) path: String,
    /// What stands at the right end of the name's line, escaped.
    pub(super) value: String,
    pub(super) look: Look,
    pub(super) parts: Vec<Part>,
    /// Whisker from and to.
    pub(super) range: Option<(f64, f64)>,
    /// Single runs.
    pub(super) dots: Vec<f64>,
}

/// A piece of a bar.
pub(super) struct Part {
    pub(super) value: f64,
    /// A class for a piece that is not simply the layout and path.
    pub(super) class: Option<&'static str>,
    /// Said when the pointer rests on it.
    pub(super) title: String,
}

/// What a plot is called, for those who see it and those who do not.
pub(super) struct Names<'a> {
    /// Unique on the page.
    pub(super) id: &'a str,
    pub(super) title: &'a str,
    /// The plot in words, with its numbers.
    pub(super) description: String,
    /// What the axis counts.
    pub(super) unit: &'a str,
}

/// The opening of an accessible picture.
pub(super) fn open_svg(id: &str, title: &str, description: &str, height: f64) -> String {
    format!(
        r#"<svg class="plot" role="img" aria-labelledby="{id}-t {id}-d" width="100%" height="{height}"><title id="{id}-t">{}</title><desc id="{id}-d">{}</desc>"#,
        esc(title),
        esc(description)
    )
}

/// The plot; `reference` is a value that each bar is to be read against.
pub(super) fn bars(names: &Names<'_>, bars: &[Bar], reference: Option<f64>) -> String {
    let longest = bars
        .iter()
        .flat_map(|bar| {
            let total: f64 = finite(bar.parts.iter().map(|p| p.value)).sum();
            finite(bar.dots.iter().copied())
                .chain(finite(bar.range.map(|r| r.1)))
                .chain([total])
        })
        .chain(reference)
        .fold(0.0, f64::max);
    // Anything else is as good as nothing, and an axis could not be drawn for it.
    let longest = if (1e-6..1e15).contains(&longest) {
        longest
    } else {
        1.0
    };
    let at = |value: f64| (value / longest * REACH).clamp(0.0, 100.0);
    let rows: f64 = bars.iter().map(|_| ROW).sum();

    let mut out = open_svg(names.id, names.title, &names.description, rows + AXIS);
    out.push_str(&axis(longest, rows, names.unit, at));
    let mut top = 0.0;
    for bar in bars {
        out.push_str(&row(bar, top, at));
        if let Some(x) = reference.map(at) {
            let y = top + BAR_TOP;
            out.push_str(&format!(
                r#"<line class="reference" x1="{x:.2}%" y1="{:.1}" x2="{x:.2}%" y2="{:.1}"/>"#,
                y - 3.0,
                y + BAR_HEIGHT + 3.0
            ));
        }
        top += ROW;
    }
    out.push_str("</svg>\n");
    out
}

fn row(bar: &Bar, top: f64, at: impl Fn(f64) -> f64) -> String {
    let y = top + BAR_TOP;
    let middle = y + BAR_HEIGHT / 2.0;
    let mut out = format!(
        r#"<g class="{}"><text x="0" y="{:.1}"><tspan class="b">{}</tspan> {}</text><text class="num" x="100%" y="{:.1}">{}</text>"#,
        bar.look.class(),
        y - 6.0,
        esc(&clip(&bar.layout, 16)),
        esc(&clip(&bar.path, 22)),
        y - 6.0,
        bar.value,
    );
    let mut from = 0.0;
    for part in &bar.parts {
        if !part.value.is_finite() || part.value <= 0.0 {
            continue;
        }
        let (class, fill) = match part.class {
            Some(class) => (format!("bar {class}"), String::new()),
            None => ("bar".to_owned(), format!(r#" fill="{}""#, bar.look.fill())),
        };
        let width = at(part.value);
        out.push_str(&format!(
            r#"<rect class="{class}" x="{from:.2}%" y="{y:.1}" width="{width:.2}%" height="{BAR_HEIGHT}"{fill}><title>{}</title></rect>"#,
            esc(&part.title)
        ));
        from += width;
    }
    if let Some((min, max)) = bar
        .range
        .filter(|(min, max)| min.is_finite() && max.is_finite())
    {
        let (low, high) = (at(min), at(max));
        out.push_str(&format!(
            r#"<g class="whisker"><line x1="{low:.2}%" y1="{middle:.1}" x2="{high:.2}%" y2="{middle:.1}"/>"#
        ));
        for x in [low, high] {
            out.push_str(&format!(
                r#"<line x1="{x:.2}%" y1="{:.1}" x2="{x:.2}%" y2="{:.1}"/>"#,
                y - 2.0,
                y + BAR_HEIGHT + 2.0
            ));
        }
        out.push_str("</g>");
    }
    let dots: Vec<f64> = finite(bar.dots.iter().copied()).collect();
    let gaps: f64 = dots.iter().skip(1).map(|_| 1.0).sum();
    let step = if gaps > 0.0 { 8.0 / gaps } else { 0.0 };
    let mut y = middle - step * gaps / 2.0;
    for dot in dots {
        out.push_str(&format!(
            r#"<circle class="run" cx="{:.2}%" cy="{y:.1}" r="2.4"><title>one run: {}</title></circle>"#,
            at(dot),
            num(dot, 0)
        ));
        y += step;
    }
    out.push_str("</g>");
    out
}

fn axis(longest: f64, rows: f64, unit: &str, at: impl Fn(f64) -> f64) -> String {
    let step = nice_step(longest / 4.0);
    let decimals = tick_decimals(step);
    let mut out = String::from(r#"<g class="axis">"#);
    let mut tick = 0.0;
    while tick <= longest * 1.0001 {
        let x = at(tick);
        let (anchor, label) = if tick == 0.0 {
            ("start", format!("0 {}", esc(unit)))
        } else if x > 90.0 {
            ("end", num(tick, decimals))
        } else {
            ("middle", num(tick, decimals))
        };
        out.push_str(&format!(
            r#"<line x1="{x:.2}%" y1="0" x2="{x:.2}%" y2="{rows}"/><text x="{x:.2}%" y="{:.1}" text-anchor="{anchor}">{label}</text>"#,
            rows + 15.0
        ));
        tick += step;
    }
    out.push_str("</g>");
    out
}

/// How many decimals the numbers of an axis need.
pub(super) fn tick_decimals(step: f64) -> usize {
    if step >= 1.0 {
        0
    } else if step >= 0.1 {
        1
    } else {
        3
    }
}

/// A line through points in a box of 100 x 100 that is stretched over the plot; the pen is not stretched with it.
pub(super) fn polyline(class: &str, points: &[(f64, f64)], top: f64, height: f64) -> String {
    let points: Vec<String> = points
        .iter()
        .map(|(x, y)| format!("{x:.2},{y:.2}"))
        .collect();
    format!(
        r#"<svg x="0" y="{top}" width="100%" height="{height}" viewBox="0 0 100 100" preserveAspectRatio="none" overflow="visible"><polyline class="{class}" vector-effect="non-scaling-stroke" points="{}"/></svg>"#,
        points.join(" ")
    )
}

/// The next of 1, 2, 5, 10, 20, … that is not smaller.
pub(super) fn nice_step(rough: f64) -> f64 {
    let decade = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0]
        .into_iter()
        .map(|factor| factor * decade)
        .find(|step| *step >= rough)
        .unwrap_or(10.0 * decade)
}

fn finite(values: impl IntoIterator<Item = f64>) -> impl Iterator<Item = f64> {
    values.into_iter().filter(|value| value.is_finite())
}
