//! What every page of the lab has: the frame, the raw data, what was skipped, where it ran, and how it gets into a file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::look;
use super::text::{DASH, duration, esc, num};
use crate::results::{Machine, Skipped};

/// Of its cores, a machine that has less to do is idle.
const BUSY: f64 = 0.5;
const STYLE: &str = include_str!("style.css");
const DOWNLOAD: &str = include_str!("download.js");

/// A page that needs nothing but itself. `main` is HTML, `json` is safe inside a script element.
pub(super) fn whole(title: &str, main: &str, json: &str) -> String {
    let mut out = String::with_capacity(main.len() + json.len() + 64 * 1024);
    out.push_str("<!DOCTYPE html>\n<html lang=\"en-GB\">\n<head>\n<meta charset=\"utf-8\">\n");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    // Nothing may be loaded, whatever slips into the page.
    out.push_str(
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'; img-src data:\">\n",
    );
    out.push_str("<meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n");
    out.push_str(&format!(
        "<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{}\n<main>\n{main}</main>\n",
        esc(title),
        look::pattern_defs()
    ));
    out.push_str(&format!(
        "<script type=\"application/json\" id=\"results\">\n{json}\n</script>\n\
         <script>\n{DOWNLOAD}</script>\n</body>\n</html>\n"
    ));
    out
}

/// Where the raw data are; the link saves them under this name.
pub(super) fn raw_data(file_name: &str) -> String {
    format!(
        "<p>The raw data are in this file, in the element with the id <code>results</code>. \
         <a data-download hidden download=\"{file_name}\" href=\"#results\">Download raw JSON</a></p>\n"
    )
}

/// Sentences that must not be overlooked.
pub(super) fn faults(sentences: &[String]) -> String {
    let lines = sentences
        .iter()
        .map(|fault| format!("<p class=\"verdict fault\">{}</p>\n", esc(fault)));
    lines.collect()
}

/// That a machine had other work when an experiment began; nothing where it had not.
#[expect(clippy::cast_precision_loss, reason = "cores of a machine")]
pub(super) fn busy(load_average: f64, cores: usize) -> String {
    if load_average < BUSY * cores as f64 {
        return String::new();
    }
    format!(
        "<p class=\"note\">The machine was not idle before: a load of {} on {cores} cores. Do not expect a rerun to say the same.</p>\n",
        num(load_average, 1)
    )
}

/// Layouts that could not run, with their reasons.
pub(super) fn skipped(skipped: &[Skipped]) -> String {
    if skipped.is_empty() {
        return "<p class=\"none\">No layout was skipped.</p>\n".to_owned();
    }
    facts(
        skipped
            .iter()
            .map(|one| (one.layout.as_str(), one.reason.clone())),
    )
}

/// When, of what and on what an experiment was run.
pub(super) fn where_and_when(
    started_at: &str,
    took_s: f64,
    commit: &str,
    machine: &Machine,
) -> String {
    facts([
        ("started", started_at.to_owned()),
        ("took", duration(took_s)),
        ("commit", commit.to_owned()),
        ("processor", machine.cpu.clone()),
        ("cores", machine.cores.to_string()),
        ("memory", format!("{} GiB", num(machine.memory_gib, 1))),
        ("kernel", machine.kernel.clone()),
        ("system", machine.os.clone()),
    ])
}

/// Names and values, which are escaped.
pub(super) fn facts<'a>(rows: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let rows: String = rows
        .into_iter()
        .map(|(name, value)| format!("<dt>{}</dt><dd>{}</dd>\n", esc(name), esc(&value)))
        .collect();
    if rows.is_empty() {
        format!("<p class=\"none\">{DASH}</p>\n")
    } else {
        format!("<dl class=\"facts\">\n{rows}</dl>\n")
    }
}

/// Writes through a temporary file beside the page, so that a reader never sees half of it.
pub(super) fn write(html: &str, path: &Path) -> anyhow::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written = fs::write(&temporary, html)
        .with_context(|| format!("write {}", temporary.display()))
        .and_then(|()| {
            fs::rename(&temporary, path).with_context(|| format!("rename to {}", path.display()))
        });
    if written.is_err() {
        // The first error is the one to report; there may be no file to remove.
        fs::remove_file(&temporary).ok();
    }
    written
}
