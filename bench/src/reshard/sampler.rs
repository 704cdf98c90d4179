//! What the worker does over time: events by slot, and whether its map is the cluster's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use shardlane_router::{Epoch, ShardMap, Slot};
use shardlane_sql::{Store, TABLES};
use shardlane_worker::Stats;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Span;
use super::results::{ChangeResult, Sample};
use crate::lab::connect;

/// How often the slots are looked at: the resolution of stalls.
const LOOK: Duration = Duration::from_millis(10);
/// How often the cluster is asked who owns what.
const ASK: Duration = Duration::from_millis(250);
/// A point of the curve.
const POINT: Duration = Duration::from_millis(250);
/// The owner-hit ratio that counts as recovered.
const RECOVERED: f64 = 0.99;
/// How long a change's quiet stretch is made longer at most, until it has recovered.
const RECOVERY_MAX: Duration = Duration::from_secs(20);

/// The counts of all slots at one moment.
struct Look {
    at: Instant,
    slots: Vec<u32>,
}

/// How much of the work since the last answer went to its owner.
#[derive(Clone, Copy)]
struct Hit {
    at: Instant,
    ratio: f64,
}

/// Everything that was seen.
pub(crate) struct Recording {
    began: Instant,
    looks: Vec<Look>,
    hits: Vec<Hit>,
}

/// Two tasks that look until they are stopped.
pub(crate) struct Sampler {
    began: Instant,
    stop: Arc<AtomicBool>,
    looks: JoinHandle<Vec<Look>>,
    hits: Option<JoinHandle<anyhow::Result<Vec<Hit>>>>,
    /// The last one.
    hit: watch::Receiver<Option<Hit>>,
}

impl Sampler {
    /// `truth` is a Citus coordinator whose word on placement counts.
    pub(crate) fn start(stats: Arc<Stats>, store: Arc<Store>, truth: Option<String>) -> Sampler {
        let stop = Arc::new(AtomicBool::new(false));
        let looks = tokio::spawn(look(Arc::clone(&stats), Arc::clone(&stop)));
        let (told, hit) = watch::channel(None);
        let hits = truth.map(|url| tokio::spawn(ask(url, stats, store, Arc::clone(&stop), told)));
        Sampler {
            began: Instant::now(),
            stop,
            looks,
            hits,
            hit,
        }
    }

    /// Waits until the work goes to its owners again after a change that ended then; not for long.
    pub(crate) async fn recovered(&self, ended: Instant) {
        if self.hits.is_none() {
            return;
        }
        let is_right =
            |hit: &Option<Hit>| hit.is_some_and(|it| it.at > ended && it.ratio >= RECOVERED);
        let mut hit = self.hit.clone();
        let seen = tokio::time::timeout(RECOVERY_MAX, hit.wait_for(is_right)).await;
        if seen.is_err() {
            tracing::warn!("the map was not right again within {RECOVERY_MAX:?}");
        }
    }

    pub(crate) async fn stop(self) -> anyhow::Result<Recording> {
        self.stop.store(true, Ordering::Relaxed);
        let hits = match self.hits {
            Some(hits) => hits.await??,
            None => Vec::new(),
        };
        Ok(Recording {
            began: self.began,
            looks: self.looks.await?,
            hits,
        })
    }
}

async fn look(stats: Arc<Stats>, stop: Arc<AtomicBool>) -> Vec<Look> {
    let mut looks = Vec::new();
    let mut ticks = tokio::time::interval(LOOK);
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let counts = stats.slot_counts();
        let slots = counts
            .iter()
            .map(|count| u32::try_from(*count).unwrap_or(u32::MAX));
        looks.push(Look {
            at: Instant::now(),
            slots: slots.collect(),
        });
    }
    looks
}

async fn ask(
    url: String,
    stats: Arc<Stats>,
    store: Arc<Store>,
    stop: Arc<AtomicBool>,
    told: watch::Sender<Option<Hit>>,
) -> anyhow::Result<Vec<Hit>> {
    let client = connect(&url).await?;
    let mut hits = Vec::new();
    let mut before = stats.slot_counts();
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(ASK).await;
        // While shards change hands the metadata may not be a map for a moment; then there is no point here.
        let Ok(truth) = shardlane_citus::load(&client, &TABLES, Epoch(1)).await else {
            continue;
        };
        let now = stats.slot_counts();
        let routes = store.routes();
        if let Some(ours) = routes.shard_map() {
            let hit = Hit {
                at: Instant::now(),
                ratio: hit_ratio(&before, &now, ours, &truth),
            };
            hits.push(hit);
            told.send_replace(Some(hit));
        }
        before = now;
    }
    Ok(hits)
}

/// The share of events whose slot's owner is the one that our map names.
fn hit_ratio(before: &[u64], now: &[u64], ours: &ShardMap, truth: &ShardMap) -> f64 {
    let (mut hits, mut all) = (0, 0);
    for slot in Slot::all() {
        let events = now[slot.index()] - before[slot.index()];
        let token = slot.key_range().first();
        let (our, their) = (ours.shard_for(token), truth.shard_for(token));
        all += events;
        if ours.node_of(our) == truth.node_of(their) {
            hits += events;
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    if all == 0 {
        1.0
    } else {
        hits as f64 / all as f64
    }
}

impl Recording {
    /// What a change did to the worker. The oracle's part is filled in by the caller.
    pub(crate) fn of(&self, span: &Span) -> ChangeResult {
        let took = span.ended - span.began;
        let lead = span
            .began
            .checked_sub(Duration::from_secs(2))
            .unwrap_or(self.began);
        let tail = span.ended + Duration::from_secs(2);
        let stall = |from, to, wanted: &dyn Fn(Slot) -> bool| {
            self.longest_stall(from, to, wanted).as_secs_f64() * 1e3
        };
        let moved = span.moved.as_ref();
        ChangeResult {
            began_s: (span.began - self.began).as_secs_f64(),
            ended_s: (span.ended - self.began).as_secs_f64(),
            events: span.events.end - span.events.start,
            took_s: took.as_secs_f64(),
            events_per_s_before: self.rate(lead, span.began),
            events_per_s_during: self.rate(span.began, span.ended),
            events_per_s_after: self.rate(span.ended, tail),
            stall_before_ms: stall(lead, span.began, &|_| true),
            stall_max_ms: stall(span.began, tail, &|_| true),
            stall_unmoved_ms: moved
                .map(|moved| stall(span.began, tail, &|slot| !moved.contains(slot))),
            owner_hit_min: self.lowest_hit(span.began, tail),
            owner_hit_recovered_s: self.recovered_after(span.ended, span.quiet_until),
            ..ChangeResult::default()
        }
    }

    /// Events a second and owner hits over time.
    pub(crate) fn curve(&self) -> Vec<Sample> {
        let mut curve = Vec::new();
        let Some(last) = self.looks.last() else {
            return curve;
        };
        let mut from = self.began;
        while from + POINT <= last.at {
            let to = from + POINT;
            let hit = self.hits.iter().rfind(|hit| hit.at <= to);
            curve.push(Sample {
                at_s: (to - self.began).as_secs_f64(),
                events_per_s: self.rate(from, to),
                owner_hit: hit.map(|hit| hit.ratio),
            });
            from = to;
        }
        curve
    }

    fn within(&self, from: Instant, to: Instant) -> &[Look] {
        let first = self.looks.partition_point(|look| look.at < from);
        let last = self.looks.partition_point(|look| look.at <= to);
        &self.looks[first.min(last)..last]
    }

    fn rate(&self, from: Instant, to: Instant) -> f64 {
        let looks = self.within(from, to);
        let (Some(first), Some(last)) = (looks.first(), looks.last()) else {
            return 0.0;
        };
        let sum = |look: &Look| {
            look.slots
                .iter()
                .map(|count| u64::from(*count))
                .sum::<u64>()
        };
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let events = (sum(last) - sum(first)) as f64;
        let seconds = (last.at - first.at).as_secs_f64();
        if seconds > 0.0 { events / seconds } else { 0.0 }
    }

    /// The longest time in which a slot that has events got none into the database.
    fn longest_stall(&self, from: Instant, to: Instant, wanted: &dyn Fn(Slot) -> bool) -> Duration {
        let looks = self.within(from, to);
        let Some((first, rest)) = looks.split_first() else {
            return Duration::ZERO;
        };
        let mut longest = Duration::ZERO;
        let busy = self.looks.last().map(|look| &look.slots);
        for slot in Slot::all().filter(|slot| wanted(*slot)) {
            let index = slot.index();
            if busy.is_none_or(|busy| busy[index] == 0) {
                continue;
            }
            let (mut count, mut since) = (first.slots[index], first.at);
            for look in rest {
                if look.slots[index] != count {
                    longest = longest.max(look.at - since);
                    (count, since) = (look.slots[index], look.at);
                }
            }
            // One that is still open at the end counts as far as it was seen.
            if let Some(last) = rest.last() {
                longest = longest.max(last.at - since);
            }
        }
        longest
    }

    fn lowest_hit(&self, from: Instant, to: Instant) -> Option<f64> {
        let hits = self
            .hits
            .iter()
            .filter(|hit| hit.at >= from && hit.at <= to);
        hits.map(|hit| hit.ratio).reduce(f64::min)
    }

    /// Seconds from the end of a change until all later answers of the quiet stretch say that the map is right.
    fn recovered_after(&self, ended: Instant, until: Instant) -> Option<f64> {
        let mut after = self
            .hits
            .iter()
            .filter(|hit| hit.at >= ended && hit.at <= until);
        let misses = self
            .hits
            .iter()
            .filter(|hit| hit.at >= ended && hit.at <= until);
        let last_miss = misses
            .filter(|hit| hit.ratio < RECOVERED)
            .map(|hit| hit.at)
            .max();
        let first = match last_miss {
            Some(miss) => after.find(|hit| hit.at > miss)?,
            None => after.next()?,
        };
        Some((first.at - ended).as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_on_the_clock_of_the_samples() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        // One event each 10 ms in the first slot, none while the change runs.
        let look = |n: u32| Look {
            at: at(u64::from(n) * 10),
            slots: Slot::all()
                .map(|slot| match (slot.index(), n) {
                    (0, 300..500) => 300,
                    (0, n) => n,
                    _ => 0,
                })
                .collect(),
        };
        let recording = Recording {
            began,
            looks: (0..800).map(look).collect(),
            hits: Vec::new(),
        };
        let result = recording.of(&Span {
            change: "2->3".to_owned(),
            began: at(3_000),
            ended: at(4_990),
            quiet_until: at(4_990),
            events: 40..700,
            moved: None,
        });
        let near = |got: f64, want: f64| assert!((got - want).abs() < 0.01, "{got}, not {want}");
        near(result.began_s, 3.0);
        near(result.ended_s, 4.99);
        assert_eq!(result.events, 660);
        // The curve is still where the change is drawn, and only there.
        for sample in recording.curve() {
            let still = sample.events_per_s == 0.0;
            let within = result.began_s + 0.25 < sample.at_s && sample.at_s < result.ended_s;
            assert!(still || !within, "{sample:?}");
            let outside = sample.at_s < result.began_s || sample.at_s > result.ended_s + 0.25;
            assert!(!still || !outside, "{sample:?}");
        }
    }
}
