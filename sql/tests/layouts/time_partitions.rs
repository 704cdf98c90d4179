//! Whoever asks learns until when there are time partitions.

use jiff::Timestamp;
use shardlane_sql::Layout;

use crate::ground::{Ground, connect};

on_every_layout!(the_end_of_the_last_time_partition_is_known);

async fn the_end_of_the_last_time_partition_is_known(ground: Ground) {
    let Some(db) = ground.db().await else { return };
    let store = db.store().await;
    let partitions = store.time_partitions().await;
    let tables: Vec<&str> = partitions.iter().map(|it| &*it.table).collect();
    if ground.layout != Layout::Partman {
        assert_eq!(tables, [""; 0]);
        return;
    }
    assert_eq!(tables, ["dispute_events", "order_events"]);
    // pg_partman has made today's and four more.
    for found in &partitions {
        let hours = found
            .until
            .unwrap()
            .duration_since(Timestamp::now())
            .as_hours();
        assert!((95..=120).contains(&hours), "{found:?}: {hours} h ahead");
    }

    // With nothing but the default partition there is no end.
    let client = connect(&db.urls()[0]).await;
    let rows = client
        .query(
            "select inhrelid::regclass::text from pg_inherits where inhparent = 'order_events'::regclass \
             and inhrelid::regclass::text not like '%default'",
            &[],
        )
        .await
        .unwrap();
    for row in rows {
        let drop = format!("drop table {}", row.get::<_, String>(0));
        client.batch_execute(&drop).await.unwrap();
    }
    let orders = store.time_partitions().await.pop().unwrap();
    assert_eq!((&*orders.table, orders.until), ("order_events", None));
}
