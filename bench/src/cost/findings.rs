//! What the costs say, for and against each layout.

use super::model::{BatchCosts, Batches, Checked};
use super::{MEASURED, MODEL};
use crate::study::{MainRatio, Study};

const SINGLE: (&str, &str) = ("single", "worker");
const OWNER: (&str, &str) = ("citus", "owner");
const GROUPED: (&str, &str) = ("citus", "coordinator-grouped");
const COORDINATOR: (&str, &str) = ("citus", "coordinator");
const OTHERS: [(&str, (&str, &str)); 5] = [
    ("pg_partman", ("partman", "worker")),
    ("manual shards", ("shards", "aligned")),
    ("Citus by the owner", OWNER),
    ("Citus by its coordinator, a shard a batch,", GROUPED),
    ("Citus by its coordinator, mixed,", COORDINATOR),
];

pub(super) fn findings(study: &Study, checked: &[Checked]) -> Vec<String> {
    let mut findings = Vec::new();
    findings.extend(against_single(study, "server_cpu_us", "CPU of the servers"));
    findings.extend(against_single(study, "wal_bytes", "write-ahead log"));
    findings.extend(against_single(study, "memory_mib", "memory of the servers"));
    findings.extend(coordinator(study));
    findings.extend(even(study));
    findings.extend(published(checked));
    findings
}

/// What Citus costs at its best.
pub(super) fn main_ratio(study: &Study) -> Option<MainRatio> {
    let ratio = study.over(MEASURED, "server_cpu_us", OWNER, SINGLE);
    MainRatio::of("server CPU an event, citus owner / single", ratio)
}

/// An event's cost on each layout against one Postgres.
fn against_single(study: &Study, figure: &str, what: &str) -> Option<String> {
    let said: Vec<String> = OTHERS
        .into_iter()
        .filter_map(|(name, cell)| {
            let over = study.over(MEASURED, figure, cell, SINGLE)?;
            Some(format!("{name} {:.2}", over.median))
        })
        .collect();
    (!said.is_empty()).then(|| {
        format!(
            "Times the {what} of one Postgres for the same events: {}.",
            said.join("; ")
        )
    })
}

/// Where a coordinator ends.
fn coordinator(study: &Study) -> Option<String> {
    let full = |(layout, path)| {
        let cell = study.cell(MODEL, layout, path)?;
        Some(cell.figures.get("full_at")?.median)
    };
    Some(format!(
        "By the model a coordinator is full when {:.1} nodes of its own size work behind it (a shard a batch; {:.1} with mixed \
         batches): by the owner there is no such end.",
        full(GROUPED)?,
        full(COORDINATOR)?
    ))
}

/// When a cluster has made good what it costs.
fn even(study: &Study) -> Option<String> {
    let over = |cell: (&str, &str)| Some(study.over(MODEL, "nodes_1", cell, SINGLE)?.median);
    let (shards, owner) = (over(("shards", "aligned"))?, over(OWNER)?);
    Some(format!(
        "By the model {:.2} nodes of manual shards, or {:.2} of Citus by the owner, do what one Postgres of the same size does.",
        1.0 / shards,
        1.0 / owner
    ))
}

fn published(checked: &[Checked]) -> Option<String> {
    let said: Vec<String> = checked
        .iter()
        .map(|one| format!("{} {:.2}", one.name, one.predicted / one.published))
        .collect();
    (!said.is_empty()).then(|| {
        format!(
            "Predicted over published figures of Citus, where 1 is right and more is too optimistic: {}.",
            said.join("; ")
        )
    })
}

/// The costs of an event and of a shard, from batches of one shard and of all.
pub(super) fn batch_costs(study: &Study, all_shards: f64) -> Option<BatchCosts> {
    let batches = |(layout, path), shards| {
        let figures = &study.cell(MEASURED, layout, path)?.figures;
        Some(Batches {
            events: figures.get("batch_events")?.median,
            shards,
            event_us: figures.get("server_cpu_us")?.median,
        })
    };
    BatchCosts::solve(batches(GROUPED, 1.0)?, batches(COORDINATOR, all_shards)?)
}
