//! The window experiment: events of one kind that belong to lost fraud disputes, over some days of a month.
//!
//! A study of a payment manager gave 781.7 ms without an index, 522.5 ms with one and 65.4 ms with daily partitions, but
//! its first two runs were cold and the last one warm. Here every variant is measured both ways, in turn.

mod ground;
mod variant;

use std::time::Instant;

use shardlane_sql::Layout;

use crate::routing::results::Spread;
use crate::study::{CellResult, Figure, MainRatio, Part, Rounds, Run, Started, Stop, Study};
use ground::Ground;
use variant::{Cell, Heat, Variant};

/// The size of the experiment.
#[derive(Debug, Clone)]
pub struct WindowSettings {
    /// Any of single, partman, citus.
    pub layouts: Vec<Layout>,
    /// Dispute events over the month.
    pub events: u64,
    /// Whether rows stand in the table as they came, or in any order.
    pub in_order: bool,
    /// Days of the month that the query asks for, from its tenth on.
    pub days: u32,
    /// Size of an event's payload.
    pub payload_bytes: u32,
    /// Runs of each cell.
    pub runs: u32,
}

/// Runs the experiment.
///
/// # Errors
/// Where no layout can run, or a server fails.
pub async fn run(settings: &WindowSettings, command: &str, stop: Stop) -> anyhow::Result<Study> {
    let started = Started::now();
    let rounds = Rounds::new(settings.runs, stop)?;
    let ground = Ground::prepare(settings, |line| rounds.say(line)).await?;
    let mut answers = Vec::new();
    let mut results = Vec::new();
    for heat in [Heat::Cold, Heat::Warm] {
        if rounds.is_stopped() {
            break;
        }
        let cells = ground.cells(heat);
        let measured = rounds
            .measure(cells, async |cell, _| {
                let (run, answer) = measure(&ground, cell).await?;
                answers.push((cell.clone(), answer));
                Ok(run)
            })
            .await?;
        results.extend(measured.into_iter().map(|(cell, runs)| {
            CellResult::new(
                heat.as_str(),
                cell.layout.as_str(),
                cell.variant.path(),
                runs,
            )
        }));
    }
    let mut study = Study::new("window", command, started);
    study.versions = ground.versions().await?;
    study.settings = ground.describe(settings);
    study.parts = Vec::from([Heat::Cold, Heat::Warm].map(part));
    study.results = results;
    study.skipped = ground.skipped.clone();
    study.is_interrupted = rounds.is_stopped();
    study.faults = faults(&answers);
    study.findings = findings(&study);
    let index = (Layout::Single.as_str(), Variant::Indexed.path());
    let days = (Layout::Partman.as_str(), Variant::Days.path());
    let ratio = study.over(Heat::Warm.as_str(), "ms", index, days);
    study.main_ratio = MainRatio::of("warm time, index / daily partitions", ratio);
    Ok(study)
}

fn part(heat: Heat) -> Part {
    let (title, question) = match heat {
        Heat::Cold => (
            "Cold",
            "The first query after a restart, with the page cache of the machine dropped where that is allowed.",
        ),
        Heat::Warm => (
            "Warm",
            "The same query once more, everything in memory that fits.",
        ),
    };
    Part::new(
        heat.as_str(),
        title,
        question,
        [
            Figure::new("ms", "time ms", "ms", 1),
            Figure::new("planning_ms", "planning ms", "ms", 2),
            Figure::new("pages", "pages", "pages", 0),
            Figure::new("pages_read", "of them read", "pages", 0),
        ],
    )
}

/// What the query says: how many events, and the disputed amount.
type Answer = (i64, i64);

async fn measure(ground: &Ground, cell: &Cell) -> anyhow::Result<(Run, Answer)> {
    if cell.heat == Heat::Cold {
        ground.cool(cell.layout).await?;
    }
    let client = ground.client(cell.layout).await?;
    let query = ground.query(cell.variant);
    if cell.heat == Heat::Warm {
        client.query_one(&query, &[]).await?;
    }
    ground.reset_statistics(cell.layout).await?;
    let began = Instant::now();
    let row = client.query_one(&query, &[]).await?;
    let ms = began.elapsed().as_secs_f64() * 1e3;
    let seen = ground.statistics(cell.layout).await?;
    let run = Run::from([
        ("ms".to_owned(), ms),
        ("planning_ms".to_owned(), seen.planning_ms),
        ("pages".to_owned(), seen.pages_hit + seen.pages_read),
        ("pages_read".to_owned(), seen.pages_read),
    ]);
    Ok((run, (row.get(0), row.get(1))))
}

fn faults(answers: &[(Cell, Answer)]) -> Vec<String> {
    let Some((_, expected)) = answers.first() else {
        return Vec::new();
    };
    let mut faults: Vec<String> = answers
        .iter()
        .filter(|(_, answer)| answer != expected)
        .map(|(cell, answer)| format!("{cell} answers {answer:?}, not {expected:?}"))
        .collect();
    faults.dedup();
    if expected.0 == 0 {
        faults.push("the query found nothing: ask for more events or days".to_owned());
    }
    faults
}

fn findings(study: &Study) -> Vec<String> {
    let ms = |heat: Heat, layout: Layout, variant: Variant| {
        let cell = study.cell(heat.as_str(), layout.as_str(), variant.path())?;
        Some(cell.figures.get("ms")?.median)
    };
    let mut findings = Vec::new();
    let plain = (Layout::Single, Variant::Plain);
    let indexed = (Layout::Single, Variant::Indexed);
    let days = (Layout::Partman, Variant::Days);
    let both = (Layout::Partman, Variant::DaysIndexed);
    for heat in [Heat::Cold, Heat::Warm] {
        let of = |(layout, variant)| ms(heat, layout, variant);
        if let (Some(plain), Some(indexed), Some(days), Some(both)) =
            (of(plain), of(indexed), of(days), of(both))
        {
            findings.push(format!(
                "{}: {plain:.1} ms without an index, {indexed:.1} ms with one, {days:.1} ms with daily partitions, {both:.1} ms \
                 with both.",
                part(heat).title
            ));
        }
    }
    if let (Some(cold), Some(warm), Some(best), Some(index)) = (
        ms(Heat::Cold, plain.0, plain.1),
        ms(Heat::Warm, plain.0, plain.1),
        ms(Heat::Warm, days.0, days.1),
        ms(Heat::Warm, indexed.0, indexed.1),
    ) {
        findings.push(format!(
            "A cold run without an index against a warm one with daily partitions would say {:.1} times (the original study said \
             12.0); both warm it is {:.1} times, and against the index alone {:.1} times.",
            cold / best,
            warm / best,
            index / best,
        ));
    }
    let over = |figure, one: (Layout, Variant), other: (Layout, Variant)| -> Option<Spread> {
        let name = |(layout, variant): (Layout, Variant)| (layout.to_string(), variant.path());
        let (one, other) = (name(one), name(other));
        study.over(
            Heat::Warm.as_str(),
            figure,
            (&one.0, one.1),
            (&other.0, other.1),
        )
    };
    let many = (Layout::Partman, Variant::ManyDays);
    if let Some(planning) = over("planning_ms", many, both) {
        findings.push(format!(
            "With 400 partitions planning takes {:.1} times as long as with {}, warm.",
            planning.median,
            variant::MONTH_DAYS
        ));
    }
    if let Some(citus) = over("ms", (Layout::Citus, Variant::Indexed), indexed) {
        findings.push(format!(
            "Citus with the index needs {:.2} times the time of one Postgres with it, warm: its shards were searched by servers \
             that share this machine's cores.",
            citus.median
        ));
    }
    findings
}
