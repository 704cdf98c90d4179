//! How long the inbox must remember, and the job that removes what it need not.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{ConfigResource, ResourceSpecifier};
use shardlane_sql::{RetentionJob, Store};

use crate::settings::WorkerSettings;
use crate::stats::Stats;
use crate::topics::{TopicError, admin, options};

/// Starts the job, if the settings ask for it and the topics allow it.
pub(crate) async fn start(
    settings: &WorkerSettings,
    store: &Store,
    stats: &Arc<Stats>,
) -> Result<Option<RetentionJob>, TopicError> {
    let Some(retention) = settings.inbox_retention else {
        return Ok(None);
    };
    check_topics(settings, retention.keep).await?;
    let stats = Arc::clone(stats);
    let count = move |rows: u64| {
        let counters = &stats.counters;
        Stats::add(
            &counters.inbox_removed,
            usize::try_from(rows).unwrap_or(usize::MAX),
        );
        Stats::add(&counters.inbox_visits, 1);
    };
    Ok(Some(store.retain_inbox(retention, count)))
}

/// Refuses an inbox that forgets an event while its record, or its dead letter, may still come again.
async fn check_topics(settings: &WorkerSettings, inbox: Duration) -> Result<(), TopicError> {
    let broker = |source| TopicError::Broker {
        bootstrap: settings.bootstrap.clone(),
        source,
    };
    let names = settings.topics.webhooks();
    let asked: Vec<ResourceSpecifier<'_>> = names
        .iter()
        .map(|name| ResourceSpecifier::Topic(name))
        .collect();
    let admin = admin(&settings.bootstrap)?;
    let answers = admin
        .describe_configs(&asked, &options())
        .await
        .map_err(broker)?;
    for (topic, answer) in names.iter().zip(answers) {
        let config = answer.map_err(|code| TopicError::Refused {
            topic: topic.clone(),
            code,
        })?;
        let keeps = keeps(&config);
        if keeps.is_none_or(|keeps| keeps.saturating_add(settings.replay_window) >= inbox) {
            return Err(TopicError::OutlivesInbox {
                topic: topic.clone(),
                keeps: keeps.map_or("ever".to_owned(), |keeps| format!("{keeps:?}")),
                replay_window: settings.replay_window,
                inbox,
            });
        }
    }
    Ok(())
}

/// The longest time that a record may stay in the log; `None`: for ever. Kafka deletes a segment when its newest record
/// is too old, and the oldest may be older by as much as a segment takes to fill.
fn keeps(config: &ConfigResource) -> Option<Duration> {
    let value = |name| config.get(name)?.value.as_deref();
    if !value("cleanup.policy")?.contains("delete") {
        return None;
    }
    // -1 is for ever, and no Duration.
    let millis = |name| value(name)?.parse().ok().map(Duration::from_millis);
    Some(millis("retention.ms")?.saturating_add(millis("segment.ms")?))
}
