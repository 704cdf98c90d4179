//! What the relay has published: every applied event, at least once, and each state's versions in their order.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use uuid::Uuid;

use super::Wrong;
use super::check::Check;
use super::model::StateKey;

impl Check<'_> {
    pub(super) fn feed_has_every_applied_event(&mut self) {
        let mut found: Vec<(Wrong, Option<Uuid>, String)> = Vec::new();
        for (topic, records) in self.held.feed.iter().filter(|(topic, _)| *topic != "email") {
            let mut ids: HashSet<String> = HashSet::new();
            let mut versions: HashMap<StateKey, i64> = HashMap::new();
            for record in records {
                let value: Value =
                    serde_json::from_slice(record.value.as_deref().unwrap_or_default())
                        .unwrap_or_default();
                let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
                let user = text("user_id").parse().unwrap_or_default();
                if !ids.insert(text("id")) {
                    self.verdict.records_again += 1;
                    continue;
                }
                let source = if text("entity") == "order" {
                    "orders"
                } else {
                    "chargebacks"
                };
                let version = value["version"].as_i64().unwrap_or_default();
                let last = versions
                    .entry((source, user, text("order_id")))
                    .or_default();
                if version != *last + 1 {
                    let sentence = format!("{topic} has {} v{version} after v{last}", text("id"));
                    found.push((Wrong::OutOfOrder, Some(user), sentence));
                }
                *last = version;
            }
            for (key, state) in &self.model.states {
                let last = versions.remove(key).unwrap_or(0);
                if last != state.version {
                    let sentence = format!("{topic} ends at v{last} of {} {}", key.0, key.2);
                    found.push((Wrong::Lost, Some(key.1), sentence));
                }
            }
            for key in versions.into_keys() {
                let sentence = format!("{topic} knows {key:?}, which there is not");
                found.push((Wrong::Other, Some(key.1), sentence));
            }
        }
        for (wrong, user, sentence) in found {
            self.verdict.add(wrong, user, sentence);
        }
    }
}
