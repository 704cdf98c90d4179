//! Dead letters of direct mode, under the name that a worker's have.

use std::fmt::{self, Error};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use shardlane_sql::Store;

use super::sheet::Sheet;

pub(super) struct BuriedCollector(pub(super) Store);

impl fmt::Debug for BuriedCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuriedCollector").finish_non_exhaustive()
    }
}

impl Collector for BuriedCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        Sheet(encoder).counter(
            "shardlane_dead_letters",
            "Dead letters that the database has, by their class.",
            self.0.buried().into_iter().map(|((source, class), count)| {
                ([("topic", source.topic()), ("class", class)], count)
            }),
        )
    }
}
