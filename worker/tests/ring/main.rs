//! The whole ring: a real producer, Kafka, a worker, and rows in real databases, with faults in between.
//!
//! Each test has its own database and topics; where a server is missing it is skipped, visibly. One oracle: nothing is
//! lost, nothing is taken twice, and each user's events keep their order.

mod audit;
mod bad_input;
mod catch_up;
mod dlq;
mod events;
mod feed;
mod group;
mod growth;
mod growth_limits;
mod hot;
mod map;
mod once;
mod parked;
mod poison;
mod reshard;
mod retention;
mod routing;
mod shard_down;
mod storm;
mod world;
