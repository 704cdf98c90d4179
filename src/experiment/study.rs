//! What all studies have: where their results go, and how they end.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use shardlane_bench::report;
use shardlane_bench::study::{Stop, Study, render};

use super::{command_line, write_json};

#[derive(Debug, Args)]
pub(super) struct StudyArgs {
    /// Runs of each cell [default: the experiment's own]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(super) runs: Option<u32>,
    /// Small sizes and few runs, done within a minute or two
    #[arg(long)]
    pub(super) quick: bool,
    /// Folder for NAME.json and NAME.html, by the experiment's name
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Also write the results here; `-` prints them instead of the tables
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl StudyArgs {
    /// `usual` runs, or `quick` ones, or as many as were asked for.
    pub(super) fn runs_or(&self, usual: u32, quick: u32) -> u32 {
        self.runs.unwrap_or(if self.quick { quick } else { usual })
    }

    /// Runs the study, writes its results and page, and prints its tables. `how_to_read` is HTML.
    pub(super) async fn run(
        &self,
        how_to_read: &str,
        study: impl AsyncFnOnce(&str, Stop) -> anyhow::Result<Study>,
    ) -> anyhow::Result<ExitCode> {
        // Before the measurement, not after it.
        std::fs::create_dir_all(&self.out)
            .with_context(|| format!("the folder {} cannot be made", self.out.display()))?;
        let study = study(&command_line(), Stop::on_ctrl_c()).await?;
        let json = self.out.join(format!("{}.json", study.experiment));
        let html = self.out.join(format!("{}.html", study.experiment));
        write_json(&study, &json)?;
        report::study::write(&study, how_to_read, &html)?;
        let exit = ExitCode::from(u8::from(!study.faults.is_empty()));
        match &self.json {
            Some(path) if path.as_os_str() == "-" => {
                println!("{}", serde_json::to_string_pretty(&study)?);
                return Ok(exit);
            }
            Some(path) => write_json(&study, path)?,
            None => {}
        }
        println!("{}", render(&study));
        println!("results: {}", json.display());
        println!("report:  {}", html.display());
        Ok(exit)
    }
}
