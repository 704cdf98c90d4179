//! The retention experiment: a day leaves a log of several days, by DELETE and VACUUM or by dropping its partition, while
//! somebody goes on writing.

mod ground;
mod writer;

use std::fmt;
use std::time::{Duration, Instant};

use shardlane_sql::Layout;

use crate::study::{CellResult, Figure, MainRatio, Part, Rounds, Run, Started, Stop, Study};
use ground::{Ground, Log};
use writer::Writer;

/// The size of the experiment.
#[derive(Debug, Clone)]
pub struct RetentionSettings {
    /// Any of single, partman, citus.
    pub layouts: Vec<Layout>,
    /// Rows of the log, over all its days.
    pub rows: u64,
    /// Days in the log; one leaves.
    pub days: u32,
    /// Rows that one more session writes each second meanwhile.
    pub writes_per_s: u32,
    /// Size of a row's payload, in bytes.
    pub payload_bytes: u32,
    /// Runs of each cell.
    pub runs: u32,
}

/// How a day leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// One DELETE, then VACUUM.
    Delete,
    /// DELETEs of some thousand rows each, then VACUUM.
    DeletePages,
    /// DROP TABLE of its partition.
    Drop,
    /// DETACH ... CONCURRENTLY, then DROP TABLE.
    Detach,
}

impl Way {
    const fn path(self) -> &'static str {
        match self {
            Way::Delete => "delete",
            Way::DeletePages => "delete-pages",
            Way::Drop => "drop",
            Way::Detach => "detach+drop",
        }
    }

    const fn is_partitioned(self) -> bool {
        matches!(self, Way::Drop | Way::Detach)
    }

    const fn all_of(layout: Layout) -> &'static [Way] {
        match layout {
            Layout::Single => &[Way::Delete, Way::DeletePages],
            Layout::Partman => &[Way::Drop, Way::Detach],
            // Citus cannot detach concurrently.
            Layout::Citus => &[Way::Delete, Way::Drop],
            Layout::Shards => &[],
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cell {
    layout: Layout,
    way: Way,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.layout, self.way.path())
    }
}

/// How long the writer is watched before the day leaves.
const LEAD: Duration = Duration::from_secs(2);
const PART: &str = "day";

/// Runs the experiment.
///
/// # Errors
/// Where no layout can run, or a server fails.
pub async fn run(settings: &RetentionSettings, command: &str, stop: Stop) -> anyhow::Result<Study> {
    let started = Started::now();
    let rounds = Rounds::new(settings.runs, stop)?;
    let ground = Ground::start(&settings.layouts).await?;
    let cells: Vec<Cell> = ground
        .layouts
        .iter()
        .flat_map(|layout| {
            Way::all_of(*layout).iter().map(|way| Cell {
                layout: *layout,
                way: *way,
            })
        })
        .collect();
    let mut logs = Vec::new();
    for cell in &cells {
        rounds.say(&format!("{cell}: writing {} rows", settings.rows));
        logs.push((*cell, ground.log(*cell, settings).await?));
    }
    let mut faults = Vec::new();
    let measured = rounds
        .measure(cells, async |cell, _| {
            let Some((_, log)) = logs.iter_mut().find(|(of, _)| of == cell) else {
                anyhow::bail!("{cell} has no log");
            };
            let (run, fault) = measure(&ground, log, settings).await?;
            faults.extend(fault.map(|fault| format!("{cell}: {fault}")));
            Ok(run)
        })
        .await?;
    let mut study = Study::new("retention", command, started);
    study.versions = ground.versions().await?;
    study.settings = describe(settings);
    study.parts = vec![part()];
    study.results = measured
        .into_iter()
        .map(|(cell, runs)| CellResult::new(PART, cell.layout.as_str(), cell.way.path(), runs))
        .collect();
    study.skipped = ground.skipped.clone();
    study.is_interrupted = rounds.is_stopped();
    study.faults = faults;
    study.findings = findings(&study);
    let (delete, drop) = (
        ("single", Way::Delete.path()),
        ("partman", Way::Drop.path()),
    );
    study.main_ratio = MainRatio::of(
        "time, DELETE and VACUUM / DROP",
        study.over(PART, "seconds", delete, drop),
    );
    Ok(study)
}

fn part() -> Part {
    Part::new(
        PART,
        "A day leaves",
        "The oldest day of the log is removed and its space given back, while one session inserts at a constant rate.",
        [
            Figure::new("seconds", "took s", "s", 3),
            Figure::new("vacuum_s", "of it VACUUM s", "s", 3),
            Figure::new("wal_mb", "WAL MB", "MB", 2),
            Figure::new("write_p99_ms", "insert p99 ms", "ms", 1),
            Figure::new("write_max_ms", "insert max ms", "ms", 1),
            Figure::new("normal_p99_ms", "normal p99 ms", "ms", 1),
            Figure::new("mb_after", "files after MB", "MB", 1),
        ],
    )
}

async fn measure(
    ground: &Ground,
    log: &mut Log,
    settings: &RetentionSettings,
) -> anyhow::Result<(Run, Option<String>)> {
    let layout = log.layout();
    log.append_day(settings).await?;
    ground.checkpoint(layout).await?;
    let mut writer = Writer::start(log, settings.writes_per_s).await?;
    let wal_at_rest = ground.wal_bytes(layout).await?;
    tokio::time::sleep(LEAD).await;
    let normal = writer.latencies_so_far();
    let wal_before = ground.wal_bytes(layout).await?;
    let began = Instant::now();
    let vacuum = log.remove_oldest_day().await?;
    let took = began.elapsed();
    let wal_after = ground.wal_bytes(layout).await?;
    let busy = writer.latencies_so_far();
    let written = writer.stop().await?;
    // What the writer wrote meanwhile is not the removal's.
    let writers_share = (wal_before - wal_at_rest) * took.as_secs_f64() / LEAD.as_secs_f64();
    let left = log.oldest_day_rows().await?;
    let fault = (left != 0).then(|| format!("{left} rows of the day that left are still there"));
    let fault = fault.or_else(|| (written == 0).then(|| "nobody wrote meanwhile".to_owned()));
    log.forget_oldest_day();
    let run = Run::from(
        [
            ("seconds", took.as_secs_f64()),
            ("vacuum_s", vacuum.as_secs_f64()),
            (
                "wal_mb",
                (wal_after - wal_before - writers_share).max(0.0) / 1e6,
            ),
            ("write_p99_ms", busy.p99_ms),
            ("write_max_ms", busy.max_ms),
            ("normal_p99_ms", normal.p99_ms),
            ("mb_after", log.bytes().await? / 1e6),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    Ok((run, fault))
}

fn describe(settings: &RetentionSettings) -> std::collections::BTreeMap<String, String> {
    std::collections::BTreeMap::from(
        [
            ("rows", settings.rows.to_string()),
            ("days", settings.days.to_string()),
            ("payload bytes", settings.payload_bytes.to_string()),
            ("inserts a second", settings.writes_per_s.to_string()),
            ("runs", settings.runs.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    )
}

fn findings(study: &Study) -> Vec<String> {
    let mut findings = Vec::new();
    let delete = ("single", Way::Delete.path());
    let drop = ("partman", Way::Drop.path());
    if let (Some(time), Some(wal)) = (
        study.over(PART, "seconds", delete, drop),
        study.over(PART, "wal_mb", delete, drop),
    ) {
        findings.push(format!(
            "DELETE and VACUUM took {:.0} times as long as dropping the day's partition, and wrote {:.0} times the WAL.",
            time.median, wal.median
        ));
    }
    let figure = |(layout, path): (&str, &str), name: &str| {
        Some(study.cell(PART, layout, path)?.figures.get(name)?.median)
    };
    for (cell, what) in [
        (delete, "one DELETE"),
        (("single", Way::DeletePages.path()), "a DELETE of pages"),
        (drop, "a DROP"),
        (("partman", Way::Detach.path()), "DETACH CONCURRENTLY"),
    ] {
        if let (Some(max), Some(p99), Some(normal)) = (
            figure(cell, "write_max_ms"),
            figure(cell, "write_p99_ms"),
            figure(cell, "normal_p99_ms"),
        ) {
            findings.push(format!(
                "Beside {what} an insert took {p99:.1} ms at the 99th percentile ({normal:.1} ms before), and {max:.1} ms at \
                 most."
            ));
        }
    }
    let (size_deleted, size_dropped) = (figure(delete, "mb_after"), figure(drop, "mb_after"));
    if let (Some(deleted), Some(dropped)) = (size_deleted, size_dropped) {
        findings.push(format!(
            "Afterwards the files hold {:.2} times as many bytes where rows were deleted: VACUUM keeps their space for new rows.",
            deleted / dropped
        ));
    }
    findings
}
