//! `/livez`: the process answers. `/readyz`: what it stands on answers too.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::problem::Problem;
use crate::webhook::Door;

/// What a probe hears when all is well.
#[derive(Serialize, ToSchema)]
#[serde(tag = "status", rename_all = "lowercase")]
pub(crate) enum Health {
    Alive,
    Ready,
}

pub(crate) async fn live() -> Json<Health> {
    Json(Health::Alive)
}

pub(crate) async fn ready(State(door): State<Arc<Door>>) -> Result<Json<Health>, Problem> {
    let Some(turn) = door.probe.turn().await else {
        let what = "the question before is not answered yet; ask less often";
        return Err(Problem::NotReady { what: what.into() });
    };
    door.mode.ping(door.probe.deadline(), turn).await?;
    Ok(Json(Health::Ready))
}
