//! `shardlane status --worker URL`: which slots and users the workers are busy with; `--web URL`: a worker's page.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use shardlane_worker::{HOT_MAX, HotAnswer, HotSlot, HotUser, skew};
use uuid::Uuid;

/// How long a worker may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

pub(crate) async fn run(workers: Vec<String>, json: bool) -> anyhow::Result<ExitCode> {
    let answers = tokio::task::spawn_blocking(move || {
        workers
            .iter()
            .map(|worker| ask(worker))
            .collect::<anyhow::Result<Vec<_>>>()
    });
    let all = together(answers.await??);
    if json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        print(&all);
    }
    Ok(ExitCode::SUCCESS)
}

fn ask(worker: &str) -> anyhow::Result<HotAnswer> {
    let url = format!("{}/hot", address_of(worker));
    let body = get(&url)?;
    serde_json::from_str(&body).with_context(|| format!("{url} is not a worker of this version"))
}

/// `shardlane status --web URL`: where the worker's page is. On a terminal a browser is asked to show it.
pub(crate) async fn web(worker: String) -> anyhow::Result<ExitCode> {
    let base = address_of(&worker);
    let url = format!("{base}/lanes");
    let body = tokio::task::spawn_blocking(move || get(&url)).await??;
    serde_json::from_str::<serde_json::Value>(&body)
        .with_context(|| format!("{base} is not a worker of this version"))?;
    println!("{base}/");
    if std::io::stdout().is_terminal() {
        let open = if cfg!(target_os = "macos") {
            "open"
        } else {
            "xdg-open"
        };
        let quiet = || Stdio::null();
        // Where there is no desktop the address must do.
        Command::new(open)
            .arg(format!("{base}/"))
            .stdout(quiet())
            .stderr(quiet())
            .spawn()
            .ok();
    }
    Ok(ExitCode::SUCCESS)
}

fn address_of(worker: &str) -> String {
    let base = worker.trim_end_matches('/');
    if base.contains("://") {
        base.to_owned()
    } else {
        format!("http://{base}")
    }
}

fn get(url: &str) -> anyhow::Result<String> {
    let agent = ureq::Agent::config_builder()
        .timeout_global(Some(ANSWER_MAX))
        .build()
        .new_agent();
    let mut response = agent
        .get(url)
        .call()
        .with_context(|| format!("{url} does not answer; was the worker started with --listen?"))?;
    Ok(response.body_mut().read_to_string()?)
}

/// Workers share users and slots where their partitions are of different topics, so their events add up.
fn together(answers: Vec<HotAnswer>) -> HotAnswer {
    let mut slots: BTreeMap<u16, HotSlot> = BTreeMap::new();
    let mut users: BTreeMap<Uuid, HotUser> = BTreeMap::new();
    let (mut total, mut users_error_max) = (0, 0);
    for answer in answers {
        total += answer.total;
        users_error_max += answer.users_error_max;
        for slot in answer.slots {
            match slots.get_mut(&slot.slot) {
                Some(known) => known.events += slot.events,
                None => drop(slots.insert(slot.slot, slot)),
            }
        }
        for user in answer.users {
            match users.get_mut(&user.user) {
                Some(known) => known.events += user.events,
                None => drop(users.insert(user.user, user)),
            }
        }
    }
    let mut slots: Vec<HotSlot> = slots.into_values().collect();
    slots.sort_by_key(|slot| std::cmp::Reverse(slot.events));
    slots.truncate(HOT_MAX);
    let mut users: Vec<HotUser> = users.into_values().collect();
    users.sort_by_key(|user| std::cmp::Reverse(user.events));
    users.truncate(HOT_MAX);
    HotAnswer {
        total,
        skew: skew(slots.first().map_or(0, |slot| slot.events), total),
        users_error_max,
        slots,
        users,
    }
}

fn print(all: &HotAnswer) {
    let share = |events: u64| {
        let share = 100.0 * events as f64 / all.total.max(1) as f64;
        format!("{share:.2} %")
    };
    println!(
        "{} events; the busiest slot has {:.1} times the mean",
        all.total, all.skew
    );
    let mut slots = table(&["slot", "partition", "shard", "events", "share"]);
    for slot in &all.slots {
        let shards: Vec<String> = slot.shards.iter().map(ToString::to_string).collect();
        slots.add_row([
            slot.slot.to_string(),
            slot.partition.to_string(),
            shards.join(" "),
            slot.events.to_string(),
            share(slot.events),
        ]);
    }
    println!("\n{slots}");
    let mut users = table(&["user", "slot", "shard", "events", "share"]);
    for user in &all.users {
        let shard = user.shard.map(|shard| shard.to_string());
        users.add_row([
            user.user.to_string(),
            user.slot.to_string(),
            shard.unwrap_or_else(|| "moving".to_owned()),
            user.events.to_string(),
            share(user.events),
        ]);
    }
    println!("\n{users}");
    if all.users_error_max > 0 {
        println!(
            "\nA user's events may be up to {} fewer.",
            all.users_error_max
        );
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.iter().copied());
    table
}
