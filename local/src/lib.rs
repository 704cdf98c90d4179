//! Real servers as child processes, without containers: PostgreSQL, Citus and Apache Kafka.
//!
//! [`Postgres`], [`CitusCluster`] and [`Kafka`] are *owned* servers: they live in a temporary or
//! a named directory, on a free loopback port, and no longer than the value, and no longer than
//! the process that holds it. [`detached`] servers outlive the command that started them.
//!
//! Invariants:
//! - An owned server and its temporary directory are gone after `stop`, `Drop`, exit, panic,
//!   Ctrl-C and `kill -9` of the parent. A small shell script holds the server and reads a pipe
//!   from the parent (`lifeline.sh`); a destructor is not what this rests on, so a server in a
//!   `static` is stopped as well.
//! - Each wait is bounded, and a failed start says where the server's log is kept.
//! - Everything listens on 127.0.0.1 only, so there is neither TLS nor a password.
//! - Absent: no container, no download except Kafka's jars through Maven, no business tables.

mod cache;
mod citus;
pub mod detached;
mod directory;
mod error;
mod java;
mod kafka;
mod kafka_jars;
mod lifeline;
mod missing;
mod pg_bin;
mod ports;
mod postgres;
mod proc;
mod requirement;
mod run_as;

pub use citus::{CitusCluster, CitusOptions};
pub use directory::DataDir;
pub use error::ServerError;
pub use kafka::{Kafka, KafkaOptions};
pub use kafka_jars::VERSION as KAFKA_VERSION;
pub use missing::{
    Missing, chromium_available, citus_available, kafka_available, partman_available,
    postgres_available, promtool_available, schemathesis_available,
};
pub use postgres::{Durability, Postgres, PostgresOptions, create_database, drop_database};
pub use proc::{ProcessId, cpu_seconds_of_tree, memory_bytes_of_tree};
pub use requirement::{Requirement, require};
