//! Direct mode's sweep, and where the dead letters go of events that had been answered with 202.

use std::sync::Arc;

use shardlane_sql::{KeepLetters, ParkedLetter, Store, SweepTiming, sweep_while};
use tokio::task::AbortHandle;

/// Direct mode has no place for dead letters: what would become one waits on, in its queue, where it is seen.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0} parked events would be dead letters, and direct mode has no place for those; they wait on"
)]
pub(crate) struct NoPlace(usize);

/// Takes the dead letters of a transaction, before it commits.
pub(crate) struct Keeper;

impl KeepLetters for Keeper {
    type Error = NoPlace;

    async fn keep(&self, letters: &[ParkedLetter]) -> Result<(), NoPlace> {
        if letters.is_empty() {
            return Ok(());
        }
        Err(NoPlace(letters.len()))
    }
}

/// The sweep, for as long as this lives.
pub(crate) struct Sweep(AbortHandle);

impl Sweep {
    pub(crate) fn start(store: Arc<Store>) -> Sweep {
        let task = tokio::spawn(async move {
            sweep_while(&store, SweepTiming::default(), &Keeper, |_| ()).await;
        });
        Sweep(task.abort_handle())
    }
}

impl Drop for Sweep {
    fn drop(&mut self) {
        self.0.abort();
    }
}
