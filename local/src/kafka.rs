//! One Apache Kafka broker, which is its own controller (KRaft).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::directory::{DataDir, Place, keep_log};
use crate::error::{ServerError, tail_of_log};
use crate::java::{self, Java};
use crate::lifeline::{Lifeline, StopHow};
use crate::postgres::{choose_port, log_length, log_since};
use crate::run_as::RunAs;
use crate::{cache, kafka_jars, proc};

const LOG4J: &str = include_str!("../kafka/log4j2.xml");
const PORT_ATTEMPTS: u32 = 10;
const FORMAT_TIME_MAX: Duration = Duration::from_secs(120);
const READY_TIME_MAX: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);
pub(crate) const STOP: StopHow = StopHow {
    signals: "TERM",
    tenths: 200,
};

/// How to start a [`Kafka`].
#[derive(Debug, Clone)]
pub struct KafkaOptions {
    /// Where data and log are.
    pub data: DataDir,
    /// The port for clients; `None` takes a free one. The controller always gets a free one.
    pub port: Option<u16>,
    /// Upper bound of the Java heap, in MiB.
    pub heap_mib: u32,
}

impl Default for KafkaOptions {
    /// Temporary, on a free port, with 512 MiB.
    fn default() -> KafkaOptions {
        KafkaOptions {
            data: DataDir::Temporary,
            port: None,
            heap_mib: 512,
        }
    }
}

/// An Apache Kafka broker that lives no longer than this value and this process.
pub struct Kafka {
    plan: Plan,
    port: u16,
    temporary: bool,
    lifeline: Lifeline,
}

impl Kafka {
    /// Starts a broker and waits until it answers. The first start on a machine also fetches
    /// Kafka's jars and prepares an archive of its classes, which takes a quarter of a minute.
    ///
    /// # Errors
    /// Nothing is left running when this fails. The error names the kept log.
    pub async fn start(options: KafkaOptions) -> Result<Kafka, ServerError> {
        let runtime = Runtime::obtain().await?;
        Kafka::start_on(runtime, options).await
    }

    async fn start_on(runtime: Runtime, options: KafkaOptions) -> Result<Kafka, ServerError> {
        let place = Place::open(&options.data, "kafka", &RunAs::Oneself)?;
        let plan = Plan {
            runtime,
            dir: place.path().to_owned(),
            heap_mib: options.heap_mib,
        };
        let lifeline = Lifeline::open(
            &plan.log(),
            place.path(),
            place.to_remove(),
            &RunAs::Oneself,
            STOP,
        )?;
        let temporary = place.to_remove().is_some();
        place.hand_over();
        match Kafka::bring_up(&plan, &lifeline, options.port).await {
            Ok(port) => Ok(Kafka {
                plan,
                port,
                temporary,
                lifeline,
            }),
            Err(error) if temporary => Err(with_kept_log(error, &plan.dir)),
            Err(error) => Err(error),
        }
    }

    async fn bring_up(
        plan: &Plan,
        lifeline: &Lifeline,
        fixed: Option<u16>,
    ) -> Result<u16, ServerError> {
        for _ in 0..PORT_ATTEMPTS {
            let port = choose_port(fixed)?;
            match serve(plan, lifeline, port).await {
                Err(ServerError::PortTaken { port: taken }) if fixed != Some(taken) => {}
                other => return other.map(|()| port),
            }
        }
        Err(ServerError::Refused(format!(
            "no free port in {PORT_ATTEMPTS} attempts"
        )))
    }

    /// `127.0.0.1:PORT`, for a client's `bootstrap.servers`.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        bootstrap(self.port)
    }

    /// The port that clients use.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Process number of the broker.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.lifeline.pid()
    }

    /// The directory with `data/` and `server.log`.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.plan.dir
    }

    /// The broker's log.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.plan.log()
    }

    /// CPU time of the broker, user and system.
    #[must_use]
    pub fn cpu_seconds(&self) -> f64 {
        if self.lifeline.exited().is_some() {
            return 0.0;
        }
        proc::cpu_seconds_of_tree(self.pid())
    }

    /// Stops the broker in order and removes a temporary directory.
    ///
    /// # Errors
    /// If it did not stop in time; it was killed by then.
    pub async fn stop(self) -> Result<(), ServerError> {
        self.lifeline.close().await
    }

    /// Ends the broker at once (KILL). [`Kafka::restart`] brings it back.
    ///
    /// # Errors
    /// If it did not end in time.
    pub async fn kill(&self) -> Result<(), ServerError> {
        self.lifeline.stop(Some("KILL")).await
    }

    /// Stops the broker in order, if it runs, and starts it again: same port, same data.
    ///
    /// # Errors
    /// As [`Kafka::start`]. Data and log stay until this value is dropped.
    pub async fn restart(&self) -> Result<(), ServerError> {
        self.lifeline.stop(None).await?;
        // A client that has just gone may hold the port for a moment.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match serve(&self.plan, &self.lifeline, self.port).await {
                Err(ServerError::PortTaken { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(POLL).await;
                }
                other => return other,
            }
        }
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        if std::thread::panicking() && self.temporary {
            let log = keep_log(&self.plan.dir, &self.plan.log());
            eprintln!(
                "kafka on port {}: its log is kept in {}",
                self.port,
                log.display()
            );
        }
    }
}

pub(crate) fn bootstrap(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

async fn serve(plan: &Plan, lifeline: &Lifeline, port: u16) -> Result<(), ServerError> {
    plan.write_settings(port)?;
    plan.format(lifeline).await?;
    let log_from = log_length(&plan.log());
    lifeline.run(&plan.serve_argv()).await?;
    let ready = plan
        .wait_until_ready(port, log_from, || lifeline.exited())
        .await;
    if ready.is_err() {
        lifeline.stop(Some("KILL")).await?;
    }
    ready
}

fn with_kept_log(mut error: ServerError, directory: &Path) -> ServerError {
    if let ServerError::Ended { log, .. } | ServerError::NotReady { log, .. } = &mut error {
        *log = keep_log(directory, log);
    }
    error
}

/// Java and Kafka's classes.
#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    java: Java,
    class_path: String,
    archive: Archive,
}

/// An archive of loaded classes (AppCDS), which nearly halves the time of a start.
#[derive(Debug, Clone)]
enum Archive {
    None,
    Use(PathBuf),
    /// Written when the process ends.
    Write(PathBuf),
}

impl Runtime {
    /// Finds Java and the jars; fetches the jars and makes the archive where needed.
    pub(crate) async fn obtain() -> Result<Runtime, ServerError> {
        let java = java::find()?;
        let archive = kafka_jars::folder().join(format!("broker-{}.jsa", java.build));
        let complete = |class_path| Runtime {
            java: java.clone(),
            class_path,
            archive: Archive::of(&archive),
        };
        if let Some(class_path) = kafka_jars::class_path()
            && archive.exists()
        {
            return Ok(complete(class_path));
        }
        let _lock = cache::lock().await?;
        let class_path = kafka_jars::class_path_or_fetch().await?;
        if !archive.exists() {
            let runtime = complete(class_path.clone());
            if let Err(error) = Box::pin(runtime.write_archive(&archive)).await {
                tracing::warn!(%error, "no archive of Kafka's classes: brokers start slower");
                // An empty file says that it was tried.
                let what = format!("cannot write {}", archive.display());
                std::fs::write(&archive, "").map_err(ServerError::io(what))?;
            }
        }
        Ok(complete(class_path))
    }

    /// Runs a broker once for the classes that it loads.
    async fn write_archive(&self, archive: &Path) -> Result<(), ServerError> {
        let unfinished = archive.with_extension("jsa.unfinished");
        let runtime = Runtime {
            archive: Archive::Write(unfinished.clone()),
            ..self.clone()
        };
        let broker = Kafka::start_on(runtime, KafkaOptions::default()).await?;
        broker.stop().await?;
        let what = format!("cannot write {}", archive.display());
        std::fs::rename(unfinished, archive).map_err(ServerError::io(what))
    }
}

impl Archive {
    fn of(path: &Path) -> Archive {
        match std::fs::metadata(path) {
            Ok(file) if file.len() > 0 => Archive::Use(path.to_owned()),
            _ => Archive::None,
        }
    }
}

/// How one broker is formatted and started, whoever holds its process.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) runtime: Runtime,
    pub(crate) dir: PathBuf,
    pub(crate) heap_mib: u32,
}

impl Plan {
    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    pub(crate) fn settings_file(&self) -> PathBuf {
        self.dir.join("server.properties")
    }

    /// The session timeout is how long a killed broker waits at its next start until the
    /// controller believes that the one before is dead (by default 9 s).
    ///
    /// The controller's port is free and new at each start: `controller.quorum.voters` is read
    /// from these settings and not from the data, so nobody remembers the old one.
    pub(crate) fn write_settings(&self, port: u16) -> Result<(), ServerError> {
        let controller = loop {
            let free = choose_port(None)?;
            if free != port {
                break free;
            }
        };
        let data = self.data().to_string_lossy().replace('\\', r"\\");
        let settings = format!(
            "\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
num.partitions=1
broker.heartbeat.interval.ms=1000
broker.session.timeout.ms=4000
group.initial.rebalance.delay.ms=100
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
"
        );
        for (file, text) in [
            (self.settings_file(), settings.as_str()),
            (self.dir.join("log4j2.xml"), LOG4J),
        ] {
            let what = format!("cannot write {}", file.display());
            std::fs::write(&file, text).map_err(ServerError::io(what))?;
        }
        Ok(())
    }

    /// Gives the storage its identity, unless it has one.
    pub(crate) async fn format(&self, lifeline: &Lifeline) -> Result<(), ServerError> {
        if self.data().join("meta.properties").exists() {
            return Ok(());
        }
        let mut argv = self.java_argv();
        argv.extend(["-XX:TieredStopAtLevel=1", "-Dshardlane.log.level=WARN"].map(String::from));
        argv.extend(["kafka.tools.StorageTool", "format", "--cluster-id"].map(String::from));
        argv.push(cluster_id());
        argv.push("--config".into());
        argv.push(self.settings_file().to_string_lossy().into_owned());
        match lifeline.run_to_end(&argv, FORMAT_TIME_MAX).await? {
            Some(0) => Ok(()),
            Some(status) => Err(self.ended("Kafka's storage tool", status)),
            None => Err(self.not_ready("Kafka's storage tool", FORMAT_TIME_MAX)),
        }
    }

    pub(crate) fn serve_argv(&self) -> Vec<String> {
        let mut argv = self.java_argv();
        if let Archive::Write(file) = &self.runtime.archive {
            argv.push(format!("-XX:ArchiveClassesAtExit={}", file.display()));
        }
        argv.push(format!("-Xmx{}m", self.heap_mib));
        argv.push("-XX:+ExitOnOutOfMemoryError".into());
        argv.push("kafka.Kafka".into());
        argv.push(self.settings_file().to_string_lossy().into_owned());
        argv
    }

    fn java_argv(&self) -> Vec<String> {
        let mut argv = vec![self.runtime.java.program.to_string_lossy().into_owned()];
        if let Archive::Use(file) = &self.runtime.archive {
            argv.push(format!("-XX:SharedArchiveFile={}", file.display()));
        }
        argv.extend(["-XX:+UseSerialGC", "-Djava.awt.headless=true"].map(String::from));
        argv.push(format!(
            "-Dlog4j2.configurationFile={}",
            self.dir.join("log4j2.xml").display()
        ));
        argv.extend(["-cp".into(), self.runtime.class_path.clone()]);
        argv
    }

    /// Waits until this very process has started and answers a request.
    pub(crate) async fn wait_until_ready(
        &self,
        port: u16,
        log_from: usize,
        exited: impl Fn() -> Option<i32>,
    ) -> Result<(), ServerError> {
        let server = format!("kafka on port {port}");
        let deadline = Instant::now() + READY_TIME_MAX;
        loop {
            let exited = exited();
            let log = log_since(&self.log(), log_from);
            if let Some(status) = exited {
                if log.contains("Address already in use") {
                    // The controller's port is our choice, so only the other one is the caller's.
                    let ours = !log.contains(&format!("bind to 127.0.0.1:{port}"));
                    return Err(ServerError::PortTaken {
                        port: if ours { 0 } else { port },
                    });
                }
                return Err(self.ended(&server, status));
            }
            if log.contains("Kafka Server started") && answers(port).await {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.not_ready(&server, READY_TIME_MAX));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn ended(&self, server: &str, status: i32) -> ServerError {
        let tail = tail_of_log(&self.log());
        ServerError::Ended {
            server: server.to_owned(),
            status,
            log: self.log(),
            tail,
        }
    }

    fn not_ready(&self, server: &str, bound: Duration) -> ServerError {
        ServerError::NotReady {
            server: server.to_owned(),
            seconds: bound.as_secs(),
            log: self.log(),
            tail: tail_of_log(&self.log()),
        }
    }
}

/// 16 random bytes in URL-safe base64 without padding, as Kafka writes identities. Like Kafka's
/// own, it does not begin with a dash: the storage tool would take it for an option.
fn cluster_id() -> String {
    loop {
        let id = base64_url(uuid::Uuid::new_v4().as_u128());
        if !id.starts_with('-') {
            return id;
        }
    }
}

fn base64_url(bits: u128) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    // 128 bits are 21 digits of six bits and a last one of two bits, on the left of its six.
    let digits = (0..21)
        .map(|place| (bits >> (122 - 6 * place)) & 63)
        .chain([(bits & 3) << 4]);
    digits
        .map(|digit| char::from(ALPHABET[usize::try_from(digit).unwrap_or_default()]))
        .collect()
}

/// Does a broker answer an `ApiVersions` request (version 0) here?
async fn answers(port: u16) -> bool {
    const CORRELATION: [u8; 4] = *b"lane";
    let asked = async {
        let mut stream = TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).await?;
        // Size; API key 18; API version 0; correlation; no client id (-1).
        let mut request = vec![0, 0, 0, 10, 0, 18, 0, 0];
        request.extend(CORRELATION);
        request.extend([0xff, 0xff]);
        stream.write_all(&request).await?;
        // Size; correlation; error code.
        let mut answer = [0; 10];
        stream.read_exact(&mut answer).await?;
        Ok::<bool, std::io::Error>(answer[4..8] == CORRELATION && answer[8..10] == [0, 0])
    };
    matches!(
        tokio::time::timeout(Duration::from_secs(5), asked).await,
        Ok(Ok(true))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_id_is_base64_as_kafka_writes_it() {
        assert_eq!(base64_url(1), "AAAAAAAAAAAAAAAAAAAAAQ");
        assert_eq!(base64_url(u128::MAX), "_____________________w");
        assert_eq!(base64_url(0xfb << 120), "-wAAAAAAAAAAAAAAAAAAAA");
    }

    #[test]
    fn a_cluster_id_is_not_taken_for_an_option() {
        // One in 64 would be.
        assert!((0..5_000).all(|_| !cluster_id().starts_with('-')));
    }
}
