//! `shardlane reshard`: slots move between manual shards, online.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use shardlane_router::ShardId;
use shardlane_sql::SlotSet;
use shardlane_sql::reshard::{Change, Plan, Reshard, ReshardOptions};

use crate::backend::MapArgs;

/// Move slots between manual shards while writers write
#[derive(Debug, Args)]
pub(crate) struct ReshardArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show what would move; nothing is written
    Plan(PlanArgs),
    /// Move, or go on with what was interrupted
    Run(RunArgs),
    /// Show how far a reshard is; exit code 1 while one is under way
    Status(StatusArgs),
    /// Give up: before any shard has taken its new slots
    Abort(ShardsArgs),
}

#[derive(Debug, Args)]
struct ShardsArgs {
    /// DSNs of the shards, in their order; one suffices once slots have moved
    #[arg(
        long = "database",
        env = "SHARDLANE_DATABASE",
        value_delimiter = ',',
        value_name = "DSN",
        required = true
    )]
    databases: Vec<String>,
    #[command(flatten)]
    map: MapArgs,
}

#[derive(Debug, Args)]
struct ChangeArgs {
    /// DSN of an empty database that becomes a shard; repeat it for more
    #[arg(long, value_name = "DSN", value_delimiter = ',')]
    add: Vec<String>,
    /// Number of a shard that gives all its slots away; repeat it for more
    #[arg(long, value_name = "SHARD", value_delimiter = ',')]
    remove: Vec<i64>,
    /// Just these slots, such as 17-17 or 0-99,200-299
    #[arg(long = "move", value_name = "SLOTS", requires = "to", conflicts_with_all = ["add", "remove"])]
    slots: Option<SlotSet>,
    /// The shard that --move gives them to
    #[arg(long, value_name = "SHARD", requires = "slots")]
    to: Option<i64>,
}

#[derive(Debug, Args)]
struct PlanArgs {
    #[command(flatten)]
    shards: ShardsArgs,
    #[command(flatten)]
    change: ChangeArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    shards: ShardsArgs,
    #[command(flatten)]
    change: ChangeArgs,
    /// How long the slots that move to one shard may wait, in milliseconds; then they are thawed
    #[arg(long, value_name = "MS", default_value_t = 2_000)]
    stall_max: u64,
    /// How long one first copy may take, in seconds
    #[arg(long, value_name = "S", default_value_t = 3_600)]
    copy_max: u64,
}

#[derive(Debug, Args)]
struct StatusArgs {
    #[command(flatten)]
    shards: ShardsArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl ReshardArgs {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        match self.action {
            Action::Plan(arguments) => arguments.run().await,
            Action::Run(arguments) => arguments.run().await,
            Action::Status(arguments) => arguments.run().await,
            Action::Abort(shards) => {
                let plan = shards
                    .connect(ReshardOptions::default())
                    .await?
                    .abort()
                    .await?;
                println!("given up; nothing has moved:\n{plan}");
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

impl ShardsArgs {
    async fn connect(&self, options: ReshardOptions) -> anyhow::Result<Reshard> {
        let map = self.map.read(self.databases.len())?;
        Ok(Reshard::connect(&self.databases, map, options).await?)
    }
}

impl ChangeArgs {
    fn change(self) -> Change {
        Change {
            add: self.add,
            remove: self.remove.into_iter().map(ShardId).collect(),
            slots: self.slots.zip(self.to.map(ShardId)),
        }
    }
}

impl PlanArgs {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let change = self.change.change();
        if change.is_empty() {
            bail!("say what shall change: --add DSN, --remove SHARD, or --move SLOTS --to SHARD");
        }
        let reshard = self.shards.connect(ReshardOptions::default()).await?;
        let plan = reshard.plan(&change).await?;
        let rows = reshard.rows_of(&plan).await?;
        if self.json {
            let plan = serde_json::json!({ "plan": plan, "rows": rows });
            println!("{}", serde_json::to_string_pretty(&plan)?);
        } else {
            print!("{plan}");
            println!(
                "{rows} rows are copied; run it with `shardlane reshard run` and the same arguments"
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl RunArgs {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let options = ReshardOptions {
            stall_max: Duration::from_millis(self.stall_max),
            copy_max: Duration::from_secs(self.copy_max),
            ..ReshardOptions::default()
        };
        let mut reshard = self.shards.connect(options).await?;
        let plan = reshard
            .run(&self.change.change(), |step, number, steps| {
                println!("{number}/{steps} {step}");
            })
            .await?;
        println!("done:");
        print!("{plan}");
        Ok(ExitCode::SUCCESS)
    }
}

impl StatusArgs {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let reshard = self.shards.connect(ReshardOptions::default()).await?;
        let (catalog, journal) = (reshard.catalog().await?, reshard.journal().await?);
        if self.json {
            let journal = journal.as_ref().map(|journal| {
                serde_json::json!({
                    "plan": journal.plan,
                    "done": journal.done,
                    "steps": journal.plan.steps().len(),
                    "next": journal.next().map(|step| step.to_string()),
                })
            });
            let status = serde_json::json!({ "catalog": catalog, "reshard": journal });
            println!("{}", serde_json::to_string_pretty(&status)?);
        } else {
            print!("{}", describe(&catalog));
            match &journal {
                None => println!("no reshard is under way"),
                Some(journal) => {
                    let next = journal
                        .next()
                        .map_or("the end".to_owned(), |step| step.to_string());
                    let (done, steps) = (journal.done, journal.plan.steps().len());
                    println!(
                        "a reshard is under way: {done} of {steps} steps are done, next is {next}"
                    );
                    show(&journal.plan);
                }
            }
        }
        Ok(ExitCode::from(u8::from(journal.is_some())))
    }
}

fn show(plan: &Plan) {
    for line in plan.to_string().lines() {
        println!("  {line}");
    }
}

/// A line a shard.
pub(crate) fn describe(catalog: &shardlane_sql::Catalog) -> String {
    let mut text = format!("epoch {}\n", catalog.epoch());
    for entry in &catalog.shards {
        let slots = catalog.owned(entry.shard);
        text += &format!(
            "shard {}: {} slots ({slots}) at {}:{}/{}, since epoch {}\n",
            entry.shard,
            slots.len(),
            entry.host,
            entry.port,
            entry.database,
            entry.epoch
        );
    }
    if !catalog.frozen.is_empty() {
        text += &format!(
            "{} slots are frozen ({}): their writers wait\n",
            catalog.frozen.len(),
            catalog.frozen
        );
    }
    text
}
