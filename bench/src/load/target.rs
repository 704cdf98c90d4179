//! Where the load goes, and where it may not go by accident.

use std::net::{SocketAddr, ToSocketAddrs};

use hyper::Uri;
use hyper::header::HeaderValue;

/// A front door's address.
#[derive(Debug, Clone)]
pub struct Target {
    pub(crate) address: SocketAddr,
    pub(super) host: HeaderValue,
    base: String,
}

/// A URL that no load is sent to.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TargetError {
    /// Not `http://host:port`.
    #[error(
        "{0:?} is no address such as http://127.0.0.1:8080; give scheme, host and port, without a path, and no https"
    )]
    Url(String),
    /// The name has no address.
    #[error("the host of {0} has no address; is the name right?")]
    Unknown(String),
    /// Somebody else's machine, perhaps.
    #[error(
        "{0} is not this machine; load is sent elsewhere only with --allow-remote, and only to servers that are yours"
    )]
    Remote(String),
}

impl Target {
    /// Reads `http://host:port`, and asks the resolver for its address.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn parse(url: &str, allow_remote: bool) -> Result<Target, TargetError> {
        let bad = || TargetError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let authority = uri.authority().ok_or_else(bad)?;
        if uri.scheme_str() != Some("http")
            || uri.path() != "/"
            || uri.query().is_some()
            || authority.as_str().contains('@')
        {
            return Err(bad());
        }
        let port = authority.port_u16().unwrap_or(80);
        // The brackets of an IPv6 address belong to the URL.
        let name = authority.host().trim_matches(['[', ']']);
        let address = (name, port)
            .to_socket_addrs()
            .ok()
            .and_then(|mut found| found.next())
            .ok_or_else(|| TargetError::Unknown(url.to_owned()))?;
        if !allow_remote && !address.ip().is_loopback() {
            return Err(TargetError::Remote(url.to_owned()));
        }
        Ok(Target {
            address,
            host: HeaderValue::from_str(authority.as_str()).map_err(|_| bad())?,
            base: format!("http://{authority}"),
        })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_a_target_by_default() {
        let address = |url, remote| Target::parse(url, remote).map(|target| target.address);
        for url in [
            "http://127.0.0.1:8080",
            "http://127.0.0.1:8080/",
            "http://[::1]:8080",
            "http://localhost:8080",
        ] {
            assert!(address(url, false).unwrap().ip().is_loopback(), "{url}");
        }
        let elsewhere = "http://192.0.2.1:8080";
        assert_eq!(
            address(elsewhere, false),
            Err(TargetError::Remote(elsewhere.to_owned()))
        );
        assert_eq!(
            address(elsewhere, true),
            Ok("192.0.2.1:8080".parse().unwrap())
        );
        for bad in [
            "127.0.0.1:8080",
            "https://127.0.0.1",
            "http://127.0.0.1/webhooks",
            "http://",
            "http://127.0.0.1/?x",
        ] {
            assert_eq!(address(bad, false), Err(TargetError::Url(bad.to_owned())));
        }
    }
}
