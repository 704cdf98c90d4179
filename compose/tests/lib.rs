//! Nothing but tests: see `images.rs`.
