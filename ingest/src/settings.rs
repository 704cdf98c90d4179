//! The bounds of the front door.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::{IngestError, Sources};

/// The files of the server's own certificate, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The leaf's private key.
    pub key: PathBuf,
}

/// Who may send, where to listen, and how long anything may take.
#[derive(Debug, Clone)]
pub struct IngestSettings {
    /// Who may send what, to which path.
    pub sources: Sources,
    /// Without it: plain HTTP, for behind a proxy.
    pub tls: Option<TlsFiles>,
    /// The address; port 0 takes a free one, which [`Server::address`](crate::Server::address) tells.
    pub listen: SocketAddr,
    /// From a request's header to its answer; then the answer is 503. A publisher's timeout and a pool's
    /// should be shorter, so that the log names the reason.
    pub request_deadline: Duration,
    /// How long a body may take to arrive; then the answer is 408.
    pub body_deadline: Duration,
    /// How long a connection may wait for a request's header, also between two requests, and for a TLS handshake; then
    /// it is closed.
    pub header_deadline: Duration,
    /// How long the broker or the database may take to answer `/readyz`.
    pub probe_deadline: Duration,
    /// How long requests under way may take when the server stops; then they are cut off, unacknowledged.
    pub drain_deadline: Duration,
    /// Connections at one time; further ones wait in the kernel. A connection holds one body at most, so this
    /// bounds the memory too: 1,024 times 256 KiB are 256 MiB.
    pub connections_max: usize,
    /// Whether bytes that are no event become dead letters also where a source verifies nothing. Only where something
    /// in front of this door authenticates senders: otherwise anybody could fill the topic or the table.
    pub keep_undecodable: bool,
}

impl IngestSettings {
    /// Loopback, port 8080, plain HTTP, ten seconds a request. There is no `Default`: whose webhooks are taken, and
    /// whether they are verified, has to be said.
    pub fn new(sources: Sources) -> Self {
        IngestSettings {
            sources,
            tls: None,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            request_deadline: Duration::from_secs(10),
            body_deadline: Duration::from_secs(5),
            header_deadline: Duration::from_secs(30),
            probe_deadline: Duration::from_secs(2),
            drain_deadline: Duration::from_secs(15),
            connections_max: 1024,
            keep_undecodable: false,
        }
    }

    /// Refuses what bounds nothing or contradicts itself.
    ///
    /// # Errors
    /// [`IngestError::Settings`] names the settings and what to do.
    pub fn validate(&self) -> Result<(), IngestError> {
        for (name, deadline) in [
            ("request_deadline", self.request_deadline),
            ("body_deadline", self.body_deadline),
            ("header_deadline", self.header_deadline),
            ("probe_deadline", self.probe_deadline),
            ("drain_deadline", self.drain_deadline),
        ] {
            if deadline.is_zero() {
                return refuse(format!(
                    "{name} is 0, so that nothing would be answered; give it some seconds"
                ));
            }
        }
        for (name, deadline) in [
            ("body_deadline", self.body_deadline),
            ("probe_deadline", self.probe_deadline),
        ] {
            if deadline >= self.request_deadline {
                return refuse(format!(
                    "{name} ({deadline:?}) must be shorter than request_deadline ({:?}), which it is a part of",
                    self.request_deadline
                ));
            }
        }
        // The upper bound is the semaphore's.
        if !(1..=tokio::sync::Semaphore::MAX_PERMITS).contains(&self.connections_max) {
            return refuse(format!(
                "connections_max is {}; it must be 1 or more, such as 1024",
                self.connections_max
            ));
        }
        Ok(())
    }
}

fn refuse(sentence: String) -> Result<(), IngestError> {
    Err(IngestError::Settings(sentence))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl Fn(&mut IngestSettings), expect: &str) {
        let mut settings = IngestSettings::new(Sources::unsigned());
        settings.validate().unwrap();
        change(&mut settings);
        let error = settings.validate().unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    }

    #[test]
    fn settings_that_bound_nothing_or_contradict_each_other_are_refused_by_name() {
        check(
            |settings| settings.request_deadline = Duration::ZERO,
            "request_deadline is 0",
        );
        check(
            |settings| settings.drain_deadline = Duration::ZERO,
            "drain_deadline is 0",
        );
        check(
            |settings| settings.body_deadline = settings.request_deadline,
            "body_deadline (10s) must",
        );
        check(
            |settings| settings.probe_deadline = settings.request_deadline,
            "probe_deadline (10s) must",
        );
        check(
            |settings| settings.connections_max = 0,
            "connections_max is 0",
        );
    }
}
