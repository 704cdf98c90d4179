//! What happens to the broker, to offsets and to dead-letter topics.

use std::time::Duration;

use anyhow::ensure;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};
use shardlane_domain::Source;
use shardlane_worker::create_topics;

use super::{Outcome, Run, Stage};
use crate::log::asker;
use crate::oracle::Rules;
use crate::webhook::Mixture;
use crate::world::{Offsets, PARTITIONS, World};

pub(super) async fn broker_killed(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::set(run, "broker").await?;
    stage
        .world
        .slow_down(&[0, 1], Duration::from_millis(15))
        .await?;
    stage.crew = stage.world.crew(2).await?;
    let door = stage.world.door().await?;
    let http = door.clone().over_http().await?;
    stage.send(&[door, http], Mixture::USUAL);
    for _ in 0..run.sizes.strikes.div_ceil(2) {
        stage.world.until_in_flight(0).await?;
        run.lab.kafka.kill().await?;
        // Longer than the front door waits for the broker.
        tokio::time::sleep(Duration::from_secs(5)).await;
        run.lab.kafka.restart().await?;
        stage.recover().await?;
    }
    stage
        .end(
            Rules::default(),
            "batches were under way, and senders got no answer",
        )
        .await
}

pub(super) async fn offsets_to_zero(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::begin(run, "to_zero", 2).await?;
    for _ in 0..run.sizes.strikes.div_ceil(2) {
        let read = async || Ok(stage.world.committed()?.values().all(|it| *it > 0));
        stage.world.until("something to set back", read).await?;
        stage.world.until_in_flight(0).await?;
        stage.dismiss().await?;
        let before = stage.world.committed()?;
        let zero = before.keys().map(|key| (*key, 0)).collect();
        set_offsets(&stage.world, &zero)?;
        stage.crew = stage.world.crew(2).await?;
        stage.recover().await?;
    }
    stage
        .end(Rules::default(), "all that was applied was read again")
        .await
}

pub(super) async fn offsets_ahead(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::begin(run, "ahead", 2).await?;
    // Where no fence is, nobody can say what the database lacks.
    let fenced = async || Ok(stage.world.fences().await?.len() == 2 * PARTITIONS as usize);
    stage.world.until("fences", fenced).await?;
    stage.world.until_in_flight(0).await?;
    stage.dismiss().await?;
    // Something has to lie between fence and end.
    let behind = async || {
        let (fences, ends) = (stage.world.fences().await?, stage.world.ends()?);
        Ok(ends
            .iter()
            .all(|(key, end)| fences.get(key).copied().unwrap_or(0) + 5 < *end))
    };
    stage
        .world
        .until("a backlog in each partition", behind)
        .await?;
    let ends = stage.world.ends()?;
    set_offsets(&stage.world, &ends)?;
    stage.crew = stage.world.crew(2).await?;
    stage.recover().await?;
    stage
        .end(Rules::default(), "records lay between fence and offset")
        .await
}

/// As an operator does it, while the group is empty.
fn set_offsets(world: &World<'_>, offsets: &Offsets) -> anyhow::Result<()> {
    let mut list = TopicPartitionList::new();
    for (source, topic, partition) in world.partitions() {
        list.add_partition_offset(
            &topic,
            partition,
            Offset::Offset(offsets[&(source, partition)]),
        )?;
    }
    asker(&world.bootstrap(), &world.group)?.commit(&list, CommitMode::Sync)?;
    ensure!(
        world.committed()? == *offsets,
        "the offsets stay as they are"
    );
    Ok(())
}

pub(super) async fn dlq_missing(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut stage = Stage::set(run, "dlq_missing").await?;
    stage
        .world
        .slow_down(&[0, 1], Duration::from_millis(15))
        .await?;
    stage.world.refuse_poison().await?;
    delete_dlq(&stage.world).await?;
    stage.crew = stage.world.crew(2).await?;
    let door = stage.world.door().await?;
    stage.send(&[door], Mixture::POISON);
    stage.world.until_in_flight(0).await?;
    tokio::time::sleep(run.sizes.outage / 4).await;
    let (bootstrap, topics) = (stage.world.bootstrap(), &stage.world.topics);
    create_topics(&bootstrap, topics, PARTITIONS, 1, &[]).await?;
    stage.recover().await?;
    let rules = Rules {
        refuses: true,
        ..Rules::default()
    };
    stage
        .end(rules, "dead letters had no topic for a while")
        .await
}

async fn delete_dlq(world: &World<'_>) -> anyhow::Result<()> {
    use rdkafka::admin::{AdminClient, AdminOptions};
    let admin: AdminClient<_> = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", world.bootstrap())
        .create()?;
    let names: Vec<String> = Source::ALL
        .iter()
        .map(|source| world.topics.dlq_of(*source))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for deleted in admin.delete_topics(&names, &AdminOptions::new()).await? {
        deleted.map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}"))?;
    }
    Ok(())
}
