//! The page of the routing experiment, in the look of the others.

use std::path::Path;

use anyhow::Context;

use super::bars::{Bar, Names, Part, bars};
use super::how_to_read;
use super::look::Look;
use super::page::{self, facts};
use super::text::{DASH, count, duration, esc, json_for_script, num, short, times};
use crate::routing::results::{Lookups, RoutingRatio, RoutingResult, RoutingResults, Spread};

/// Renders the page into a file.
///
/// # Errors
/// When the results cannot be written as JSON, or the file cannot be written.
pub fn write(results: &RoutingResults, path: &Path) -> anyhow::Result<()> {
    page::write(&render(results)?, path)
}

/// Renders the results as one self-contained HTML page, with the raw data in the element with the id `results`.
///
/// # Errors
/// When the results cannot be written as JSON.
pub fn render(results: &RoutingResults) -> anyhow::Result<String> {
    let json = json_for_script(results).context("embed the results as JSON")?;
    let title = "Sharding lab: routing";
    let main = format!(
        "<article>\n<header>\n\
         <p class=\"eyebrow\">Shardlane · {}</p>\n<h1>{title}</h1>\n<p class=\"headline\">{}</p>\n\
         <p class=\"note\">{}</p>\n<p class=\"verdict\">After each cell the rows were counted: none that was \
         acknowledged was missing.</p>\n</header>\n{}</article>\n\
         <section><h2>How to read this</h2>\n<div class=\"prose\">\n{}</div>\n</section>\n\
         <section><h2>How it was run</h2>\n{}{}</section>\n",
        esc(&results.started_at),
        esc(&headline(results)),
        esc(&note(results)),
        body(results, "routing"),
        how_to_read("routing"),
        how_run(results),
        page::raw_data("results.json"),
    );
    Ok(page::whole(title, &main, &json))
}

/// The tables and plots. `id` is unique on the page.
pub(super) fn body(results: &RoutingResults, id: &str) -> String {
    let groups = groups(results);
    let plots: String = groups
        .iter()
        .enumerate()
        .map(|(index, group)| plot(&format!("{id}-plot-{index}"), group))
        .collect();
    format!(
        "<section><h2>Results</h2>\n{}</section>\n<section><h2>The owner against each other path</h2>\n{}{}</section>\n\
         <section><h2>Operations a second</h2>\n<div class=\"figures\">\n{plots}</div>\n</section>\n",
        cells(&groups),
        ratios(&results.ratios),
        lookups(&results.lookups),
    )
}

/// The cells that are compared with each other, in their order.
fn groups(results: &RoutingResults) -> Vec<Vec<&RoutingResult>> {
    let mut groups: Vec<Vec<&RoutingResult>> = Vec::new();
    for result in &results.results {
        match groups.last_mut() {
            Some(group)
                if group[0].workload == result.workload && group[0].clients == result.clients =>
            {
                group.push(result);
            }
            _ => groups.push(vec![result]),
        }
    }
    groups
}

/// The owner against the coordinator with the most clients, for each workload.
pub(super) fn headline(results: &RoutingResults) -> String {
    let clients = results.ratios.iter().map(|ratio| ratio.clients).max();
    let parts: Vec<String> = results
        .ratios
        .iter()
        .filter(|ratio| ratio.name == "owner/coordinator" && Some(ratio.clients) == clients)
        .map(|ratio| format!("{} {}", ratio.workload, times(ratio.ops_per_s.median)))
        .collect();
    if parts.is_empty() {
        return "Nothing was measured.".to_owned();
    }
    format!(
        "The owner's rate against the coordinator's: {}.",
        parts.join(", ")
    )
}

fn note(results: &RoutingResults) -> String {
    format!(
        "Clients and all servers shared {} cores of one machine: read the ratios, not the rates. No network lies \
         between the nodes, so a hop costs its CPU and nothing else.",
        results.machine.cores
    )
}

fn look(path: &str) -> Look {
    let variant = match path {
        "single" | "owner" => 0,
        "coordinator-grouped" | "any-node-grouped" | "owner-watched" => 1,
        "coordinator" => 2,
        _ => 3,
    };
    Look {
        colour: if path == "single" { 0 } else { 3 },
        variant,
    }
}

fn cells(groups: &[Vec<&RoutingResult>]) -> String {
    let mut out = String::from(
        "<div class=\"scroll\" role=\"region\" aria-label=\"Results\" tabindex=\"0\"><table><thead>\
         <tr><th scope=\"col\">Workload, path</th><th scope=\"col\">clients</th><th scope=\"col\">ops/s</th>\
         <th scope=\"col\">min–max</th><th scope=\"col\">rows/s</th><th class=\"open\" scope=\"col\">p50 µs</th>\
         <th scope=\"col\">p95 µs</th><th scope=\"col\">p99 µs</th><th class=\"open\" scope=\"col\">server CPU<br>µs/row\
         </th><th scope=\"col\">our CPU<br>µs/row</th><th class=\"open\" scope=\"col\">hops<br>an op</th>\
         <th scope=\"col\">server<br>connections</th><th scope=\"col\">failed</th></tr></thead><tbody>\n",
    );
    for group in groups {
        for (index, row) in group.iter().enumerate() {
            let first = if index == 0 { " class=\"first\"" } else { "" };
            out.push_str(&format!(
                "<tr{first}><th scope=\"row\"><span class=\"name\">{}<span><b>{}</b> {}</span></span></th><td>{}</td>\
                 <td class=\"key\">{}</td><td class=\"range\">{}</td><td>{}</td><td class=\"open\">{}</td><td>{}</td>\
                 <td>{}</td><td class=\"open\">{}</td><td>{}</td><td class=\"open\">{}</td><td>{}</td><td>{}</td></tr>\n",
                look(&row.path).swatch(),
                esc(&row.workload),
                esc(&row.path),
                row.clients,
                num(row.ops_per_s, 0),
                range(row.runs.len(), row.ops_per_s_min, row.ops_per_s_max),
                num(row.rows_per_s, 0),
                num(row.p50_us, 0),
                num(row.p95_us, 0),
                num(row.p99_us, 0),
                num(row.server_cpu_us_per_row, 1),
                num(row.client_cpu_us_per_row, 1),
                row.hops_per_op.map_or(DASH.to_owned(), |hops| num(hops, 2)),
                num(row.backends, 0),
                count(row.failed_ops),
            ));
        }
    }
    out.push_str("</tbody></table></div>\n");
    out
}

fn range(runs: usize, min: f64, max: f64) -> String {
    if runs < 2 {
        return DASH.to_owned();
    }
    format!("{}–{}", num(min, 0), num(max, 0))
}

fn ratios(ratios: &[RoutingRatio]) -> String {
    let spread = |spread: &Spread| {
        format!(
            "<td class=\"key\">{}</td><td class=\"range\">{}–{}</td>",
            num(spread.median, 2),
            num(spread.min, 2),
            num(spread.max, 2)
        )
    };
    let mut out = String::from(
        "<p>Taken within each round of runs, then the median of the rounds. The owner is better where operations a \
         second are above 1, and latency and CPU below 1.</p>\n\
         <div class=\"scroll\" role=\"region\" aria-label=\"Ratios\" tabindex=\"0\"><table><thead><tr>\
         <th scope=\"col\">Workload, ratio</th><th scope=\"col\">clients</th><th scope=\"col\">ops/s</th>\
         <th scope=\"col\">min–max</th><th scope=\"col\">p50</th><th scope=\"col\">min–max</th>\
         <th scope=\"col\">server CPU<br>a row</th><th scope=\"col\">min–max</th></tr></thead><tbody>\n",
    );
    let mut workload = "";
    for ratio in ratios {
        let first = if workload == ratio.workload {
            ""
        } else {
            " class=\"first\""
        };
        workload = &ratio.workload;
        out.push_str(&format!(
            "<tr{first}><th scope=\"row\"><b>{}</b> {}</th><td>{}</td>{}{}{}</tr>\n",
            esc(&ratio.workload),
            esc(&ratio.name),
            ratio.clients,
            spread(&ratio.ops_per_s),
            spread(&ratio.p50_us),
            spread(&ratio.server_cpu_us_per_row),
        ));
    }
    out.push_str("</tbody></table></div>\n");
    out
}

fn lookups(lookups: &Lookups) -> String {
    let million = |spread: &Spread| {
        format!(
            "<b>{}</b> ({}–{})",
            num(spread.median / 1e6, 1),
            num(spread.min / 1e6, 1),
            num(spread.max / 1e6, 1)
        )
    };
    format!(
        "<p>Routes on one thread, in millions a second: from a map that never changes {}, by <code>Watch::peek</code> {}, \
         by <code>Watch::current</code> {}.</p>\n",
        million(&lookups.plain_per_s),
        million(&lookups.peek_per_s),
        million(&lookups.current_per_s)
    )
}

fn plot(id: &str, group: &[&RoutingResult]) -> String {
    let Some(first) = group.first() else {
        return String::new();
    };
    let title = format!("{}, clients: {}", first.workload, first.clients);
    let rows: Vec<Bar> = group
        .iter()
        .map(|row| Bar {
            layout: if row.path == "single" { "" } else { "citus" }.to_owned(),
            path: row.path.clone(),
            value: short(row.ops_per_s),
            look: look(&row.path),
            parts: vec![Part {
                value: row.ops_per_s,
                class: None,
                title: format!("{}: {} operations a second", row.path, short(row.ops_per_s)),
            }],
            range: (row.runs.len() > 1).then_some((row.ops_per_s_min, row.ops_per_s_max)),
            dots: row.runs.iter().map(|run| run.ops_per_s).collect(),
        })
        .collect();
    let description = group
        .iter()
        .map(|row| format!("{} {}", row.path, short(row.ops_per_s)))
        .collect::<Vec<_>>()
        .join(", ");
    let names = Names {
        id,
        title: &title,
        description,
        unit: "ops/s",
    };
    format!(
        "<figure><h3>{}</h3>\n{}<figcaption>Median, all runs as dots, and their range.</figcaption></figure>\n",
        esc(&title),
        bars(&names, &rows, None)
    )
}

fn how_run(results: &RoutingResults) -> String {
    let (machine, settings) = (&results.machine, &results.settings);
    let clients: Vec<String> = settings.clients.iter().map(u32::to_string).collect();
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
    let asked = facts([
        ("users", count(u64::from(settings.users))),
        ("seconds a cell", short(settings.seconds)),
        ("clients", clients.join(", ")),
        ("Citus shards", settings.citus_shards.to_string()),
        ("rows a batch", count(settings.batch_rows as u64)),
        ("runs", settings.runs.to_string()),
    ]);
    let versions = facts(
        results
            .versions
            .iter()
            .map(|(name, version)| (name.as_str(), version.clone())),
    );
    format!(
        "<p>Repeat it with</p>\n<pre><code>{}</code></pre>\n<div class=\"columns\">\n<div><h4>Where and when</h4>\n{ran}</div>\n\
         <div><h4>Settings</h4>\n{asked}</div>\n<div><h4>Versions</h4>\n{versions}</div>\n</div>\n",
        esc(&results.command)
    )
}
