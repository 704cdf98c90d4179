//! A TCP proxy between workers and a shard, which cuts when it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How long a server may take for a commit whose answer nobody gets.
const COMMIT_MAX: Duration = Duration::from_millis(300);

/// A proxy to one server.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    to: u16,
    /// Rises: whoever has connected before is cut.
    generation: watch::Sender<u64>,
    open: AtomicUsize,
    /// So many commits are still forwarded without their answer.
    silent_commits: AtomicUsize,
    cut: AtomicU64,
}

impl Proxy {
    /// Listens on a free port.
    ///
    /// # Errors
    /// No free port.
    pub async fn start(to: u16) -> anyhow::Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            to,
            generation: watch::Sender::new(0),
            open: AtomicUsize::new(0),
            silent_commits: AtomicUsize::new(0),
            cut: AtomicU64::new(0),
        });
        let task = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(carry(Arc::clone(&shared), client));
                }
            }
        });
        Ok(Proxy { port, shared, task })
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts every connection. Gives how many there were.
    pub fn cut(&self) -> usize {
        self.shared
            .generation
            .send_modify(|generation| *generation += 1);
        self.shared.open.load(Ordering::Relaxed)
    }

    /// The next `count` commits reach the server, and their connections are cut before the answer comes back: the client
    /// cannot know whether it has committed.
    pub fn swallow_commits(&self, count: usize) {
        self.shared.silent_commits.store(count, Ordering::Relaxed);
    }

    /// Commits that were swallowed so far.
    #[must_use]
    pub fn swallowed(&self) -> u64 {
        self.shared.cut.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn carry(shared: Arc<Shared>, client: TcpStream) {
    let mut generation = shared.generation.subscribe();
    let now = *generation.borrow_and_update();
    let Ok(server) = TcpStream::connect(("127.0.0.1", shared.to)).await else {
        return;
    };
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    shared.open.fetch_add(1, Ordering::Relaxed);
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let forth = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let Ok(read @ 1..) = from_client.read(&mut buffer).await else {
                return;
            };
            // A simple query, as the worker ends each transaction.
            let commits = buffer[..read].windows(7).any(|it| it == b"commit\0");
            if to_server.write_all(&buffer[..read]).await.is_err() {
                return;
            }
            let take = |left: usize| left.checked_sub(1);
            if commits
                && shared
                    .silent_commits
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                    .is_ok()
            {
                shared.cut.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    };
    let back = async { tokio::io::copy(&mut from_server, &mut to_client).await.ok() };
    let swallowed = tokio::select! {
        () = forth => true,
        _ = back => false,
        _ = generation.wait_for(|it| *it != now) => false,
    };
    drop((from_client, to_client));
    if swallowed {
        // The server shall have its commit done before its connection ends too.
        let mut rest = vec![0; 1024];
        tokio::time::timeout(COMMIT_MAX, from_server.read(&mut rest))
            .await
            .ok();
    }
    shared.open.fetch_sub(1, Ordering::Relaxed);
}
