//! What a sweep says: the best value, the worst one, and how far they are apart.

use shardlane_sql::Layout;

use super::Knob;
use crate::study::{CellResult, Study};

pub(super) fn findings(study: &Study, knob: Knob) -> Vec<String> {
    let layouts = Layout::ALL.into_iter();
    layouts
        .filter_map(|layout| of_layout(study, knob, layout.as_str()))
        .collect()
}

fn of_layout(study: &Study, knob: Knob, layout: &str) -> Option<String> {
    let rate = |cell: &&CellResult| {
        cell.figures
            .get("events_per_s")
            .map_or(0.0, |rate| rate.median)
    };
    let by_rate = |a: &&CellResult, b: &&CellResult| rate(a).total_cmp(&rate(b));
    let cells = || study.results.iter().filter(|cell| cell.layout == layout);
    let (best, worst) = (cells().max_by(by_rate)?, cells().min_by(by_rate)?);
    if best.path == worst.path {
        return None;
    }
    let over = |figure| {
        let spread = study.over(layout, figure, (layout, &best.path), (layout, &worst.path))?;
        Some(spread.median)
    };
    Some(format!(
        "{}, layout {layout}: {} is the fastest with {:.0} events/s, {:.2} times the rate of {}, for {:.2} of the server CPU{}.",
        knob.title(),
        best.path,
        rate(&best),
        over("events_per_s")?,
        worst.path,
        over("server_cpu_us")?,
        doubt(best, worst)
    ))
}

/// What forbids to believe a difference.
fn doubt(best: &CellResult, worst: &CellResult) -> &'static str {
    let [best_rate, worst_rate] = [best, worst].map(|cell| cell.figures.get("events_per_s"));
    match (best_rate, worst_rate) {
        _ if best.runs.len() < 2 => " (one run each: nothing is known of the spread)",
        (Some(best), Some(worst)) if best.min <= worst.max => " (their runs overlap)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::{Run, Started};

    fn cell(path: &str, rates: &[f64]) -> CellResult {
        let run = |rate: &f64| {
            Run::from([
                ("events_per_s".to_owned(), *rate),
                ("server_cpu_us".to_owned(), 1e6 / rate),
            ])
        };
        CellResult::new("single", "single", path, rates.iter().map(run).collect())
    }

    fn said(cells: Vec<CellResult>) -> Vec<String> {
        let mut study = Study::new("sweep-batch-rows", "", Started::now());
        study.results = cells;
        findings(&study, Knob::BatchRows)
    }

    #[test]
    fn the_fastest_value_is_told_and_when_not_to_believe_it() {
        let fastest = "Records a batch, layout single: 4000 rows is the fastest with 200 events/s, 2.00 times the rate of 50 rows, for \
                       0.50 of the server CPU";
        let slow = || cell("50 rows", &[90.0, 100.0, 110.0]);
        assert_eq!(
            said(vec![slow(), cell("4000 rows", &[180.0, 200.0, 220.0])]),
            [format!("{fastest}.")]
        );
        let overlapping = said(vec![slow(), cell("4000 rows", &[105.0, 120.0, 130.0])]);
        assert!(
            overlapping[0].ends_with("(their runs overlap)."),
            "{overlapping:?}"
        );
        let once = said(vec![cell("50 rows", &[100.0]), cell("4000 rows", &[200.0])]);
        assert_eq!(
            once,
            [format!(
                "{fastest} (one run each: nothing is known of the spread)."
            )]
        );
        // One value has nothing to be compared with.
        assert_eq!(said(vec![slow()]), Vec::<String>::new());
    }
}
