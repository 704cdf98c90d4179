//! `faults`: runs the fault suite.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, Parser, Subcommand};
use shardlane_faults::lab::Lab;
use shardlane_faults::planted::{hunt, hunter};
use shardlane_faults::scenario::{Run, SCENARIOS, Scenario, Sizes, named};
use shardlane_faults::table::{Row, render};
use shardlane_faults::worker::WorkerArgs;
use shardlane_sql::mutants::Mutant;

/// Real servers, real workers, faults of every kind, and an oracle for what became of the events
#[derive(Debug, Parser)]
#[command(name = "faults")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every fault, and then every planted defect where this build has them
    All(RunArgs),
    /// Faults
    Run(RunArgs),
    /// Planted defects, each of which the oracle has to find
    Mutants(RunArgs),
    /// What there is
    List,
    #[command(hide = true)]
    Worker(WorkerArgs),
}

#[derive(Debug, Clone, Args)]
struct RunArgs {
    /// Everything random comes from this
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How often each fault is repeated, instead of as often as it says
    #[arg(long)]
    times: Option<u32>,
    /// Only these
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Fewer events and shorter outages
    #[arg(long)]
    quick: bool,
    /// Webhooks a run
    #[arg(long)]
    events: Option<u64>,
    /// Where workers write their logs
    #[arg(long, default_value = "out/faults")]
    logs: PathBuf,
}

/// 0: all rows are zeros, and all defects were found. 1: not so. 2: it could not be run.
fn main() -> ExitCode {
    let command = Cli::parse().command;
    // The harness's own clients meet the faults too, which is no news.
    let level = if matches!(command, Command::Worker(_)) {
        "shardlane_worker=info,warn"
    } else {
        "off"
    };
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level)),
        )
        .with_writer(std::io::stderr)
        .init();
    // A worker's threads are those of a worker; the harness waits for brokers on some of its own.
    let threads = if matches!(command, Command::Worker(_)) {
        2
    } else {
        8
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(run(command)),
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn run(command: Command) -> anyhow::Result<bool> {
    match command {
        Command::Worker(arguments) => arguments.run().await.map(|()| true),
        Command::List => {
            for scenario in SCENARIOS {
                println!("{:<20} {}", scenario.name, scenario.what);
            }
            for mutant in Mutant::ALL {
                println!("{:<28} found by {}", mutant.name(), hunter(mutant));
            }
            Ok(true)
        }
        Command::Run(arguments) => faults(&lab(&arguments).await?, &arguments).await,
        Command::Mutants(arguments) => mutants(&lab(&arguments).await?, &arguments).await,
        Command::All(arguments) => {
            let lab = lab(&arguments).await?;
            let clean = faults(&lab, &arguments).await?;
            Ok(mutants(&lab, &arguments).await? && clean)
        }
    }
}

async fn lab(arguments: &RunArgs) -> anyhow::Result<Lab> {
    Lab::start(&std::env::current_exe()?, &arguments.logs).await
}

async fn faults(lab: &Lab, arguments: &RunArgs) -> anyhow::Result<bool> {
    let chosen: Vec<&Scenario> = if arguments.only.is_empty() {
        SCENARIOS.iter().collect()
    } else {
        let names = arguments.only.iter();
        let found = names
            .map(|name| named(name).ok_or_else(|| anyhow::anyhow!("there is no fault {name}")));
        found.collect::<anyhow::Result<_>>()?
    };
    let mut sizes = if arguments.quick {
        Sizes::QUICK
    } else {
        Sizes::FULL
    };
    sizes.events = arguments.events.unwrap_or(sizes.events);
    let mut rows = Vec::new();
    for scenario in chosen {
        if scenario.needs_points && !cfg!(feature = "mutants") {
            eprintln!("skipped: {}: this build has no named points", scenario.name);
            continue;
        }
        let mut row = Row {
            name: scenario.name.to_owned(),
            ..Row::default()
        };
        let times = if arguments.quick { 1 } else { scenario.times };
        for time in 0..arguments.times.unwrap_or(times) {
            let seed = arguments.seed + u64::from(time);
            let (began, run) = (
                Instant::now(),
                Run {
                    lab,
                    seed,
                    sizes,
                    mutant: None,
                },
            );
            match scenario.run(run).await {
                Ok(outcome) => {
                    let verdict = &outcome.verdict;
                    eprintln!(
                        "{} seed {seed}: {} events, {} findings, {:.0} s; {}; {} letters and {} records again; {:?}",
                        scenario.name,
                        verdict.events,
                        verdict.findings.len(),
                        began.elapsed().as_secs_f64(),
                        outcome.struck,
                        verdict.letters_again,
                        verdict.records_again,
                        verdict.fates
                    );
                    if !verdict.findings.is_empty() {
                        eprint!("{}", verdict.describe(10));
                    }
                    row.add(&outcome);
                }
                Err(error) => {
                    eprintln!("{} seed {seed} failed: {error:#}", scenario.name);
                    row.times += 1;
                    row.failed += 1;
                }
            }
        }
        rows.push(row);
    }
    println!("{}", render(&rows));
    Ok(rows.iter().all(Row::is_clean))
}

async fn mutants(lab: &Lab, arguments: &RunArgs) -> anyhow::Result<bool> {
    if !cfg!(feature = "mutants") {
        anyhow::bail!(
            "this build has no planted defects; build with --features mutants, or run `make faults`"
        );
    }
    let wanted = |mutant: &Mutant| {
        let only = &arguments.only;
        only.is_empty()
            || only
                .iter()
                .any(|name| name == mutant.name() || named(name).is_some())
    };
    let chosen: Vec<Mutant> = Mutant::ALL.into_iter().filter(wanted).collect();
    let mut caught = 0;
    for mutant in &chosen {
        let hunt = hunt(lab, *mutant, arguments.seed).await;
        caught += usize::from(hunt.caught);
        let verb = if hunt.caught {
            "caught by"
        } else {
            "NOT CAUGHT by"
        };
        println!(
            "{:<28} {verb} {}: {}",
            mutant.name(),
            hunter(*mutant),
            hunt.how
        );
    }
    println!("mutants caught: {caught} of {}", chosen.len());
    Ok(caught == chosen.len())
}
