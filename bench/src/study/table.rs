//! A study as tables for a terminal.

use super::{CellResult, Part, Study};
use crate::table::{align, table};

/// Each part's table, the ratios, the findings and what was skipped.
#[must_use]
pub fn render(study: &Study) -> String {
    let mut text = String::new();
    for part in &study.parts {
        let cells: Vec<_> = study
            .results
            .iter()
            .filter(|cell| cell.part == part.name)
            .collect();
        if !cells.is_empty() {
            text.push_str(&format!("{}\n{}\n\n", part.title, part_table(part, &cells)));
        }
    }
    for ratio in &study.ratios {
        let verdict = if ratio.met { "met" } else { "NOT met" };
        text.push_str(&format!(
            "  {:<44} {:>7.2}x  goal {:>5.2}x  {verdict}\n",
            ratio.name, ratio.value, ratio.goal
        ));
    }
    for finding in &study.findings {
        text.push_str(&format!("  {finding}\n"));
    }
    for fault in &study.faults {
        text.push_str(&format!("  WRONG: {fault}\n"));
    }
    if study.is_interrupted {
        text.push_str("  interrupted: only whole rounds are shown\n");
    }
    for skipped in &study.skipped {
        text.push_str(&format!(
            "  skipped {}: {}\n",
            skipped.layout, skipped.reason
        ));
    }
    text
}

fn part_table(part: &Part, cells: &[&CellResult]) -> String {
    let mut header = vec!["layout", "path"];
    header.extend(part.figures.iter().map(|figure| figure.title.as_str()));
    header.push("min..max");
    let mut table = table(&header);
    for cell in cells {
        let mut row = vec![cell.layout.clone(), cell.path.clone()];
        row.extend(part.figures.iter().map(|figure| {
            let spread = cell.figures.get(&figure.name);
            spread.map_or("-".to_owned(), |spread| {
                format!("{:.*}", figure.decimals, spread.median)
            })
        }));
        let first = part.figures.first();
        let range = first.and_then(|figure| Some((figure, cell.figures.get(&figure.name)?)));
        row.push(range.map_or("-".to_owned(), |(figure, spread)| {
            let decimals = figure.decimals;
            format!("{:.decimals$}..{:.decimals$}", spread.min, spread.max)
        }));
        table.add_row(row);
    }
    align(&mut table, 2);
    table.to_string()
}
