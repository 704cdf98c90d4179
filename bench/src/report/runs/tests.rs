use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::comparison::plain;
use super::{Runs, render};
use crate::study::{CellResult, Figure, Part, Run, Started, Study};

fn committed() -> Vec<PathBuf> {
    let runs = concat!(env!("CARGO_MANIFEST_DIR"), "/runs");
    let mut folders: Vec<PathBuf> = std::fs::read_dir(runs)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    folders.sort();
    folders
}

fn memory() -> Value {
    let file = "/runs/2026-11-21-2-core-vm-outage-and-memory/memory.json";
    let text = std::fs::read_to_string(format!("{}{file}", env!("CARGO_MANIFEST_DIR")));
    serde_json::from_str(&text.unwrap()).unwrap()
}

fn page(files: &[Value]) -> String {
    let mut runs = Runs::default();
    for (index, file) in files.iter().enumerate() {
        runs.add(&format!("run-{index}/memory.json"), &file.to_string());
    }
    assert!(runs.unread.is_empty(), "{:?}", runs.unread);
    render(&runs).unwrap()
}

fn study() -> Study {
    let mut study = Study::new("reads", "shardlane experiment reads", Started::now());
    let figures = [Figure::new("ms", "time ms", "ms", 1)];
    study.parts = vec![Part::new("user", "By user", "One user's orders.", figures)];
    let run = |ms: f64| vec![Run::from([("ms".to_owned(), ms)])];
    study.results = vec![
        CellResult::new("user", "single", "one-server", run(2.0)),
        CellResult::new("user", "citus", "owner", run(3.0)),
    ];
    study.findings = vec!["The owner's reads take <1.5> times as long.".to_owned()];
    study
}

#[test]
fn all_committed_runs_are_on_one_page() {
    let runs = Runs::read(&committed()).unwrap();
    let unread: Vec<&str> = runs.unread.iter().map(|(file, _)| file.as_str()).collect();
    // Made by hand of several results, which their README says.
    let by_hand = |file: &&str| file.starts_with("2026-11-21-2-core-vm-nets/alternations");
    assert!(
        !unread.is_empty() && unread.iter().all(by_hand),
        "{unread:?}"
    );
    let page = render(&runs).unwrap();
    let experiments: BTreeSet<&str> = runs
        .ran
        .iter()
        .map(|ran| ran.told.head.experiment.as_str())
        .collect();
    for experiment in [
        "door",
        "ingest",
        "memory",
        "reshard",
        "routing",
        "shard-down",
    ] {
        assert!(experiments.contains(experiment), "{experiments:?}");
    }
    assert_eq!(page.matches("<article").count(), runs.count());
    // Each has a plot, and is reached from the headline table.
    for (index, article) in page.split("<article").skip(1).enumerate() {
        assert!(
            article.contains("class=\"plot\""),
            "{}",
            runs.ran[index].file
        );
        assert!(page.contains(&format!("href=\"#x{}\"", index + 1)));
    }
}

#[test]
fn no_id_is_twice_on_the_page() {
    let page = render(&Runs::read(&committed()).unwrap()).unwrap();
    let ids = page
        .split(" id=\"")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap());
    let mut seen = BTreeSet::new();
    for id in ids {
        assert!(seen.insert(id), "{id}");
    }
    assert!(seen.len() > 100, "{}", seen.len());
}

#[test]
fn a_rerun_lands_within_ten_per_cent_or_it_is_said() {
    let with = |value: f64| {
        let mut json = memory();
        json["ratios"][0]["value"] = json!(value);
        json
    };
    assert!(!page(&[with(1.0)]).contains("id=\"reruns\""));
    assert!(page(&[with(1.0), with(1.09)]).contains("each landed within 10 % of the first run"));
    let page_off = page(&[with(1.0), with(1.02), with(0.89)]);
    assert!(
        page_off.contains("Not within 10 % of the first run: 1 of memory&#39;s 1."),
        "{page_off}"
    );
    assert!(page_off.contains("<td>11.0 %</td>"));
    // Another size is another experiment.
    let mut other = with(3.0);
    other["settings"]["users"] = json!(1);
    assert!(page(&[with(1.0), other]).contains("nothing is compared"));
    // Older versions wrote the same number otherwise, and did not write what is not set.
    let older = json!({ "skew": 0, "clients": [1, 8], "rate": null });
    let newer = json!({ "skew": 0.0, "clients": [1, 8] });
    assert_eq!(plain(&older), plain(&newer));
    assert_ne!(
        plain(&older),
        plain(&json!({ "skew": 0.0, "clients": [8] }))
    );
}

#[test]
fn a_study_has_its_place_and_its_words_are_escaped() {
    let study = study();
    let page = page(&[serde_json::to_value(&study).unwrap()]);
    assert!(page.contains("The owner&#39;s reads take &lt;1.5&gt; times as long."));
    assert!(!page.contains("<1.5>"));
    // Without a goal the first cell is what the others are measured by.
    assert!(page.contains("<b>1.50×</b> user, time ms: citus owner / single one-server"));
    assert!(page.contains("none set"));
}

#[test]
fn a_machine_that_was_busy_is_told() {
    let with = |load: f64| {
        let mut study = study();
        (study.load_average_before, study.machine.cores) = (Some(load), 4);
        page(&[serde_json::to_value(&study).unwrap()])
    };
    assert!(with(2.1).contains("a load of 2.1 on 4 cores"));
    assert!(!with(1.9).contains("The machine was not idle"));
}

#[test]
fn what_is_no_experiment_is_named() {
    let mut runs = Runs::default();
    runs.add("a/b.json", "[1, 2]");
    runs.add("a/c.json", "{");
    runs.add("a/d.json", &json!({ "experiment": "memory" }).to_string());
    let named: Vec<&str> = runs.unread.iter().map(|(file, _)| file.as_str()).collect();
    assert_eq!(named, ["a/b.json", "a/c.json", "a/d.json"]);
    let folder = tempfile::tempdir().unwrap();
    let error = Runs::read(&[folder.path().to_owned()]).unwrap_err();
    assert!(error.to_string().contains("no results"), "{error}");
}
