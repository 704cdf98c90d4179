//! A picture a layout: events a second over time, the changes as shaded spans, and owner hits below on the same axis.

use super::sentences::title;
use super::{LayoutRun, name, percent};
use crate::report::bars::{nice_step, open_svg, polyline, tick_decimals};
use crate::report::text::{clip, esc, num};
use crate::reshard::{ChangeResult, Sample};

/// What the vertical axis counts.
const UNIT_LINE: f64 = 16.0;
const NAME_LINE: f64 = 16.0;
const RATE_HEIGHT: f64 = 180.0;
/// Between the plots: the lower one's unit.
const GAP: f64 = 44.0;
const HITS_HEIGHT: f64 = 70.0;
const AXIS: f64 = 36.0;
/// On the narrowest screen: pixels of the plot and of a letter, so that names above spans do not overlap.
const NARROW: f64 = 290.0;
const LETTER: f64 = 7.5;
/// No experiment takes longer, and no axis could be drawn.
const SECONDS_DRAWN: std::ops::Range<f64> = 0.0..1e7;
const RATE_DRAWN: std::ops::Range<f64> = 0.0..1e12;

/// The pictures of all layouts. `id` is unique on the page.
pub(in crate::report) fn timelines(layouts: &[LayoutRun<'_>], id: &str) -> String {
    if layouts.is_empty() {
        return "<p class=\"none\">Nothing was measured for this plot.</p>\n".to_owned();
    }
    let mut out = String::from("<div class=\"figures\">\n");
    for (index, layout) in layouts.iter().enumerate() {
        out.push_str(&format!(
            "<figure class=\"wide\"><h3>{}</h3>\n{}</figure>\n",
            esc(&title(layout.name)),
            figure(layout, &format!("{id}-t{}", index + 1))
        ));
    }
    out.push_str("</div>\n");
    out
}

fn figure(layout: &LayoutRun<'_>, id: &str) -> String {
    let Some(plot) = Plot::new(layout) else {
        return "<p class=\"none\">No samples were recorded.</p>\n".to_owned();
    };
    let below = if plot.has_hits {
        " Below: the share of events that went straight to the node that owns them."
    } else {
        ""
    };
    format!(
        "<div class=\"timeline\">{}</div>\n<figcaption>Events that reached the database, counted each quarter of a \
         second. Shaded: a change, from its begin to its end.{below}</figcaption>\n",
        plot.svg(layout, id)
    )
}

/// Where everything stands: x in per cent of the width, y in pixels.
struct Plot<'a> {
    samples: Vec<&'a Sample>,
    /// The changes that can be drawn, each with the line of its name.
    spans: Vec<(&'a ChangeResult, f64)>,
    has_hits: bool,
    seconds: f64,
    rate_step: f64,
    /// The upper end of the rate's axis.
    rate_max: f64,
    /// Upper edge of the rate's plot.
    top: f64,
}

impl<'a> Plot<'a> {
    fn new(layout: &LayoutRun<'a>) -> Option<Plot<'a>> {
        let samples: Vec<&Sample> = layout
            .samples
            .iter()
            .filter(|sample| SECONDS_DRAWN.contains(&sample.at_s))
            .filter(|sample| RATE_DRAWN.contains(&sample.events_per_s))
            .collect();
        let drawn = |change: &&&ChangeResult| {
            SECONDS_DRAWN.contains(&change.began_s)
                && SECONDS_DRAWN.contains(&change.ended_s)
                && change.began_s <= change.ended_s
        };
        let changes: Vec<&ChangeResult> = layout.changes.iter().filter(drawn).copied().collect();
        let ends = changes.iter().map(|change| change.ended_s);
        let seconds = ends
            .chain(samples.iter().map(|sample| sample.at_s))
            .fold(1.0, f64::max);
        let rates = samples.iter().map(|sample| sample.events_per_s);
        let highest = rates.reduce(f64::max)?.max(1.0);
        let rate_step = nice_step(highest / 4.0);
        let (spans, lines) = name_lines(changes, seconds);
        Some(Plot {
            has_hits: samples.iter().any(|sample| sample.owner_hit.is_some()),
            samples,
            spans,
            seconds,
            rate_step,
            rate_max: (highest / rate_step).ceil() * rate_step,
            top: UNIT_LINE + lines * NAME_LINE,
        })
    }

    fn svg(&self, layout: &LayoutRun<'_>, id: &str) -> String {
        let bottom = self.hits_top() + if self.has_hits { HITS_HEIGHT } else { 0.0 };
        let heading = format!("Events per second over time: {}", title(layout.name));
        let mut out = open_svg(id, &heading, &self.in_words(), bottom + AXIS);
        out.push_str(&self.time_axis(bottom));
        out.push_str(&self.rate_axis());
        if self.has_hits {
            out.push_str(&self.hits_axis());
        }
        out.push_str(&format!("<g class=\"{}\">", layout.look.class()));
        for (change, line) in &self.spans {
            out.push_str(&self.span(change, *line, bottom));
        }
        let rates = self.samples.iter();
        let rates = rates.map(|s| {
            (
                self.x(s.at_s),
                100.0 - s.events_per_s / self.rate_max * 100.0,
            )
        });
        out.push_str(&polyline(
            "curve",
            &rates.collect::<Vec<_>>(),
            self.top,
            RATE_HEIGHT,
        ));
        out.push_str(&self.hits());
        out.push_str("</g></svg>");
        out
    }

    /// Upper edge of the owner hits; the lower edge of the rate where there are none.
    fn hits_top(&self) -> f64 {
        self.top + RATE_HEIGHT + if self.has_hits { GAP } else { 0.0 }
    }

    fn x(&self, seconds: f64) -> f64 {
        seconds / self.seconds * 100.0
    }

    fn time_axis(&self, bottom: f64) -> String {
        let step = nice_step(self.seconds / 6.0);
        let mut out = String::from("<g class=\"axis\">");
        let mut tick = 0.0;
        while tick <= self.seconds {
            let x = self.x(tick);
            out.push_str(&format!(
                r#"<line class="faint" x1="{x:.2}%" y1="{:.1}" x2="{x:.2}%" y2="{bottom:.1}"/><text class="mid" x="{x:.2}%" y="{:.1}">{}</text>"#,
                self.top,
                bottom + 15.0,
                num(tick, tick_decimals(step))
            ));
            tick += step;
        }
        out.push_str(&format!(
            r#"<text class="num" x="100%" y="{:.1}">seconds since the load began</text></g>"#,
            bottom + 31.0
        ));
        out
    }

    fn rate_axis(&self) -> String {
        let mut ticks = Vec::new();
        let mut tick = 0.0;
        while tick <= self.rate_max * 1.0001 {
            let label = num(tick, tick_decimals(self.rate_step));
            ticks.push((tick / self.rate_max, label));
            tick += self.rate_step;
        }
        scale("events/s", 11.0, self.top, RATE_HEIGHT, &ticks)
    }

    fn hits_axis(&self) -> String {
        let ticks = [0.0, 0.5, 1.0].map(|share| (share, num(share * 100.0, 0)));
        let top = self.hits_top();
        scale("to the owner, %", top - 13.0, top, HITS_HEIGHT, &ticks)
    }

    fn span(&self, change: &ChangeResult, line: f64, bottom: f64) -> String {
        let (from, to) = (self.x(change.began_s), self.x(change.ended_s));
        let wrong = if change.is_right() { "" } else { " wrong" };
        let text = label(change);
        let (x, anchor) = anchored(from, to);
        let name_y = UNIT_LINE + line * NAME_LINE + 11.0;
        format!(
            r#"<g class="change{wrong}"><rect class="span" x="{from:.2}%" y="{:.1}" width="{:.2}%" height="{:.1}"><title>{}</title></rect><line class="edge" x1="{from:.2}%" y1="{:.1}" x2="{from:.2}%" y2="{bottom:.1}"/><line class="edge" x1="{to:.2}%" y1="{:.1}" x2="{to:.2}%" y2="{bottom:.1}"/><text class="b" x="{x:.2}%" y="{name_y:.1}" text-anchor="{anchor}">{}</text></g>"#,
            self.top,
            (to - from).max(0.2),
            bottom - self.top,
            esc(&sentence(change)),
            self.top,
            self.top,
            esc(&text)
        )
    }

    /// A line a stretch in which the answer was known.
    fn hits(&self) -> String {
        let mut out = String::new();
        for stretch in self
            .samples
            .chunk_by(|a, b| hit(a).is_some() == hit(b).is_some())
        {
            let known = stretch
                .iter()
                .filter_map(|sample| Some((self.x(sample.at_s), 100.0 - hit(sample)? * 100.0)));
            let points: Vec<(f64, f64)> = known.collect();
            if !points.is_empty() {
                out.push_str(&polyline("curve", &points, self.hits_top(), HITS_HEIGHT));
            }
        }
        out
    }

    /// For those who do not see it.
    fn in_words(&self) -> String {
        let words: Vec<String> = self.spans.iter().map(|(c, _)| sentence(c)).collect();
        format!("{} s. {}", num(self.seconds, 0), words.join(" "))
    }
}

/// A vertical axis: its unit, and a line and a number each tick.
fn scale(unit: &str, unit_y: f64, top: f64, height: f64, ticks: &[(f64, String)]) -> String {
    let mut out = format!(r#"<g class="axis"><text x="-46" y="{unit_y:.1}">{unit}</text>"#);
    for (share, text) in ticks {
        let y = top + height - share * height;
        out.push_str(&format!(
            r#"<line x1="0" y1="{y:.1}" x2="100%" y2="{y:.1}"/><text class="num" x="-8" y="{:.1}">{text}</text>"#,
            y + 4.0
        ));
    }
    out.push_str("</g>");
    out
}

/// The lowest line for each name on which it does not overlap the one before, even on a narrow screen; and how many
/// lines that takes.
fn name_lines(changes: Vec<&ChangeResult>, seconds: f64) -> (Vec<(&ChangeResult, f64)>, f64) {
    // The right end of the last name on each line, in pixels.
    let mut ends: Vec<f64> = Vec::new();
    let mut spans = Vec::new();
    for change in changes {
        let width = label(change).chars().map(|_| LETTER).sum::<f64>();
        let per_cent = |at: f64| at / seconds * 100.0;
        let (x, anchor) = anchored(per_cent(change.began_s), per_cent(change.ended_s));
        let left = x / 100.0 * NARROW
            - match anchor {
                "start" => 0.0,
                "end" => width,
                _ => width / 2.0,
            };
        let free = ends.iter().position(|end| *end < left);
        let line = free.unwrap_or(ends.len());
        if line == ends.len() {
            ends.push(0.0);
        }
        ends[line] = left + width;
        spans.push((change, ends[..line].iter().map(|_| 1.0).sum()));
    }
    let lines = ends.iter().map(|_| 1.0).sum();
    (spans, lines)
}

/// Where a span's name stands, in per cent, and how: near an edge a name in the middle would leave the plot.
fn anchored(from: f64, to: f64) -> (f64, &'static str) {
    match f64::midpoint(from, to) {
        middle if middle < 25.0 => (from, "start"),
        middle if middle > 75.0 => (to, "end"),
        middle => (middle, "middle"),
    }
}

fn label(change: &ChangeResult) -> String {
    let name = clip(&name(change), 16);
    if change.is_right() {
        name
    } else {
        format!("{name}: WRONG")
    }
}

fn sentence(change: &ChangeResult) -> String {
    let hit = change.owner_hit_min.map_or(String::new(), |share| {
        format!(", at worst {} to the owner", percent(share))
    });
    format!(
        "{} from {} s to {} s: {} events/s before, {} during, {} after, longest stall {} ms{hit}.",
        label(change),
        num(change.began_s, 1),
        num(change.ended_s, 1),
        num(change.events_per_s_before, 0),
        num(change.events_per_s_during, 0),
        num(change.events_per_s_after, 0),
        num(change.stall_max_ms, 0)
    )
}

fn hit(sample: &Sample) -> Option<f64> {
    sample.owner_hit.filter(|share| (0.0..=1.0).contains(share))
}
