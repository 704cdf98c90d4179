//! Users who send at one rate, each one its next webhook when the one before is answered, and the log of what was answered.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::door::{Answer, Door};
use crate::webhook::{Mixture, User, Webhook};

/// A user who is not answered tries again after this.
const AGAIN: Duration = Duration::from_millis(100);
/// After the end, what has no answer is tried this much longer.
const LAST_TRIES: Duration = Duration::from_secs(60);

/// How to send.
#[derive(Debug, Clone, Copy)]
pub struct LoadSettings {
    /// Everything random comes from this.
    pub seed: u64,
    /// How many users send.
    pub users: u64,
    /// Webhooks a second over all users.
    pub rate: f64,
    /// What the sequences hold.
    pub mixture: Mixture,
}

/// One attempt to hand in a webhook.
#[derive(Debug, Clone)]
pub struct Sent {
    /// What was sent.
    pub webhook: Webhook,
    /// What came back.
    pub answer: Answer,
}

struct Shared {
    settings: LoadSettings,
    log: Mutex<Vec<Sent>>,
    sent: AtomicU64,
    stop: AtomicBool,
    hurry: AtomicBool,
    began: Instant,
}

/// Users at work.
pub struct Load {
    shared: Arc<Shared>,
    users: Vec<JoinHandle<()>>,
}

impl Load {
    /// Begins to send. User n goes through door n modulo their number.
    #[must_use]
    pub fn start(doors: &[Door], settings: LoadSettings) -> Load {
        let shared = Arc::new(Shared {
            settings,
            log: Mutex::default(),
            sent: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            hurry: AtomicBool::new(false),
            began: Instant::now(),
        });
        let users = (0..settings.users)
            .zip(doors.iter().cycle())
            .map(|(number, door)| {
                let user = User::new(settings.seed, number, settings.mixture);
                tokio::spawn(send(Arc::clone(&shared), user, door.clone()))
            })
            .collect();
        Load { shared, users }
    }

    /// Webhooks that were answered so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Waits until so many were sent, and stops. What is missing is sent without a pause.
    ///
    /// # Errors
    /// A user who panicked.
    pub async fn stop_at(self, events: u64) -> anyhow::Result<Vec<Sent>> {
        self.shared.hurry.store(true, Ordering::Relaxed);
        while self.sent() < events {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.shared.stop.store(true, Ordering::Relaxed);
        for user in self.users {
            user.await?;
        }
        let mut log = self
            .shared
            .log
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut *log))
    }
}

async fn send(shared: Arc<Shared>, mut user: User, door: Door) {
    while !shared.stop.load(Ordering::Relaxed) || user.owes() {
        let number = shared.sent.load(Ordering::Relaxed);
        if !shared.hurry.load(Ordering::Relaxed) {
            #[expect(clippy::cast_precision_loss, reason = "fewer than 2^53 events")]
            let due = Duration::from_secs_f64(number as f64 / shared.settings.rate);
            if let Some(early) = due.checked_sub(shared.began.elapsed()) {
                // In pieces: the end may come first.
                tokio::time::sleep(early.min(Duration::from_millis(50))).await;
                if early > Duration::from_millis(1) {
                    continue;
                }
            }
        }
        let webhook = user.next_webhook();
        let mut give_up = None;
        loop {
            let answer = door.send(&webhook).await;
            let entry = Sent {
                webhook: webhook.clone(),
                answer,
            };
            shared
                .log
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(entry);
            if answer != Answer::Info {
                break;
            }
            if shared.stop.load(Ordering::Relaxed) {
                let until = *give_up.get_or_insert_with(|| Instant::now() + LAST_TRIES);
                if Instant::now() > until {
                    break;
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
        shared.sent.fetch_add(1, Ordering::Relaxed);
    }
}
