//! `shardlane health URL`: whether a server is well, for containers that have no HTTP client.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

/// Ask a server of ours whether it is well; exits with 1 if it says no, and with 2 if it does not answer
#[derive(Debug, Args)]
pub(crate) struct HealthArgs {
    /// Such as http://127.0.0.1:9100/readyz; /readyz if there is no path
    url: String,
    /// How long it may take, in seconds
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

impl HealthArgs {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(self.timeout)))
            .http_status_as_error(false)
            .build()
            .new_agent();
        let url = with_path(&self.url);
        let asked = tokio::task::spawn_blocking(move || {
            let mut answer = agent
                .get(&url)
                .call()
                .with_context(|| format!("{url} does not answer"))?;
            let body = answer.body_mut().read_to_string()?;
            anyhow::Ok((answer.status(), body))
        });
        let (status, body) = asked.await??;
        println!("{}", body.trim_end());
        Ok(if status.is_success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

fn with_path(url: &str) -> String {
    let url = if url.contains("://") {
        url.to_owned()
    } else {
        format!("http://{url}")
    };
    let (_, rest) = url.split_once("://").unwrap_or_default();
    if rest.trim_end_matches('/').contains('/') {
        url
    } else {
        format!("{}/readyz", url.trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_is_asked_where_nothing_is_said() {
        for (url, asked) in [
            ("127.0.0.1:1", "http://127.0.0.1:1/readyz"),
            ("http://a:1/", "http://a:1/readyz"),
            ("http://a:1/livez", "http://a:1/livez"),
            ("https://a", "https://a/readyz"),
        ] {
            assert_eq!(with_path(url), asked);
        }
    }
}
