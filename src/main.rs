//! The `shardlane` command: one file a subcommand.

mod audit;
mod backend;
mod check;
mod compose;
mod config;
mod dlq;
mod doctor;
mod experiment;
mod health;
mod heaps;
mod hot;
mod ingest;
mod json_log;
mod load;
mod map;
mod migrate;
mod relay;
mod report;
mod reshard;
mod route;
mod topics;
mod traces;
mod up;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "shardlane", version, about, propagate_version = true)]
struct Cli {
    /// Settings that flags and environment may overrule: TOML, see docs/settings/shardlane.toml
    #[arg(long, global = true, env = "SHARDLANE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    traces: traces::TraceArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::UpArgs),
    Down(up::DownArgs),
    Status(up::StatusArgs),
    Migrate(migrate::MigrateArgs),
    Topics(topics::TopicsArgs),
    Ingest(ingest::IngestArgs),
    Load(load::LoadArgs),
    Worker(worker::WorkerArgs),
    Relay(relay::RelayArgs),
    Route(route::RouteArgs),
    Map(map::MapCommand),
    Reshard(reshard::ReshardArgs),
    Check(check::CheckArgs),
    Audit(audit::AuditArgs),
    Dlq(dlq::DlqArgs),
    Experiment(experiment::ExperimentArgs),
    Report(report::ReportArgs),
    Config(config::ConfigArgs),
    Doctor(doctor::DoctorArgs),
    Health(health::HealthArgs),
}

/// 0: done. 1: done, and something disagrees or is not as it should be. 2: bad arguments, or it could not be done.
fn main() -> ExitCode {
    let cli = match config::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    if matches!(cli.command, Command::Worker(_)) {
        heaps::limit();
    }
    let _traces = match cli.traces.start() {
        Ok(traces) => traces,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime could not be started: {error}");
            return ExitCode::from(2);
        }
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Up(arguments) => arguments.run().await,
            Command::Down(arguments) => arguments.run().await,
            Command::Status(arguments) => arguments.run().await,
            Command::Migrate(arguments) => arguments.run().await,
            Command::Topics(arguments) => arguments.run().await,
            Command::Ingest(arguments) => arguments.run().await,
            Command::Load(arguments) => arguments.run().await,
            Command::Worker(arguments) => arguments.run().await,
            Command::Relay(arguments) => arguments.run().await,
            Command::Route(arguments) => arguments.run().await,
            Command::Map(arguments) => arguments.run().await,
            Command::Reshard(arguments) => arguments.run().await,
            Command::Check(arguments) => arguments.run().await,
            Command::Audit(arguments) => arguments.run().await,
            Command::Dlq(arguments) => arguments.run().await,
            Command::Experiment(arguments) => arguments.run().await,
            Command::Report(arguments) => arguments.run(),
            Command::Config(arguments) => arguments.run(cli.config),
            Command::Doctor(arguments) => arguments.run().await,
            Command::Health(arguments) => arguments.run().await,
        }
    });
    result.unwrap_or_else(|error| {
        // The whole chain: each error displays only itself.
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}
