//! The tables, and the goals.

use super::headline::{against, base};
use super::look::{Palette, name_html};
use super::text::{DASH, column_decimals, count, esc, num, ratio, short, value_and_goal};
use crate::results::{LayoutResult, Ratio, Results, Run};

const MIB: f64 = 1_048_576.0;

/// The headline table.
pub(super) fn headline_table(results: &Results, palette: &Palette) -> String {
    if results.results.is_empty() {
        return "<p class=\"none\">No layout ran, so there is nothing to tabulate.</p>".to_owned();
    }
    let rows = &results.results;
    let base = base(results);
    let decimals = |of: &[fn(&LayoutResult) -> f64]| {
        column_decimals(
            rows.iter()
                .flat_map(|row| of.iter().map(move |value| value(row))),
        )
    };
    let rate = decimals(&[|r| r.events_per_s, |r| r.events_per_s_min]);
    let row_rate = decimals(&[|r| r.rows_per_s]);
    let ms = decimals(&[|r| r.p50_ms]).min(2);
    let cpu = decimals(&[
        |r| r.server_cpu_us_per_event,
        |r| r.client_cpu_us_per_event,
        |r| r.kafka_cpu_us_per_event,
    ])
    .min(1);
    let wal = decimals(&[|r| r.wal_bytes_per_event]);

    let mut out = String::from(TABLE_HEAD);
    let mut layout = "";
    for row in rows {
        let look = palette.look(&row.layout, &row.path);
        let first = if row.layout == layout {
            ""
        } else {
            " class=\"first\""
        };
        layout = &row.layout;
        let ratio = base
            .and_then(|base| against(row, base))
            .map(|against| against.ratio);
        let state = if row.equal_state {
            "<td>yes</td>"
        } else {
            "<td class=\"bad\">no</td>"
        };
        out.push_str(&format!(
            "<tr{first}><th scope=\"row\"><span class=\"name\">{}<span>{}</span></span></th>",
            look.swatch(),
            name(row)
        ));
        let cells = [
            ("key", num(row.events_per_s, rate)),
            ("range", range(row, rate)),
            ("", ratio.map_or(DASH.to_owned(), |r| num(r, 2))),
            ("", num(row.rows_per_s, row_rate)),
            ("open", num(row.p50_ms, ms)),
            ("", num(row.p95_ms, ms)),
            ("", num(row.p99_ms, ms)),
            ("open", num(row.server_cpu_us_per_event, cpu)),
            ("", num(row.client_cpu_us_per_event, cpu)),
            ("", num(row.kafka_cpu_us_per_event, cpu)),
            ("open", num(row.wal_bytes_per_event, wal)),
            ("", count(row.duplicates)),
            ("", count(row.illegal)),
        ];
        for (class, cell) in cells {
            let class = if class.is_empty() {
                String::new()
            } else {
                format!(" class=\"{class}\"")
            };
            out.push_str(&format!("<td{class}>{cell}</td>"));
        }
        out.push_str(state);
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
    let legend = if base.is_some() {
        "× single is the rate against <b>single</b> worker within each round of runs, then the median of the rounds."
    } else {
        "× single has dashes because <b>single</b> worker was not measured."
    };
    out.push_str(&format!(
        "<p class=\"small\">{legend} Duplicates and illegal events are part of the stream. CPU and \
         write-ahead log (WAL) are per event sent.</p>\n"
    ));
    out
}

const TABLE_HEAD: &str = "<div class=\"scroll\" role=\"region\" aria-label=\"Results, one row a layout and path\" tabindex=\"0\">\
<table><thead>\
<tr class=\"groups\"><td></td><th colspan=\"3\" scope=\"colgroup\">Events/s</th><td></td>\
<th class=\"open\" colspan=\"3\" scope=\"colgroup\">Batch latency, ms</th>\
<th class=\"open\" colspan=\"3\" scope=\"colgroup\">CPU, µs/event</th>\
<td class=\"open\" colspan=\"3\"></td><td></td></tr>\
<tr><th scope=\"col\">Layout, path</th><th scope=\"col\">median</th><th scope=\"col\">min–max</th>\
<th scope=\"col\">× single</th><th scope=\"col\">Rows/s</th>\
<th class=\"open\" scope=\"col\">p50</th><th scope=\"col\">p95</th><th scope=\"col\">p99</th>\
<th class=\"open\" scope=\"col\">servers</th><th scope=\"col\">ours</th><th scope=\"col\">Kafka</th>\
<th class=\"open\" scope=\"col\">WAL<br>B/event</th><th scope=\"col\">Dupli-<br>cates</th><th scope=\"col\">Illegal</th>\
<th scope=\"col\">Equal<br>state</th></tr></thead><tbody>\n";

fn name(row: &LayoutResult) -> String {
    name_html(&row.layout, &row.path)
}

fn range(row: &LayoutResult, decimals: usize) -> String {
    let (min, max) = (row.events_per_s_min, row.events_per_s_max);
    if row.runs.len() == 1 || !(min.is_finite() && max.is_finite()) {
        return DASH.to_owned();
    }
    format!("{}–{}", num(min, decimals), num(max, decimals))
}

/// Every run, folded away.
pub(super) fn runs_table(results: &Results, palette: &Palette) -> String {
    let runs = results
        .results
        .iter()
        .map(|row| row.runs.len())
        .sum::<usize>();
    if runs == 0 {
        return String::new();
    }
    let mut out = format!(
        "<details><summary>Every run ({runs})</summary>\n<div class=\"scroll\" role=\"region\" aria-label=\"Every run\" \
         tabindex=\"0\"><table><thead><tr><th scope=\"col\">Layout, path</th><th scope=\"col\">run</th>\
         <th scope=\"col\">seconds</th><th scope=\"col\">events/s</th><th scope=\"col\">rows/s</th>\
         <th scope=\"col\">batches</th><th scope=\"col\">CPU s<br>servers</th><th scope=\"col\">CPU s<br>ours</th>\
         <th scope=\"col\">CPU s<br>Kafka</th><th scope=\"col\">WAL<br>MiB</th><th scope=\"col\" class=\"text\">outcomes</th>\
         <th scope=\"col\" class=\"text\">state digest</th></tr></thead><tbody>\n"
    );
    for row in &results.results {
        for run in &row.runs {
            out.push_str(&run_row(row, run, palette));
        }
    }
    out.push_str("</tbody></table></div></details>\n");
    out
}

fn run_row(row: &LayoutResult, run: &Run, palette: &Palette) -> String {
    let outcomes: Vec<String> = run
        .counts
        .iter()
        .map(|(outcome, events)| format!("{} {}", esc(outcome), count(*events)))
        .collect();
    let wal = ratio(run.wal_bytes as f64, MIB).unwrap_or(0.0);
    format!(
        "<tr><th scope=\"row\"><span class=\"name\">{}<span>{}</span></span></th><td>{}</td><td>{}</td><td class=\"key\">{}</td><td>{}</td><td>{}</td><td>{}</td>\
         <td>{}</td><td>{}</td><td>{}</td><td class=\"text\">{}</td><td class=\"text\"><code>{}</code></td></tr>\n",
        palette.look(&row.layout, &row.path).swatch(),
        name(row),
        run.run,
        num(run.seconds, 2),
        short(run.events_per_s),
        short(run.rows_per_s),
        count(run.batches),
        num(run.server_cpu_s, 2),
        num(run.client_cpu_s, 2),
        num(run.kafka_cpu_s, 2),
        num(wal, 1),
        if outcomes.is_empty() {
            DASH.to_owned()
        } else {
            outcomes.join(", ")
        },
        esc(&run.state_digest),
    )
}

/// The goals: a bar each, all drawn so that the goal stands at one place.
pub(super) fn goals(ratios: &[Ratio]) -> String {
    if ratios.is_empty() {
        return "<p class=\"none\">No goal could be checked: each needs two layouts or paths that ran.</p>".to_owned();
    }
    let met = ratios.iter().filter(|r| r.met).count();
    let reach = ratios
        .iter()
        .filter_map(|r| ratio(r.value, r.goal))
        .fold(1.25, f64::max)
        .min(3.0);
    let goal_at = 100.0 / reach;
    let mut out = format!(
        "<p>{met} of {} met.</p>\n<ul class=\"goals\">\n",
        ratios.len()
    );
    for goal in ratios {
        let (value_text, goal_text) = value_and_goal(goal.value, goal.goal);
        let (class, word) = if goal.met {
            ("met", "met")
        } else {
            ("missed", "not met")
        };
        let sign = if goal.met {
            r#"<svg class="sign" width="12" height="12" aria-hidden="true"><circle cx="6" cy="6" r="5.2"/></svg>"#
        } else {
            r#"<svg class="sign" width="12" height="12" aria-hidden="true"><path d="M1.5,1.5L10.5,10.5M10.5,1.5L1.5,10.5"/></svg>"#
        };
        let bar = ratio(goal.value, goal.goal).map_or(String::new(), |r| {
            format!(
                r#"<rect class="value" x="0" y="4" width="{:.2}%" height="10"/>"#,
                (r.max(0.0) * goal_at).min(100.0)
            )
        });
        let mark = format!(
            r#"<line class="mark" x1="{goal_at:.2}%" y1="0" x2="{goal_at:.2}%" y2="18"/>"#,
        );
        out.push_str(&format!(
            "<li class=\"{class}\"><span class=\"goal-name\">{}</span><svg class=\"goal-bar\" height=\"18\" aria-hidden=\"true\">\
             <rect class=\"track\" x=\"0\" y=\"4\" width=\"100%\" height=\"10\"/>{bar}{mark}</svg>\
             <span class=\"goal-value\"><b>{value_text}</b> <span class=\"of\">goal ≥ {goal_text}</span></span>\
             <span class=\"status\">{sign} {word}</span></li>\n",
            esc(&goal.name),
        ));
    }
    out.push_str(
        "</ul>\n<p class=\"small\">Each bar is the value as a share of its goal; the upright line is the goal.</p>\n",
    );
    out
}
