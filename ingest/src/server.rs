//! The listening socket, its connections, and their end.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use shardlane_sql::Store;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::parked::Sweep;
use crate::{IngestError, IngestSettings, Mode, router, tls};

/// The longest header of a request, and the read buffer of a connection.
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// How long to wait when the system has no room for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A front door that listens and does not answer yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    app: Router,
    /// Direct mode's.
    store: Option<Arc<Store>>,
    settings: IngestSettings,
    tls: Option<TlsAcceptor>,
}

/// Listens and answers until `shutdown` ends, then lets the requests under way finish.
///
/// # Errors
/// [`IngestError`], before anything is answered.
pub async fn serve(
    settings: IngestSettings,
    mode: Mode,
    shutdown: impl Future<Output = ()>,
) -> Result<(), IngestError> {
    Server::bind(settings, mode).await?.run(shutdown).await
}

impl Server {
    /// Takes the address. From here on connections are taken, and wait for [`Server::run`].
    ///
    /// # Errors
    /// [`IngestError`]: settings that contradict each other, a certificate that cannot be used, a port that is taken.
    pub async fn bind(settings: IngestSettings, mode: Mode) -> Result<Server, IngestError> {
        settings.validate()?;
        let tls = settings.tls.as_ref().map(tls::acceptor).transpose()?;
        let address = settings.listen;
        let refused = |source: std::io::Error| match source.kind() {
            ErrorKind::AddrInUse => IngestError::PortTaken { address },
            _ => IngestError::Listen { address, source },
        };
        let listener = TcpListener::bind(address).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let store = match &mode {
            Mode::Kafka(_) => None,
            Mode::Direct(store) => Some(Arc::clone(store)),
        };
        let app = router(mode, &settings);
        Ok(Server {
            listener,
            address,
            app,
            store,
            settings,
            tls,
        })
    }

    /// The address, with the port that the system gave for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown` ends. Then nothing new is taken, requests under way finish, and what has not
    /// finished within `drain_deadline` is cut off; it was not acknowledged, so its sender sends it again.
    ///
    /// # Errors
    /// None so far: a connection's trouble is its own.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), IngestError> {
        let Server {
            listener,
            address,
            app,
            store,
            settings,
            tls,
        } = self;
        let _sweep = store.map(Sweep::start);
        let unverified = settings.sources.unverified();
        if !unverified.is_empty() {
            tracing::warn!(
                "WEBHOOK SIGNATURES ARE NOT VERIFIED for {}: whoever reaches {address} can send events in a provider's \
                 name; let only the provider's network reach it",
                unverified.join(", ")
            );
        }
        tracing::info!(%address, tls = tls.is_some(), "listening");

        // Not axum::serve: it bounds neither connections nor the time that a header takes.
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(settings.header_deadline)
            .max_buf_size(HEADER_BYTES_MAX);
        let places = Arc::new(Semaphore::new(settings.connections_max));
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(ended) = connections.join_next() => report(ended),
                (stream, place) = accept(&listener, &places) => {
                    let connection = Connection {
                        http: http.clone(),
                        app: app.clone(),
                        watcher: graceful.watcher(),
                    };
                    let (tls, handshake_deadline) = (tls.clone(), settings.header_deadline);
                    connections.spawn(async move {
                        connection.serve(stream, tls, handshake_deadline).await;
                        drop(place);
                    });
                }
            }
        }

        // New connections are refused from here on, so that a balancer goes elsewhere.
        drop(listener);
        tracing::info!(connections = connections.len(), "stopping");
        if timeout(settings.drain_deadline, graceful.shutdown())
            .await
            .is_err()
        {
            tracing::warn!(
                "requests were still under way after {:?} and are cut off, unacknowledged",
                settings.drain_deadline
            );
        }
        connections.shutdown().await;
        Ok(())
    }
}

/// What a connection needs of its server.
struct Connection {
    http: http1::Builder,
    app: Router,
    watcher: Watcher,
}

impl Connection {
    async fn serve(
        self,
        stream: TcpStream,
        tls: Option<TlsAcceptor>,
        handshake_deadline: Duration,
    ) {
        let Some(tls) = tls else {
            return self.exchange(stream).await;
        };
        match timeout(handshake_deadline, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.exchange(stream).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake did not end in time"),
        }
    }

    /// Requests and answers, until one side has enough.
    async fn exchange(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = TowerToHyperService::new(self.app);
        let connection = self.http.serve_connection(TokioIo::new(stream), service);
        if let Err(error) = self.watcher.watch(connection).await {
            // The peer went away or broke the protocol: news for the curious only.
            tracing::debug!(%error, "a connection broke");
        }
    }
}

/// The next connection, when there is a place for it. May be dropped at any time without losing one.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed, so there always is a permit in the end.
    let place = Arc::clone(places).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are small: without this they may wait for the peer's delayed ACK.
                stream.set_nodelay(true).ok();
                return (stream, place);
            }
            // The peer gave up while it waited.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionAborted
                        | ErrorKind::ConnectionReset
                        | ErrorKind::ConnectionRefused
                ) => {}
            Err(error) => {
                tracing::error!(%error, "cannot take connections; is the limit of open files too low?");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a request panicked, and its connection is closed");
    }
}
