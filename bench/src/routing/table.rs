//! The results as tables for a terminal.

use super::results::{RoutingResults, Spread};
use crate::table::{align, table};

/// The measured cells, then the ratios.
pub fn render(results: &RoutingResults) -> String {
    let mut cells = table(&[
        "workload",
        "path",
        "clients",
        "ops/s",
        "min..max",
        "rows/s",
        "p50 us",
        "p95 us",
        "p99 us",
        "db us/row",
        "our us/row",
        "hops/op",
        "backends",
        "failed",
    ]);
    for result in &results.results {
        cells.add_row([
            result.workload.clone(),
            result.path.clone(),
            result.clients.to_string(),
            whole(result.ops_per_s),
            format!(
                "{}..{}",
                whole(result.ops_per_s_min),
                whole(result.ops_per_s_max)
            ),
            whole(result.rows_per_s),
            whole(result.p50_us),
            whole(result.p95_us),
            whole(result.p99_us),
            format!("{:.1}", result.server_cpu_us_per_row),
            format!("{:.1}", result.client_cpu_us_per_row),
            result
                .hops_per_op
                .map_or("-".to_owned(), |hops| format!("{hops:.2}")),
            whole(result.backends),
            result.failed_ops.to_string(),
        ]);
    }
    let mut ratios = table(&["workload", "clients", "ratio", "ops/s", "p50", "db CPU/row"]);
    for ratio in &results.ratios {
        ratios.add_row([
            ratio.workload.clone(),
            ratio.clients.to_string(),
            ratio.name.clone(),
            spread(&ratio.ops_per_s),
            spread(&ratio.p50_us),
            spread(&ratio.server_cpu_us_per_row),
        ]);
    }
    align(&mut cells, 2);
    align(&mut ratios, 3);
    let lookups = &results.lookups;
    let million = |spread: &Spread| {
        format!(
            "{:.1} ({:.1}..{:.1})",
            spread.median / 1e6,
            spread.min / 1e6,
            spread.max / 1e6
        )
    };
    format!(
        "{cells}\n\nmedian (min..max) of the rounds:\n{ratios}\n\nroutes on one thread, million/s: plain map {}, \
         watch.peek() {}, watch.current() {}\n",
        million(&lookups.plain_per_s),
        million(&lookups.peek_per_s),
        million(&lookups.current_per_s)
    )
}

fn whole(value: f64) -> String {
    format!("{value:.0}")
}

fn spread(spread: &Spread) -> String {
    format!(
        "{:.2} ({:.2}..{:.2})",
        spread.median, spread.min, spread.max
    )
}
