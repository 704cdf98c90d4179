//! TLS by rustls, when the settings name a certificate.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::{IngestError, TlsFiles};

/// Reads certificate and key, and checks that they belong together.
pub(crate) fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, IngestError> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable("certificate", &files.certificate, &error))?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| unreadable("key", &files.key, &error))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| {
            IngestError::Settings(format!(
                "server.tls: certificate {} and key {} cannot be used: {error}; give the chain, leaf first, and the \
                 leaf's key",
                files.certificate.display(),
                files.key.display()
            ))
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn unreadable(setting: &str, path: &Path, error: &pem::Error) -> IngestError {
    IngestError::Settings(format!(
        "server.tls.{setting}: {} holds no readable PEM: {error}",
        path.display()
    ))
}
