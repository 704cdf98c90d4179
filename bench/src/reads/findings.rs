//! What the figures of the reads say, for and against each layout.

use super::part_name;
use super::question::{Path, Question};
use crate::routing::results::Spread;
use crate::study::{MainRatio, Study};

const SINGLE: (&str, &str) = ("single", Path::OneServer.as_str());
const SHARDS: (&str, &str) = ("shards", Path::Owner.as_str());
const COORDINATOR: (&str, &str) = ("citus", Path::Coordinator.as_str());
const ANY_NODE: (&str, &str) = ("citus", Path::AnyNode.as_str());
const OWNER: (&str, &str) = ("citus", Path::Owner.as_str());

pub(super) fn findings(study: &Study, clients: &[u32]) -> Vec<String> {
    let (Some(few), Some(many)) = (clients.iter().min(), clients.iter().max()) else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    findings.extend(owner(study, *many));
    if few != many {
        findings.extend(owner(study, *few));
    }
    findings.extend(single(study, *many));
    findings.extend(without_user(study, *many));
    findings.extend(partitions(study, *many));
    findings
}

/// The smart client against one that knows nothing.
pub(super) fn main_ratio(study: &Study, clients: &[u32]) -> Option<MainRatio> {
    let part = part_name(Question::User, *clients.iter().max()?);
    let ratio = study.over(&part, "reads_per_s", OWNER, COORDINATOR);
    MainRatio::of("reads by user, citus owner / coordinator", ratio)
}

/// The smart client against those who do not know the owner.
fn owner(study: &Study, clients: u32) -> Option<String> {
    let part = part_name(Question::User, clients);
    let over = |figure, other| Some(study.over(&part, figure, OWNER, other)?.median);
    Some(format!(
        "With {clients} at once, all orders of a user: by its owner Citus gives {} the reads of the coordinator and {} those of any \
         node in turn, for {:.2} and {:.2} of the server CPU.",
        times(over("reads_per_s", COORDINATOR)?),
        times(over("reads_per_s", ANY_NODE)?),
        over("server_cpu_us", COORDINATOR)?,
        over("server_cpu_us", ANY_NODE)?,
    ))
}

/// What one Postgres does with the same cores.
fn single(study: &Study, clients: u32) -> Option<String> {
    let part = part_name(Question::User, clients);
    let cells = [
        ("manual shards", SHARDS),
        ("Citus by the owner", OWNER),
        ("Citus by its coordinator", COORDINATOR),
    ];
    let said: Vec<String> = cells
        .into_iter()
        .filter_map(|(name, cell)| {
            let over = study.over(&part, "reads_per_s", cell, SINGLE)?.median;
            let cpu = study.over(&part, "server_cpu_us", cell, SINGLE)?.median;
            Some(format!(
                "{name} {} the reads for {cpu:.2} of the CPU",
                times(over)
            ))
        })
        .collect();
    (!said.is_empty()).then(|| {
        format!(
            "Against one Postgres on the same cores, all orders of a user, {clients} at once: {}.",
            said.join("; ")
        )
    })
}

/// An order whose user nobody knows: what the directory saves, and what it still costs.
fn without_user(study: &Study, clients: u32) -> Option<String> {
    let cpu = |question, (layout, path): (&str, &str)| {
        let cell = study.cell(&part_name(question, clients), layout, path)?;
        Some(cell.figures.get("server_cpu_us")?.median)
    };
    let scatter = ("shards", Path::ScatterGather.as_str());
    let said: Vec<String> = [
        ("one Postgres", SINGLE, SINGLE),
        ("manual shards", scatter, SHARDS),
        ("Citus's coordinator", COORDINATOR, COORDINATOR),
    ]
    .into_iter()
    .filter_map(|(name, without, by_user)| {
        let user = cpu(Question::User, by_user)?;
        let directory = cpu(Question::Directory, without)? / user;
        let scan = cpu(Question::Scan, without)? / user;
        Some(format!(
            "{name} {directory:.1} times with the directory, {scan:.1} times without"
        ))
    })
    .collect();
    (!said.is_empty()).then(|| {
        format!(
            "An order without its user, in server CPU of a read by user, {clients} at once: {}.",
            said.join("; ")
        )
    })
}

/// What time partitions cost a reader who has no time.
fn partitions(study: &Study, clients: u32) -> Option<String> {
    let part = part_name(Question::Latest, clients);
    let partman = ("partman", Path::OneServer.as_str());
    let over: Spread = study.over(&part, "reads_per_s", partman, SINGLE)?;
    Some(format!(
        "The latest events of a user, whose partition nobody knows: daily partitions give {} the reads of one table.",
        times(over.median)
    ))
}

fn times(ratio: f64) -> String {
    format!("{ratio:.2} times")
}
