//! What a load measured, as its JSON has it. Scripts rely on these names.

use std::collections::BTreeMap;

use anyhow::bail;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::REQUESTS_MAX;
use crate::results::Machine;
use crate::table::{align, table};

/// How requests follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrivals {
    /// Equal gaps.
    Constant,
    /// Exponential gaps, as of many senders who know nothing of each other.
    Poisson,
}

/// The size of a load.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LoadSettings {
    /// Requests a second.
    pub rate: f64,
    /// How long requests are sent, in seconds.
    pub duration_s: f64,
    /// Their gaps.
    pub arrivals: Arrivals,
    /// Keep-alive connections, each with one request at a time.
    pub connections: u32,
    /// How long after its scheduled time a request may have its answer, in seconds.
    pub timeout_s: f64,
    /// Users over whom the orders are spread.
    pub users: u32,
    /// Everything random comes from this.
    pub seed: u64,
    /// Size that a payload is filled up to.
    pub payload_bytes: usize,
    /// Whether requests are signed.
    pub signed: bool,
    /// Share of orders that end with the webhooks of their payment.
    #[serde(default)]
    pub payments: f64,
}

impl Default for LoadSettings {
    /// 100 a second for 10 seconds.
    fn default() -> Self {
        LoadSettings {
            rate: 100.0,
            duration_s: 10.0,
            arrivals: Arrivals::Constant,
            connections: 64,
            timeout_s: 10.0,
            users: 10_000,
            seed: 1,
            payload_bytes: 300,
            signed: false,
            payments: 0.0,
        }
    }
}

impl LoadSettings {
    /// How many requests that makes.
    ///
    /// # Errors
    /// None at all, or more than [`REQUESTS_MAX`]; a bound that is none.
    pub fn requests(&self) -> anyhow::Result<u64> {
        for (name, value) in [
            ("rate", self.rate),
            ("duration", self.duration_s),
            ("timeout", self.timeout_s),
        ] {
            if !(value > 0.0 && value.is_finite()) {
                bail!("--{name} {value} is not above 0");
            }
        }
        if self.connections == 0 || self.users == 0 {
            bail!("--connections and --users must be 1 or more");
        }
        if !(0.0..=1.0).contains(&self.payments) {
            bail!("--payments {} is no share from 0 to 1", self.payments);
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, and as a cast saturates it is refused where it is large"
        )]
        let requests = (self.rate * self.duration_s).ceil() as u64;
        if requests > REQUESTS_MAX {
            bail!(
                "--rate {} for {} s are {requests} requests; one run sends {REQUESTS_MAX} at most",
                self.rate,
                self.duration_s
            );
        }
        Ok(requests)
    }
}

/// A run with everything that is needed to judge and to repeat it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LoadResults {
    /// `load`.
    pub experiment: String,
    /// RFC 3339.
    pub started_at: String,
    /// From the first connection to the last row, in seconds.
    pub took_s: f64,
    /// Where the generator ran.
    pub machine: Machine,
    /// The commit of the code, with `-dirty` where the tree had changes.
    pub commit: String,
    /// The command line that repeats it, without its secrets.
    pub command: String,
    /// What was asked for.
    pub settings: LoadSettings,
    /// How many requests the schedule had.
    pub scheduled: u64,
    /// What came of them.
    #[serde(flatten)]
    pub measured: Measured,
    /// From the send to the row, where databases were named.
    pub rows: Option<RowResults>,
}

/// Flattened structs are read through a buffer that has keys as text only.
fn statuses<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<u16, u64>, D::Error> {
    let texts = BTreeMap::<String, u64>::deserialize(from)?;
    let statuses = texts
        .into_iter()
        .map(|(status, requests)| Ok((status.parse().map_err(D::Error::custom)?, requests)));
    statuses.collect()
}

/// What the senders saw.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// Requests that left.
    pub sent: u64,
    /// Requests that did not leave within the timeout, because no connection was free.
    pub missed: u64,
    /// Answers by status.
    #[serde(deserialize_with = "statuses")]
    pub statuses: BTreeMap<u16, u64>,
    /// Requests without an answer: `timeout`, `connect`, `broken`.
    pub errors: BTreeMap<String, u64>,
    /// Answers with 2xx a second, from the first scheduled time to the last of them.
    pub achieved_per_s: f64,
    /// From the scheduled time to the end of the answer, in ms. Timeouts and missed sends are in it with the time that
    /// they waited, refused and broken connections are not.
    pub latency_ms: Quantiles,
    /// From the scheduled time until a connection was free, in ms: large where connections or this machine are too few.
    pub send_delay_ms: Quantiles,
    /// Quantile and ms.
    pub latency_curve_ms: Vec<(f64, f64)>,
    /// Latency over time, by the scheduled time.
    pub over_time: Vec<Slice>,
}

/// Quantiles of a time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Quantiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// Requests whose scheduled times follow each other.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Slice {
    /// Seconds since the schedule began.
    pub at_s: f64,
    /// How many they were.
    pub requests: u64,
    /// Median latency in ms.
    pub p50_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

/// From the scheduled send to the row in its shard, of some events.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RowResults {
    /// Events that were looked for and found.
    pub found: u64,
    /// Events that were acknowledged and are not there 30 s after the last answer.
    pub missing: u64,
    /// Events that were there before the run: another run had the same seed. They are in no figure.
    pub were_there: u64,
    /// From the scheduled time to the answer of the query that found the row.
    pub latency_ms: Quantiles,
    /// From the last look that did not find a row to the one that did: by at most so much is `latency_ms` too long.
    pub resolution_ms: Quantiles,
}

impl LoadResults {
    /// Whether each send left in time and had a 2xx, and each row that was looked for was found.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let bad = self
            .measured
            .statuses
            .keys()
            .any(|status| !(200..300).contains(status));
        let rows = self.rows.as_ref().map_or(0, |rows| rows.missing);
        !bad && self.measured.errors.is_empty() && self.measured.missed + rows == 0
    }
}

/// The results for a terminal.
#[must_use]
pub fn render(results: &LoadResults) -> String {
    let (measured, settings) = (&results.measured, &results.settings);
    let mut counts = table(&["what", "requests"]);
    let mut row = |what: String, count: u64| {
        counts.add_row([what, count.to_string()]);
    };
    row("scheduled".into(), results.scheduled);
    row("sent".into(), measured.sent);
    for (status, count) in &measured.statuses {
        row(format!("answered {status}"), *count);
    }
    for (error, count) in &measured.errors {
        row(format!("error: {error}"), *count);
    }
    row("missed".into(), measured.missed);
    align(&mut counts, 1);

    let mut times = table(&["ms", "p50", "p90", "p99", "p99.9", "max"]);
    let mut row = |what: &str, ms: &Quantiles| {
        let cells = [ms.p50, ms.p90, ms.p99, ms.p999, ms.max].map(|ms| format!("{ms:.2}"));
        times.add_row([what.to_owned()].into_iter().chain(cells));
    };
    row("answer", &measured.latency_ms);
    row("wait for a connection", &measured.send_delay_ms);
    if let Some(rows) = &results.rows {
        row("row in its shard", &rows.latency_ms);
        row("  resolution of that", &rows.resolution_ms);
    }
    align(&mut times, 1);
    let mut text = format!(
        "{counts}\n\n{times}\n\nasked for {:.0}/s, achieved {:.1}/s with 2xx; times count from the scheduled send; seed {}\n",
        settings.rate, measured.achieved_per_s, settings.seed
    );
    if let Some(rows) = &results.rows {
        text.push_str(&format!(
            "rows: {} looked for and found, {} missing, {} were there before\n",
            rows.found, rows.missing, rows.were_there
        ));
    }
    text
}
