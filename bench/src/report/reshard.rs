//! The page of the reshard experiment: what happened to the events while shards changed under load.

mod changes;
#[cfg(test)]
mod fixture;
mod sentences;
#[cfg(test)]
mod tests;
pub(super) mod timeline;

use std::path::Path;

use anyhow::Context as _;

use super::how_to_read;
use super::look::{Look, Palette};
use super::page;
use super::text::{count, esc, json_for_script, num};
use crate::reshard::{ChangeResult, Results, Sample};

/// Renders the experiment as one self-contained HTML page.
///
/// The raw data are in the element with the id `results`, as the object that `reshard.json` holds.
///
/// # Errors
///
/// When the results cannot be written as JSON.
pub fn render(results: &Results) -> anyhow::Result<String> {
    let json = json_for_script(results).context("embed the results as JSON")?;
    let layouts = layouts(results);
    let right = results.results.iter().all(ChangeResult::is_right);
    let title = format!(
        "Sharding lab: {}{}",
        results.experiment,
        if right { "" } else { " (WRONG RESULT)" }
    );
    let mut out = header(results, &layouts);
    for (id, heading, body) in [
        (
            "timeline",
            "Over time",
            timeline::timelines(&layouts, "reshard"),
        ),
        ("changes", "Changes", changes::table(&layouts)),
        ("skipped", "Skipped", page::skipped(&results.skipped)),
        (
            "read",
            "How to read this",
            format!("<div class=\"prose\">\n{}</div>\n", how_to_read("reshard")),
        ),
        ("run", "How it was run", how_run(results)),
    ] {
        out.push_str(&format!(
            "<section id=\"{id}\">\n<h2>{heading}</h2>\n{body}</section>\n"
        ));
    }
    Ok(page::whole(&title, &out, &json))
}

/// Renders the page into a file; a reader never sees half of it.
///
/// # Errors
///
/// When the page cannot be rendered, or the file cannot be written or renamed.
pub fn write(results: &Results, path: &Path) -> anyhow::Result<()> {
    page::write(&render(results)?, path)
}

/// What is said of each layout, and what is wrong with it.
pub(super) fn findings(results: &Results) -> (Vec<String>, Vec<String>) {
    let layouts = layouts(results);
    let changed = layouts.iter().filter(|layout| !layout.changes.is_empty());
    changed
        .map(|layout| (sentences::headline(layout), sentences::faults(layout)))
        .fold(
            (Vec::new(), Vec::new()),
            |(mut said, mut wrong), (headline, faults)| {
                said.push(headline);
                wrong.extend(faults);
                (said, wrong)
            },
        )
}

/// The timelines and the table of the changes. `id` is unique on the page.
pub(super) fn body(results: &Results, id: &str) -> String {
    let layouts = layouts(results);
    format!(
        "<section><h2>Over time</h2>\n{}</section>\n<section><h2>Changes</h2>\n{}</section>\n",
        timeline::timelines(&layouts, id),
        changes::table(&layouts)
    )
}

/// Everything about one layout.
pub(super) struct LayoutRun<'a> {
    pub(super) name: &'a str,
    pub(super) look: Look,
    pub(super) changes: Vec<&'a ChangeResult>,
    pub(super) samples: &'a [Sample],
}

/// The layouts that ran, in order.
fn layouts(results: &Results) -> Vec<LayoutRun<'_>> {
    let mut names: Vec<&str> = Vec::new();
    let changed = results.results.iter().map(|change| &change.layout);
    for name in changed.chain(results.samples.keys()) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let palette = Palette::of(names.iter().map(|name| (*name, "")));
    let run = |name| LayoutRun {
        name,
        look: Look {
            variant: 0,
            ..palette.look(name, "")
        },
        changes: results
            .results
            .iter()
            .filter(|change| change.layout == name)
            .collect(),
        samples: results.samples.get(name).map_or(&[], Vec::as_slice),
    };
    names.into_iter().map(run).collect()
}

fn header(results: &Results, layouts: &[LayoutRun<'_>]) -> String {
    let mut out = format!(
        "<header>\n<p class=\"eyebrow\">Shardlane · {}</p>\n<h1>Sharding lab: {}</h1>\n",
        esc(&results.started_at),
        esc(&results.experiment)
    );
    if results.results.is_empty() {
        out.push_str(&format!(
            "<p class=\"headline\">{}</p>\n",
            super::headline::nothing_measured(results.skipped.len())
        ));
    }
    for layout in layouts.iter().filter(|layout| !layout.changes.is_empty()) {
        let wrong = if layout.changes.iter().all(|change| change.is_right()) {
            ""
        } else {
            " bad"
        };
        out.push_str(&format!(
            "<p class=\"headline{wrong}\">{}</p>\n<p class=\"verdict\">{}</p>\n{}",
            esc(&sentences::headline(layout)),
            esc(&sentences::rates(layout)),
            verdict(layout)
        ));
    }
    out.push_str(&format!(
        "<p class=\"small\">{}</p>\n</header>\n",
        sentences::size(&results.settings)
    ));
    out
}

fn verdict(layout: &LayoutRun<'_>) -> String {
    match sentences::verdict(layout) {
        Some(sound) => format!("<p class=\"verdict\">{}</p>\n", esc(&sound)),
        None => page::faults(&sentences::faults(layout)),
    }
}

fn how_run(results: &Results) -> String {
    let settings = &results.settings;
    let asked = page::facts([
        ("users", count(settings.users)),
        ("partitions a topic", settings.partitions.to_string()),
        ("Citus shards", settings.citus_shards.to_string()),
        ("records a batch", count(settings.batch_rows_max as u64)),
        ("connections", settings.connections.to_string()),
        match settings.rate {
            Some(rate) => ("rate", format!("{} events/s", count(rate))),
            None => ("backlog", format!("{} events", count(settings.backlog))),
        },
        (
            "quiet stretch",
            format!("{} ms before and after a change", count(settings.pause_ms)),
        ),
        (
            "changes",
            if settings.quick {
                "few (--quick)"
            } else {
                "all"
            }
            .to_owned(),
        ),
    ]);
    let ran = page::where_and_when(
        &results.started_at,
        results.took_s,
        &results.commit,
        &results.machine,
    );
    format!(
        "<p>Repeat it with</p>\n<pre><code>{}</code></pre>\n<div class=\"columns\">\n<div><h4>Where and when</h4>\n{ran}</div>\n\
         <div><h4>Settings</h4>\n{asked}</div>\n</div>\n{}",
        esc(&results.command),
        page::raw_data("reshard.json"),
    )
}

/// `2 → 3`, `move`: the change as plots and tables name it.
fn name(change: &ChangeResult) -> String {
    change.change.replace("->", " → ")
}

/// A share as `97.5 %`.
fn percent(share: f64) -> String {
    format!("{} %", num(share * 100.0, 1))
}
