//! How long the webhook topics keep records.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AlterConfig, ConfigSource, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;

use crate::topics::{ADMIN_TIMEOUT, TopicError, TopicSet, admin, options};

/// How often the broker is asked whether it has heard of new settings.
const VISIBLE_LOOK: Duration = Duration::from_millis(50);

/// How long records stay, at least `retention` and at most `segment` longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicRetention {
    /// `retention.ms`.
    pub retention: Duration,
    /// `segment.ms`: Kafka deletes whole segments.
    pub segment: Duration,
}

impl TopicRetention {
    fn settings(self) -> [(&'static str, String); 2] {
        [
            ("retention.ms", self.retention.as_millis().to_string()),
            ("segment.ms", self.segment.as_millis().to_string()),
        ]
    }
}

/// Gives the webhook topics a retention, and waits until the broker shows it. Dead letters and the feed keep what they have.
///
/// # Errors
/// [`TopicError`]; what was changed before stays changed, and it can be run again.
pub async fn set_retention(
    bootstrap: &str,
    topics: &TopicSet,
    retention: TopicRetention,
) -> Result<(), TopicError> {
    let client = admin(bootstrap)?;
    let settings = retention.settings();
    for topic in topics.webhooks() {
        let mut asked = false;
        let deadline = Instant::now() + ADMIN_TIMEOUT;
        loop {
            let mut own = own_settings(&client, bootstrap, &topic).await?;
            if settings
                .iter()
                .all(|(name, value)| own.get(*name) == Some(value))
            {
                break;
            }
            if !asked {
                // What is not named is reset: this request of Kafka's replaces all.
                own.extend(
                    settings
                        .iter()
                        .map(|(name, value)| ((*name).to_owned(), value.clone())),
                );
                alter(&client, bootstrap, &topic, &own).await?;
                asked = true;
            } else if Instant::now() > deadline {
                return Err(TopicError::NotKept { topic });
            } else {
                tokio::time::sleep(VISIBLE_LOOK).await;
            }
        }
    }
    Ok(())
}

/// The settings that a topic has of its own.
async fn own_settings(
    client: &AdminClient<DefaultClientContext>,
    bootstrap: &str,
    topic: &str,
) -> Result<BTreeMap<String, String>, TopicError> {
    let asked = [ResourceSpecifier::Topic(topic)];
    let answers = client.describe_configs(&asked, &options()).await;
    let answers = answers.map_err(|source| TopicError::Broker {
        bootstrap: bootstrap.to_owned(),
        source,
    })?;
    let mut own = BTreeMap::new();
    for answer in answers {
        let config = answer.map_err(|code| TopicError::Refused {
            topic: topic.to_owned(),
            code,
        })?;
        let entries = config.entries.into_iter();
        let entries = entries.filter(|entry| entry.source == ConfigSource::DynamicTopic);
        own.extend(entries.filter_map(|entry| Some((entry.name, entry.value?))));
    }
    Ok(own)
}

async fn alter(
    client: &AdminClient<DefaultClientContext>,
    bootstrap: &str,
    topic: &str,
    settings: &BTreeMap<String, String>,
) -> Result<(), TopicError> {
    let change = settings.iter().fold(
        AlterConfig::new(ResourceSpecifier::Topic(topic)),
        |change, (name, value)| change.set(name, value),
    );
    let altered = client.alter_configs(&[change], &options()).await;
    let altered = altered.map_err(|source| TopicError::Broker {
        bootstrap: bootstrap.to_owned(),
        source,
    })?;
    for result in altered {
        result.map_err(|(_, code)| TopicError::Refused {
            topic: topic.to_owned(),
            code,
        })?;
    }
    Ok(())
}
