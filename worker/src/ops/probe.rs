//! One question to a server at a time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// A question blocks a thread or takes a connection, and probes that pile up must not take all of them: one is asked at a
/// time.
#[derive(Debug)]
pub struct Probe {
    deadline: Duration,
    turn: Arc<Semaphore>,
}

impl Probe {
    /// `deadline`: how long a turn, and then an answer, may take.
    #[must_use]
    pub fn new(deadline: Duration) -> Self {
        Probe {
            deadline,
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    /// How long an answer may take.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Waits for the turn; `None`: the question before is still not answered. It is given back when it is dropped, which
    /// may be after the asker went away.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        let turn = Arc::clone(&self.turn).acquire_owned();
        timeout(self.deadline, turn).await.ok()?.ok()
    }
}
