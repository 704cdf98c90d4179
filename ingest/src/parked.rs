//! Direct mode's sweep, and where the dead letters go of events that had been answered with 202.

use std::sync::Arc;

use shardlane_sql::{
    KeepLetters, NewLetter, ParkedLetter, SqlError, Store, SweepTiming, sweep_while,
};
use tokio::task::AbortHandle;

/// Takes the dead letters of a transaction, before it commits. A letter's id follows from its bytes, so one whose
/// transaction fails after all is the same letter the next time.
pub(crate) struct Keeper<'a>(pub(crate) &'a Store);

impl KeepLetters for Keeper<'_> {
    type Error = SqlError;

    async fn keep(&self, letters: &[ParkedLetter]) -> Result<(), SqlError> {
        for letter in letters {
            let headers = letter.carried.headers.iter().filter_map(|header| {
                let value = String::from_utf8_lossy(header.value.as_deref()?).into_owned();
                Some((header.key.clone(), value))
            });
            let letter = NewLetter {
                source: letter.event.source,
                user_id: Some(letter.event.user_id),
                class: letter.reason.class(),
                reason: letter.reason.to_string(),
                attempts: 1,
                received_at: letter.event.received_at,
                payload: letter.event.payload.clone(),
                headers: headers.collect(),
            };
            let id = self.0.bury(&letter).await?;
            tracing::warn!(%id, class = letter.class, "a dead letter that had been parked");
        }
        Ok(())
    }
}

/// The sweep, for as long as this lives.
pub(crate) struct Sweep(AbortHandle);

impl Sweep {
    pub(crate) fn start(store: Arc<Store>) -> Sweep {
        let task = tokio::spawn(async move {
            sweep_while(&store, SweepTiming::default(), &Keeper(&store), |_| ()).await;
        });
        Sweep(task.abort_handle())
    }
}

impl Drop for Sweep {
    fn drop(&mut self) {
        self.0.abort();
    }
}
