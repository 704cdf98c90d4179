//! More partitions, with each user's order kept.
//!
//! 1. The topics get their partitions; the map still places into the old ones.
//! 2. The map's topic says which slots move, and freezes them: nobody places their events.
//! 3. Lease and message timeout pass: from here on no record of theirs that was acknowledged can still come.
//! 4. The workers' groups commit all that lies in the partitions that the slots leave.
//! 5. The map's topic has the new map, and nothing frozen.
//!
//! The frozen document holds the map that comes next, so whoever finds it finishes it, or takes it back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use shardlane_domain::Source;
use shardlane_router::{Epoch, MapError};

use crate::drain::{Group, nudge};
use crate::map_document::MapDocument;
use crate::map_topic::{MapTopicError, MapWriter, blocking, kafka};
use crate::map_watch::MapTiming;
use crate::topics::{TopicError, TopicSet, add_partitions};

/// How often the groups' commits are looked at.
const DRAIN_POLL: Duration = Duration::from_millis(200);

/// What a growth needs to know.
#[derive(Debug, Clone)]
pub struct GrowthSettings {
    /// `host:port`, comma-separated.
    pub bootstrap: String,
    /// The topics that grow.
    pub topics: TopicSet,
    /// The consumer groups whose order counts.
    pub groups: Vec<String>,
    /// The timing of every publisher on these topics.
    pub timing: MapTiming,
    /// How long the groups may take for what lies in the old partitions.
    pub drain_max: Duration,
}

/// How far a growth is. Each is told when it is so, before the next step begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GrowthStep {
    /// It is known what to do; nothing was done.
    Planned {
        /// Partitions now.
        from: u32,
        /// Partitions afterwards.
        to: u32,
        /// How many of 4096 slots move.
        moved_slots: usize,
        /// An earlier run has frozen them already.
        resumed: bool,
    },
    /// All topics have the partitions.
    PartitionsAdded,
    /// The group's workers have the new partitions; or will have within minutes, by themselves.
    Assigned {
        /// The group.
        group: String,
        /// Whether they have them now.
        now: bool,
    },
    /// The moved slots are frozen.
    Frozen {
        /// The epoch that says so.
        epoch: Epoch,
        /// How long they must rest.
        settle: Duration,
    },
    /// No record of theirs can come any more.
    Settled,
    /// The groups are at work on what lies in the old partitions.
    Draining {
        /// How many records are left.
        records_left: i64,
    },
    /// The groups have committed everything.
    Drained,
}

/// How a growth ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GrowthOutcome {
    /// The new map is in force.
    Grown {
        /// Its epoch.
        epoch: Epoch,
    },
    /// The old table is in force again, because the groups did not drain in time. Nothing is lost.
    RolledBack {
        /// Its epoch.
        epoch: Epoch,
        /// How many records were left.
        records_left: i64,
    },
}

/// Why partitions do not grow.
#[derive(Debug, thiserror::Error)]
pub enum GrowthError {
    /// Not more than there are.
    #[error(
        "the map (epoch {epoch}) has {current} partitions and can only grow; {asked} is not more"
    )]
    NotMore {
        /// How many there are.
        current: u32,
        /// How many were asked for.
        asked: u32,
        /// The map's epoch.
        epoch: Epoch,
    },
    /// Another growth was begun.
    #[error(
        "a growth to {under_way} partitions was begun (epoch {epoch}); finish it with `shardlane topics grow \
         --partitions {under_way}`, or take it back with `shardlane topics grow --abort`"
    )]
    UnderWay {
        /// To how many.
        under_way: u32,
        /// The epoch that froze its slots.
        epoch: Epoch,
    },
    /// A group that has never committed anything of what lies there.
    #[error(
        "group {group} has not committed anything of the {records} records in the partitions that would change; name \
         the workers' group with --group, or let the workers run first"
    )]
    StrangeGroup {
        /// The group.
        group: String,
        /// How many records there are.
        records: i64,
    },
    /// Nobody to wait for.
    #[error(
        "no consumer group is named; without one nobody knows when the old partitions are drained"
    )]
    NoGroup,
    /// So many partitions cannot be.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The map's topic.
    #[error(transparent)]
    MapTopic(#[from] MapTopicError),
    /// The webhook topics.
    #[error(transparent)]
    Topic(#[from] TopicError),
}

/// Adds partitions until there are `partitions`, and moves their share of the slots there. Tells `progress` each step.
/// Killed or dropped anywhere, it may be called again, or [`abort_growth`].
///
/// # Errors
/// [`GrowthError`]. After a [`GrowthStep::Frozen`] the slots stay frozen; call again, or [`abort_growth`].
pub async fn grow(
    settings: &GrowthSettings,
    partitions: u32,
    mut progress: impl FnMut(&GrowthStep),
) -> Result<GrowthOutcome, GrowthError> {
    if settings.groups.is_empty() {
        return Err(GrowthError::NoGroup);
    }
    let (writer, document) = open(settings).await?;
    let resumed = document.next().is_some();
    let frozen = plan(&document, partitions)?;
    progress(&GrowthStep::Planned {
        from: frozen.map().partition_count(),
        to: partitions,
        moved_slots: frozen
            .frozen()
            .iter()
            .map(|(first, last)| usize::from(last - first) + 1)
            .sum(),
        resumed,
    });
    let groups = open_groups(settings).await?;
    if !resumed {
        refuse_strange_groups(settings, &groups, &frozen).await?;
    }
    add_partitions(&settings.bootstrap, &settings.topics, partitions).await?;
    progress(&GrowthStep::PartitionsAdded);
    for group in settings.groups.clone() {
        let (bootstrap, topics, name) = (
            settings.bootstrap.clone(),
            settings.topics.clone(),
            group.clone(),
        );
        let now = ask(settings, move || nudge(&bootstrap, &name, &topics)).await?;
        progress(&GrowthStep::Assigned { group, now });
    }
    let writer = if resumed {
        writer
    } else {
        write(settings, writer, frozen.clone()).await?
    };
    let settle = settings.timing.settle();
    let epoch = frozen.map().epoch();
    progress(&GrowthStep::Frozen { epoch, settle });
    // Also when an earlier run has waited: nobody knows for how long.
    tokio::time::sleep(settle).await;
    progress(&GrowthStep::Settled);
    let records_left = drain(settings, &groups, &frozen, &mut progress).await?;
    let end = match records_left {
        0 => frozen.complete(),
        _ => frozen.roll_back()?,
    };
    let Some(end) = end else {
        unreachable!("a frozen document has a next one");
    };
    let epoch = end.map().epoch();
    if records_left == 0 {
        progress(&GrowthStep::Drained);
    }
    write(settings, writer, end).await?;
    Ok(match records_left {
        0 => GrowthOutcome::Grown { epoch },
        _ => GrowthOutcome::RolledBack {
            epoch,
            records_left,
        },
    })
}

/// Takes a growth back that has frozen slots: the old table is in force again. The partitions that were added stay,
/// empty. Gives the new epoch; `None` if nothing is frozen.
///
/// # Errors
/// [`GrowthError`].
pub async fn abort_growth(settings: &GrowthSettings) -> Result<Option<Epoch>, GrowthError> {
    let (writer, document) = open(settings).await?;
    let Some(open) = document.roll_back()? else {
        return Ok(None);
    };
    let epoch = open.map().epoch();
    write(settings, writer, open).await?;
    Ok(Some(epoch))
}

/// The document that freezes what moves: the one in force, where an earlier run has written it.
fn plan(document: &MapDocument, partitions: u32) -> Result<MapDocument, GrowthError> {
    let epoch = document.map().epoch();
    if let Some(next) = document.next() {
        let under_way = next.partition_count();
        if under_way != partitions {
            return Err(GrowthError::UnderWay { under_way, epoch });
        }
        return Ok(document.clone());
    }
    let current = document.map().partition_count();
    if partitions <= current {
        return Err(GrowthError::NotMore {
            current,
            asked: partitions,
            epoch,
        });
    }
    Ok(document.freeze(partitions)?)
}

async fn open(settings: &GrowthSettings) -> Result<(MapWriter, MapDocument), GrowthError> {
    let (bootstrap, topics) = (settings.bootstrap.clone(), settings.topics.clone());
    let open = move || {
        let writer = MapWriter::open(&bootstrap, &topics)?;
        let none = || MapTopicError::NoMap(topics.map());
        let document = writer.document().cloned().ok_or_else(none)?;
        Ok((writer, document))
    };
    Ok(blocking(settings.topics.map(), open).await?)
}

async fn write(
    settings: &GrowthSettings,
    mut writer: MapWriter,
    document: MapDocument,
) -> Result<MapWriter, GrowthError> {
    let write = move || writer.write(&document).map(|()| writer);
    Ok(blocking(settings.topics.map(), write).await?)
}

type Groups = Arc<[Group]>;

async fn open_groups(settings: &GrowthSettings) -> Result<Groups, GrowthError> {
    let (bootstrap, names) = (settings.bootstrap.clone(), settings.groups.clone());
    let open = move || {
        let groups = names.iter().map(|name| Group::open(&bootstrap, name));
        groups.collect()
    };
    ask(settings, open).await
}

/// A group's name may be misspelt; better to hear of it before anything is frozen.
async fn refuse_strange_groups(
    settings: &GrowthSettings,
    groups: &Groups,
    frozen: &MapDocument,
) -> Result<(), GrowthError> {
    let (topics, partitions) = (settings.topics.clone(), frozen.left_partitions());
    let groups = Arc::clone(groups);
    let look = move || {
        let piles = groups[0].piles(&topics, &partitions)?;
        for group in &groups[..] {
            let (records, known) = group.left(&piles)?;
            if records > 0 && !known {
                return Ok(Some((group.name().to_owned(), records)));
            }
        }
        Ok(None)
    };
    match ask(settings, look).await? {
        Some((group, records)) => Err(GrowthError::StrangeGroup { group, records }),
        None => Ok(()),
    }
}

/// Waits until every group has committed what lies in the partitions that the frozen slots leave. Gives how many
/// records are left: 0, or more when the time is over.
async fn drain(
    settings: &GrowthSettings,
    groups: &Groups,
    frozen: &MapDocument,
    progress: &mut impl FnMut(&GrowthStep),
) -> Result<i64, GrowthError> {
    let deadline = Instant::now() + settings.drain_max;
    let (topics, partitions) = (settings.topics.clone(), frozen.left_partitions());
    let asked = Arc::clone(groups);
    // Taken once, after the rest: what comes later belongs to slots that do not move.
    let piles = ask(settings, move || asked[0].piles(&topics, &partitions)).await?;
    let piles = Arc::new(piles);
    let mut told = None;
    loop {
        let (groups, piles) = (Arc::clone(groups), Arc::clone(&piles));
        let left = move || {
            let left = groups.iter().map(|group| Ok(group.left(&piles)?.0));
            left.sum::<Result<i64, KafkaError>>()
        };
        let records_left = ask(settings, left).await?;
        if records_left == 0 || Instant::now() >= deadline {
            return Ok(records_left);
        }
        if told != Some(records_left) {
            progress(&GrowthStep::Draining { records_left });
            told = Some(records_left);
        }
        tokio::time::sleep(DRAIN_POLL).await;
    }
}

/// Asks the broker about the webhook topics, where it may block.
async fn ask<T: Send + 'static>(
    settings: &GrowthSettings,
    question: impl FnOnce() -> Result<T, KafkaError> + Send + 'static,
) -> Result<T, GrowthError> {
    let topic = settings.topics.of(Source::Orders);
    let question = {
        let topic = topic.clone();
        move || question().map_err(|source| kafka(&topic, source))
    };
    Ok(blocking(topic, question).await?)
}
