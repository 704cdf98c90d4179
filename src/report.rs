//! `shardlane report`: one page from the results of several experiments.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use shardlane_bench::report::runs::{Runs, write};

/// Make one page of the results of several experiments, and compare reruns
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Folders with results: an experiment's --out, or one of bench/runs
    #[arg(value_name = "DIR", required = true)]
    folders: Vec<PathBuf>,
    /// The page
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    out: PathBuf,
}

impl ReportArgs {
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        let runs = Runs::read(&self.folders)?;
        for (file, why) in runs.unread() {
            eprintln!("not on the page: {file}: {why}");
        }
        write(&runs, &self.out)
            .with_context(|| format!("{} cannot be written", self.out.display()))?;
        println!("results: {}", runs.count());
        println!("report:  {}", self.out.display());
        Ok(ExitCode::SUCCESS)
    }
}
