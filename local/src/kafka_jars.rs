//! Kafka's jars, fetched once through Maven into the cache folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::cache;
use crate::error::{ServerError, tail_of_log};
use crate::missing::Missing;

/// The version of Apache Kafka that `kafka/pom.xml` pins.
pub const VERSION: &str = "4.1.1";
const POM: &str = include_str!("../kafka/pom.xml");
const FETCH_TIME_MAX: Duration = Duration::from_secs(600);

/// The folder of this version in the cache.
pub(crate) fn folder() -> PathBuf {
    cache::folder().join(format!("kafka-{VERSION}"))
}

/// Are the jars in the cache, or is there a Maven that could fetch them?
pub(crate) fn obtainable() -> Result<(), Missing> {
    if folder().join("libs").is_dir() {
        return Ok(());
    }
    let found = Command::new("mvn")
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    match found {
        Ok(answer) if answer.status.success() => Ok(()),
        _ => Err(Missing::Maven {
            cache: cache::folder().display().to_string(),
        }),
    }
}

/// The class path, in an order that is always the same: the shared archive of classes depends
/// on it. Fetches the jars where needed; the caller holds the cache's lock for that.
pub(crate) async fn class_path_or_fetch() -> Result<String, ServerError> {
    if let Some(class_path) = class_path() {
        return Ok(class_path);
    }
    obtainable()?;
    fetch().await?;
    class_path().ok_or_else(|| {
        Missing::KafkaJars {
            detail: format!("{} holds no jars", folder().display()),
        }
        .into()
    })
}

/// The class path, if the jars are there.
pub(crate) fn class_path() -> Option<String> {
    let mut jars: Vec<String> = std::fs::read_dir(folder().join("libs"))
        .ok()?
        .flatten()
        .map(|jar| jar.path().to_string_lossy().into_owned())
        .filter(|path| path.ends_with(".jar"))
        .collect();
    jars.sort();
    (!jars.is_empty()).then(|| jars.join(":"))
}

async fn fetch() -> Result<(), ServerError> {
    let what = format!("cannot write into {}", cache::folder().display());
    // A run that was killed leaves its half; nobody else is at work under the lock.
    for entry in std::fs::read_dir(cache::folder())
        .into_iter()
        .flatten()
        .flatten()
    {
        if entry.file_name().to_string_lossy().starts_with(".partial-") {
            std::fs::remove_dir_all(entry.path()).map_err(ServerError::io(what.clone()))?;
        }
    }
    let partial = tempfile::Builder::new()
        .prefix(".partial-")
        .tempdir_in(cache::folder())
        .map_err(ServerError::io(what.clone()))?;
    let pom = partial.path().join("pom.xml");
    std::fs::write(&pom, POM).map_err(ServerError::io(what.clone()))?;
    run_maven(
        &pom,
        &partial.path().join("libs"),
        &partial.path().join("maven.log"),
    )
    .await?;
    let partial = partial.keep();
    std::fs::rename(partial, folder()).map_err(ServerError::io(what))
}

async fn run_maven(pom: &Path, libs: &Path, log: &Path) -> Result<(), ServerError> {
    let what = "cannot run mvn";
    let output = std::fs::File::create(log).map_err(ServerError::io(what))?;
    let errors = output.try_clone().map_err(ServerError::io(what))?;
    let mut maven = tokio::process::Command::new("mvn")
        .args(["-q", "-B", "-f"])
        .arg(pom)
        .arg("dependency:copy-dependencies")
        .arg(format!("-DoutputDirectory={}", libs.display()))
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .kill_on_drop(true)
        .spawn()
        .map_err(ServerError::io(what))?;
    let ended = tokio::time::timeout(FETCH_TIME_MAX, maven.wait()).await;
    match ended {
        Ok(Ok(status)) if status.success() => Ok(()),
        _ => Err(Missing::KafkaJars {
            detail: tail_of_log(log),
        }
        .into()),
    }
}
