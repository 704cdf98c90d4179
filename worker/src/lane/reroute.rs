//! A shard that no longer takes what the worker's map gives it: the newest map is asked for, and the same is done by it.

use std::time::{Duration, Instant};

use backon::ExponentialBackoff;
use shardlane_router::Epoch;
use shardlane_sql::SqlError;

use super::Lane;
use crate::error::WorkerError;
use crate::stats::Stats;

/// How long a shard may refuse what the newest map gives it. A freeze is explained at once; this is a shard that is not
/// what its map says, and somebody has to look.
const UNEXPLAINED_MAX: Duration = Duration::from_secs(30);

/// Refusals one after the other.
pub(super) struct Reroutes {
    retry: ExponentialBackoff,
    began: Instant,
}

impl Lane {
    pub(super) fn reroutes(&self) -> Reroutes {
        Reroutes {
            retry: self.retry(),
            began: Instant::now(),
        }
    }

    /// Refreshes the map after a refusal of what was routed at epoch `seen`. False: the lane is closing.
    pub(super) async fn reroute(
        &self,
        reroutes: &mut Reroutes,
        seen: Epoch,
        refusal: SqlError,
    ) -> Result<bool, WorkerError> {
        let store = &self.shared.store;
        Stats::add(&self.shared.stats.counters.reroutes, 1);
        store.refresh(seen).await;
        if store.routes().epoch() > seen {
            return Ok(true);
        }
        // The shard refuses what the newest map gives it: that is explained soon, or never.
        if reroutes.began.elapsed() > UNEXPLAINED_MAX {
            return Err(refusal.into());
        }
        let delay = reroutes.retry.next();
        Ok(self
            .pause(delay.unwrap_or(self.shared.settings.retry_delay_max))
            .await)
    }
}
