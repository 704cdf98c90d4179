//! Cells take turns within each round, so that a drifting machine harms all alike.

use std::fmt::Display;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::watch;

use super::Run;
use crate::ingest::say;

/// Told when the reader has seen enough: Ctrl-C. What was measured is kept.
#[derive(Debug, Clone)]
pub struct Stop(watch::Sender<bool>);

impl Stop {
    /// Listens for Ctrl-C from now on. A second one ends the process as usual.
    pub fn on_ctrl_c() -> Stop {
        let stop = Stop::never();
        let told = stop.clone();
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                eprintln!("stopping; what was measured is kept, once more ends at once");
                told.set();
                if tokio::signal::ctrl_c().await.is_ok() {
                    std::process::exit(130);
                }
            }
        });
        stop
    }

    /// Nobody listens.
    pub fn never() -> Stop {
        Stop(watch::Sender::new(false))
    }

    fn set(&self) {
        self.0.send_replace(true);
    }

    async fn wait(&self) {
        // The sender lives in `self`.
        self.0.subscribe().wait_for(|set| *set).await.ok();
    }
}

/// A bar with the time that is left, and the runs of cells behind it.
pub(crate) struct Rounds {
    progress: ProgressBar,
    stop: Stop,
    runs: u32,
}

impl Rounds {
    pub(crate) fn new(runs: u32, stop: Stop) -> anyhow::Result<Rounds> {
        let style = "{spinner} [{elapsed_precise}, {eta} left] {bar:32} {pos}/{len} {msg}";
        let progress = ProgressBar::new(0).with_style(ProgressStyle::with_template(style)?);
        progress.enable_steady_tick(Duration::from_millis(100));
        Ok(Rounds {
            progress,
            stop,
            runs,
        })
    }

    /// Says what is being done between the runs.
    pub(crate) fn say(&self, line: &str) {
        say(&self.progress, line);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        *self.stop.0.borrow()
    }

    /// Measures each cell once a round; in each round another cell is the first. After Ctrl-C the run that is under way
    /// is given up, and every cell has the runs of the whole rounds before, so that ratios compare like with like.
    ///
    /// # Errors
    /// The first one of a run.
    pub(crate) async fn measure<C: Display>(
        &self,
        cells: Vec<C>,
        mut run: impl AsyncFnMut(&C, u32) -> anyhow::Result<Run>,
    ) -> anyhow::Result<Vec<(C, Vec<Run>)>> {
        let count = cells.len();
        self.progress
            .inc_length(count as u64 * u64::from(self.runs));
        let mut measured: Vec<(C, Vec<Run>)> =
            cells.into_iter().map(|cell| (cell, Vec::new())).collect();
        'rounds: for round in 1..=self.runs {
            let first = usize::try_from(round - 1)? % count.max(1);
            for turn in 0..count {
                let (cell, runs) = &mut measured[(first + turn) % count];
                say(
                    &self.progress,
                    &format!("{cell}, run {round}/{}", self.runs),
                );
                tokio::select! {
                    biased;
                    () = self.stop.wait() => break 'rounds,
                    figures = run(cell, round) => runs.push(figures?),
                }
                self.progress.inc(1);
            }
        }
        let whole = measured.iter().map(|(_, runs)| runs.len()).min();
        for (_, runs) in &mut measured {
            runs.truncate(whole.unwrap_or(0));
        }
        measured.retain(|(_, runs)| !runs.is_empty());
        Ok(measured)
    }
}

impl Drop for Rounds {
    fn drop(&mut self) {
        self.progress.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_cell_is_the_first_once_and_a_stop_keeps_whole_rounds() {
        let stop = Stop::never();
        let rounds = Rounds::new(3, stop.clone()).unwrap();
        let mut order = String::new();
        let measured = rounds
            .measure(vec!["a", "b", "c"], async |cell, round| {
                order.push_str(cell);
                if order.len() == 8 {
                    stop.set();
                    tokio::task::yield_now().await;
                }
                Ok(Run::from([("round".to_owned(), f64::from(round))]))
            })
            .await
            .unwrap();
        assert_eq!(&order[..6], "abcbca");
        let counts: Vec<_> = measured.iter().map(|(_, runs)| runs.len()).collect();
        assert_eq!(counts, [2, 2, 2], "{order}");
        assert!(rounds.is_stopped());
    }
}
