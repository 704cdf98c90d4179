//! The sharding lab: experiments on real servers that this process starts, and their report.
//!
//! Invariants:
//! - Every figure was measured in the run that shows it; nothing is compared with a stored number.
//! - Layouts take turns within each round of runs, so that a drifting machine harms all alike; ratios are taken
//!   within a round, then their median.
//! - A layout that cannot run here is named with its reason, never left out silently.

pub mod check;
mod closed_loop;
pub mod cost;
pub mod door;
mod feed;
mod fill;
pub mod ingest;
mod lab;
pub mod load;
mod machine;
pub mod memory;
mod pools;
mod raw;
pub mod reads;
mod replay;
pub mod report;
pub mod reshard;
pub mod results;
pub mod retention;
pub mod routing;
pub mod scatter;
pub mod shard_down;
pub mod skew;
pub mod stream;
pub mod study;
pub mod sweep;
pub mod table;
pub mod window;
