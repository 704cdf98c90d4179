//! `/livez`: the process answers. `/readyz`: what it stands on answers too.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::problem::Problem;
use crate::webhook::Door;

/// What a probe hears when all is well.
#[derive(Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub(crate) enum Health {
    Alive,
    Ready,
}

/// One question to the broker or the database at a time: a question blocks a thread or takes a connection, and
/// probes that pile up must not take all of them.
pub(crate) struct Probe {
    deadline: Duration,
    turn: Arc<Semaphore>,
}

impl Probe {
    pub(crate) fn new(deadline: Duration) -> Self {
        Probe {
            deadline,
            turn: Arc::new(Semaphore::new(1)),
        }
    }
}

pub(crate) async fn live() -> Json<Health> {
    Json(Health::Alive)
}

pub(crate) async fn ready(State(door): State<Arc<Door>>) -> Result<Json<Health>, Problem> {
    let Probe { deadline, turn } = &door.probe;
    let ask = async {
        // Never closed, so this fails never; without a turn the question may as well be asked.
        let turn = Arc::clone(turn).acquire_owned().await.ok();
        door.mode.ping(*deadline, turn).await
    };
    match timeout(*deadline, ask).await {
        Ok(Ok(())) => Ok(Json(Health::Ready)),
        Ok(Err(problem)) => Err(problem),
        Err(_) => Err(Problem::NotReady {
            what: door.mode.silence(),
        }),
    }
}
