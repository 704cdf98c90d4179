//! What every experiment tells, whatever it measured: findings, faults, goals, and the ratios that a rerun is held to.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::outage;
use crate::door::results::{DoorResults, Goal};
use crate::memory;
use crate::report::headline::{Verdict, headline, verdict};
use crate::report::look::Palette;
use crate::report::text::count;
use crate::report::{load, plots, reshard, routing, study, table};
use crate::reshard::Results as ReshardResults;
use crate::results::{Machine, Ratio, Results, Skipped};
use crate::routing::results::RoutingResults;
use crate::shard_down;
use crate::study::{CellResult, Figure, Part, Run, Study};

/// What all results begin with.
#[derive(Debug, Deserialize)]
pub(super) struct Head {
    pub(super) experiment: String,
    pub(super) started_at: String,
    pub(super) took_s: f64,
    pub(super) machine: Machine,
    #[serde(default)]
    pub(super) load_average_before: Option<f64>,
    pub(super) commit: String,
    pub(super) command: String,
    pub(super) settings: Value,
    #[serde(default)]
    pub(super) versions: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) skipped: Vec<Skipped>,
}

/// One experiment as the common page needs it.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) head: Head,
    /// In sentences, the first one for the headline table.
    pub(super) findings: Vec<String>,
    pub(super) faults: Vec<String>,
    pub(super) goals: Vec<Ratio>,
    /// Numbers without a unit, by name; without a goal the first one is the main one.
    pub(super) ratios: Vec<(String, f64)>,
    kind: Kind,
}

/// Whose results they are.
#[derive(Debug)]
enum Kind {
    Ingest(Box<Results>),
    Routing(Box<RoutingResults>),
    Reshard(Box<ReshardResults>),
    Door(Box<DoorResults>),
    Memory(Box<memory::Results>),
    ShardDown(Box<shard_down::Results>),
    Study(Box<Study>),
}

impl Told {
    /// Takes what an experiment wrote.
    ///
    /// # Errors
    /// When it is no experiment's, or not as that experiment writes it.
    pub(super) fn of(json: &Value, text: &str) -> anyhow::Result<Told> {
        let Some(experiment) = json.get("experiment").and_then(Value::as_str) else {
            bail!("it has no field `experiment`");
        };
        let head: Head = read(text)?;
        Ok(match experiment {
            "ingest" => ingest(head, read(text)?),
            "routing" => of_routing(head, read(text)?),
            "reshard" => of_reshard(head, read(text)?),
            "door" => door(head, read(text)?),
            "memory" => of_memory(head, read(text)?),
            "shard-down" => of_shard_down(head, read(text)?),
            _ if json.get("parts").is_some() => of_study(head, read(text)?),
            other => bail!("`{other}` is no experiment that this version knows"),
        })
    }

    /// The plots and tables. `id` is unique on the page.
    pub(super) fn body(&self, id: &str) -> String {
        match &self.kind {
            Kind::Ingest(results) => {
                let palette = Palette::new(std::slice::from_ref(&**results));
                format!(
                    "<section><h2>Results</h2>\n{}</section>\n<section><h2>Plots</h2>\n{}</section>\n",
                    table::headline_table(results, &palette),
                    plots::plots(results, &palette, id),
                )
            }
            Kind::Routing(results) => routing::body(results, id),
            Kind::Reshard(results) => reshard::body(results, id),
            Kind::Door(results) => {
                let (parts, cells) = door_parts(results);
                format!(
                    "{}<section><h2>Open loop</h2>\n{}</section>\n",
                    study::body(&parts, &cells, id),
                    load::plots(&results.open, id)
                )
            }
            Kind::Memory(results) => {
                let (parts, cells) = memory_parts(results);
                study::body(&parts, &cells, id)
            }
            Kind::ShardDown(results) => outage::body(results, id),
            Kind::Study(study) => study::body(&study.parts, &study.results, id),
        }
    }
}

/// From the text: numbers as keys are not read from a `Value`.
fn read<T: DeserializeOwned>(text: &str) -> anyhow::Result<T> {
    serde_json::from_str(text).context("it is not as this version writes it")
}

fn by_name(goals: &[Ratio]) -> Vec<(String, f64)> {
    goals
        .iter()
        .map(|goal| (goal.name.clone(), goal.value))
        .collect()
}

fn ingest(head: Head, results: Results) -> Told {
    let faults = match verdict(&results) {
        Verdict::Unsound(faults) => faults,
        Verdict::NothingRan | Verdict::Sound(_) => Vec::new(),
    };
    Told {
        head,
        findings: vec![headline(&results)],
        faults,
        goals: results.ratios.clone(),
        ratios: by_name(&results.ratios),
        kind: Kind::Ingest(Box::new(results)),
    }
}

fn of_routing(head: Head, results: RoutingResults) -> Told {
    let mut ratios: Vec<_> = results.ratios.iter().collect();
    // The ones of the headline first.
    ratios.sort_by_key(|ratio| (ratio.name != "owner/coordinator", Reverse(ratio.clients)));
    let ratios = ratios.into_iter().map(|ratio| {
        let name = format!(
            "{} {}, clients: {}",
            ratio.workload, ratio.name, ratio.clients
        );
        (name, ratio.ops_per_s.median)
    });
    Told {
        head,
        findings: vec![routing::headline(&results)],
        faults: Vec::new(),
        goals: Vec::new(),
        ratios: ratios.collect(),
        kind: Kind::Routing(Box::new(results)),
    }
}

fn of_reshard(head: Head, results: ReshardResults) -> Told {
    let (findings, faults) = reshard::findings(&results);
    let ratios = results.results.iter().map(|change| {
        let during = change.events_per_s_during / change.events_per_s_before;
        (
            format!("{} {}, rate during / before", change.layout, change.change),
            during,
        )
    });
    Told {
        head,
        findings,
        faults,
        goals: Vec::new(),
        ratios: ratios.collect(),
        kind: Kind::Reshard(Box::new(results)),
    }
}

fn door(head: Head, results: DoorResults) -> Told {
    let goals: Vec<Ratio> = results.goals.iter().map(at_least).collect();
    // The others are times of this machine.
    let ratios = results
        .goals
        .iter()
        .filter(|goal| goal.name.ends_with(", x"));
    Told {
        findings: vec![format!(
            "At {} of its capacity: {}",
            results.settings.open_share,
            load::headline(&results.open)
        )],
        faults: if results.open.is_good() {
            Vec::new()
        } else {
            load::faults(&results.open)
        },
        ratios: ratios.map(|goal| (goal.name.clone(), goal.value)).collect(),
        goals,
        head,
        kind: Kind::Door(Box::new(results)),
    }
}

/// A limit becomes a ratio that is to be one or more, as the other goals are.
fn at_least(goal: &Goal) -> Ratio {
    if goal.at_least {
        return Ratio {
            name: goal.name.clone(),
            value: goal.value,
            goal: goal.goal,
            met: goal.met,
        };
    }
    let value = if goal.goal > 0.0 {
        goal.goal / goal.value
    } else {
        f64::from(u8::from(goal.met))
    };
    Ratio {
        name: if goal.goal > 0.0 {
            format!("{} / {}", goal.goal, goal.name)
        } else {
            format!("no {}", goal.name)
        },
        value,
        goal: 1.0,
        met: goal.met,
    }
}

fn of_memory(head: Head, results: memory::Results) -> Told {
    let finding = results.results.iter().map(|result| {
        format!(
            "Before a backlog of {} events a worker took {} MiB at most, {} MiB of them for records.",
            count(result.events),
            result.peak_mib,
            result.in_flight_peak_bytes >> 20
        )
    });
    Told {
        head,
        findings: finding.collect(),
        faults: Vec::new(),
        goals: results.ratios.clone(),
        ratios: by_name(&results.ratios),
        kind: Kind::Memory(Box::new(results)),
    }
}

fn of_shard_down(head: Head, results: shard_down::Results) -> Told {
    Told {
        head,
        findings: results.results.iter().map(outage::finding).collect(),
        faults: results.results.iter().filter_map(outage::fault).collect(),
        goals: results.ratios.clone(),
        ratios: by_name(&results.ratios),
        kind: Kind::ShardDown(Box::new(results)),
    }
}

/// A study's ratios are its goals, and each cell against the first one of its part.
fn of_study(head: Head, study: Study) -> Told {
    let main = study
        .main_ratio
        .iter()
        .map(|main| (main.name.clone(), main.ratio.median));
    let mut ratios: Vec<_> = main.chain(by_name(&study.ratios)).collect();
    for part in &study.parts {
        let mut cells = study.results.iter().filter(|cell| cell.part == part.name);
        let (Some(figure), Some(first)) = (part.figures.first(), cells.next()) else {
            continue;
        };
        for cell in cells {
            let (one, other) = ((&*cell.layout, &*cell.path), (&*first.layout, &*first.path));
            if let Some(over) = study.over(&part.name, &figure.name, one, other) {
                let name = format!(
                    "{}, {}: {} {} / {} {}",
                    part.name, figure.title, cell.layout, cell.path, first.layout, first.path
                );
                ratios.push((name, over.median));
            }
        }
    }
    Told {
        head,
        findings: study.findings.clone(),
        faults: study.faults.clone(),
        goals: study.ratios.clone(),
        ratios,
        kind: Kind::Study(Box::new(study)),
    }
}

fn run<const N: usize>(figures: [(&str, f64); N]) -> Run {
    figures.map(|(name, value)| (name.to_owned(), value)).into()
}

fn door_parts(results: &DoorResults) -> (Vec<Part>, Vec<CellResult>) {
    let capacity = results.capacity.iter().map(|capacity| {
        let runs = capacity.runs.iter();
        let runs = runs.map(|one| {
            run([
                ("requests_per_s", one.requests_per_s),
                ("server_cpu_us", one.server_cpu_us),
            ])
        });
        CellResult::new("capacity", "door", capacity.way.as_str(), runs.collect())
    });
    let steps = results.steps.iter().map(|step| {
        let mut cell = CellResult::new("steps", "door", &step.name, Vec::new());
        cell.figures.insert("cpu_us".to_owned(), step.cpu_us);
        cell
    });
    let parts = vec![
        Part::new(
            "capacity",
            "Capacity",
            "As many requests as each way takes, from clients that wait for each answer.",
            [
                Figure::new("requests_per_s", "requests/s", "requests/s", 0),
                Figure::new("server_cpu_us", "server CPU µs", "µs", 1),
            ],
        ),
        Part::new(
            "steps",
            "What a request costs",
            "CPU time of each step of a request.",
            [Figure::new("cpu_us", "CPU µs a request", "µs", 2)],
        ),
    ];
    (parts, capacity.chain(steps).collect())
}

#[expect(clippy::cast_precision_loss, reason = "MiB of a process")]
fn memory_parts(results: &memory::Results) -> (Vec<Part>, Vec<CellResult>) {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let cells = results.results.iter().map(|result| {
        let figures = run([
            ("peak_mib", result.peak_mib as f64),
            ("hanging_mib", result.hanging_resident_mib as f64),
            ("in_flight_mib", mib(result.in_flight_peak_bytes)),
            ("events_per_s", result.events_per_s),
        ]);
        CellResult::new("memory", "worker", "backlog", vec![figures])
    });
    let part = Part::new(
        "memory",
        "Resident memory",
        "A worker process before a backlog, while its database hangs and when it works again.",
        [
            Figure::new("peak_mib", "peak MiB", "MiB", 0),
            Figure::new("hanging_mib", "while the database hangs MiB", "MiB", 0),
            Figure::new("in_flight_mib", "records MiB", "MiB", 1),
            Figure::new("events_per_s", "events/s", "events/s", 0),
        ],
    );
    (vec![part], cells.collect())
}
