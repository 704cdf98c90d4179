//! The fault suite: real servers, real worker processes, faults of every kind, and an oracle for what became of each event.
//!
//! - [`load`] sends each user's seeded sequence of webhooks and writes down what the front door answered.
//! - [`crew`] holds the worker processes, which are killed, stopped, and asked to end.
//! - [`oracle`] reads the topics and every shard, past the router, and compares them with a model of its own.
//! - [`scenario`] has the faults, each with databases, topics and a consumer group of its own, and each with a proof that it
//!   struck while a batch was under way.
//! - [`planted`] runs the scenarios against workers with a defect. An oracle that finds nothing there is worth nothing.
//!
//! Absent: the domain's state machines and the router's hash. The oracle asks neither; it has its own model, and
//! Postgres's own hash.

pub mod crew;
pub mod door;
pub mod lab;
pub mod load;
pub mod log;
pub mod oracle;
pub mod planted;
pub mod proxy;
pub mod scenario;
pub mod table;
pub mod webhook;
pub mod worker;
pub mod world;
