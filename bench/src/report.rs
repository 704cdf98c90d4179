//! The report: one HTML page that needs nothing but itself.
//!
//! It loads nothing over a network and is complete without JavaScript. Every sentence with a figure in it is computed
//! from the [`Results`]; every string in them is untrusted and is escaped where it is written.

mod bars;
mod headline;
mod latency;
mod look;
mod plots;
pub mod routing;
mod table;
#[cfg(test)]
mod tests;
mod text;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::results::Results;
use headline::Verdict;
use look::Palette;
use text::{DASH, count, duration, esc, json_for_script, num};

const STYLE: &str = include_str!("report/style.css");
const DOWNLOAD: &str = include_str!("report/download.js");
const HOW_TO_READ: &str = include_str!("report/how-to-read.html");

/// Renders one or more experiments as one self-contained HTML page.
///
/// The raw data are in the element with the id `results`: one experiment as the object that `results.json` holds,
/// several as an array of such objects.
///
/// # Errors
///
/// When the results cannot be written as JSON.
pub fn render(results: &[Results]) -> anyhow::Result<String> {
    let palette = Palette::new(results);
    let json = match results {
        [one] => json_for_script(one),
        all => json_for_script(all),
    }
    .context("embed the results as JSON")?;

    let mut names: Vec<&str> = Vec::new();
    for one in results {
        if !names.contains(&one.experiment.as_str()) {
            names.push(&one.experiment);
        }
    }
    let title = if names.is_empty() {
        "Sharding lab".to_owned()
    } else {
        format!("Sharding lab: {}", names.join(", "))
    };

    let mut out = String::with_capacity(256 * 1024);
    out.push_str("<!DOCTYPE html>\n<html lang=\"en-GB\">\n<head>\n<meta charset=\"utf-8\">\n");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    // Nothing may be loaded, whatever slips into the page.
    out.push_str(
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'; img-src data:\">\n",
    );
    out.push_str("<meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n");
    out.push_str(&format!(
        "<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        esc(&title)
    ));
    out.push_str(&look::pattern_defs());
    out.push_str("\n<main>\n");
    if results.len() != 1 {
        out.push_str(&cover(results, &title));
    }
    for (i, one) in results.iter().enumerate() {
        out.push_str(&experiment(
            one,
            &palette,
            &format!("e{}", i + 1),
            results.len() == 1,
        ));
    }
    out.push_str(&format!("<section id=\"read\">\n<h2>How to read this</h2>\n<div class=\"prose\">\n{HOW_TO_READ}</div>\n</section>\n"));
    out.push_str("<section id=\"run\">\n<h2>How it was run</h2>\n");
    for one in results {
        if results.len() > 1 {
            out.push_str(&format!(
                "<h3>{}, {}</h3>\n",
                esc(&one.experiment),
                esc(&one.started_at)
            ));
        }
        out.push_str(&how_run(one, &palette));
    }
    if results.is_empty() {
        out.push_str("<p class=\"none\">The page was made without results.</p>\n");
    }
    out.push_str(
        "<p>The raw data are in this file, in the element with the id <code>results</code>. \
         <a data-download hidden download=\"results.json\" href=\"#results\">Download raw JSON</a></p>\n</section>\n</main>\n",
    );
    out.push_str(&format!(
        "<script type=\"application/json\" id=\"results\">\n{json}\n</script>\n"
    ));
    out.push_str(&format!(
        "<script>\n{DOWNLOAD}</script>\n</body>\n</html>\n"
    ));
    Ok(out)
}

/// Renders the page into a file, through a temporary file beside it, so that a reader never sees half a page.
///
/// # Errors
///
/// When the page cannot be rendered, or the file cannot be written or renamed.
pub fn write(results: &[Results], path: &Path) -> anyhow::Result<()> {
    write_page(&render(results)?, path)
}

fn write_page(html: &str, path: &Path) -> anyhow::Result<()> {
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

/// The top of a page with no experiment or with several.
fn cover(results: &[Results], title: &str) -> String {
    let mut out = format!(
        "<header>\n<p class=\"eyebrow\">Shardlane</p>\n<h1 class=\"cover\">{}</h1>\n",
        esc(title)
    );
    if results.is_empty() {
        out.push_str("<p class=\"headline\">There are no results on this page.</p>\n");
    } else {
        out.push_str("<ol class=\"contents\">\n");
        for (i, one) in results.iter().enumerate() {
            out.push_str(&format!(
                "<li><a href=\"#e{}\">{}, {}</a>: {}</li>\n",
                i + 1,
                esc(&one.experiment),
                esc(&one.started_at),
                esc(&headline::headline(one))
            ));
        }
        out.push_str("</ol>\n");
    }
    out.push_str("</header>\n");
    out
}

fn experiment(results: &Results, palette: &Palette, id: &str, alone: bool) -> String {
    let h = if alone { "h1" } else { "h2" };
    let title = if alone {
        format!("Sharding lab: {}", esc(&results.experiment))
    } else {
        format!("{}, {}", esc(&results.experiment), esc(&results.started_at))
    };
    let mut out = format!("<article id=\"{id}\">\n<header>\n");
    if alone {
        out.push_str(&format!(
            "<p class=\"eyebrow\">Shardlane · {}</p>\n",
            esc(&results.started_at)
        ));
    }
    out.push_str(&format!("<{h}>{title}</{h}>\n"));
    out.push_str(&format!(
        "<p class=\"headline\">{}</p>\n",
        esc(&headline::headline(results))
    ));
    if let Some(note) = headline::cores_note(results) {
        out.push_str(&format!("<p class=\"note\">{}</p>\n", esc(&note)));
    }
    match headline::verdict(results) {
        Verdict::NothingRan => {}
        Verdict::Sound(sentence) => {
            out.push_str(&format!("<p class=\"verdict\">{}</p>\n", esc(&sentence)))
        }
        Verdict::Unsound(faults) => {
            for fault in faults {
                out.push_str(&format!("<p class=\"verdict fault\">{}</p>\n", esc(&fault)));
            }
        }
    }
    out.push_str(&format!(
        "<p class=\"small\">{}</p>\n</header>\n",
        esc(&headline::size(results))
    ));

    for (name, heading, body) in [
        ("table", "Results", table::headline_table(results, palette)),
        ("goals", "Goals", table::goals(results)),
        ("plots", "Plots", plots::plots(results, palette, id)),
        ("skipped", "Skipped", skipped(results)),
    ] {
        out.push_str(&format!(
            "<section id=\"{id}-{name}\">\n<h2>{heading}</h2>\n{body}</section>\n"
        ));
    }
    out.push_str("</article>\n");
    out
}

fn skipped(results: &Results) -> String {
    if results.skipped.is_empty() {
        return "<p class=\"none\">No layout was skipped.</p>\n".to_owned();
    }
    let rows: String = results
        .skipped
        .iter()
        .map(|skipped| {
            format!(
                "<dt>{}</dt><dd>{}</dd>\n",
                esc(&skipped.layout),
                esc(&skipped.reason)
            )
        })
        .collect();
    format!("<dl class=\"facts\">\n{rows}</dl>\n")
}

fn how_run(results: &Results, palette: &Palette) -> String {
    let (machine, settings) = (&results.machine, &results.settings);
    let versions = facts(
        results
            .versions
            .iter()
            .map(|(name, version)| (name.as_str(), version.clone())),
    );
    let ran = facts([
        ("started", results.started_at.clone()),
        ("took", duration(results.took_s)),
        ("commit", results.commit.clone()),
        ("processor", machine.cpu.clone()),
        ("cores", machine.cores.to_string()),
        ("memory", format!("{} GiB", num(machine.memory_gib, 1))),
        ("kernel", machine.kernel.clone()),
        ("system", machine.os.clone()),
    ]);
    let skew = if settings.skew.is_finite() {
        settings.skew.to_string()
    } else {
        DASH.to_owned()
    };
    let asked = facts([
        ("events", count(settings.events)),
        ("users", count(u64::from(settings.users))),
        ("Zipf exponent", skew),
        ("seed", settings.seed.to_string()),
        (
            "payload",
            format!("{} bytes", count(settings.payload_bytes as u64)),
        ),
        ("partitions a topic", settings.partitions.to_string()),
        ("records a batch", count(settings.batch_rows_max as u64)),
        ("runs", settings.runs.to_string()),
        ("connections", settings.connections.to_string()),
        ("Citus shards", settings.citus_shards.to_string()),
    ]);
    format!(
        "<p>Repeat it with</p>\n<pre><code>{}</code></pre>\n<div class=\"columns\">\n<div><h4>Where and when</h4>\n{ran}</div>\n\
         <div><h4>Settings</h4>\n{asked}</div>\n<div><h4>Versions</h4>\n{versions}</div>\n</div>\n{}",
        esc(&results.command),
        table::runs_table(results, palette),
    )
}

fn facts<'a>(rows: impl IntoIterator<Item = (&'a str, String)>) -> String {
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
