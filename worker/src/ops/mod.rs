//! What operators ask of every server of the house.

mod probe;
mod problem;

pub use probe::Probe;
pub use problem::{PROBLEM_TYPE_PREFIX, ProblemDetails, not_ready};
