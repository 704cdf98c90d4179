use std::collections::BTreeMap;

use super::{render, text, write};
use crate::results::{LayoutResult, Machine, Ratio, Replay, Results, Run, Settings, Skipped};

const SECTIONS: [&str; 6] = [
    "Results",
    "Goals",
    "Plots",
    "Skipped",
    "How to read this",
    "How it was run",
];
const PLOTS: [&str; 6] = [
    "Events per second",
    "CPU per event, µs",
    "Batch latency by quantile, ms",
    "Shard balance",
    "Write-ahead log per event, bytes",
    "Replay against fresh",
];

fn run(run: u32, events_per_s: f64, p50_ms: f64) -> Run {
    Run {
        run,
        seconds: 200_000.0 / events_per_s,
        events_per_s,
        rows_per_s: events_per_s * 3.7,
        server_cpu_s: 6.2,
        client_cpu_s: 2.2,
        kafka_cpu_s: 0.9,
        wal_bytes: 296_000_000,
        batches: 400,
        counts: BTreeMap::from([
            ("applied".to_owned(), 196_000),
            ("duplicate".to_owned(), 4_000),
        ]),
        latency_ms: [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0]
            .map(|q| (q, p50_ms * (0.5 + q)))
            .to_vec(),
        state_digest: "9f1c3a".to_owned(),
    }
}

fn row(layout: &str, path: &str, events_per_s: f64, balance: &[(&str, u64)]) -> LayoutResult {
    let p50_ms = 500_000.0 / events_per_s;
    LayoutResult {
        layout: layout.to_owned(),
        path: path.to_owned(),
        events_per_s,
        events_per_s_min: events_per_s * 0.98,
        events_per_s_max: events_per_s * 1.02,
        rows_per_s: events_per_s * 3.7,
        p50_ms,
        p95_ms: p50_ms * 1.45,
        p99_ms: p50_ms * 1.49,
        server_cpu_us_per_event: 31.0,
        client_cpu_us_per_event: 11.0,
        kafka_cpu_us_per_event: 4.5,
        wal_bytes_per_event: 1480.0,
        balance: balance
            .iter()
            .map(|&(name, rows)| (name.to_owned(), rows))
            .collect(),
        duplicates: 4_000,
        illegal: 391,
        equal_state: true,
        runs: [0.98, 1.0, 1.02]
            .iter()
            .zip(1..)
            .map(|(f, n)| run(n, events_per_s * f, p50_ms))
            .collect(),
    }
}

fn sample() -> Results {
    let two = [("shard-0", 101_000), ("shard-1", 95_000)];
    let eight = ["s1", "s2", "s3", "s4", "s5", "s6", "s7", "s10"].map(|name| (name, 24_500));
    Results {
        experiment: "ingest".to_owned(),
        started_at: "2026-11-21T03:58:12Z".to_owned(),
        took_s: 1134.2,
        machine: Machine {
            cpu: "A processor".to_owned(),
            cores: 2,
            memory_gib: 7.75,
            kernel: "6.1.0".to_owned(),
            os: "Debian 12".to_owned(),
        },
        commit: "3f2a91c".to_owned(),
        command: "shardlane experiment ingest --seed 42".to_owned(),
        versions: BTreeMap::from([("postgres".to_owned(), "15.8".to_owned())]),
        settings: Settings {
            events: 200_000,
            users: 20_000,
            skew: 0.8,
            seed: u64::MAX,
            payload_bytes: 400,
            partitions: 8,
            batch_rows_max: 500,
            runs: 3,
            connections: 4,
            citus_shards: 8,
        },
        results: vec![
            row("single", "worker", 20_000.0, &[("single", 196_000)]),
            row("single", "raw-sql", 27_000.0, &[("single", 196_000)]),
            row("partman", "worker", 18_000.0, &[("partman", 196_000)]),
            row("shards", "aligned", 19_600.0, &two),
            row("shards", "modulo", 16_000.0, &two),
            row("citus", "coordinator", 3_000.0, &eight),
            row("citus", "owner", 15_300.0, &eight),
        ],
        replays: vec![Replay {
            layout: "single".to_owned(),
            path: "worker".to_owned(),
            events_per_s: 70_000.0,
            times_fresh: 3.5,
            rows_changed: false,
        }],
        skew: None,
        ratios: vec![
            Ratio {
                name: "citus owner / citus coordinator".to_owned(),
                value: 5.1,
                goal: 3.0,
                met: true,
            },
            Ratio {
                name: "citus owner / single worker".to_owned(),
                value: 0.8999,
                goal: 0.9,
                met: false,
            },
        ],
        skipped: vec![Skipped {
            layout: "partman".to_owned(),
            reason: "pg_partman: not installed here".to_owned(),
        }],
    }
}

fn empty() -> Results {
    Results {
        results: Vec::new(),
        replays: Vec::new(),
        skew: None,
        ratios: Vec::new(),
        ..sample()
    }
}

/// Renders, and holds what every page must hold.
fn page(results: &[Results]) -> String {
    let html = render(results).unwrap();
    check_balance(&html);
    for heading in SECTIONS {
        assert!(
            html.contains(&format!("<h2>{heading}</h2>"))
                || (results.is_empty() && !heading.starts_with("How")),
            "no section {heading:?}"
        );
    }
    for plot in PLOTS {
        assert_eq!(
            html.matches(&format!("<h3>{plot}</h3>")).count(),
            results.len(),
            "plot {plot:?}"
        );
    }
    for word in [
        "NaN", "inf%", ">inf", "\"inf", "http://", "https://", "src=", "@import",
    ] {
        assert!(!html.contains(word), "the page contains {word:?}");
    }
    html
}

/// The data as a script on the page would read them.
pub(super) fn embedded(html: &str) -> &str {
    let (_, rest) = html
        .split_once("<script type=\"application/json\" id=\"results\">")
        .unwrap();
    rest.split_once("</script>").unwrap().0.trim()
}

/// Every tag closes what was opened last; attributes are quoted and, within an element, distinct; ids are unique.
pub(super) fn check_balance(html: &str) {
    const VOID: [&str; 4] = ["meta", "link", "br", "!DOCTYPE"];
    let mut open: Vec<&str> = Vec::new();
    let mut ids: Vec<&str> = Vec::new();
    let mut rest = html;
    while let Some((before, after)) = rest.split_once('<') {
        assert!(!before.contains('>'), "a bare > in {before:?}");
        let (tag, after) = after.split_once('>').expect("a tag that ends");
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "at </{name}>");
            continue;
        }
        let name = tag.split([' ', '/']).next().unwrap_or_default();
        let mut parts = tag.split('"');
        let mut seen: Vec<&str> = Vec::new();
        while let (Some(attribute), Some(value)) = (parts.next(), parts.next()) {
            let attribute = attribute.rsplit(' ').next().unwrap_or_default();
            assert!(
                attribute.ends_with('=') && !seen.contains(&attribute),
                "<{tag}>"
            );
            seen.push(attribute);
            if attribute == "id=" {
                assert!(!ids.contains(&value), "the id {value:?} twice");
                ids.push(value);
            }
        }
        if tag.ends_with('/') || VOID.contains(&name) {
            continue;
        }
        if name == "style" || name == "script" {
            let (_, after) = rest
                .split_once(&format!("</{name}>"))
                .expect("an end of raw text");
            rest = after;
            continue;
        }
        open.push(name);
    }
    assert!(open.is_empty(), "left open: {open:?}");
}

#[test]
fn whole_page() {
    let html = page(&[sample()]);
    assert!(html.contains(
        "Citus through the owning node took 5.1× the events of the coordinator. Against one Postgres (20\u{202f}000 \
         events/s): two primaries 0.98×, pg_partman 0.90× and Citus through the owning node 0.77×."
    ));
    assert!(html.contains("On 2 cores no layout can show scale-out; read the ratios as overhead."));
    assert!(html.contains(
        "All 7 layouts and paths ended in the same state, row by row. The replay changed no row."
    ));
    assert!(html.contains("1 of 2 met."));
    // Rounded to two decimals this goal would look met.
    assert!(html.contains("<b>0.8999</b> <span class=\"of\">goal ≥ 0.9000</span>"));
    assert!(html.contains("pg_partman: not installed here"));
    assert!(html.contains("shardlane experiment ingest --seed 42"));
}

#[test]
fn raw_data_are_the_results() {
    let one = [sample()];
    assert_eq!(
        embedded(&page(&one)),
        serde_json::to_string_pretty(&one[0]).unwrap()
    );
    let several = [sample(), empty()];
    assert_eq!(
        embedded(&page(&several)),
        serde_json::to_string_pretty(&several).unwrap()
    );
}

#[test]
fn every_string_is_escaped() {
    let evil = "</script><img src=x onerror='alert(1)'>\"&<!--\u{2028}";
    let mut results = sample();
    results.skipped[0] = Skipped {
        layout: evil.to_owned(),
        reason: evil.to_owned(),
    };
    for row in &mut results.results {
        row.layout.push_str(evil);
        row.path.push_str(evil);
        row.equal_state = false;
        row.balance = row
            .balance
            .iter()
            .map(|(name, rows)| (format!("{name}{evil}"), *rows))
            .collect();
        for run in &mut row.runs {
            run.state_digest = evil.to_owned();
            run.counts.insert(evil.to_owned(), 1);
        }
    }
    for replay in &mut results.replays {
        replay.layout = evil.to_owned();
        replay.path = evil.to_owned();
        replay.rows_changed = true;
    }
    for text in [
        &mut results.ratios[0].name,
        &mut results.experiment,
        &mut results.started_at,
        &mut results.commit,
        &mut results.command,
        &mut results.machine.cpu,
        &mut results.machine.kernel,
        &mut results.machine.os,
    ] {
        *text = evil.to_owned();
    }
    results.versions.insert(evil.to_owned(), evil.to_owned());

    for results in [vec![results.clone()], vec![results.clone(), results]] {
        let html = render(&results).unwrap();
        check_balance(&html);
        assert!(!html.contains("<img") && !html.contains("<!--"));
        assert_eq!(html.matches("</script>").count(), 2);
        let data: serde_json::Value = serde_json::from_str(embedded(&html)).unwrap();
        assert!(data.to_string().contains("</script><img src=x"));
    }
}

#[test]
fn no_results() {
    assert!(page(&[]).contains("There are no results on this page."));
}

#[test]
fn everything_skipped() {
    let html = page(&[empty()]);
    assert!(html.contains("Nothing was measured: the one layout was skipped."));
    assert!(!html.contains("scale-out; read"));
    let nothing = Results {
        skipped: Vec::new(),
        ..empty()
    };
    let html = page(&[nothing]);
    assert!(html.contains("Nothing was measured.") && html.contains("No layout was skipped."));
}

#[test]
fn a_missing_base_is_a_dash() {
    let mut results = sample();
    results.results.retain(|row| row.layout == "citus");
    let html = page(&[results]);
    assert!(
        html.contains("<td>–</td>") && html.contains("took 5.1× the events of the coordinator.")
    );
    assert!(html.contains("was not measured"));
}

#[test]
fn one_run_of_one_layout() {
    let mut results = sample();
    results.results.truncate(1);
    results.results[0].runs.truncate(1);
    let html = page(&[results]);
    assert!(
        html.contains("single by worker took 20\u{202f}000 events/s; nothing else was measured")
    );
    assert!(!html.contains("class=\"whisker\"") && !html.contains("class=\"run\""));
}

#[test]
fn without_citus() {
    let mut results = sample();
    results.machine.cores = 16;
    results.results.retain(|row| row.layout != "citus");
    let html = page(&[results]);
    assert!(
        html.contains("Against one Postgres")
            && !html.contains("Citus through the owning node took")
    );
    assert!(!html.contains("scale-out; read"));
}

#[test]
fn zeros_and_what_is_no_number() {
    for value in [
        0.0,
        -0.0,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::MAX,
        f64::MIN_POSITIVE,
    ] {
        let mut results = sample();
        results.took_s = value;
        results.machine.memory_gib = value;
        results.settings.skew = value;
        for row in &mut results.results {
            row.balance.values_mut().for_each(|rows| *rows = 0);
            for field in [
                &mut row.events_per_s,
                &mut row.events_per_s_min,
                &mut row.events_per_s_max,
                &mut row.rows_per_s,
                &mut row.p50_ms,
                &mut row.server_cpu_us_per_event,
                &mut row.client_cpu_us_per_event,
                &mut row.wal_bytes_per_event,
            ] {
                *field = value;
            }
            for run in &mut row.runs {
                run.events_per_s = value;
                run.seconds = value;
                run.latency_ms.iter_mut().for_each(|(_, ms)| *ms = value);
            }
        }
        results.ratios[0].value = value;
        results.ratios[1].goal = value;
        results.replays[0].times_fresh = value;
        page(&[results]);
    }
}

#[test]
fn ratios_are_taken_within_a_round() {
    let mut results = sample();
    // The machine slowed down for the second round and harmed both; the third round alone favours the shards.
    for (row, rates) in [
        (0, [20_000.0, 10_000.0, 20_000.0]),
        (3, [19_000.0, 9_000.0, 21_000.0]),
    ] {
        for (run, rate) in results.results[row].runs.iter_mut().zip(rates) {
            run.events_per_s = rate;
        }
    }
    let html = page(&[results]);
    assert!(html.contains("two primaries 0.95× (0.90× to 1.05× by round)"));
    assert!(html.contains("<td>0.95</td>"));
}

#[test]
fn different_work_is_not_compared() {
    let mut results = sample();
    results.results[6].equal_state = false;
    results.replays[0].rows_changed = true;
    let html = page(&[results]);
    assert!(html.contains("The final state of citus owner is not that of the first layout"));
    assert!(html.contains("The replay of single worker changed rows"));
    assert!(!html.contains("Citus through the owning node took"));
}

#[test]
fn written_whole_or_not_at_all() {
    let directory = std::env::temp_dir().join(format!("shardlane-report-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("report.html");
    write(&[sample()], &path).unwrap();
    write(&[empty()], &path).unwrap();
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        render(&[empty()]).unwrap()
    );
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);

    let missing = directory.join("absent").join("report.html");
    assert!(format!("{:#}", write(&[], &missing).unwrap_err()).contains("absent"));
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn numbers() {
    let cases = [
        (text::num(1_234_567.0, 0), "1\u{202f}234\u{202f}567"),
        (text::num(999.96, 1), "1\u{202f}000.0"),
        (text::num(-0.001, 1), "0.0"),
        (text::num(-1234.5, 1), "\u{2212}1\u{202f}234.5"),
        (text::num(f64::NAN, 1), "–"),
        (text::count(100), "100"),
        (text::count(1000), "1\u{202f}000"),
        (text::times(5.104), "5.1×"),
        (text::times(0.966), "0.97×"),
        (text::times(0.0), "0×"),
        (text::duration(1134.2), "18 min 54 s"),
        (text::duration(3599.7), "1 h 0 min"),
        (text::duration(7.25), "7.2 s"),
        (text::clip("ünïcode", 4), "ünï…"),
    ];
    for (got, want) in cases {
        assert_eq!(got, want);
    }
}
