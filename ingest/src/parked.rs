//! Direct mode's sweep, and where the dead letters go of events that had been answered with 202.

use std::future::pending;
use std::sync::Arc;

use shardlane_sql::{KeepLetters, ParkedLetter, SqlError, Store, SweepTiming, sweep_while};
use tokio::task::AbortHandle;

use crate::dead_letter;

/// Takes the dead letters of a transaction, before it commits: the table `dead_letters` has them.
pub(crate) struct Keeper<'a>(pub(crate) &'a Store);

impl KeepLetters for Keeper<'_> {
    type Error = SqlError;

    async fn keep(&self, letters: &[ParkedLetter]) -> Result<(), SqlError> {
        for ParkedLetter { event, reason, .. } in letters {
            let (class, reason) = (reason.class(), reason.to_string());
            // Headers of an HTTP request are not kept while an event waits.
            let letter = dead_letter::of_event(event, class, reason, 1, Vec::new());
            self.0.bury(&letter).await?;
        }
        Ok(())
    }
}

/// The sweep, for as long as this lives.
pub(crate) struct Sweep(AbortHandle);

impl Sweep {
    pub(crate) fn start(store: Arc<Store>) -> Sweep {
        let task = tokio::spawn(async move {
            sweep_while(
                &store,
                SweepTiming::default(),
                &Keeper(&store),
                pending(),
                |_| (),
            )
            .await;
        });
        Sweep(task.abort_handle())
    }
}

impl Drop for Sweep {
    fn drop(&mut self) {
        self.0.abort();
    }
}
