//! Finding PostgreSQL's server binaries and what is installed beside them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::missing::Missing;

/// Where Debian and its derivatives keep the binaries of each major version.
const DEBIAN_ROOT: &str = "/usr/lib/postgresql";

/// The folder with `initdb` and `postgres`.
#[derive(Debug, Clone)]
pub(crate) struct PgBin {
    folder: PathBuf,
    pub(crate) major: u32,
}

impl PgBin {
    /// `$SHARDLANE_PG_BIN`, else the newest of the system's, else `pg_config`'s.
    pub(crate) fn find() -> Result<PgBin, Missing> {
        if let Some(folder) = std::env::var_os("SHARDLANE_PG_BIN").filter(|it| !it.is_empty()) {
            return PgBin::at(folder.into()).ok_or(Missing::Postgres);
        }
        let system = std::fs::read_dir(DEBIAN_ROOT)
            .into_iter()
            .flatten()
            .flatten();
        let newest = system
            .filter_map(|version| PgBin::at(version.path().join("bin")))
            .max_by_key(|found| found.major);
        newest
            .or_else(|| PgBin::at(ask("pg_config".as_ref(), "--bindir")?))
            .ok_or(Missing::Postgres)
    }

    fn at(folder: PathBuf) -> Option<PgBin> {
        if !folder.join("initdb").is_file() || !folder.join("postgres").is_file() {
            return None;
        }
        // "postgres (PostgreSQL) 15.20 (Debian ...)", "postgres (PostgreSQL) 19devel"
        let version = Command::new(folder.join("postgres"))
            .arg("--version")
            .output()
            .ok()?;
        let version = String::from_utf8_lossy(&version.stdout).into_owned();
        let number = version.split(") ").nth(1)?;
        let digits = number.split(|c: char| !c.is_ascii_digit()).next()?;
        Some(PgBin {
            folder,
            major: digits.parse().ok()?,
        })
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(crate) fn has_extension(&self, name: &str) -> bool {
        let share = ask(&self.program("pg_config"), "--sharedir")
            .unwrap_or_else(|| format!("/usr/share/postgresql/{}", self.major).into());
        share
            .join("extension")
            .join(format!("{name}.control"))
            .is_file()
    }

    pub(crate) fn has_library(&self, name: &str) -> bool {
        let libraries = ask(&self.program("pg_config"), "--pkglibdir")
            .unwrap_or_else(|| format!("{DEBIAN_ROOT}/{}/lib", self.major).into());
        libraries.join(format!("{name}.so")).is_file()
    }
}

fn ask(pg_config: &Path, what: &str) -> Option<PathBuf> {
    let answer = Command::new(pg_config)
        .arg(what)
        .output()
        .ok()
        .filter(|it| it.status.success())?;
    Some(String::from_utf8(answer.stdout).ok()?.trim().into())
}
