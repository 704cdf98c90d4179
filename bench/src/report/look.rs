//! One colour a layout, one pattern a path, the same in every table and plot of a page.

use super::text::esc;
use crate::results::Results;

/// Colours in the style sheet: `l0` to `l7`.
const COLOURS: usize = 8;
/// Patterns, line dashes and marker shapes.
const VARIANTS: usize = 4;

/// How one layout and path is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    /// The layout's colour.
    pub(super) colour: usize,
    /// The path's pattern; 0 is solid, the way that Shardlane means the layout to be used.
    pub(super) variant: usize,
}

/// The looks of all layouts and paths on a page.
#[derive(Debug, Default)]
pub(super) struct Palette {
    layouts: Vec<(String, usize)>,
    paths: Vec<(String, String, usize)>,
}

impl Palette {
    /// Known names have fixed looks, so that two reports agree; others take what is left.
    pub(super) fn new(results: &[Results]) -> Self {
        let measured = results
            .iter()
            .flat_map(|r| r.results.iter().map(|row| (&row.layout, &row.path)));
        let replayed = results
            .iter()
            .flat_map(|r| r.replays.iter().map(|row| (&row.layout, &row.path)));
        Palette::of(
            measured
                .chain(replayed)
                .map(|(layout, path)| (layout.as_str(), path.as_str())),
        )
    }

    /// The looks of these layouts and paths.
    pub(super) fn of<'a>(names: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut palette = Palette::default();
        for (layout, path) in names {
            palette.add(layout, path);
        }
        palette
    }

    /// How to draw this layout and path.
    pub(super) fn look(&self, layout: &str, path: &str) -> Look {
        let colour = self
            .layouts
            .iter()
            .find(|(name, _)| name == layout)
            .map_or(COLOURS - 1, |&(_, colour)| colour);
        let variant = self
            .paths
            .iter()
            .find(|(l, p, _)| l == layout && p == path)
            .map_or(0, |&(_, _, v)| v);
        Look { colour, variant }
    }

    fn add(&mut self, layout: &str, path: &str) {
        if !self.layouts.iter().any(|(name, _)| name == layout) {
            let others = self
                .layouts
                .iter()
                .filter(|(_, colour)| *colour >= 4)
                .count();
            let colour = match layout {
                "single" => 0,
                "partman" => 1,
                "shards" => 2,
                "citus" => 3,
                _ => 4 + others % (COLOURS - 4),
            };
            self.layouts.push((layout.to_owned(), colour));
        }
        if !self.paths.iter().any(|(l, p, _)| l == layout && p == path) {
            let taken: Vec<usize> = self
                .paths
                .iter()
                .filter(|(l, _, _)| l == layout)
                .map(|&(_, _, variant)| variant)
                .collect();
            let variant = match path {
                "worker" | "aligned" | "owner" => 0,
                "modulo" | "coordinator-grouped" => 1,
                "coordinator" => 2,
                "raw-sql" => 3,
                _ => (0..VARIANTS)
                    .find(|v| !taken.contains(v))
                    .unwrap_or(taken.len() % VARIANTS),
            };
            self.paths
                .push((layout.to_owned(), path.to_owned(), variant));
        }
    }
}

impl Look {
    /// The class that sets the colour.
    pub(super) fn class(self) -> String {
        format!("l{}", self.colour)
    }

    /// What fills a bar.
    pub(super) fn fill(self) -> String {
        if self.variant == 0 {
            "var(--c)".to_owned()
        } else {
            format!("url(#p{}-{})", self.colour, self.variant)
        }
    }

    /// The class that dashes a line.
    pub(super) fn dash(self) -> String {
        format!("d{}", self.variant)
    }

    /// A marker around the point 0,0.
    pub(super) fn marker(self) -> &'static str {
        match self.variant {
            0 => "M-3,0a3,3 0 1 0 6,0a3,3 0 1 0 -6,0z",
            1 => "M-2.7,-2.7h5.4v5.4h-5.4z",
            2 => "M0,-3.6l3.5,6.3h-7z",
            _ => "M0,-3.9l3.9,3.9l-3.9,3.9l-3.9,-3.9z",
        }
    }

    /// A small square of colour and pattern beside a name.
    pub(super) fn swatch(self) -> String {
        format!(
            r#"<svg class="swatch {}" width="12" height="12" aria-hidden="true"><rect class="bar" x="0.5" y="0.5" width="11" height="11" fill="{}"/></svg>"#,
            self.class(),
            self.fill()
        )
    }

    /// A piece of line with its marker beside a name.
    pub(super) fn line_sample(self) -> String {
        format!(
            r#"<svg class="sample {}" width="30" height="12" aria-hidden="true"><line class="curve {}" x1="0" y1="6" x2="30" y2="6"/><svg x="15" y="6" overflow="visible"><path class="dot" d="{}"/></svg></svg>"#,
            self.class(),
            self.dash(),
            self.marker()
        )
    }
}

/// `citus owner` with the layout set apart, escaped.
pub(super) fn name_html(layout: &str, path: &str) -> String {
    format!("<b>{}</b> {}", esc(layout), esc(path))
}

/// The patterns that fills refer to. They must be in the page and drawn, so the picture has no size instead of no
/// display.
pub(super) fn pattern_defs() -> String {
    let mut out = String::from(
        r#"<svg class="defs" width="0" height="0" aria-hidden="true" focusable="false"><defs>"#,
    );
    for colour in 0..COLOURS {
        for variant in 1..VARIANTS {
            let (transform, ink) = match variant {
                1 => (
                    r#" patternTransform="rotate(45)""#,
                    r#"<rect class="ink" width="2.6" height="6"/>"#,
                ),
                2 => ("", r#"<circle class="ink" cx="3" cy="3" r="1.5"/>"#),
                _ => ("", r#"<rect class="ink" width="6" height="1.8"/>"#),
            };
            out.push_str(&format!(
                r#"<pattern id="p{colour}-{variant}" class="l{colour}" width="6" height="6" patternUnits="userSpaceOnUse"{transform}><rect class="tint" width="6" height="6"/>{ink}</pattern>"#
            ));
        }
    }
    out.push_str("</defs></svg>");
    out
}
