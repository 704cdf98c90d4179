//! `shardlane load`: requests by a schedule, and what became of them.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use shardlane_bench::load::results::{Arrivals, LoadSettings, render};
use shardlane_bench::load::target::Target;
use shardlane_bench::load::{LoadOptions, run};
use shardlane_bench::report;
use shardlane_domain::SigningKey;

use crate::experiment::write_json;

/// Send webhooks to a front door at a constant rate, and measure from the scheduled time of each
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// The front door, such as http://127.0.0.1:8080
    #[arg(long)]
    url: String,
    /// Requests a second
    #[arg(long, value_name = "R", value_parser = parse_rate)]
    rate: f64,
    /// How long requests are sent, in seconds
    #[arg(long, value_name = "S", value_parser = parse_seconds)]
    duration: f64,
    /// Exponential gaps with the same mean, as of many senders who know nothing of each other
    #[arg(long)]
    poisson: bool,
    /// Keep-alive connections, each with one request at a time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// How long after its scheduled time a request may leave and have its answer, in seconds
    #[arg(long, value_name = "S", default_value_t = 10.0, value_parser = parse_seconds)]
    timeout: f64,
    /// Users over whom the orders are spread
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    users: u32,
    /// Seed of users, orders and gaps; of the clock by default, so that each run has users of its own
    #[arg(long)]
    seed: Option<u64>,
    /// Size that a payload is filled up to
    #[arg(long, value_name = "B", default_value_t = 300, value_parser = clap::value_parser!(u32).range(..=200_000))]
    payload_bytes: u32,
    /// Share of orders that end with the webhooks of their payment, at /webhooks/silvergate
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = parse_share)]
    payments: f64,
    /// Sign by Standard Webhooks with this secret, `whsec_...`
    #[arg(
        long,
        value_name = "SECRET",
        env = "SHARDLANE_WEBHOOK_SECRET",
        hide_env_values = true
    )]
    sign: Option<String>,
    /// DSNs of the shards, to look for the rows of some events; comma-separated
    #[arg(long, value_name = "DSN", value_delimiter = ',')]
    database: Vec<String>,
    /// Send to another machine than this one. Only to servers that are yours
    #[arg(long)]
    allow_remote: bool,
    /// Write the results here; `-` prints them instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with plots here
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl LoadArgs {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let settings = LoadSettings {
            rate: self.rate,
            duration_s: self.duration,
            arrivals: if self.poisson {
                Arrivals::Poisson
            } else {
                Arrivals::Constant
            },
            connections: self.connections,
            timeout_s: self.timeout,
            users: self.users,
            seed: match self.seed {
                Some(seed) => seed,
                None => seed_of_clock(),
            },
            payload_bytes: usize::try_from(self.payload_bytes)?,
            signed: self.sign.is_some(),
            payments: self.payments,
        };
        let options = LoadOptions {
            target: Target::parse(&self.url, self.allow_remote)?,
            key: self.sign.as_deref().map(SigningKey::parse).transpose()?,
            command: self.command(&settings),
            databases: self.database,
            settings,
        };
        let results = tokio::select! {
            results = run(options) => results?,
            signal = tokio::signal::ctrl_c() => {
                signal?;
                anyhow::bail!("interrupted; what was measured so far is not kept");
            }
        };
        if let Some(path) = &self.html {
            report::load::write(&results, path)?;
        }
        match &self.json {
            Some(path) if path.as_os_str() == "-" => {
                println!("{}", serde_json::to_string_pretty(&results)?);
            }
            path => {
                if let Some(path) = path {
                    write_json(&results, path)?;
                }
                println!("{}", render(&results));
            }
        }
        Ok(ExitCode::from(u8::from(!results.is_good())))
    }

    /// What repeats the run. Not the arguments as they came: they hold secrets and passwords.
    fn command(&self, settings: &LoadSettings) -> String {
        let mut command = format!(
            "shardlane load --url {} --rate {} --duration {} --connections {} --timeout {} --users {} --seed {} \
             --payload-bytes {} --payments {}",
            self.url,
            settings.rate,
            settings.duration_s,
            settings.connections,
            settings.timeout_s,
            settings.users,
            settings.seed,
            settings.payload_bytes,
            settings.payments,
        );
        for (given, argument) in [
            (self.poisson, " --poisson"),
            (settings.signed, " --sign SECRET"),
            (!self.database.is_empty(), " --database DSN"),
            (self.allow_remote, " --allow-remote"),
        ] {
            if given {
                command.push_str(argument);
            }
        }
        command
    }
}

/// Milliseconds since 1970: no two runs have the same.
fn seed_of_clock() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(1, |since| u64::try_from(since.as_millis()).unwrap_or(1))
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.01..=200_000.0).contains(&rate) => Ok(rate),
        _ => Err("expected requests a second from 0.01 to 200000".to_owned()),
    }
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("expected a share from 0 to 1".to_owned()),
    }
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.01..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds from 0.01 to 86400".to_owned()),
    }
}
