//! A rebalance: started, and waited for.

use std::fmt;
use std::time::Instant;

use serde::Serialize;

use super::{ASK_EVERY, Coordinator, OperateError, Transfer};

/// How far a rebalance is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RebalanceProgress {
    /// Citus's number of the job.
    pub job: i64,
    /// Citus's word for its state: `scheduled`, `running`, `finished`, `failing`, `failed`, `cancelling`, `cancelled`.
    pub state: String,
    /// Shard groups that have moved.
    pub moves_done: i64,
    /// Shard groups that shall move.
    pub moves_total: i64,
}

impl fmt::Display for RebalanceProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rebalance {}: {}, {} of {} moves done",
            self.job, self.state, self.moves_done, self.moves_total
        )
    }
}

impl Coordinator<'_> {
    /// Starts to spread the shards evenly over the nodes, in the background, and tells the job; `None` if they are.
    ///
    /// # Errors
    /// [`OperateError`], for instance because a rebalance runs already.
    pub async fn start_rebalance(&self, transfer: Transfer) -> Result<Option<i64>, OperateError> {
        let sql = "select citus_rebalance_start(shard_transfer_mode => $1::text::citus.shard_transfer_mode)";
        let rows = self
            .run("start a rebalance", sql, &[&transfer.mode()])
            .await?;
        Ok(rows.first().and_then(|row| row.get(0)))
    }

    /// How far a rebalance is.
    ///
    /// # Errors
    /// [`OperateError`], also for a job that does not exist.
    pub async fn rebalance_progress(&self, job: i64) -> Result<RebalanceProgress, OperateError> {
        let sql =
            "select j.state::text, count(*) filter (where t.status = 'done'), count(t.task_id)
                   from pg_dist_background_job j left join pg_dist_background_task t using (job_id)
                   where job_id = $1 group by j.state";
        let rows = self.ask("see how far a rebalance is", sql, &[&job]).await?;
        let row = rows.first().ok_or(OperateError::NoJob(job))?;
        Ok(RebalanceProgress {
            job,
            state: row.get(0),
            moves_done: row.get(1),
            moves_total: row.get(2),
        })
    }

    /// Starts a rebalance and waits for its end; `on_progress` hears of each step. Dropping the future, or running out
    /// of time, leaves it running.
    ///
    /// # Errors
    /// [`OperateError::RebalanceFailed`] with what Citus says; [`OperateError::StillRebalancing`].
    pub async fn rebalance(
        &self,
        transfer: Transfer,
        mut on_progress: impl FnMut(&RebalanceProgress),
    ) -> Result<(), OperateError> {
        let Some(job) = self.start_rebalance(transfer).await? else {
            return Ok(());
        };
        let deadline = Instant::now() + self.time_max;
        let mut last = None;
        loop {
            let progress = self.rebalance_progress(job).await?;
            if last.as_ref() != Some(&progress) {
                on_progress(&progress);
            }
            match progress.state.as_str() {
                "finished" => return Ok(()),
                "failed" | "cancelled" => return Err(self.why_failed(progress).await),
                _ if Instant::now() > deadline => {
                    return Err(OperateError::StillRebalancing(progress));
                }
                _ => {}
            }
            last = Some(progress);
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn why_failed(&self, progress: RebalanceProgress) -> OperateError {
        let sql = "select message from pg_dist_background_task
                   where job_id = $1 and status = 'error' order by task_id limit 1";
        let said = self
            .ask("see why a rebalance failed", sql, &[&progress.job])
            .await;
        let message = said
            .ok()
            .and_then(|rows| rows.first().and_then(|row| row.get::<_, Option<String>>(0)));
        OperateError::RebalanceFailed {
            progress,
            message: message.unwrap_or_else(|| "Citus gives no reason".into()),
        }
    }
}
