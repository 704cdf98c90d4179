//! What came back, counted while it comes.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hdrhistogram::Histogram;
use hyper::StatusCode;

use super::connection::{Failure, micros_since};
use super::results::{Measured, Quantiles, Slice};
use crate::raw::histogram;

/// The quantiles of the plot.
const QUANTILES: [f64; 11] = [
    0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999, 1.0,
];
/// How many pieces the run is cut into, over time; none is shorter than a second.
const SLICES_MAX: f64 = 120.0;

pub(super) struct Tally {
    counts: Mutex<Counts>,
    /// When the schedule begins.
    start: Instant,
    slice_s: f64,
}

struct Counts {
    sent: u64,
    missed: u64,
    statuses: BTreeMap<u16, u64>,
    errors: BTreeMap<&'static str, u64>,
    latency_us: Histogram<u64>,
    delay_us: Histogram<u64>,
    /// Latencies in us, by the scheduled time.
    slices: BTreeMap<u64, Vec<u32>>,
    /// When the last 2xx came.
    last_good: Option<Instant>,
}

impl Tally {
    pub(super) fn new(start: Instant, duration_s: f64) -> Tally {
        Tally {
            start,
            slice_s: (duration_s / SLICES_MAX).ceil().max(1.0),
            counts: Mutex::new(Counts {
                sent: 0,
                missed: 0,
                statuses: BTreeMap::new(),
                errors: BTreeMap::new(),
                latency_us: histogram(),
                delay_us: histogram(),
                slices: BTreeMap::new(),
                last_good: None,
            }),
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Counting does not panic half-way.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request leaves.
    pub(super) fn sent(&self, scheduled: Instant) {
        let mut counts = self.counts();
        counts.sent += 1;
        counts
            .delay_us
            .saturating_record(micros_since(scheduled).max(1));
    }

    /// No connection was free in time; the wait counts.
    pub(super) fn missed(&self, scheduled: Instant) {
        let mut counts = self.counts();
        counts.missed += 1;
        self.record(&mut counts, scheduled);
    }

    /// A request has its answer, or has none.
    pub(super) fn answered(&self, scheduled: Instant, answer: Result<StatusCode, Failure>) {
        let mut counts = self.counts();
        match answer {
            Ok(status) => {
                *counts.statuses.entry(status.as_u16()).or_default() += 1;
                if status.is_success() {
                    counts.last_good = Some(Instant::now());
                }
            }
            Err(failure) => *counts.errors.entry(failure.as_str()).or_default() += 1,
        }
        match answer {
            // A connection that is refused is refused quickly: that is no latency of anything.
            Err(Failure::Connect | Failure::Broken) => {}
            Ok(_) | Err(Failure::Timeout) => self.record(&mut counts, scheduled),
        }
    }

    fn record(&self, counts: &mut Counts, scheduled: Instant) {
        let us = micros_since(scheduled).max(1);
        counts.latency_us.saturating_record(us);
        let at_s = scheduled
            .saturating_duration_since(self.start)
            .as_secs_f64();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a number of slices, at most some hundreds"
        )]
        let slice = (at_s / self.slice_s) as u64;
        counts
            .slices
            .entry(slice)
            .or_default()
            .push(u32::try_from(us).unwrap_or(u32::MAX));
    }

    /// How many sends are over, and a sentence for the one who waits.
    pub(super) fn progress(&self) -> (u64, String) {
        let counts = self.counts();
        let (good, bad) = counts.good_and_bad();
        let done = good + bad + counts.missed;
        let of = |quantile| ms(&counts.latency_us, quantile);
        let sentence = format!(
            "{good} with 2xx, {bad} without, {} missed, p50 {:.1} ms, p99 {:.1} ms",
            counts.missed,
            of(0.5),
            of(0.99)
        );
        (done, sentence)
    }

    /// All of it.
    #[expect(
        clippy::cast_precision_loss,
        reason = "requests of a run are at most millions"
    )]
    pub(super) fn measured(&self) -> Measured {
        let counts = self.counts();
        let (good, _) = counts.good_and_bad();
        let seconds = counts
            .last_good
            .map(|last| (last - self.start).as_secs_f64());
        Measured {
            sent: counts.sent,
            missed: counts.missed,
            statuses: counts.statuses.clone(),
            errors: counts
                .errors
                .iter()
                .map(|(name, count)| ((*name).to_owned(), *count))
                .collect(),
            achieved_per_s: seconds.map_or(0.0, |seconds| good as f64 / seconds),
            latency_ms: quantiles(&counts.latency_us),
            send_delay_ms: quantiles(&counts.delay_us),
            latency_curve_ms: QUANTILES
                .iter()
                .map(|quantile| (*quantile, ms(&counts.latency_us, *quantile)))
                .collect(),
            over_time: counts
                .slices
                .iter()
                .map(|(index, latencies)| slice(*index as f64 * self.slice_s, latencies))
                .collect(),
        }
    }
}

impl Counts {
    /// Answers with 2xx, and sends that ended otherwise.
    fn good_and_bad(&self) -> (u64, u64) {
        let good = self.statuses.range(200..300).map(|(_, count)| count).sum();
        let all: u64 = self.statuses.values().chain(self.errors.values()).sum();
        (good, all - good)
    }
}

fn slice(at_s: f64, latencies_us: &[u32]) -> Slice {
    let mut sorted = latencies_us.to_vec();
    sorted.sort_unstable();
    let of = |percent: usize| {
        let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
        sorted.get(rank).map_or(0.0, |us| f64::from(*us) / 1e3)
    };
    Slice {
        at_s,
        requests: sorted.len() as u64,
        p50_ms: of(50),
        p99_ms: of(99),
        max_ms: of(100),
    }
}

pub(super) fn quantiles(us: &Histogram<u64>) -> Quantiles {
    Quantiles {
        p50: ms(us, 0.5),
        p90: ms(us, 0.9),
        p99: ms(us, 0.99),
        p999: ms(us, 0.999),
        max: ms(us, 1.0),
    }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a run")]
fn ms(us: &Histogram<u64>, quantile: f64) -> f64 {
    us.value_at_quantile(quantile) as f64 / 1e3
}
