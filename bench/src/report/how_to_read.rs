//! What a reader must know of each experiment before its figures: HTML of our own.

/// What the paths of an experiment are, how it was measured and what was not; empty for one that has no such text.
#[must_use]
pub fn how_to_read(experiment: &str) -> &'static str {
    match experiment {
        "cost" => include_str!("how-to-read/cost.html"),
        "ingest" => include_str!("how-to-read/ingest.html"),
        "reshard" => include_str!("how-to-read/reshard.html"),
        "retention" => include_str!("how-to-read/retention.html"),
        "routing" => include_str!("how-to-read/routing.html"),
        "reads" => include_str!("how-to-read/reads.html"),
        "scatter" => include_str!("how-to-read/scatter.html"),
        sweep if sweep.starts_with("sweep") => include_str!("how-to-read/sweep.html"),
        "window" => include_str!("how-to-read/window.html"),
        "door" => include_str!("how-to-read/door.html"),
        "memory" => include_str!("how-to-read/memory.html"),
        "skew" => include_str!("how-to-read/skew.html"),
        "shard-down" => include_str!("how-to-read/shard-down.html"),
        _ => "",
    }
}
