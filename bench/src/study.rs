//! A study: one experiment whose parts each ask the same thing of several layouts and paths, in several runs.
//!
//! An experiment names its parts and their figures, measures cells by `rounds`, and says in sentences what came out;
//! the table for a terminal, the page and `results.json` are made here, the same for all.

mod rounds;
mod table;

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

pub(crate) use rounds::Rounds;
pub use rounds::Stop;
pub use table::render;

use crate::machine;
use crate::results::{Machine, Ratio, Skipped};
use crate::routing::results::Spread;

/// One experiment with everything that is needed to judge and to repeat it. Scripts rely on these names.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Study {
    /// `reads`, `window`, ...
    pub experiment: String,
    /// RFC 3339.
    pub started_at: String,
    /// How long the whole experiment took, in seconds.
    pub took_s: f64,
    /// Where it ran.
    pub machine: Machine,
    /// Of the minute before it began: what else the machine had to do.
    #[serde(default)]
    pub load_average_before: Option<f64>,
    /// The commit of the code, with `-dirty` where the tree had changes; `unknown` outside a checkout.
    pub commit: String,
    /// The command line that repeats it.
    pub command: String,
    /// Versions by name.
    pub versions: BTreeMap<String, String>,
    /// What was asked for, by name.
    pub settings: BTreeMap<String, String>,
    /// What was asked, and which figures answer it.
    pub parts: Vec<Part>,
    /// One entry a part, layout and path.
    pub results: Vec<CellResult>,
    /// What was compared within each round, and the goals.
    pub ratios: Vec<Ratio>,
    /// The ratio by which the study is known; none in results from before there was one.
    #[serde(default)]
    pub main_ratio: Option<MainRatio>,
    /// What the figures say, in sentences.
    pub findings: Vec<String>,
    /// What is wrong with the results, if anything is: an answer that differs, a row that is missing.
    pub faults: Vec<String>,
    /// Whether it was stopped before its last run: what was measured is here.
    pub is_interrupted: bool,
    /// Layouts and cells that could not run.
    pub skipped: Vec<Skipped>,
}

/// One question of a study.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Part {
    /// Unique in the study.
    pub name: String,
    /// A heading.
    pub title: String,
    /// What is asked, done and counted, in one or two sentences.
    pub question: String,
    /// The columns of its table; the first one is plotted.
    pub figures: Vec<Figure>,
}

/// What is measured in each run of a cell.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figure {
    /// Its key in [`CellResult::figures`].
    pub name: String,
    /// The column's heading.
    pub title: String,
    /// The unit of the axis.
    pub unit: String,
    /// Decimals that are shown.
    pub decimals: usize,
}

/// One cell's figure over another's: taken within each round, then over the rounds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MainRatio {
    /// In words, with its figure.
    pub name: String,
    /// What was measured.
    pub ratio: Spread,
}

impl MainRatio {
    /// `None` where one of the two did not run.
    pub(crate) fn of(name: &str, ratio: Option<Spread>) -> Option<MainRatio> {
        ratio.map(|ratio| MainRatio {
            name: name.to_owned(),
            ratio,
        })
    }
}

/// The figures of one run, by name.
pub type Run = BTreeMap<String, f64>;

/// What one layout did by one path.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CellResult {
    /// The part's name.
    pub part: String,
    /// `single`, `partman`, `shards`, `citus`.
    pub layout: String,
    /// How the layout was used, in a word or two.
    pub path: String,
    /// Median and range over the runs.
    pub figures: BTreeMap<String, Spread>,
    /// Every run.
    pub runs: Vec<Run>,
}

impl Part {
    pub(crate) fn new(
        name: &str,
        title: &str,
        question: &str,
        figures: impl IntoIterator<Item = Figure>,
    ) -> Part {
        Part {
            name: name.to_owned(),
            title: title.to_owned(),
            question: question.to_owned(),
            figures: figures.into_iter().collect(),
        }
    }
}

impl Figure {
    pub(crate) fn new(name: &str, title: &str, unit: &str, decimals: usize) -> Figure {
        Figure {
            name: name.to_owned(),
            title: title.to_owned(),
            unit: unit.to_owned(),
            decimals,
        }
    }
}

impl CellResult {
    /// Figures that not every run has are left out of the spreads.
    pub(crate) fn new(part: &str, layout: &str, path: &str, runs: Vec<Run>) -> CellResult {
        let names = runs.first().into_iter().flat_map(|run| run.keys());
        let figures = names
            .filter(|name| runs.iter().all(|run| run.contains_key(*name)))
            .map(|name| (name.clone(), Spread::of(runs.iter().map(|run| run[name]))))
            .collect();
        CellResult {
            part: part.to_owned(),
            layout: layout.to_owned(),
            path: path.to_owned(),
            figures,
            runs,
        }
    }
}

impl Study {
    /// An empty study that began at `started`.
    pub(crate) fn new(experiment: &str, command: &str, started: Started) -> Study {
        Study {
            experiment: experiment.to_owned(),
            started_at: started.at.to_string(),
            took_s: started.seconds(),
            machine: machine::describe(),
            load_average_before: started.load_average,
            commit: machine::commit(),
            command: command.to_owned(),
            versions: BTreeMap::new(),
            settings: BTreeMap::new(),
            parts: Vec::new(),
            results: Vec::new(),
            ratios: Vec::new(),
            main_ratio: None,
            findings: Vec::new(),
            faults: Vec::new(),
            is_interrupted: false,
            skipped: Vec::new(),
        }
    }

    /// What a part's layout and path showed.
    pub(crate) fn cell(&self, part: &str, layout: &str, path: &str) -> Option<&CellResult> {
        self.results.iter().find(|cell| {
            (cell.part.as_str(), cell.layout.as_str(), cell.path.as_str()) == (part, layout, path)
        })
    }

    /// One cell's figure over another's of the same part: taken within each round, then the median. `None` where one of
    /// them did not run.
    pub(crate) fn over(
        &self,
        part: &str,
        figure: &str,
        (layout, path): (&str, &str),
        (other_layout, other_path): (&str, &str),
    ) -> Option<Spread> {
        self.across(
            figure,
            (part, layout, path),
            (part, other_layout, other_path),
        )
    }

    /// Likewise for cells of any part, whose runs were taken in the same rounds.
    pub(crate) fn across(
        &self,
        figure: &str,
        (part, layout, path): (&str, &str, &str),
        (other_part, other_layout, other_path): (&str, &str, &str),
    ) -> Option<Spread> {
        let one = self.cell(part, layout, path)?;
        let other = self.cell(other_part, other_layout, other_path)?;
        let ratios: Vec<f64> = one
            .runs
            .iter()
            .zip(&other.runs)
            .filter_map(|(one, other)| Some(one.get(figure)? / other.get(figure)?))
            .filter(|ratio| ratio.is_finite())
            .collect();
        (!ratios.is_empty()).then(|| Spread::of(ratios))
    }
}

/// When an experiment began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Started {
    at: jiff::Timestamp,
    instant: Instant,
    load_average: Option<f64>,
}

impl Started {
    pub(crate) fn now() -> Started {
        Started {
            at: jiff::Timestamp::now(),
            instant: Instant::now(),
            load_average: machine::load_average(),
        }
    }

    pub(crate) fn seconds(self) -> f64 {
        self.instant.elapsed().as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(ms: f64) -> Run {
        Run::from([("ms".to_owned(), ms)])
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        let mut study = Study::new("reads", "shardlane experiment reads", Started::now());
        // The machine was ten times slower in the second round: a ratio of medians would say 0.55.
        let slow = CellResult::new(
            "user",
            "single",
            "any",
            vec![run(10.0), run(100.0), run(12.0)],
        );
        let fast = CellResult::new(
            "user",
            "shards",
            "owner",
            vec![run(5.0), run(50.0), run(6.0)],
        );
        study.results = vec![slow, fast];
        let ratio = study
            .over("user", "ms", ("shards", "owner"), ("single", "any"))
            .unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (0.5, 0.5, 0.5));
        assert!(
            study
                .over("user", "ms", ("citus", "owner"), ("single", "any"))
                .is_none()
        );
    }

    #[test]
    fn a_figure_that_one_run_lacks_has_no_spread() {
        let mut second = run(2.0);
        second.insert("reads".to_owned(), 7.0);
        let cell = CellResult::new("user", "single", "any", vec![run(1.0), second]);
        assert_eq!(cell.figures.keys().collect::<Vec<_>>(), ["ms"]);
        assert_eq!(cell.figures["ms"].median, 1.5);
    }
}
