//! Bringing detached servers up.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use futures_util::future::{join_all, try_join_all};

use super::state::{Home, State};
use super::{Kind, Layout, Server, UpOptions, stop};
use crate::citus::{CitusOptions, join_nodes, node_options};
use crate::directory::{DataDir, Place};
use crate::error::ServerError;
use crate::kafka;
use crate::lifeline::{Lifeline, clean_environment};
use crate::missing::{citus_available, kafka_available, partman_available, postgres_available};
use crate::postgres::{self, PostgresOptions, choose_port, log_length};
use crate::proc::ProcessId;
use crate::run_as::RunAs;

/// The database that `up` makes on each Postgres.
const DATABASE: &str = "shardlane";
const CITUS_WORKERS: usize = 2;
const SHARDS_MAX: usize = 64;
const PORT_ATTEMPTS: u32 = 10;
const KAFKA_HEAP_MIB: u32 = 512;

/// One server that is to run.
struct Wanted {
    name: String,
    kind: Kind,
    layout: Option<Layout>,
}

/// `state.json` while several servers start side by side.
struct Book<'a> {
    home: &'a Home,
    state: Mutex<State>,
}

impl Book<'_> {
    fn put(&self, server: Server) -> Result<(), ServerError> {
        let mut state = self
            .state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        state.put(server);
        self.home.save(&state)
    }

    fn server(&self, name: &str) -> Option<Server> {
        let state = self
            .state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        state.server(name).cloned()
    }

    fn servers(&self) -> Vec<Server> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .servers
            .clone()
    }
}

pub(super) async fn up(
    home: &Home,
    options: &UpOptions,
    say: &(dyn Fn(&str) + Sync),
) -> Result<Vec<Server>, ServerError> {
    let wanted = wanted(options)?;
    let book = Book {
        home,
        state: Mutex::new(home.load()?),
    };
    stop_leftovers(home, &book, say).await?;

    let to_start: Vec<&Wanted> = wanted
        .iter()
        .filter(|it| {
            !book
                .server(&it.name)
                .is_some_and(|known| known.is_running())
        })
        .collect();
    let starts = to_start.iter().map(|it| async {
        say(&format!("starting {}", it.name));
        start(&book, it).await
    });
    let mut outcome = join_all(starts)
        .await
        .into_iter()
        .collect::<Result<Vec<()>, _>>()
        .map(drop);
    if outcome.is_ok() && to_start.iter().any(|it| it.layout == Some(Layout::Citus)) {
        outcome = join_citus(&book).await;
    }
    if outcome.is_ok() {
        for it in &to_start {
            if let Some(server) = book.server(&it.name) {
                book.put(Server {
                    ready: true,
                    ..server
                })?;
            }
        }
    }
    if let Err(error) = outcome {
        for it in &to_start {
            if let Some(server) = book.server(&it.name)
                && let Some(process) = server.process
            {
                stop::stop(&it.name, it.kind, process).await?;
                book.put(Server {
                    process: None,
                    ready: false,
                    ..server
                })?;
            }
        }
        return Err(error);
    }
    Ok(book.servers())
}

fn wanted(options: &UpOptions) -> Result<Vec<Wanted>, ServerError> {
    let mut wanted = Vec::new();
    let mut layouts = options.layouts.clone();
    layouts.sort();
    layouts.dedup();
    for layout in layouts {
        let mut want = |name: String, kind| {
            wanted.push(Wanted {
                name,
                kind,
                layout: Some(layout),
            });
        };
        match layout {
            Layout::Single => {
                postgres_available()?;
                want("single".into(), Kind::Postgres);
            }
            Layout::Partman => {
                partman_available()?;
                want("partman".into(), Kind::Postgres);
            }
            Layout::Shards => {
                postgres_available()?;
                if !(1..=SHARDS_MAX).contains(&options.shards) {
                    let sentence = format!("the number of shards must be 1 to {SHARDS_MAX}");
                    return Err(ServerError::Refused(sentence));
                }
                (0..options.shards).for_each(|it| want(format!("shard-{it}"), Kind::Postgres));
            }
            Layout::Citus => {
                citus_available()?;
                want("citus".into(), Kind::CitusCoordinator);
                (1..=CITUS_WORKERS)
                    .for_each(|it| want(format!("citus-worker-{it}"), Kind::CitusWorker));
            }
        }
    }
    if options.kafka {
        kafka_available()?;
        wanted.push(Wanted {
            name: "kafka".into(),
            kind: Kind::Kafka,
            layout: None,
        });
    }
    Ok(wanted)
}

/// Says what an earlier run left behind, and stops what of it still runs.
async fn stop_leftovers(
    home: &Home,
    book: &Book<'_>,
    say: &(dyn Fn(&str) + Sync),
) -> Result<(), ServerError> {
    let known = book.servers();
    let is_up = |process: ProcessId| {
        known
            .iter()
            .any(|server| server.is_running() && server.process == Some(process))
    };
    let running = stop::found(
        home,
        &State {
            servers: known.clone(),
        },
    );
    for (name, process) in running.into_iter().filter(|(_, process)| !is_up(*process)) {
        let pid = process.pid;
        say(&format!(
            "{name}: an earlier run ended half-way; stopping its process {pid}"
        ));
        let kind = book.server(&name).map(|server| server.kind);
        let by_name = if name == "kafka" {
            Kind::Kafka
        } else {
            Kind::Postgres
        };
        stop::stop(&name, kind.unwrap_or(by_name), process).await?;
    }
    for server in known
        .into_iter()
        .filter(|it| it.process.is_some() && !it.is_running())
    {
        if server.ready {
            say(&format!(
                "{}: has ended since it was brought up",
                server.name
            ));
        }
        book.put(Server {
            process: None,
            ready: false,
            ..server
        })?;
    }
    Ok(())
}

async fn start(book: &Book<'_>, wanted: &Wanted) -> Result<(), ServerError> {
    // A server that has data keeps its port: its URL is in somebody's settings by now.
    let fixed = book.server(&wanted.name).map(|server| server.port);
    for _ in 0..PORT_ATTEMPTS {
        let port = choose_port(fixed)?;
        let started = match wanted.kind {
            Kind::Kafka => start_kafka(book, wanted, port).await,
            Kind::Postgres | Kind::CitusCoordinator | Kind::CitusWorker => {
                start_postgres(book, wanted, port).await
            }
        };
        match started {
            Err(ServerError::PortTaken { port: taken }) if fixed != Some(taken) => {}
            other => return other,
        }
    }
    Err(ServerError::Refused(format!(
        "no free port in {PORT_ATTEMPTS} attempts"
    )))
}

async fn start_postgres(book: &Book<'_>, wanted: &Wanted, port: u16) -> Result<(), ServerError> {
    let run_as = RunAs::for_postgres()?;
    let data = DataDir::Named(book.home.server_dir(&wanted.name));
    let place = Place::open(&data, "postgres", &run_as)?;
    let mut options = match wanted.layout {
        Some(Layout::Citus) => node_options(&CitusOptions::default()),
        _ => PostgresOptions::default(),
    };
    options.data = data;
    if wanted.layout == Some(Layout::Partman) {
        options.preload.push("pg_partman_bgw".into());
        for (name, value) in [("dbname", DATABASE), ("role", "shardlane")] {
            options
                .settings
                .push((format!("pg_partman_bgw.{name}"), value.into()));
        }
    }
    let plan = postgres::Plan::new(place.path(), run_as, &options)?;
    let lifeline = Lifeline::open(
        &plan.log(),
        place.path(),
        None,
        &plan.run_as,
        postgres::STOP,
    )?;
    plan.initialise(&lifeline).await?;
    lifeline.close().await?;
    plan.write_settings(port)?;

    let log_from = log_length(&plan.log());
    let url = postgres::url(port, DATABASE);
    let argv = plan.serve_argv();
    let child = spawn(book, wanted, port, url, &argv, &plan.log(), &plan.run_as)?;
    let pid = child.id();
    let child = Mutex::new(child);
    plan.wait_until_ready(pid, port, log_from, || exit_status(&child))
        .await?;
    ensure_database(port).await
}

async fn start_kafka(book: &Book<'_>, wanted: &Wanted, port: u16) -> Result<(), ServerError> {
    let runtime = kafka::Runtime::obtain().await?;
    let data = DataDir::Named(book.home.server_dir(&wanted.name));
    let place = Place::open(&data, "kafka", &RunAs::Oneself)?;
    let dir = place.path().to_owned();
    let plan = kafka::Plan {
        runtime,
        dir,
        heap_mib: KAFKA_HEAP_MIB,
    };
    plan.write_settings(port)?;
    let lifeline = Lifeline::open(
        &plan.log(),
        place.path(),
        None,
        &RunAs::Oneself,
        kafka::STOP,
    )?;
    plan.format(&lifeline).await?;
    lifeline.close().await?;

    let log_from = log_length(&plan.log());
    let url = kafka::bootstrap(port);
    let argv = plan.serve_argv();
    let child = spawn(book, wanted, port, url, &argv, &plan.log(), &RunAs::Oneself)?;
    let child = Mutex::new(child);
    plan.wait_until_ready(port, log_from, || exit_status(&child))
        .await
}

/// Starts a process that is nobody's child soon, and writes it down.
fn spawn(
    book: &Book<'_>,
    wanted: &Wanted,
    port: u16,
    url: String,
    argv: &[String],
    log: &Path,
    run_as: &RunAs,
) -> Result<Child, ServerError> {
    let what = format!("cannot start {}", wanted.name);
    let output = std::fs::File::options().create(true).append(true).open(log);
    let output = output.map_err(ServerError::io(format!("cannot open {}", log.display())))?;
    let errors = output.try_clone().map_err(ServerError::io(what.clone()))?;
    // `setsid` is part of every Linux system. It replaces itself, so the process number is the
    // server's; a session of its own keeps the terminal's Ctrl-C and hang-up away.
    let mut command = Command::new("setsid");
    command
        .args(argv)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .current_dir(log.parent().unwrap_or(Path::new("/")));
    clean_environment(&mut command);
    run_as.apply(&mut command);
    run_as.give(log)?;
    let child = command.spawn().map_err(ServerError::io(what))?;
    book.put(Server {
        name: wanted.name.clone(),
        kind: wanted.kind,
        process: ProcessId::of(child.id()),
        ready: false,
        port,
        url,
    })?;
    Ok(child)
}

fn exit_status(child: &Mutex<Child>) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt;
    let mut child = child
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let status = child.try_wait().ok().flatten()?;
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
}

async fn ensure_database(port: u16) -> Result<(), ServerError> {
    let what = format!("cannot create database {DATABASE} on port {port}");
    let url = postgres::url(port, "postgres");
    let client = postgres::connect(&url)
        .await
        .map_err(ServerError::sql(&what))?;
    let known = client
        .query_opt("SELECT 1 FROM pg_database WHERE datname = $1", &[&DATABASE])
        .await
        .map_err(ServerError::sql(&what))?;
    match known {
        Some(_) => Ok(()),
        None => postgres::create_database(&url, DATABASE).await,
    }
}

async fn join_citus(book: &Book<'_>) -> Result<(), ServerError> {
    let servers = book.servers();
    let ports = |kind| {
        servers
            .iter()
            .filter(move |it| it.kind == kind)
            .map(|it| it.port)
    };
    let workers: Vec<u16> = ports(Kind::CitusWorker).collect();
    try_join_all(ports(Kind::CitusCoordinator).map(|port| join_nodes(DATABASE, port, &workers)))
        .await
        .map(drop)
}
