//! Slots move between shards by the built `shardlane`, which is killed at each of its steps, while writers write.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use shardlane_sql::reshard::{Reshard, ReshardOptions};
use shardlane_sql::testing::load::{Writers, nothing_is_left};
use shardlane_sql::testing::{TestDb, spare_database, test_map};
use shardlane_sql::{Layout, Store};

const PATIENCE: Duration = Duration::from_secs(90);
const USERS: usize = 60;
/// Of 2 -> 3.
const STEPS: [&str; 15] = [
    "prepare",
    "copy 0 -> 2",
    "copy 1 -> 2",
    "catch up 2",
    "compare 2",
    "catch up 2",
    "freeze 0 -> 2",
    "freeze 1 -> 2",
    "drain 2",
    "verify 2",
    "switch 2",
    "detach",
    "clean 0",
    "clean 1",
    "finish",
];
/// How many sets of databases are resharded side by side.
const PARALLEL: usize = 4;

/// Two shards, a database that joins, and writers at work.
struct World {
    db: TestDb,
    spare: String,
    writers: Writers,
    store: std::sync::Arc<Store>,
}

impl World {
    async fn new() -> Option<World> {
        let db = TestDb::new(Layout::Shards).await?;
        let spare = spare_database().await?;
        let store = db.store().await;
        let writers = Writers::start(&store, USERS);
        writers.go_on().await;
        Some(World {
            db,
            spare,
            writers,
            store,
        })
    }

    fn reshard(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shardlane"));
        command
            .args(["reshard", arguments[0], "--database"])
            .arg(self.db.urls().join(","))
            .args(&arguments[1..])
            .env_remove("SHARDLANE_DATABASE")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    /// Runs to the end; while a killed one's connection still holds the lock, again.
    fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Output {
                status,
                stdout,
                stderr,
                // Or the writers' tasks that this thread has taken on would wait with it, in their transactions, and the
                // command for them.
            } = tokio::task::block_in_place(|| self.reshard(arguments).output()).unwrap();
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
            let (stdout, stderr) = (text(stdout), text(stderr));
            if !stderr.contains("is at work on these shards") {
                return (status.code(), stdout, stderr);
            }
            assert!(Instant::now() < deadline, "{stderr}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts to grow, and kills it: when it says that this step begins, or, if there is a condition, when the
    /// databases fulfil that.
    async fn killed_at(&self, step: usize, half_done: Option<&HalfDone>) {
        let mut child = self
            .reshard(&["run", "--add", &self.spare])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let line = format!("{step}/{} {}", STEPS.len(), STEPS[step - 1]);
        let said = BufReader::new(child.stdout.take().unwrap());
        // A blocking read on a thread of its own: the writers need this one.
        let read = tokio::task::spawn_blocking(move || {
            let mut lines = said.lines();
            let found = lines.any(|said| said.is_ok_and(|said| said == line));
            assert!(found, "it never said {line}");
            lines
        });
        let _rest = read.await.unwrap();
        if let Some(half_done) = half_done {
            let deadline = Instant::now() + PATIENCE;
            while !half_done.is_true(self).await {
                assert!(Instant::now() < deadline, "{}", half_done.sql);
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    async fn check(self) {
        self.writers.go_on().await;
        let urls = [self.db.urls(), std::slice::from_ref(&self.spare)].concat();
        let reshard = Reshard::connect(self.db.urls(), test_map(), ReshardOptions::default())
            .await
            .unwrap();
        let written = self.writers.stop().await;
        written.is_what_is_there(&reshard, &urls).await;
        drop(self.store);
    }
}

/// What a database shows when a step has done half of its work.
struct HalfDone {
    step: usize,
    on_spare: bool,
    sql: &'static str,
}

const HALF_DONE: [HalfDone; 7] = [
    HalfDone {
        step: 1,
        on_spare: true,
        sql: "select to_regclass('shard_catalog') is not null",
    },
    HalfDone {
        step: 2,
        on_spare: false,
        sql: "select exists (select 1 from pg_replication_slots where database = current_database())",
    },
    HalfDone {
        step: 3,
        on_spare: true,
        sql: "select count(*) = 2 from pg_subscription s join pg_database d on d.oid = s.subdbid \
              where d.datname = current_database()",
    },
    HalfDone {
        step: 7,
        on_spare: false,
        sql: "select slots <> '0-2047' from shard_identity",
    },
    HalfDone {
        step: 11,
        on_spare: true,
        sql: "select slots <> '' from shard_identity",
    },
    HalfDone {
        step: 12,
        on_spare: true,
        sql: "select count(*) < 2 from pg_subscription s join pg_database d on d.oid = s.subdbid \
              where d.datname = current_database()",
    },
    HalfDone {
        step: 13,
        on_spare: false,
        sql: "select not exists (select 1 from inbox \
              where ((uuid_hash(user_id)::bigint + 2147483648) >> 20) between 1366 and 2047)",
    },
];

impl HalfDone {
    async fn is_true(&self, world: &World) -> bool {
        let url = if self.on_spare {
            &world.spare
        } else {
            &world.db.urls()[0]
        };
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        let row = client.query_one(self.sql, &[]).await.unwrap();
        row.get(0)
    }
}

/// Killed there, it says so, and the next run finishes it.
async fn is_finished_after_a_kill(step: usize, half_done: Option<&HalfDone>) {
    let Some(world) = World::new().await else {
        return;
    };
    world.killed_at(step, half_done).await;
    let (code, status, error) = world.run(&["status"]);
    // What is quick may have been done before the signal came.
    let is_over = step >= 12 && status.contains("no reshard is under way");
    if !is_over {
        assert_eq!(code, Some(1), "{status}{error}");
        let done = status.split("under way: ").nth(1).unwrap();
        let done: usize = done.split(' ').next().unwrap().parse().unwrap();
        assert!(done + 1 >= step, "{status}");
        let next = format!("next is {}", STEPS[done]);
        assert!(status.contains(&next), "{status}");
        let (code, _, error) = world.run(&["run", "--add", &world.spare]);
        assert_eq!(code, Some(2));
        assert!(error.contains("is under way; finish it with"), "{error}");
        let (code, said, error) = world.run(&["run"]);
        assert_eq!(code, Some(0), "killed at {step}: {said}{error}");
        assert!(said.contains("done:"), "{said}");
    }
    let (code, status, _) = world.run(&["status"]);
    assert_eq!(code, Some(0), "{status}");
    assert!(status.contains("no reshard is under way"), "{status}");
    assert!(!status.contains("frozen"), "{status}");
    assert!(status.contains("shard 2: 1365 slots"), "{status}");
    world.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn killed_at_each_step_it_is_finished_by_the_next_run() {
    let kills = (1..=STEPS.len())
        .map(|step| (step, None))
        .chain(HALF_DONE.iter().map(|half| (half.step, Some(half))));
    futures_util::stream::iter(kills)
        .for_each_concurrent(PARALLEL, |(step, half_done)| async move {
            // A task of its own: it blocks while a command runs.
            let run = tokio::spawn(is_finished_after_a_kill(step, half_done));
            if let Err(error) = run.await {
                let half = half_done.map_or("", |half| half.sql);
                panic!("killed at {} {half}: {error}", STEPS[step - 1]);
            }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn given_up_or_too_late_for_that() {
    let Some(world) = World::new().await else {
        return;
    };
    let (code, _, error) = world.run(&["abort"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("no reshard is under way"), "{error}");
    let (code, said, _) = world.run(&["plan", "--add", &world.spare]);
    assert_eq!(code, Some(0));
    assert!(
        said.contains("shard 0 -> 2: 682 slots (1366-2047)"),
        "{said}"
    );

    for step in [1, 2, 5] {
        world.killed_at(step, None).await;
        let (code, said, error) = world.run(&["abort"]);
        assert_eq!(code, Some(0), "{error}");
        assert!(said.contains("given up; nothing has moved"), "{said}");
        let (code, status, _) = world.run(&["status"]);
        assert_eq!(code, Some(0), "{status}");
        assert!(status.contains("shard 0: 2048 slots"), "{status}");
        let urls = [world.db.urls(), std::slice::from_ref(&world.spare)].concat();
        nothing_is_left(&urls).await;
    }

    // From the switch on there is no way back.
    let switched = HALF_DONE.iter().find(|half| half.step == 11);
    world.killed_at(11, switched).await;
    let (code, _, error) = world.run(&["abort"]);
    assert_eq!(code, Some(2), "{error}");
    assert!(
        error.contains("shard 2 has taken its slots already"),
        "{error}"
    );
    let (code, _, error) = world.run(&["run"]);
    assert_eq!(code, Some(0), "{error}");

    // One slot goes alone, and the new shard leaves again.
    let move_one = ["run", "--move", "1366-1366", "--to", "0"];
    assert_eq!(world.run(&move_one).0, Some(0));
    let (code, _, error) = world.run(&move_one);
    assert_eq!(code, Some(2));
    assert!(error.contains("nothing moves"), "{error}");
    let (code, _, error) = world.run(&["run", "--remove", "9"]);
    assert_eq!(code, Some(2));
    assert!(
        error.contains("shard 9 is not one of these shards"),
        "{error}"
    );
    assert_eq!(world.run(&["run", "--remove", "2"]).0, Some(0));
    world.check().await;
}
