//! When each request leaves, and the thread that holds to it.

use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp};
use tokio::sync::mpsc;

use super::results::{Arrivals, LoadSettings};
use crate::stream::{Stream, Webhook};

/// A request whose time has come.
pub(crate) struct Arrival {
    /// When it should leave; its latency counts from here.
    pub(crate) scheduled: Instant,
    /// Its place in the run, from 0.
    pub(crate) number: u64,
    pub(crate) webhook: Webhook,
}

/// The times of all requests, rising, without end.
pub(crate) fn schedule(
    settings: &LoadSettings,
    start: Instant,
) -> impl Iterator<Item = Instant> + Send + use<> {
    let rate = settings.rate;
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    let gaps = match settings.arrivals {
        Arrivals::Constant => None,
        // The rate is checked to be above 0.
        Arrivals::Poisson => Exp::new(rate).ok(),
    };
    let (mut number, mut at_s) = (0_u32, 0.0);
    std::iter::from_fn(move || {
        let now_s = at_s;
        number = number.saturating_add(1);
        at_s = match &gaps {
            // Not summed up: a sum of many gaps drifts.
            None => f64::from(number) / rate,
            Some(gaps) => at_s + gaps.sample(&mut rng),
        };
        Some(start + Duration::from_secs_f64(now_s))
    })
}

/// Gives each webhook away at its time. A thread of its own, because a runtime's timer counts in whole milliseconds.
pub(crate) fn pace(
    schedule: impl Iterator<Item = Instant>,
    stream: Stream,
    give: &mpsc::Sender<Arrival>,
) {
    for ((number, webhook), scheduled) in (0..).zip(stream).zip(schedule) {
        let wait = scheduled.saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
        let arrival = Arrival {
            scheduled,
            number,
            webhook,
        };
        // Waits while all places are taken; what comes later keeps its scheduled time. An error is the run's end.
        if give.blocking_send(arrival).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(arrivals: Arrivals, seed: u64, count: usize) -> Vec<f64> {
        let settings = LoadSettings {
            rate: 250.0,
            arrivals,
            seed,
            ..LoadSettings::default()
        };
        let start = Instant::now();
        schedule(&settings, start)
            .take(count)
            .map(|at| (at - start).as_secs_f64())
            .collect()
    }

    #[test]
    fn a_constant_rate_has_equal_gaps_and_does_not_drift() {
        let at = seconds(Arrivals::Constant, 1, 1_000_001);
        assert!((at[1] - 0.004).abs() < 1e-8 && (at[1_000_000] - 4_000.0).abs() < 1e-6);
    }

    #[test]
    fn poisson_has_the_same_rate_with_gaps_by_the_seed() {
        let at = seconds(Arrivals::Poisson, 1, 100_001);
        assert!((at[100_000] - 400.0).abs() < 8.0, "{}", at[100_000]);
        // Of an exponential distribution 63 % lie below its mean.
        let short = at.windows(2).filter(|pair| pair[1] - pair[0] < 0.004);
        let share = short.count() as f64 / 100_000.0;
        assert!((share - 0.632).abs() < 0.01, "{share}");
        assert_eq!(at, seconds(Arrivals::Poisson, 1, 100_001));
        assert_ne!(at, seconds(Arrivals::Poisson, 2, 100_001));
    }
}
