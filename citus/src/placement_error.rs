//! [`is_placement_error`]: which errors of a writer are about where, not what, it wrote.

use tokio_postgres::error::SqlState;

/// Whether a statement failed because the cluster changed under it or a node went away, so that the same transaction,
/// routed anew, may well pass: roll back, call [`Watch::refresh`](crate::Watch::refresh), group by the new map, repeat.
///
/// If it was the COMMIT that failed, the transaction may have been committed all the same; repeat only what is
/// idempotent.
///
/// True for a broken connection, a server that stops or starts, a missing physical table (42P01), and what Citus 13
/// says while a shard is split (`could not find valid entry for shard`, XX000) or to a batch for one shard that is two
/// by now (`could not run distributed query with FOR UPDATE`, 0A000). Moves gave a writer no error at all.
#[must_use]
pub fn is_placement_error(error: &tokio_postgres::Error) -> bool {
    let Some(server) = error.as_db_error() else {
        return error.is_closed() || is_io(error);
    };
    let state = server.code();
    let one_of = |states: &[SqlState]| states.contains(state);
    state.code().starts_with("08")
        || one_of(&[
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::UNDEFINED_TABLE,
        ])
        || *state == SqlState::INTERNAL_ERROR && is_about_shards(server.message())
        || *state == SqlState::FEATURE_NOT_SUPPORTED
            && server
                .message()
                .contains("distributed query with FOR UPDATE")
}

fn is_about_shards(message: &str) -> bool {
    message.contains("could not find valid entry for shard")
        || message.contains("failure on connection marked as essential")
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    std::iter::successors(std::error::Error::source(error), |it| it.source())
        .any(|it| it.is::<std::io::Error>())
}
