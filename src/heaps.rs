//! How many heaps the allocator keeps.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// glibc gives threads heaps of their own, up to eight a core, and each keeps what was freed in it: before a backlog of a
/// million events a worker took 188 MiB, and 156 so (`shardlane experiment memory`). It reads this only when a program starts.
const HEAPS_MAX: (&str, &str) = ("MALLOC_ARENA_MAX", "2");

/// Begins this program anew, as the same process, with few heaps, unless the environment says how many there may be. Where
/// that fails it goes on as it is.
pub(crate) fn limit() {
    let (name, heaps_max) = HEAPS_MAX;
    if !cfg!(target_env = "gnu") || std::env::var_os(name).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else {
        return;
    };
    let mut arguments = std::env::args_os();
    let mut again = Command::new(program);
    if let Some(called) = arguments.next() {
        again.arg0(called);
    }
    let error = again.args(arguments).env(name, heaps_max).exec();
    eprintln!("worker: goes on with as many heaps as threads: {error}");
}
