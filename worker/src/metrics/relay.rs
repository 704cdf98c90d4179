//! What a relay did, and what waits in the outboxes.

use std::fmt::Error;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::sheet::Sheet;
use crate::relay::{RelayCounts, RelayStats};

#[derive(Debug)]
pub(crate) struct RelayCollector(pub(crate) Arc<RelayStats>);

impl Collector for RelayCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut sheet = Sheet(encoder);
        // Without `..`: a new counter is not forgotten here.
        let RelayCounts {
            published,
            records,
            batches,
            setbacks,
            leads,
            lag_rows,
            oldest_age_seconds,
        } = self.0.counts();
        for (name, help, count) in [
            (
                "shardlane_outbox_published",
                "Events of the outboxes that the broker has.",
                published,
            ),
            (
                "shardlane_outbox_records",
                "Records made of them that the broker has.",
                records,
            ),
            (
                "shardlane_outbox_batches",
                "Batches of them that the broker has.",
                batches,
            ),
            (
                "shardlane_outbox_setbacks",
                "Times that an outbox was begun anew because the database or the broker failed.",
                setbacks,
            ),
        ] {
            sheet.counter(name, help, [([], count)])?;
        }
        for (name, help, count) in [
            (
                "shardlane_outbox_leads",
                "Outboxes whose lock this process has.",
                leads,
            ),
            (
                "shardlane_outbox_lag_rows",
                "Events that wait in the outboxes to be published.",
                lag_rows,
            ),
        ] {
            sheet.gauge(name, help, [([], count)])?;
        }
        sheet.gauge(
            "shardlane_outbox_lag_seconds",
            "How long ago the oldest of them was accepted.",
            [([], oldest_age_seconds)],
        )
    }
}
