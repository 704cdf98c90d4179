//! The reports: each one HTML page that needs nothing but itself. This is the page of the ingest experiment.
//!
//! It loads nothing over a network and is complete without JavaScript. Every sentence with a figure in it is computed
//! from the [`Results`]; every string in them is untrusted and is escaped where it is written.

mod bars;
mod headline;
mod how_to_read;
mod latency;
pub mod load;
mod look;
mod page;
mod plots;
pub mod reshard;
pub mod routing;
pub mod runs;
pub mod study;
mod table;
#[cfg(test)]
mod tests;
mod text;

use std::path::Path;

use anyhow::Context;

use crate::results::Results;
use headline::Verdict;
pub use how_to_read::how_to_read;
use look::Palette;
use page::facts;
use text::{DASH, count, esc, json_for_script};

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

    let mut out = String::new();
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
    out.push_str(&format!("<section id=\"read\">\n<h2>How to read this</h2>\n<div class=\"prose\">\n{}</div>\n</section>\n", how_to_read("ingest")));
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
    out.push_str(&page::raw_data("results.json"));
    out.push_str("</section>\n");
    Ok(page::whole(&title, &out, &json))
}

/// Renders the page into a file, through a temporary file beside it, so that a reader never sees half a page.
///
/// # Errors
///
/// When the page cannot be rendered, or the file cannot be written or renamed.
pub fn write(results: &[Results], path: &Path) -> anyhow::Result<()> {
    page::write(&render(results)?, path)
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
            out.push_str(&page::faults(&faults));
        }
    }
    out.push_str(&format!(
        "<p class=\"small\">{}</p>\n</header>\n",
        esc(&headline::size(results))
    ));

    for (name, heading, body) in [
        ("table", "Results", table::headline_table(results, palette)),
        ("goals", "Goals", table::goals(&results.ratios)),
        ("plots", "Plots", plots::plots(results, palette, id)),
        ("skipped", "Skipped", page::skipped(&results.skipped)),
    ] {
        out.push_str(&format!(
            "<section id=\"{id}-{name}\">\n<h2>{heading}</h2>\n{body}</section>\n"
        ));
    }
    out.push_str("</article>\n");
    out
}

fn how_run(results: &Results, palette: &Palette) -> String {
    let settings = &results.settings;
    let versions = facts(
        results
            .versions
            .iter()
            .map(|(name, version)| (name.as_str(), version.clone())),
    );
    let ran = page::where_and_when(
        &results.started_at,
        results.took_s,
        &results.commit,
        &results.machine,
    );
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
