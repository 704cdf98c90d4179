//! Free loopback ports.

use std::net::{Ipv4Addr, TcpListener};

use rand::RngExt;

/// A port that nothing listens on at this moment.
///
/// Taken from below the range from which the kernel takes the source ports of outgoing
/// connections: a server that is restarted then finds its port free again, and not lent to some
/// client. Another program may still be faster, so whoever starts a server must try again.
pub(crate) fn free_port() -> std::io::Result<u16> {
    let mut rng = rand::rng();
    for _ in 0..64 {
        let port = rng.random_range(15_000..32_000);
        if is_free(port) {
            return Ok(port);
        }
    }
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
