//! What the worker does over time, on the server that goes away and on the others.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use shardlane_sql::SlotSet;
use shardlane_worker::Stats;
use tokio::task::JoinHandle;

use super::results::{OutageResult, Sample};

/// How often the counters are read: the resolution of all times.
const LOOK: Duration = Duration::from_millis(10);
/// A point of the curve.
const POINT: Duration = Duration::from_millis(250);

/// The counters at one moment.
#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    /// Events committed on servers that stay.
    healthy: u64,
    /// Events committed on the server that goes away.
    victim: u64,
    /// Events that were sent and are not done.
    waiting: u64,
}

/// When it happened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outage {
    /// The quiet stretch before.
    pub(super) lead: Duration,
    /// The server was told to go.
    pub(super) down: Instant,
    /// It accepts connections again.
    pub(super) up: Instant,
    /// No more events wait than before.
    pub(super) drained: Instant,
}

/// A task that looks until it is stopped.
pub(super) struct Recorder {
    looks: Arc<Mutex<Vec<Look>>>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

/// Everything that was seen.
pub(super) struct Recording(Vec<Look>);

impl Recorder {
    pub(super) fn start(stats: Arc<Stats>, sent: Arc<AtomicU64>, lost: SlotSet) -> Recorder {
        let (looks, stop): (Arc<Mutex<Vec<Look>>>, Arc<AtomicBool>) = Default::default();
        let task = tokio::spawn({
            let (looks, stop) = (Arc::clone(&looks), Arc::clone(&stop));
            async move {
                let mut ticks = tokio::time::interval(LOOK);
                while !stop.load(Ordering::Relaxed) {
                    ticks.tick().await;
                    let look = look(&stats, &sent, &lost);
                    looks
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(look);
                }
            }
        });
        Recorder { looks, stop, task }
    }

    /// Events that wait now.
    pub(super) fn waiting(&self) -> u64 {
        self.with(|looks| looks.last().map_or(0, |look| look.waiting))
    }

    /// The most events that waited within the last stretch of this length.
    pub(super) fn waiting_max_since(&self, long: Duration) -> u64 {
        self.with(|looks| {
            let recent = looks.iter().filter(|look| look.at.elapsed() <= long);
            recent.map(|look| look.waiting).max().unwrap_or(0)
        })
    }

    fn with<T>(&self, ask: impl FnOnce(&[Look]) -> T) -> T {
        ask(&self.looks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) async fn stop(self) -> anyhow::Result<Recording> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?;
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Recording(std::mem::take(&mut looks)))
    }
}

fn look(stats: &Stats, sent: &AtomicU64, lost: &SlotSet) -> Look {
    let counts = stats.slot_counts();
    let all: u64 = counts.iter().sum();
    let victim: u64 = lost.iter().map(|slot| counts[slot.index()]).sum();
    let done = stats.counts().done;
    Look {
        at: Instant::now(),
        healthy: all - victim,
        victim,
        waiting: sent.load(Ordering::Relaxed).saturating_sub(done),
    }
}

impl Recording {
    /// What the outage did. The oracle's part is filled in by the caller.
    pub(super) fn of(&self, outage: &Outage) -> anyhow::Result<OutageResult> {
        let lead = outage
            .down
            .checked_sub(outage.lead)
            .context("a clock begins before the outage")?;
        let before = self.within(lead, outage.down);
        let during = self.within(outage.down, outage.up);
        let after = self.within(outage.up, outage.drained);
        let at_up = after.first().context("the recorder looked on")?;
        let first = self
            .0
            .iter()
            .find(|look| look.at >= outage.up && look.victim > at_up.victim);
        let first = first.context("the server that came back got no event")?;
        let waiting = self.within(outage.down, outage.drained).iter();
        Ok(OutageResult {
            outage_s: (outage.up - outage.down).as_secs_f64(),
            healthy_events_per_s_before: rate(before, |look| look.healthy),
            healthy_events_per_s_during: rate(during, |look| look.healthy),
            healthy_events_per_s_drain: rate(after, |look| look.healthy),
            victim_events_per_s_before: rate(before, |look| look.victim),
            victim_events_per_s_drain: rate(after, |look| look.victim),
            healthy_stall_before_ms: stall(before).as_secs_f64() * 1e3,
            healthy_stall_during_ms: stall(during).as_secs_f64() * 1e3,
            waiting_max: waiting.map(|look| look.waiting).max().unwrap_or(0),
            first_commit_s: (first.at - outage.up).as_secs_f64(),
            drained_s: (outage.drained - outage.up).as_secs_f64(),
            ..OutageResult::default()
        })
    }

    /// Events a second over time.
    pub(super) fn curve(&self) -> Vec<Sample> {
        let mut curve = Vec::new();
        let (Some(first), Some(last)) = (self.0.first(), self.0.last()) else {
            return curve;
        };
        let mut from = first.at;
        while from + POINT <= last.at {
            let looks = self.within(from, from + POINT);
            curve.push(Sample {
                at_s: (from + POINT - first.at).as_secs_f64(),
                healthy_events_per_s: rate(looks, |look| look.healthy),
                victim_events_per_s: rate(looks, |look| look.victim),
                waiting: looks.last().map_or(0, |look| look.waiting),
            });
            from += POINT;
        }
        curve
    }

    fn within(&self, from: Instant, to: Instant) -> &[Look] {
        let first = self.0.partition_point(|look| look.at < from);
        let last = self.0.partition_point(|look| look.at <= to);
        &self.0[first.min(last)..last]
    }
}

fn rate(looks: &[Look], count: impl Fn(&Look) -> u64) -> f64 {
    let (Some(first), Some(last)) = (looks.first(), looks.last()) else {
        return 0.0;
    };
    let seconds = (last.at - first.at).as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let events = (count(last) - count(first)) as f64;
    if seconds > 0.0 { events / seconds } else { 0.0 }
}

/// The longest time in which servers that stay got no event.
fn stall(looks: &[Look]) -> Duration {
    let Some(first) = looks.first() else {
        return Duration::ZERO;
    };
    let (mut count, mut since, mut longest) = (first.healthy, first.at, Duration::ZERO);
    for look in looks {
        longest = longest.max(look.at - since);
        if look.healthy != count {
            (count, since) = (look.healthy, look.at);
        }
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 looks a second for 10 s: one event a look on both sides; the victim has none from 3 s to 5 s, then two a
    /// look until it has caught up at 7 s, and the healthy side stands still from 4 s to 4.5 s.
    fn recording(began: Instant) -> Recording {
        let look = |n: u64| Look {
            at: began + LOOK * u32::try_from(n).unwrap(),
            healthy: match n {
                400..450 => 400,
                n => n,
            },
            victim: match n {
                300..500 => 300,
                500..700 => 300 + (n - 500) * 2,
                n => n,
            },
            waiting: match n {
                300..500 => n - 300,
                500..700 => 700 - n,
                _ => 0,
            },
        };
        Recording((0..1_000).map(look).collect())
    }

    #[test]
    fn an_outage_is_told_from_the_looks() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let outage = Outage {
            lead: Duration::from_secs(2),
            down: at(3_000),
            up: at(5_000),
            drained: at(7_000),
        };
        let result = recording(began).of(&outage).unwrap();
        let near =
            |got: f64, want: f64| assert!((got - want).abs() < 0.01 * want, "{got}, not {want}");
        near(result.outage_s, 2.0);
        near(result.healthy_events_per_s_before, 100.0);
        near(result.healthy_events_per_s_during, 100.0);
        near(result.victim_events_per_s_drain, 200.0);
        near(result.healthy_stall_before_ms, 10.0);
        near(result.healthy_stall_during_ms, 500.0);
        near(result.first_commit_s, 0.01);
        near(result.drained_s, 2.0);
        assert_eq!(result.waiting_max, 200);
    }

    #[test]
    fn a_server_that_stays_away_is_an_error() {
        let began = Instant::now();
        let Recording(mut looks) = recording(began);
        looks.iter_mut().for_each(|look| look.victim = 0);
        let at = |ms| began + Duration::from_millis(ms);
        let outage = Outage {
            lead: Duration::ZERO,
            down: at(3_000),
            up: at(5_000),
            drained: at(7_000),
        };
        assert!(Recording(looks).of(&outage).is_err());
    }
}
