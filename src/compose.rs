//! `shardlane up --compose`, `status --compose` and `down --compose`: the cluster in containers, by `docker compose`.
//!
//! Whatever decides about the containers is in `compose/compose.yaml`; here is who asks, waits, and says what is wrong.

mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use tokio::process::Command;

use self::service::{Condition, Service};

/// Older ones lack `!override`, and what `compose.yaml` needs of `scale`.
const COMPOSE_MIN: (u32, u32) = (2, 24);
const LOOK: Duration = Duration::from_secs(1);
/// Lines of a failed service's log that are shown.
const LOG_LINES: &str = "15";
const GET: &str = "install Docker Engine with its Compose plugin, 2.24 or newer: https://docs.docker.com/engine/install/";

/// `docker compose` in the folder of `compose.yaml`.
pub(crate) struct Compose {
    folder: PathBuf,
    profiles: Vec<String>,
    /// The services that are meant to run on and on.
    lasting: BTreeSet<String>,
}

impl Compose {
    /// With these profiles, or all where there is none.
    ///
    /// # Errors
    /// What is not here, and how to get it.
    pub(crate) async fn find(folder: &Path, profiles: Vec<String>) -> anyhow::Result<Compose> {
        if !folder.join("compose.yaml").is_file() {
            bail!(
                "{} has no compose.yaml; name the folder that has it with --compose-folder",
                folder.display()
            );
        }
        check_docker().await?;
        let profiles = if profiles.is_empty() {
            vec!["*".to_owned()]
        } else {
            profiles
        };
        let mut compose = Compose {
            folder: folder.to_owned(),
            profiles,
            lasting: BTreeSet::new(),
        };
        let config = compose.ask(&["config", "--format", "json"]).await?;
        compose.lasting = service::lasting(&config)?;
        Ok(compose)
    }

    async fn ask(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.command(arguments).output().await?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("docker compose {}: {}", arguments[0], said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.arg("compose").current_dir(&self.folder);
        for profile in &self.profiles {
            command.args(["--profile", profile]);
        }
        command
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Builds, starts, and waits until everything is well; says on stderr what has become well.
    pub(crate) async fn up(&self, wait_max: Duration) -> anyhow::Result<ExitCode> {
        let secrets = Command::new("./secrets.sh")
            .current_dir(&self.folder)
            .status();
        if !secrets.await.context("secrets.sh cannot be run")?.success() {
            bail!("secrets.sh could not make the secrets; it says why above");
        }
        eprintln!("up: building what has changed");
        // On a terminal it shows its own progress.
        let built = self
            .command(&["build"])
            .stdout(Stdio::null())
            .status()
            .await?;
        if !built.success() {
            bail!("the images could not be built; `docker compose build` says why above");
        }
        let started = self.command(&["up", "--detach", "--quiet-pull"]).output();
        self.wait(started, wait_max).await?;
        for service in self.services().await? {
            for address in &service.addresses {
                println!("{}  {address}", service.name);
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Compose starts each service when those that it needs are well, and is through when the last one has started.
    async fn wait(
        &self,
        started: impl Future<Output = std::io::Result<Output>>,
        wait_max: Duration,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut started = std::pin::pin!(started);
        let mut is_through = false;
        let mut told: BTreeMap<String, Condition> = BTreeMap::new();
        loop {
            let services = self.services().await?;
            for service in &services {
                let before = told.insert(service.name.clone(), service.condition);
                if before != Some(service.condition) && service.condition != Condition::Waits {
                    let after = began.elapsed().as_secs();
                    eprintln!("up: {} {} after {after} s", service.name, service.state);
                }
            }
            let is = |condition| services.iter().find(|it| it.condition == condition);
            let (failed, waits) = (is(Condition::Failed), is(Condition::Waits));
            match (failed, waits) {
                // What is of an earlier run may be started yet.
                (Some(failed), _) if is_through => {
                    return Err(self.failure(&failed.name, "has failed").await);
                }
                (None, None) if is_through => return Ok(()),
                (_, Some(waits)) if began.elapsed() > wait_max => {
                    let what = format!("is not well after {} s", wait_max.as_secs());
                    return Err(self.failure(&waits.name, &what).await);
                }
                _ => {}
            }
            tokio::select! {
                output = &mut started, if !is_through => {
                    let output = output?;
                    if !output.status.success() {
                        return Err(self.refusal(&output).await);
                    }
                    is_through = true;
                }
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Why `docker compose up` did not get through.
    async fn refusal(&self, output: &Output) -> anyhow::Error {
        let services = self.services().await.unwrap_or_default();
        if let Some(failed) = services.iter().find(|it| it.condition == Condition::Failed) {
            return self.failure(&failed.name, "has failed").await;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty());
        anyhow::anyhow!(
            "docker compose up: {}",
            last.unwrap_or("failed and says nothing")
        )
    }

    async fn failure(&self, name: &str, what: &str) -> anyhow::Error {
        let log = self
            .ask(&["logs", "--no-color", "--tail", LOG_LINES, name])
            .await;
        anyhow::anyhow!(
            "{name} {what}; its log ends with:\n{}",
            log.unwrap_or_default()
        )
    }

    /// A row a container. Exits with 1 unless there are some and all of them are well.
    pub(crate) async fn status(&self, json: bool) -> anyhow::Result<ExitCode> {
        let services = self.services().await?;
        if json {
            println!("{}", serde_json::to_string_pretty(&services)?);
        } else if services.is_empty() {
            println!("no containers; `shardlane up --compose` brings some up");
        } else {
            let mut table = Table::new();
            table
                .load_style(NOTHING)
                .set_header(["service", "state", "where"]);
            for service in &services {
                table.add_row([&service.name, &service.state, &service.addresses.join(" ")]);
            }
            println!("{table}");
        }
        let all_well = services.iter().all(|it| it.condition == Condition::Well);
        Ok(if all_well && !services.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    /// Stops and removes all containers, and with `volumes` their data.
    pub(crate) async fn down(&self, volumes: bool) -> anyhow::Result<ExitCode> {
        let services = self.services().await?;
        let mut arguments = vec!["down", "--remove-orphans"];
        if volumes {
            arguments.push("--volumes");
        }
        self.ask(&arguments).await?;
        for service in &services {
            println!("removed {}", service.name);
        }
        if services.is_empty() {
            println!("nothing was there");
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn services(&self) -> anyhow::Result<Vec<Service>> {
        let said = self.ask(&["ps", "--all", "--format", "json"]).await?;
        service::read(&said, &self.lasting)
    }
}

/// # Errors
/// What is not here, and how to get it.
async fn check_docker() -> anyhow::Result<()> {
    let ask = |arguments: &'static [&'static str]| Command::new("docker").args(arguments).output();
    let Ok(version) = ask(&["compose", "version", "--short"]).await else {
        bail!("docker: not installed here; {GET}");
    };
    if !version.status.success() {
        bail!("docker: it has no Compose plugin; {GET}");
    }
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    if is_too_old(&version) {
        bail!("docker: its Compose plugin is {version}; {GET}");
    }
    let engine = ask(&["version", "--format", "{{.Server.Version}}"]).await?;
    if !engine.status.success() {
        let said = String::from_utf8_lossy(&engine.stderr);
        let why = said.lines().last().unwrap_or_default();
        bail!(
            "docker: its engine does not answer ({why}); start it, such as with `systemctl start docker`"
        );
    }
    Ok(())
}

/// A version that is no number, as of somebody's own build, is taken to be new.
fn is_too_old(version: &str) -> bool {
    let mut numbers = version
        .trim_start_matches('v')
        .split('.')
        .map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < COMPOSE_MIN,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_plugins_are_known() {
        for (version, old) in [
            ("2.23.3", true),
            ("v2.5.0", true),
            ("1.29.2", true),
            ("2.24.0", false),
            ("2.40.3-desktop.1", false),
            ("3.0.0", false),
            ("dev", false),
        ] {
            assert_eq!(is_too_old(version), old, "{version}");
        }
    }
}
