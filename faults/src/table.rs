//! The table of a run.

use std::time::Duration;

use comfy_table::{CellAlignment, Table};

use crate::oracle::Wrong;
use crate::scenario::Outcome;

/// One fault's runs, added up.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// The fault.
    pub name: String,
    /// How often it ran.
    pub times: u32,
    /// Runs that did not come to an end.
    pub failed: u32,
    /// Records in the topics.
    pub events: usize,
    /// Workers killed.
    pub kills: u32,
    /// Workers that ended by themselves.
    pub ended: u32,
    /// Findings of each kind: lost, twice, out of order, other.
    pub wrong: [usize; 4],
    /// The longest recovery.
    pub recovery: Option<Duration>,
}

const KINDS: [Wrong; 4] = [Wrong::Lost, Wrong::Twice, Wrong::OutOfOrder, Wrong::Other];

impl Row {
    /// Adds a run.
    pub fn add(&mut self, outcome: &Outcome) {
        self.times += 1;
        self.events += outcome.verdict.events;
        self.kills += outcome.kills;
        self.ended += outcome.ended;
        for (sum, kind) in self.wrong.iter_mut().zip(KINDS) {
            *sum += outcome.verdict.count(kind);
        }
        self.recovery = self.recovery.max(outcome.recovery);
    }

    /// Whether there is nothing to complain of.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.failed == 0 && self.wrong == [0; 4]
    }

    fn cells(&self) -> Vec<String> {
        let recovery = self
            .recovery
            .map_or_else(String::new, |it| format!("{:.1}", it.as_secs_f64()));
        let mut cells = vec![self.name.clone()];
        cells.extend([self.times, self.failed].map(|it| it.to_string()));
        cells.push(self.events.to_string());
        cells.extend([self.kills, self.ended].map(|it| it.to_string()));
        cells.extend(self.wrong.map(|it| it.to_string()));
        cells.push(recovery);
        cells
    }
}

/// All rows and their sum.
#[must_use]
pub fn render(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header([
        "fault",
        "times",
        "failed",
        "events",
        "kills",
        "ended",
        "lost",
        "twice",
        "out of order",
        "other",
        "recovery s",
    ]);
    let mut total = Row {
        name: "all".to_owned(),
        ..Row::default()
    };
    for row in rows {
        table.add_row(row.cells());
        total.times += row.times;
        total.failed += row.failed;
        total.events += row.events;
        total.kills += row.kills;
        total.ended += row.ended;
        for (sum, more) in total.wrong.iter_mut().zip(row.wrong) {
            *sum += more;
        }
        total.recovery = total.recovery.max(row.recovery);
    }
    table.add_row(total.cells());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}
