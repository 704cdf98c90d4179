//! One PostgreSQL server.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio_postgres::NoTls;

use crate::directory::{DataDir, Place, keep_log};
use crate::error::{ServerError, tail_of_log};
use crate::lifeline::{Lifeline, StopHow};
use crate::missing::Missing;
use crate::pg_bin::PgBin;
use crate::run_as::RunAs;
use crate::{ports, proc};

/// The superuser of each server, and the user of each URL.
const ROLE: &str = "shardlane";
const HOST: &str = "127.0.0.1";
/// Another program may take a free port between our look and the server's.
const PORT_ATTEMPTS: u32 = 10;
const INITDB_TIME_MAX: Duration = Duration::from_secs(120);
/// Long, because a server that crashed replays its log first.
const READY_TIME_MAX: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(10);
/// INT is a fast shutdown (with a checkpoint), QUIT an immediate one.
pub(crate) const STOP: StopHow = StopHow {
    signals: "INT,QUIT",
    tenths: 300,
};

const SETTINGS: &str = "\
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
logging_collector = off
log_timezone = 'UTC'
shared_buffers = '128MB'
max_wal_size = '4GB'
checkpoint_timeout = '15min'
wal_level = logical
wal_retrieve_retry_interval = '200ms'
max_connections = 200
jit = off
";

const SETTINGS_FAST: &str = "\
fsync = off
full_page_writes = off
";

/// What a commit is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// PostgreSQL's own defaults: a commit survives a crash of the machine.
    #[default]
    Durable,
    /// `fsync` and `full_page_writes` off: for tests. A commit survives a crash of the server,
    /// but not one of the machine. (`synchronous_commit` stays on: without it [`Postgres::kill`]
    /// would lose acknowledged commits, and without `fsync` it costs next to nothing.)
    Fast,
}

/// How to start a [`Postgres`]. The default is durable, temporary, and on a free port.
#[derive(Debug, Clone, Default)]
pub struct PostgresOptions {
    /// What a commit is worth.
    pub durability: Durability,
    /// Libraries to preload, such as `citus`, `pg_partman_bgw` or `pg_stat_statements`.
    /// `citus` is put first, as it demands.
    pub preload: Vec<String>,
    /// Further settings, stronger than the house's own. `ALTER SYSTEM` is stronger still.
    pub settings: Vec<(String, String)>,
    /// Where data and log are.
    pub data: DataDir,
    /// The port; `None` takes a free one.
    pub port: Option<u16>,
}

impl PostgresOptions {
    /// For tests: temporary, on a free port, and without durability.
    #[must_use]
    pub fn fast() -> PostgresOptions {
        PostgresOptions {
            durability: Durability::Fast,
            ..PostgresOptions::default()
        }
    }
}

/// A PostgreSQL server that lives no longer than this value and this process.
pub struct Postgres {
    plan: Plan,
    port: u16,
    temporary: bool,
    lifeline: Lifeline,
}

impl Postgres {
    /// Initialises the directory where needed, starts the server and waits until it answers.
    ///
    /// # Errors
    /// Nothing is left running when this fails. The error names the kept log.
    pub async fn start(options: PostgresOptions) -> Result<Postgres, ServerError> {
        let run_as = RunAs::for_postgres()?;
        let place = Place::open(&options.data, "postgres", &run_as)?;
        let plan = Plan::new(place.path(), run_as, &options)?;
        let lifeline = Lifeline::open(
            &plan.log(),
            place.path(),
            place.to_remove(),
            &plan.run_as,
            STOP,
        )?;
        let temporary = place.to_remove().is_some();
        place.hand_over();
        match Self::bring_up(&plan, &lifeline, options.port).await {
            Ok(port) => Ok(Postgres {
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
        plan.initialise(lifeline).await?;
        for _ in 0..PORT_ATTEMPTS {
            let port = choose_port(fixed)?;
            match serve(plan, lifeline, port).await {
                Err(ServerError::PortTaken { .. }) if fixed.is_none() => {}
                other => return other.map(|()| port),
            }
        }
        Err(ServerError::Refused(format!(
            "no free port in {PORT_ATTEMPTS} attempts"
        )))
    }

    /// The port that the server listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address that the server listens on: `127.0.0.1`.
    #[must_use]
    pub fn host(&self) -> &'static str {
        HOST
    }

    /// `postgres://shardlane@127.0.0.1:PORT/DATABASE`, for a superuser without a password.
    /// The database `postgres` exists.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        url(self.port, database)
    }

    /// Process number of the postmaster.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.lifeline.pid()
    }

    /// The directory with `data/` and `server.log`.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.plan.dir
    }

    /// The server's log.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.plan.log()
    }

    /// CPU time, user and system, of all the server's processes, those that have ended included.
    #[must_use]
    pub fn cpu_seconds(&self) -> f64 {
        if self.lifeline.exited().is_some() {
            return 0.0;
        }
        proc::cpu_seconds_of_tree(self.pid())
    }

    /// Memory of all the server's processes, in bytes; what they share is counted once.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        if self.lifeline.exited().is_some() {
            return 0;
        }
        proc::memory_bytes_of_tree(self.pid())
    }

    /// Stops the server in order (fast shutdown) and removes a temporary directory.
    ///
    /// # Errors
    /// If it did not stop in time; it was killed by then.
    pub async fn stop(self) -> Result<(), ServerError> {
        self.lifeline.close().await
    }

    /// Ends the server at once, without a checkpoint (immediate shutdown), as if it had crashed.
    /// [`Postgres::restart`] brings it back through crash recovery.
    ///
    /// # Errors
    /// If it did not stop in time.
    pub async fn kill(&self) -> Result<(), ServerError> {
        self.lifeline.stop(Some("QUIT")).await
    }

    /// Stops the server in order, if it runs, and starts it again: same port, same data.
    ///
    /// # Errors
    /// As [`Postgres::start`]. Data and log stay until this value is dropped.
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

    /// Begins to stop without waiting, so that several servers stop side by side.
    pub(crate) fn let_go(&self) {
        self.lifeline.let_go();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if std::thread::panicking() && self.temporary {
            let log = keep_log(&self.plan.dir, &self.plan.log());
            eprintln!(
                "postgres on port {}: its log is kept in {}",
                self.port,
                log.display()
            );
        }
    }
}

/// Creates a database. `url` is of any database of the server but `name`.
///
/// # Errors
/// If the server refuses, for instance because it exists.
pub async fn create_database(url: &str, name: &str) -> Result<(), ServerError> {
    let what = format!("cannot create database {name}");
    execute(
        url,
        &[&format!("CREATE DATABASE {}", quote_name(name))],
        &what,
    )
    .await
}

/// Drops a database if it exists, and ends the sessions in it. `url` is of any database of the
/// server but `name`.
///
/// # Errors
/// If the server refuses.
pub async fn drop_database(url: &str, name: &str) -> Result<(), ServerError> {
    let what = format!("cannot drop database {name}");
    let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote_name(name));
    execute(url, &[&sql], &what).await
}

pub(crate) fn url(port: u16, database: &str) -> String {
    format!("postgres://{ROLE}@{HOST}:{port}/{database}")
}

pub(crate) fn quote_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Connects, and drives the connection until the client is dropped.
pub(crate) async fn connect(url: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended");
        }
    });
    Ok(client)
}

async fn execute(url: &str, statements: &[&str], what: &str) -> Result<(), ServerError> {
    let client = connect(url).await.map_err(ServerError::sql(what))?;
    for statement in statements {
        client
            .batch_execute(statement)
            .await
            .map_err(ServerError::sql(what))?;
    }
    Ok(())
}

pub(crate) fn choose_port(fixed: Option<u16>) -> Result<u16, ServerError> {
    match fixed {
        Some(port) if ports::is_free(port) => Ok(port),
        Some(port) => Err(ServerError::PortTaken { port }),
        None => ports::free_port().map_err(ServerError::io("no free port")),
    }
}

/// Copies the log out of a temporary directory before that goes.
fn with_kept_log(mut error: ServerError, directory: &Path) -> ServerError {
    if let ServerError::Ended { log, .. } | ServerError::NotReady { log, .. } = &mut error {
        *log = keep_log(directory, log);
    }
    error
}

async fn serve(plan: &Plan, lifeline: &Lifeline, port: u16) -> Result<(), ServerError> {
    plan.write_settings(port)?;
    let log_from = log_length(&plan.log());
    let pid = lifeline.run(&plan.serve_argv()).await?;
    let ready = plan
        .wait_until_ready(pid, port, log_from, || lifeline.exited())
        .await;
    if ready.is_err() {
        lifeline.stop(Some("QUIT")).await?;
    }
    ready
}

pub(crate) fn log_length(log: &Path) -> usize {
    let length = std::fs::metadata(log)
        .map(|it| it.len())
        .unwrap_or_default();
    usize::try_from(length).unwrap_or_default()
}

pub(crate) fn log_since(log: &Path, from: usize) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned()
}

/// How one server is initialised and started, whoever holds its process.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    bin: PgBin,
    pub(crate) run_as: RunAs,
    pub(crate) dir: PathBuf,
    sync: bool,
    settings: String,
}

impl Plan {
    pub(crate) fn new(
        dir: &Path,
        run_as: RunAs,
        options: &PostgresOptions,
    ) -> Result<Plan, ServerError> {
        let bin = PgBin::find()?;
        for (component, missing) in [
            ("citus", Missing::Citus { major: bin.major }),
            ("pg_partman_bgw", Missing::Partman { major: bin.major }),
        ] {
            if options.preload.iter().any(|it| it == component) && !bin.has_library(component) {
                return Err(missing.into());
            }
        }
        Ok(Plan {
            bin,
            run_as,
            dir: dir.to_owned(),
            sync: options.durability == Durability::Durable && options.data != DataDir::Temporary,
            settings: settings_text(options)?,
        })
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// Makes an empty cluster of databases, unless there is one.
    pub(crate) async fn initialise(&self, lifeline: &Lifeline) -> Result<(), ServerError> {
        if self.data().exists() {
            return Ok(());
        }
        // Into another name first: an initialisation that was killed does not look like one
        // that is complete.
        let unfinished = self.dir.join("data.unfinished");
        if unfinished.exists() {
            let what = format!("cannot remove {}", unfinished.display());
            std::fs::remove_dir_all(&unfinished).map_err(ServerError::io(what))?;
        }
        let mut argv = vec![
            text(&self.bin.program("initdb")),
            "-D".into(),
            text(&unfinished),
        ];
        argv.extend(
            ["-U", ROLE, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"].map(String::from),
        );
        argv.push("--no-instructions".into());
        if !self.sync {
            argv.push("--no-sync".into());
        }
        match lifeline.run_to_end(&argv, INITDB_TIME_MAX).await? {
            Some(0) => {}
            Some(status) => {
                return Err(ServerError::Ended {
                    server: "initdb".into(),
                    status,
                    log: self.log(),
                    tail: tail_of_log(&self.log()),
                });
            }
            None => return Err(self.not_ready("initdb", INITDB_TIME_MAX)),
        }
        let conf = unfinished.join("postgresql.conf");
        let what = format!("cannot complete {}", conf.display());
        let include = std::fs::read_to_string(&conf)
            .map(|text| text + "\ninclude_if_exists 'shardlane.conf'\n")
            .and_then(|text| std::fs::write(&conf, text));
        include
            .and_then(|()| std::fs::rename(&unfinished, self.data()))
            .map_err(ServerError::io(what))
    }

    /// Writes the settings into a file: on the command line they would override `ALTER SYSTEM`.
    pub(crate) fn write_settings(&self, port: u16) -> Result<(), ServerError> {
        let file = self.data().join("shardlane.conf");
        std::fs::write(&file, format!("{}port = {port}\n", self.settings))
            .map_err(ServerError::io(format!("cannot write {}", file.display())))?;
        self.run_as.give(&file)
    }

    pub(crate) fn serve_argv(&self) -> Vec<String> {
        vec![
            text(&self.bin.program("postgres")),
            "-D".into(),
            text(&self.data()),
        ]
    }

    /// Waits until this very process answers a query.
    pub(crate) async fn wait_until_ready(
        &self,
        pid: u32,
        port: u16,
        log_from: usize,
        exited: impl Fn() -> Option<i32>,
    ) -> Result<(), ServerError> {
        let server = format!("postgres on port {port}");
        let deadline = Instant::now() + READY_TIME_MAX;
        loop {
            if let Some(status) = exited() {
                if log_since(&self.log(), log_from).contains("Address already in use") {
                    return Err(ServerError::PortTaken { port });
                }
                let tail = tail_of_log(&self.log());
                return Err(ServerError::Ended {
                    server,
                    status,
                    log: self.log(),
                    tail,
                });
            }
            // Not the port alone: after a lost race for it another server answers there.
            if self.postmaster_says_ready(pid) && answers(port).await {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.not_ready(&server, READY_TIME_MAX));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// `postmaster.pid`: the first line is the process, the eighth its state.
    fn postmaster_says_ready(&self, pid: u32) -> bool {
        let lines = std::fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let mut lines = lines.lines();
        lines
            .next()
            .is_some_and(|line| line.trim() == pid.to_string())
            && lines.nth(6).is_some_and(|line| line.trim() == "ready")
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

async fn answers(port: u16) -> bool {
    let asked = async {
        let client = connect(&url(port, "postgres")).await.ok()?;
        client.simple_query("SELECT 1").await.ok()
    };
    matches!(
        tokio::time::timeout(Duration::from_secs(5), asked).await,
        Ok(Some(_))
    )
}

fn settings_text(options: &PostgresOptions) -> Result<String, ServerError> {
    let mut text = SETTINGS.to_owned();
    if options.durability == Durability::Fast {
        text += SETTINGS_FAST;
    }
    if !options.preload.is_empty() {
        let mut preload = options.preload.clone();
        preload.sort_by_key(|library| library != "citus");
        text += &format!(
            "shared_preload_libraries = {}\n",
            quote_value(&preload.join(","))
        );
    }
    for (name, value) in &options.settings {
        let sound = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if name.is_empty() || !name.chars().all(sound) || value.contains(['\n', '\0']) {
            return Err(ServerError::Refused(format!(
                "not a setting: {name:?} = {value:?}"
            )));
        }
        text += &format!("{name} = {}\n", quote_value(value));
    }
    Ok(text)
}

fn quote_value(value: &str) -> String {
    format!("'{}'", value.replace('\\', r"\\").replace('\'', "''"))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_quoted_and_citus_is_first() {
        let options = PostgresOptions {
            preload: vec!["pg_stat_statements".into(), "citus".into()],
            settings: vec![("citus.node_conninfo".into(), r"a='b\c'".into())],
            ..PostgresOptions::fast()
        };
        let text = settings_text(&options).unwrap();
        assert!(text.contains("shared_preload_libraries = 'citus,pg_stat_statements'\n"));
        assert!(text.contains(r"citus.node_conninfo = 'a=''b\\c'''"));
        assert!(text.contains("fsync = off\n"));
    }

    #[test]
    fn a_setting_cannot_smuggle_in_another() {
        for (name, value) in [("port = 1 #", "x"), ("a", "1\nport = 2"), ("", "")] {
            let options = PostgresOptions {
                settings: vec![(name.into(), value.into())],
                ..PostgresOptions::default()
            };
            assert!(settings_text(&options).is_err(), "{name:?} = {value:?}");
        }
    }
}
