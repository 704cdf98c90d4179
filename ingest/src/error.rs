//! Why the front door does not open.

use std::net::SocketAddr;

/// What stops the server from starting.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// Settings that contradict each other or bound nothing.
    #[error("{0}")]
    Settings(String),
    /// Somebody else listens there.
    #[error(
        "port {} is taken: another program listens on {address}; stop it, or choose another port in `listen`",
        .address.port()
    )]
    PortTaken {
        /// What `listen` says.
        address: SocketAddr,
    },
    /// The address is not ours, or not allowed.
    #[error("cannot listen on {address}; choose an address of this machine and a port above 1023")]
    Listen {
        /// What `listen` says.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
}
