//! The front door from outside. One binary, so that all tests share one Postgres and one broker.

mod attacks;
mod bad_input;
mod contract;
mod dead_letters;
mod direct;
mod kafka;
mod payments;
mod protection;
mod server;
mod shard_away;
mod signed;
mod support;
mod unprocessable;
