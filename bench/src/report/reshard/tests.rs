use super::fixture::{everything_skipped, sample, without_citus};
use super::{render, write};
use crate::report::tests::{check_balance, embedded};
use crate::reshard::{ChangeResult, Results};
use crate::results::Skipped;

/// Renders, and holds what every page must hold.
fn page(results: &Results) -> String {
    let html = render(results).unwrap();
    check_balance(&html);
    for heading in [
        "Over time",
        "Changes",
        "Skipped",
        "How to read this",
        "How it was run",
    ] {
        assert!(
            html.contains(&format!("<h2>{heading}</h2>")),
            "no section {heading:?}"
        );
    }
    for word in [
        "NaN", "inf%", ">inf", "\"inf", "http://", "https://", "src=", "@import",
    ] {
        assert!(!html.contains(word), "the page contains {word:?}");
    }
    html
}

/// The row of a change, its tags left out.
fn row(html: &str, name: &str) -> Vec<String> {
    let (_, rest) = html
        .split_once(&format!("</b> {name}</span></span></th>"))
        .unwrap();
    let (row, _) = rest.split_once("</tr>").unwrap();
    let cells = row.split("</td>").filter(|cell| !cell.is_empty());
    cells
        .map(|cell| {
            cell.rsplit_once('>')
                .map_or(cell, |(_, text)| text)
                .to_owned()
        })
        .collect()
}

#[test]
fn sentences_have_the_figures() {
    let html = page(&sample());
    assert!(html.contains(
        "Manual shards: under full load 2 shards became 3 and 3 shards became 2, and nothing was lost; the longest \
         stall was 447 ms."
    ));
    assert!(html.contains(
        "Citus: under full load a shard moved to another node, a node joined and took its part, a shard was split and \
         one user got a shard alone, and nothing was lost; the longest stall was 460 ms."
    ));
    assert!(html.contains(
        "4\u{202f}211 events/s before a change, 2\u{202f}633 during it, 4\u{202f}107 after it. Before a change the \
         longest stall was 212 ms; users that did not move waited 387 ms at most."
    ));
    assert!(html.contains(
        "At worst 61.7 % of the events went straight to the node that owns them; it was back above 99 % 0.4 s after \
         the change at the latest."
    ));
    assert!(html.contains("Of 61\u{202f}300 events none is missing"));
    assert!(html.contains("Of 122\u{202f}600 events none is missing"));
    assert!(!html.contains("WRONG") && !html.contains("class=\"verdict fault\""));
}

#[test]
fn rates_that_differ_are_a_range() {
    let mut results = sample();
    results.results[1].events_per_s_during = 1_900.0;
    assert!(page(&results).contains("1\u{202f}900 to 2\u{202f}633 during it"));
}

#[test]
fn a_row_has_each_figure_in_its_column() {
    let html = page(&sample());
    assert_eq!(
        row(&html, "3 → 2"),
        [
            "16.0",
            "4.9",
            "4\u{202f}211",
            "2\u{202f}633",
            "4\u{202f}107",
            "447",
            "387",
            "212",
            "–",
            "–",
            "30\u{202f}650",
            "0",
            "0",
            "0",
            "0",
            "yes"
        ]
    );
    let move_row = row(&html, "move");
    assert_eq!(move_row[6], "–");
    assert_eq!(move_row[8..10], ["61.7 %", "0.4"]);
}

#[test]
fn what_is_wrong_is_loud() {
    type Spoil = fn(&mut ChangeResult);
    let cases: [(Spoil, &str); 6] = [
        (|change| change.lost = 3, "3 events were lost"),
        (|change| change.lost = 1, "1 event was lost"),
        (|change| change.twice = 2, "2 events stand twice"),
        (
            |change| change.out_of_order = 5,
            "5 events were applied out of order",
        ),
        (
            |change| change.misplaced = 4,
            "4 users have rows on a shard that does not own them",
        ),
        (
            |change| change.equal_state = false,
            "the final rows are not those of an undisturbed run",
        ),
    ];
    for (spoil, sentence) in cases {
        let mut results = sample();
        spoil(&mut results.results[1]);
        let html = page(&results);
        assert!(html.contains("<title>Sharding lab: reshard (WRONG RESULT)</title>"));
        let headline = format!(
            "<p class=\"headline bad\">Manual shards: under full load 2 shards became 3 and 3 shards became 2, and \
             {sentence}; the longest"
        );
        assert!(html.contains(&headline), "{sentence}");
        let fault =
            format!("<p class=\"verdict fault\">WRONG: Manual shards, 3 → 2: {sentence}.</p>");
        assert_eq!(html.matches("class=\"verdict fault\"").count(), 1);
        assert!(html.contains(&fault), "{sentence}");
        assert!(html.contains("<td class=\"bad\">"));
        assert!(
            html.contains("<g class=\"change wrong\">") && html.contains(">3 → 2: WRONG</text>")
        );
        // Of Citus, which is right, it says so still.
        assert!(html.contains("Of 122\u{202f}600 events none is missing"));
        assert!(!html.contains("Of 61\u{202f}300 events none is missing"));
    }
}

#[test]
fn owner_hits_that_stay_away_are_named() {
    let mut results = sample();
    results.results[4].owner_hit_recovered_s = None;
    let html = page(&results);
    assert!(html.contains("after split it was not back above 99 % within 10 s"));
    assert!(html.contains("<td class=\"bad\">&gt; 10</td>"));
}

#[test]
fn a_timeline_draws_its_samples_and_changes() {
    let html = page(&sample());
    let (_, shards) = html.split_once("<h3>Manual shards</h3>").unwrap();
    let (shards, citus) = shards.split_once("<h3>Citus</h3>").unwrap();
    let (citus, _) = citus.split_once("</section>").unwrap();
    // The axis ends with the last sample, at 26 s.
    assert!(shards.contains(r#"<rect class="span" x="19.23%""#));
    assert!(shards.contains(r#"width="23.85%""#));
    for (plot, changes, curves, seconds) in [(shards, 2, 1, 26), (citus, 4, 2, 36)] {
        assert_eq!(plot.matches("<rect class=\"span\"").count(), changes);
        let points: Vec<usize> = plot
            .split("class=\"curve\"")
            .skip(1)
            .map(|curve| curve.split("points=\"").nth(1).unwrap())
            .map(|rest| rest.split('"').next().unwrap().split(' ').count())
            .collect();
        assert_eq!(points.len(), curves);
        assert_eq!(points[0], seconds * 4);
        assert!(plot.contains(">events/s</text>"));
        assert!(plot.contains(">seconds since the load began</text>"));
        assert_eq!(plot.contains(">to the owner, %</text>"), curves == 2);
        // No answer in the first second: no point there.
        assert!(curves == 1 || points[1] == seconds * 4 - 4);
    }
    assert!(citus.contains(
        "isolate-tenant from 29.0 s to 30.5 s: 4\u{202f}211 events/s before, 2\u{202f}633 during, 4\u{202f}107 after, \
         longest stall 460 ms, at worst 61.7 % to the owner."
    ));
}

#[test]
fn names_above_spans_do_not_overlap() {
    let mut results = sample();
    for (change, at) in results.results[2..].iter_mut().zip([5.0, 10.0, 15.0, 32.0]) {
        (change.began_s, change.ended_s) = (at, at + 1.0);
    }
    let html = page(&results);
    let (_, citus) = html.split_once("<h3>Citus</h3>").unwrap();
    let lines: Vec<&str> = citus
        .split("<text class=\"b\"")
        .skip(1)
        .map(|name| {
            name.split("y=\"")
                .nth(1)
                .unwrap()
                .split('"')
                .next()
                .unwrap()
        })
        .collect();
    assert_eq!(lines, ["27.0", "43.0", "27.0", "27.0"]);
}

#[test]
fn skipped_layouts_are_named() {
    let html = page(&without_citus());
    assert!(html.contains("<dt>citus</dt><dd>citus: not installed here</dd>"));
    assert!(html.contains("<h3>Manual shards</h3>") && !html.contains("<h3>Citus</h3>"));

    let html = page(&everything_skipped());
    assert!(html.contains("Nothing was measured: the one layout was skipped."));
    assert!(html.contains("No change was made"));
    assert!(!html.contains("none is missing") && !html.contains("WRONG"));
    assert!(page(&sample()).contains("No layout was skipped."));
}

#[test]
fn raw_data_are_the_results() {
    let results = sample();
    assert_eq!(
        // The one character of these data that is escaped so that no tag can begin or end in them.
        embedded(&page(&results)).replace("\\u003e", ">"),
        serde_json::to_string_pretty(&results).unwrap()
    );
    assert!(page(&results).contains("download=\"reshard.json\""));
}

#[test]
fn every_string_is_escaped() {
    let evil = "</script><img src=x onerror='alert(1)'>\"&<!--\u{2028}";
    let mut results = sample();
    let samples = results.samples["citus"].clone();
    results.samples.insert(evil.to_owned(), samples);
    for (index, change) in results.results.iter_mut().enumerate() {
        change.layout = evil.to_owned();
        change.change.push_str(evil);
        change.equal_state = index > 0;
        change.owner_hit_min = Some(0.5);
        change.owner_hit_recovered_s = None;
    }
    results.skipped = vec![Skipped {
        layout: evil.to_owned(),
        reason: evil.to_owned(),
    }];
    for text in [
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
    let html = render(&results).unwrap();
    check_balance(&html);
    assert!(!html.contains("<img") && !html.contains("<!--"));
    assert_eq!(html.matches("</script>").count(), 2);
}

#[test]
fn zeros_and_what_is_no_number() {
    for value in [
        0.0,
        -1.0,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::MAX,
        f64::MIN_POSITIVE,
    ] {
        let mut results = sample();
        results.took_s = value;
        for change in &mut results.results {
            for field in [
                &mut change.began_s,
                &mut change.ended_s,
                &mut change.took_s,
                &mut change.events_per_s_before,
                &mut change.events_per_s_during,
                &mut change.events_per_s_after,
                &mut change.stall_before_ms,
                &mut change.stall_max_ms,
            ] {
                *field = value;
            }
            change.stall_unmoved_ms = Some(value);
            change.owner_hit_min = Some(value);
            change.owner_hit_recovered_s = Some(value);
        }
        page(&results);
        for sample in results.samples.values_mut().flatten() {
            sample.events_per_s = value;
            sample.owner_hit = Some(value);
        }
        page(&results);
        for sample in results.samples.values_mut().flatten() {
            sample.at_s = value;
        }
        page(&results);
    }
}

#[test]
fn written_as_rendered() {
    let directory = std::env::temp_dir().join(format!("shardlane-reshard-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("reshard.html");
    write(&sample(), &path).unwrap();
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        render(&sample()).unwrap()
    );
    std::fs::remove_dir_all(&directory).unwrap();
}
