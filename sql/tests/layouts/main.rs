//! The database ring: one suite, every layout, real servers. A test is a function of a [`ground::Ground`], and
//! `on_every_layout!` stamps it onto each; each run has a database of its own.
//!
//! All of it is one program, because each program starts its own Postgres and its own Citus cluster.

/// Runs each named function on every layout, and on Citus by every path, as tests of its own:
/// `once::the_same_batch_again::citus_owner`.
macro_rules! on_every_layout {
    ($($test:ident),+ $(,)?) => { $(
        mod $test {
            use crate::ground::Ground;

            #[tokio::test(flavor = "multi_thread")]
            async fn single() {
                super::$test(Ground::SINGLE).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn partman() {
                super::$test(Ground::PARTMAN).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn shards() {
                super::$test(Ground::SHARDS).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn citus_owner() {
                super::$test(Ground::CITUS_OWNER).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn citus_coordinator() {
                super::$test(Ground::CITUS_COORDINATOR).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn citus_coordinator_grouped() {
                super::$test(Ground::CITUS_COORDINATOR_GROUPED).await;
            }
        }
    )+ };
}

mod apply;
mod audit;
mod citus;
mod dead_letters;
mod events;
mod fence;
mod ground;
mod hot;
mod lock;
mod migrations;
mod model;
mod once;
mod outbox;
mod outcomes;
mod park;
mod park_faults;
mod poison;
mod reshard;
mod reshard_faults;
mod retention;
mod shards;
mod statements;
mod time_partitions;
