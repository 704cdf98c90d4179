//! One page for the results of several experiments, as the folders of runs hold them, and what a rerun made of them.
//!
//! Each experiment keeps its own plots and tables; here they get one headline table, one look and one comparison.

mod comparison;
mod outage;
#[cfg(test)]
mod tests;
mod told;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::how_to_read;
use super::page::{self, facts};
use super::study::end;
use super::text::{DASH, esc, json_for_script, plural, times};
use told::Told;

/// The results of one experiment in one file.
#[derive(Debug)]
pub struct Ran {
    /// The folder's name, and the file's.
    file: String,
    told: Told,
    json: Value,
}

/// What was found in folders.
#[derive(Debug, Default)]
pub struct Runs {
    ran: Vec<Ran>,
    /// Files that are no results, with the reason.
    unread: Vec<(String, String)>,
}

impl Runs {
    /// Reads each `*.json` of each folder.
    ///
    /// # Errors
    /// When a folder or a file in it cannot be read, or no file holds results of an experiment.
    pub fn read(folders: &[PathBuf]) -> anyhow::Result<Runs> {
        let mut runs = Runs::default();
        for folder in folders {
            for path in json_files(folder)? {
                let text = std::fs::read_to_string(&path)
                    .with_context(|| format!("{} cannot be read", path.display()))?;
                runs.add(&name(folder, &path), &text);
            }
        }
        if runs.ran.is_empty() {
            bail!(
                "no results of an experiment are in {}: name folders that an experiment's --out made",
                folders
                    .iter()
                    .map(|folder| folder.display().to_string())
                    .collect::<Vec<_>>()
                    .join(", ")
            );
        }
        // Stable, so that the runs of one experiment stay in the order of the folders.
        runs.ran
            .sort_by(|a, b| a.told.head.experiment.cmp(&b.told.head.experiment));
        Ok(runs)
    }

    fn add(&mut self, file: &str, text: &str) {
        let told = serde_json::from_str::<Value>(text)
            .context("it is not JSON")
            .and_then(|json| Ok((Told::of(&json, text)?, json)));
        match told {
            Ok((told, json)) => self.ran.push(Ran {
                file: file.to_owned(),
                told,
                json,
            }),
            Err(error) => self.unread.push((file.to_owned(), format!("{error:#}"))),
        }
    }

    /// How many results were found.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ran.len()
    }

    /// Files that are no results, each with the reason.
    #[must_use]
    pub fn unread(&self) -> &[(String, String)] {
        &self.unread
    }
}

/// Renders the page into a file; a reader never sees half of it.
///
/// # Errors
/// When the results cannot be written as JSON, or the file cannot be written.
pub fn write(runs: &Runs, path: &Path) -> anyhow::Result<()> {
    page::write(&render(runs)?, path)
}

/// Renders one self-contained HTML page. The raw data are in the element with the id `results`: an array of objects with
/// `file` and `results`.
///
/// # Errors
/// When the results cannot be written as JSON.
pub fn render(runs: &Runs) -> anyhow::Result<String> {
    let raw: Vec<Value> = runs
        .ran
        .iter()
        .map(|ran| json!({ "file": ran.file, "results": ran.json }))
        .collect();
    let json = json_for_script(&raw).context("embed the results as JSON")?;
    let articles: String = runs
        .ran
        .iter()
        .enumerate()
        .map(|(index, ran)| article(ran, &id(index)))
        .collect();
    let main = format!(
        "<header>\n<p class=\"eyebrow\">Shardlane</p>\n<h1 class=\"cover\">Sharding lab</h1>\n<p class=\"note\">{}</p>\n</header>\n\
         <section id=\"overview\">\n<h2>What came out</h2>\n{}</section>\n{}{articles}{}<section><h2>Raw data</h2>\n{}</section>\n",
        esc(&machines(runs)),
        overview(runs),
        comparison::section(&runs.ran),
        unread(runs),
        page::raw_data("results.json"),
    );
    Ok(page::whole("Sharding lab", &main, &json))
}

fn json_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let cannot = || format!("the folder {} cannot be read", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(cannot)? {
        let path = entry.with_context(cannot)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The last part of the folder and the file: a whole path would name this machine.
fn name(folder: &Path, file: &Path) -> String {
    let last = |path: &Path| {
        path.file_name()
            .map(|name| name.to_string_lossy().into_owned())
    };
    // `.` and `..` have no name of their own.
    let folder = last(folder).or_else(|| last(&folder.canonicalize().ok()?));
    [folder, last(file)]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("/")
}

/// The first part of all ids of an experiment: two of them may have the same plots.
fn id(index: usize) -> String {
    format!("x{}", index + 1)
}

fn machines(runs: &Runs) -> String {
    let mut machines: Vec<String> = Vec::new();
    for ran in &runs.ran {
        let machine = &ran.told.head.machine;
        let sentence = format!(
            "{}, {}",
            machine.cpu,
            plural(machine.cores as u64, "core", "cores")
        );
        if !machines.contains(&sentence) {
            machines.push(sentence);
        }
    }
    format!(
        "Measured on {}. All servers and the clients shared one machine: read the ratios, not the rates.",
        machines.join("; ")
    )
}

/// One row an experiment.
fn overview(runs: &Runs) -> String {
    let mut out = String::from(
        "<table class=\"overview\"><thead><tr><th scope=\"col\">Experiment</th><th class=\"text\" scope=\"col\">Finding</th>\
         <th class=\"text\" scope=\"col\">Main ratio</th><th class=\"text\" scope=\"col\">Goals</th></tr></thead><tbody>\n",
    );
    let mut before = "";
    for (index, ran) in runs.ran.iter().enumerate() {
        let experiment = ran.told.head.experiment.as_str();
        let first = if experiment == before {
            ""
        } else {
            " class=\"first\""
        };
        before = experiment;
        out.push_str(&format!(
            "<tr{first}><th scope=\"row\"><a href=\"#{}\">{}</a><br><span class=\"small\">{}</span></th>\
             <td class=\"text\">{}</td><td class=\"text\">{}</td><td class=\"text\">{}</td></tr>\n",
            id(index),
            esc(experiment),
            esc(&ran.file),
            esc(ran.told.findings.first().map_or("Nothing was measured.", String::as_str)),
            main_ratio(&ran.told),
            goals_met(&ran.told),
        ));
    }
    out.push_str("</tbody></table>\n");
    out
}

/// The first goal's, or the first one that was measured.
fn main_ratio(told: &Told) -> String {
    let goal = told
        .goals
        .first()
        .map(|goal| (goal.name.as_str(), goal.value));
    let measured = told
        .ratios
        .first()
        .map(|(name, value)| (name.as_str(), *value));
    goal.or(measured).map_or(DASH.to_owned(), |(name, value)| {
        format!("<b>{}</b> {}", esc(&times(value)), esc(name))
    })
}

fn goals_met(told: &Told) -> String {
    if !told.faults.is_empty() {
        return "<span class=\"bad\">wrong results</span>".to_owned();
    }
    let met = told.goals.iter().filter(|goal| goal.met).count();
    match told.goals.len() {
        0 => "none set".to_owned(),
        all if met == all => {
            format!("<span class=\"met\"><span class=\"status\">all {all} met</span></span>")
        }
        all => format!(
            "<span class=\"missed\"><span class=\"status\">{met} of {all} met</span></span>"
        ),
    }
}

fn article(ran: &Ran, id: &str) -> String {
    let (told, head) = (&ran.told, &ran.told.head);
    let mut out = format!(
        "<article class=\"run-of\" id=\"{id}\">\n<header>\n<p class=\"eyebrow\">{} · {}</p>\n<h2>{}</h2>\n",
        esc(&ran.file),
        esc(&head.started_at),
        esc(&head.experiment),
    );
    for (index, finding) in told.findings.iter().enumerate() {
        let class = if index == 0 {
            " class=\"headline\""
        } else {
            ""
        };
        out.push_str(&format!("<p{class}>{}</p>\n", esc(finding)));
    }
    out.push_str(&page::faults(&told.faults));
    if let Some(load) = head.load_average_before {
        out.push_str(&page::busy(load, head.machine.cores));
    }
    out.push_str(&format!("</header>\n{}", told.body(id)));
    out.push_str(&end(&told.goals, &head.skipped));
    out.push_str(&format!(
        "<section><h2>Repeat it with</h2>\n<pre><code>{}</code></pre>\n<details><summary>Where, when and with what</summary>\n\
         <div class=\"columns\">\n<div><h4>Where and when</h4>\n{}</div>\n<div><h4>Settings</h4>\n{}</div>\n\
         <div><h4>Versions</h4>\n{}</div>\n</div>\n</details>\n",
        esc(&head.command),
        page::where_and_when(&head.started_at, head.took_s, &head.commit, &head.machine),
        settings(&head.settings),
        facts(head.versions.iter().map(|(name, value)| (name.as_str(), value.clone()))),
    ));
    let read = how_to_read(&head.experiment);
    if !read.is_empty() {
        out.push_str(&format!(
            "<details><summary>How to read this</summary>\n<div class=\"prose\">\n{read}</div>\n</details>\n"
        ));
    }
    out.push_str("</section>\n</article>\n");
    out
}

/// What was asked for, whatever an experiment calls it.
fn settings(settings: &Value) -> String {
    let Some(settings) = settings.as_object() else {
        return facts([]);
    };
    let plain = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let rows: Vec<(String, String)> = settings
        .iter()
        .map(|(name, value)| (name.replace('_', " "), plain(value)))
        .collect();
    facts(
        rows.iter()
            .map(|(name, value)| (name.as_str(), value.clone())),
    )
}

fn unread(runs: &Runs) -> String {
    if runs.unread.is_empty() {
        return String::new();
    }
    let rows = runs
        .unread
        .iter()
        .map(|(file, why)| (file.as_str(), why.clone()));
    format!(
        "<section><h2>Files that are no results</h2>\n{}</section>\n",
        facts(rows)
    )
}
