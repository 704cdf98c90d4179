//! The page of a study, in the look of the others.

use std::path::Path;

use anyhow::Context;

use super::bars::{Bar, Names, Part as BarPart, bars};
use super::look::Palette;
use super::page::{self, facts};
use super::table;
use super::text::{DASH, esc, json_for_script, num, short};
use crate::results::{Ratio, Skipped};
use crate::study::{CellResult, Part, Study};

/// Renders the page into a file. `how_to_read` is HTML: what the paths are and what is not measured.
///
/// # Errors
/// When the results cannot be written as JSON, or the file cannot be written.
pub fn write(study: &Study, how_to_read: &str, path: &Path) -> anyhow::Result<()> {
    page::write(&render(study, how_to_read)?, path)
}

/// Renders a study as one self-contained HTML page, with the raw data in the element with the id `results`.
///
/// # Errors
/// When the results cannot be written as JSON.
pub fn render(study: &Study, how_to_read: &str) -> anyhow::Result<String> {
    let json = json_for_script(study).context("embed the results as JSON")?;
    let title = format!("Sharding lab: {}", study.experiment);
    let main = format!(
        "<article>\n<header>\n<p class=\"eyebrow\">Shardlane · {}</p>\n<h1>{}</h1>\n{}</header>\n{}{}</article>\n\
         <section><h2>How to read this</h2>\n<div class=\"prose\">\n{how_to_read}</div>\n</section>\n\
         <section><h2>How it was run</h2>\n{}{}</section>\n",
        esc(&study.started_at),
        esc(&title),
        summary(study),
        body(&study.parts, &study.results, "s"),
        end(&study.ratios, &study.skipped),
        how_run(study),
        page::raw_data("results.json"),
    );
    Ok(page::whole(&title, &main, &json))
}

/// The findings, and what is wrong.
pub(super) fn summary(study: &Study) -> String {
    let mut out = match study.findings.first() {
        Some(finding) => format!("<p class=\"headline\">{}</p>\n", esc(finding)),
        None => "<p class=\"headline\">Nothing was measured.</p>\n".to_owned(),
    };
    for finding in study.findings.iter().skip(1) {
        out.push_str(&format!("<p>{}</p>\n", esc(finding)));
    }
    out.push_str(&page::faults(&study.faults));
    if study.is_interrupted {
        out.push_str("<p class=\"note\">It was stopped early: only whole rounds are shown.</p>\n");
    }
    if let Some(load) = study.load_average_before {
        out.push_str(&page::busy(load, study.machine.cores));
    }
    out.push_str(&format!(
        "<p class=\"note\">All servers and the clients shared {} cores of one machine: read the ratios, not the rates.</p>\n",
        study.machine.cores
    ));
    out
}

/// Each part with its plot and table. `id` is unique on the page.
pub(super) fn body(parts: &[Part], results: &[CellResult], id: &str) -> String {
    let palette = Palette::of(
        results
            .iter()
            .map(|cell| (cell.layout.as_str(), cell.path.as_str())),
    );
    let mut out = String::new();
    for (index, part) in parts.iter().enumerate() {
        let cells: Vec<_> = results
            .iter()
            .filter(|cell| cell.part == part.name)
            .collect();
        if cells.is_empty() {
            continue;
        }
        out.push_str(&format!(
            "<section><h2>{}</h2>\n<p>{}</p>\n{}{}</section>\n",
            esc(&part.title),
            esc(&part.question),
            plot(&format!("{id}-plot-{index}"), part, &cells, &palette),
            part_table(part, &cells, &palette),
        ));
    }
    out
}

/// The goals, and what was skipped.
pub(super) fn end(ratios: &[Ratio], skipped: &[Skipped]) -> String {
    let mut out = String::new();
    if !ratios.is_empty() {
        out.push_str(&format!(
            "<section><h2>Goals</h2>\n{}</section>\n",
            table::goals(ratios)
        ));
    }
    if !skipped.is_empty() {
        out.push_str(&format!(
            "<section><h2>Skipped</h2>\n{}</section>\n",
            page::skipped(skipped)
        ));
    }
    out
}

fn part_table(part: &Part, cells: &[&CellResult], palette: &Palette) -> String {
    let mut out = format!(
        "<div class=\"scroll\" role=\"region\" aria-label=\"{}\" tabindex=\"0\"><table><thead><tr>\
         <th scope=\"col\">Layout, path</th>",
        esc(&part.title)
    );
    for figure in &part.figures {
        out.push_str(&format!(
            "<th scope=\"col\">{}</th><th scope=\"col\">min–max</th>",
            esc(&figure.title)
        ));
    }
    out.push_str("</tr></thead><tbody>\n");
    let mut layout = "";
    for cell in cells {
        let first = if layout == cell.layout {
            ""
        } else {
            " class=\"first\""
        };
        layout = &cell.layout;
        out.push_str(&format!(
            "<tr{first}><th scope=\"row\"><span class=\"name\">{}<span><b>{}</b> {}</span></span></th>",
            palette.look(&cell.layout, &cell.path).swatch(),
            esc(&cell.layout),
            esc(&cell.path)
        ));
        for figure in &part.figures {
            match cell.figures.get(&figure.name) {
                Some(spread) => out.push_str(&format!(
                    "<td class=\"key\">{}</td><td class=\"range\">{}</td>",
                    num(spread.median, figure.decimals),
                    range(cell.runs.len(), spread.min, spread.max, figure.decimals),
                )),
                None => out.push_str(&format!("<td>{DASH}</td><td>{DASH}</td>")),
            }
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
    out
}

fn range(runs: usize, min: f64, max: f64, decimals: usize) -> String {
    if runs < 2 {
        return DASH.to_owned();
    }
    format!("{}–{}", num(min, decimals), num(max, decimals))
}

fn plot(id: &str, part: &Part, cells: &[&CellResult], palette: &Palette) -> String {
    let Some(figure) = part.figures.first() else {
        return String::new();
    };
    let rows: Vec<Bar> = cells
        .iter()
        .filter_map(|cell| Some((cell, cell.figures.get(&figure.name)?)))
        .map(|(cell, spread)| Bar {
            layout: cell.layout.clone(),
            path: cell.path.clone(),
            value: short(spread.median),
            look: palette.look(&cell.layout, &cell.path),
            parts: vec![BarPart {
                value: spread.median,
                class: None,
                title: format!(
                    "{} {}: {} {}",
                    cell.layout,
                    cell.path,
                    num(spread.median, figure.decimals),
                    figure.unit
                ),
            }],
            range: (cell.runs.len() > 1).then_some((spread.min, spread.max)),
            dots: cell
                .runs
                .iter()
                .filter_map(|run| run.get(&figure.name).copied())
                .collect(),
        })
        .collect();
    let described: Vec<String> = rows
        .iter()
        .map(|bar| format!("{} {} {}", bar.layout, bar.path, bar.value))
        .collect();
    let names = Names {
        id,
        title: &figure.title,
        description: described.join(", "),
        unit: &figure.unit,
    };
    format!(
        "<figure><h3>{}</h3>\n{}<figcaption>Median, all runs as dots, and their range.</figcaption></figure>\n",
        esc(&figure.title),
        bars(&names, &rows, None)
    )
}

fn how_run(study: &Study) -> String {
    let ran = page::where_and_when(
        &study.started_at,
        study.took_s,
        &study.commit,
        &study.machine,
    );
    let of = |map: &std::collections::BTreeMap<String, String>| {
        facts(
            map.iter()
                .map(|(name, value)| (name.as_str(), value.clone())),
        )
    };
    format!(
        "<p>Repeat it with</p>\n<pre><code>{}</code></pre>\n<div class=\"columns\">\n<div><h4>Where and when</h4>\n{ran}</div>\n\
         <div><h4>Settings</h4>\n{}</div>\n<div><h4>Versions</h4>\n{}</div>\n</div>\n",
        esc(&study.command),
        of(&study.settings),
        of(&study.versions),
    )
}
