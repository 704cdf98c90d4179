//! Results as a table for a terminal.

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, ContentArrangement, Table};

use crate::results::{Ratio, Results, Skipped};

/// The headline table, the goals and what was skipped.
pub fn render(results: &Results) -> String {
    let mut table = table(&[
        "layout",
        "path",
        "events/s",
        "min..max",
        "rows/s",
        "p50 ms",
        "p99 ms",
        "db us/ev",
        "our us/ev",
        "WAL B/ev",
        "dup",
        "illegal",
        "state",
    ]);
    for result in &results.results {
        table.add_row([
            result.layout.clone(),
            result.path.clone(),
            whole(result.events_per_s),
            format!(
                "{}..{}",
                whole(result.events_per_s_min),
                whole(result.events_per_s_max)
            ),
            whole(result.rows_per_s),
            format!("{:.1}", result.p50_ms),
            format!("{:.1}", result.p99_ms),
            format!("{:.1}", result.server_cpu_us_per_event),
            format!("{:.1}", result.client_cpu_us_per_event),
            whole(result.wal_bytes_per_event),
            result.duplicates.to_string(),
            result.illegal.to_string(),
            if result.equal_state {
                "equal"
            } else {
                "DIFFERENT"
            }
            .to_owned(),
        ]);
    }
    align(&mut table, 2);
    let mut text = table.to_string();
    text.push('\n');
    text + &goals(&results.ratios, &results.skipped)
}

/// Below a table: the goals, and what was skipped.
pub(crate) fn goals(ratios: &[Ratio], skipped: &[Skipped]) -> String {
    let mut text = String::new();
    for ratio in ratios {
        let verdict = if ratio.met { "met" } else { "NOT met" };
        text.push_str(&format!(
            "  {:<44} {:>7.2}x  goal {:>5.2}x  {verdict}\n",
            ratio.name, ratio.value, ratio.goal
        ));
    }
    for skipped in skipped {
        text.push_str(&format!(
            "  skipped {}: {}\n",
            skipped.layout, skipped.reason
        ));
    }
    text
}

fn whole(value: f64) -> String {
    format!("{value:.0}")
}

/// An empty table with its header, as all experiments print theirs.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    table
}

/// Numbers stand from column `first` on, counted from 0.
pub(crate) fn align(table: &mut Table, first: usize) {
    for column in table.column_iter_mut().skip(first) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
