//! What the parts of a request cost, each by itself and without HTTP.

use std::hint::black_box;
use std::sync::Arc;

use anyhow::ensure;
use futures_util::{StreamExt, stream};
use shardlane_domain::{Event, SigningKey};
use shardlane_worker::{Publisher, accepted_now};

use super::cpu::SERVER;
use super::results::PRODUCE;
use crate::stream::Webhook;

/// Records under way at once in the produce step.
const IN_FLIGHT: usize = 256;
/// Any secret costs the same.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// CPU us a request, by name, in the order of a request's way.
pub(super) type Costs = [(&'static str, f64); 4];

/// Measures each step once. On a thread of the front door's runtime, whose threads are counted.
pub(super) async fn measure(
    webhooks: Arc<Vec<Webhook>>,
    kafka: &Publisher,
    discarding: &Publisher,
) -> anyhow::Result<Costs> {
    #[expect(clippy::cast_precision_loss, reason = "some ten thousands")]
    let count = webhooks.len() as f64;
    let per_request = |seconds: f64| seconds * 1e6 / count;
    let key = SigningKey::parse(SECRET)?;

    let before = SERVER.cpu_seconds()?;
    for webhook in webhooks.iter() {
        black_box(key.code(&webhook.event_id, "1614265330", &webhook.payload));
    }
    let verified = SERVER.cpu_seconds()?;
    let events = webhooks
        .iter()
        .map(|webhook| Event::decode(webhook.source, webhook.payload.clone(), accepted_now()))
        .collect::<Result<Vec<_>, _>>()?;
    let decoded = SERVER.cpu_seconds()?;
    for event in &events {
        discarding.publish(event).await?;
    }
    let routed = SERVER.cpu_seconds()?;
    let mut under_way = stream::iter(events)
        .map(|event| async move { kafka.publish(&event).await })
        .buffer_unordered(IN_FLIGHT);
    let mut published = 0;
    while let Some(answer) = under_way.next().await {
        answer?;
        published += 1;
    }
    let produced = SERVER.cpu_seconds()?;
    ensure!(published == webhooks.len(), "a record was not acknowledged");
    // The publish contains the routing, which has its own line.
    let routing = routed - decoded;
    Ok([
        ("verification", per_request(verified - before)),
        ("validation", per_request(decoded - verified)),
        ("routing", per_request(routing)),
        (PRODUCE, per_request(produced - routed - routing)),
    ])
}
