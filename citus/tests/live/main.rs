//! The watch, the operations and the example's writer against a cluster that changes.
//!
//! One cluster serves most tests; each has a database of its own.

mod faults;
mod operate;
mod support;
mod watch;
mod writing;

#[allow(dead_code, reason = "its main is for people")]
#[path = "../../examples/writer.rs"]
mod writer;
