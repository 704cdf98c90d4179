//! The settings file, TOML: `[server]` and `[sources.<name>]`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::sources::{SourceSettings, Sources};
use crate::{IngestError, IngestSettings, TlsFiles};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SettingsFile {
    #[serde(default)]
    server: ServerSettings,
    #[serde(default)]
    sources: BTreeMap<String, SourceSettings>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerSettings {
    listen: Option<SocketAddr>,
    request_deadline_ms: Option<u64>,
    body_deadline_ms: Option<u64>,
    header_deadline_ms: Option<u64>,
    probe_deadline_ms: Option<u64>,
    drain_deadline_ms: Option<u64>,
    connections_max: Option<usize>,
    keep_undecodable: Option<bool>,
    tls: Option<TlsSettings>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsSettings {
    certificate: PathBuf,
    key: PathBuf,
}

impl IngestSettings {
    /// Reads a settings file, and the secrets and schemas that it names. `docs/settings/ingest.toml` has every setting.
    ///
    /// # Errors
    /// [`IngestError::Settings`] names the setting and what to do.
    pub fn read(path: &Path) -> Result<IngestSettings, IngestError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            IngestError::Settings(format!(
                "the settings file {} cannot be read: {}",
                path.display(),
                error.kind()
            ))
        })?;
        IngestSettings::from_toml(&text)
    }

    /// As [`IngestSettings::read`], from the text of a settings file.
    ///
    /// # Errors
    /// As [`IngestSettings::read`].
    pub fn from_toml(text: &str) -> Result<IngestSettings, IngestError> {
        let file: SettingsFile = toml::from_str(text).map_err(|error| {
            // Not the error's own text: it shows the line, and somebody may have written a secret there.
            let line = error.span().map_or(1, |span| {
                text.get(..span.start)
                    .map_or(1, |before| before.matches('\n').count() + 1)
            });
            IngestError::Settings(format!(
                "the settings file, line {line}: {}",
                unquoted(error.message())
            ))
        })?;
        let SettingsFile { server, sources } = file;
        let mut settings = IngestSettings::new(Sources::build(&sources)?);
        let milliseconds =
            |given: Option<u64>, default| given.map_or(default, Duration::from_millis);
        settings.listen = server.listen.unwrap_or(settings.listen);
        settings.request_deadline =
            milliseconds(server.request_deadline_ms, settings.request_deadline);
        settings.body_deadline = milliseconds(server.body_deadline_ms, settings.body_deadline);
        settings.header_deadline =
            milliseconds(server.header_deadline_ms, settings.header_deadline);
        settings.probe_deadline = milliseconds(server.probe_deadline_ms, settings.probe_deadline);
        settings.drain_deadline = milliseconds(server.drain_deadline_ms, settings.drain_deadline);
        settings.connections_max = server.connections_max.unwrap_or(settings.connections_max);
        settings.keep_undecodable = server.keep_undecodable.unwrap_or(settings.keep_undecodable);
        settings.tls = server.tls.map(|tls| TlsFiles {
            certificate: tls.certificate,
            key: tls.key,
        });
        settings.validate()?;
        Ok(settings)
    }
}

/// serde quotes a text that stands in the place of something else, and that text may be a secret.
fn unquoted(message: &str) -> String {
    match (message.find("string \""), message.rfind("\", expected")) {
        (Some(start), Some(end)) => format!("{}a text{}", &message[..start], &message[end + 1..]),
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    /// The settings with `{secret}` in place of a file that holds one.
    fn read(text: &str) -> Result<IngestSettings, IngestError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), SECRET).unwrap();
        let from = format!("{{ file = {:?} }}", file.path());
        IngestSettings::from_toml(&text.replace("{secret}", &from))
    }

    fn check(text: &str, expect: &str) {
        let error = read(text).map(drop).unwrap_err().to_string();
        assert!(error.contains(expect), "{text}: {error}");
        assert!(!error.contains("MfKQ"), "a secret is quoted: {error}");
    }

    #[test]
    fn the_manual_is_a_settings_file_that_starts() {
        let manual = include_str!("../../docs/settings/ingest.toml");
        let settings =
            read(&manual.replace("{ file = \"/run/secrets/orders\" }", "{secret}")).unwrap();
        assert_eq!(settings.sources.paths(), ["/webhooks/payments/orders"]);
        assert!(settings.sources.unverified().is_empty());
        // Every setting that is commented out is a setting, and has the default that the manual says.
        let all: String = manual
            .lines()
            .map(|line| line.strip_prefix("#: ").unwrap_or(line))
            .map(|line| format!("{line}\n"))
            .collect();
        let file: SettingsFile = toml::from_str(&all).unwrap();
        assert!(
            file.server.tls.is_some() && file.sources.len() == 4,
            "{file:?}"
        );
        let defaults = IngestSettings::new(Sources::unsigned());
        let given = file.server;
        assert_eq!(given.listen, Some(defaults.listen));
        assert_eq!(given.connections_max, Some(defaults.connections_max));
        for (given, default) in [
            (given.request_deadline_ms, defaults.request_deadline),
            (given.body_deadline_ms, defaults.body_deadline),
            (given.header_deadline_ms, defaults.header_deadline),
            (given.probe_deadline_ms, defaults.probe_deadline),
            (given.drain_deadline_ms, defaults.drain_deadline),
        ] {
            assert_eq!(given.map(Duration::from_millis), Some(default));
        }
    }

    #[test]
    fn a_built_in_source_needs_its_secrets_only_and_another_its_path_and_kind() {
        let settings = read(
            "[server]\nlisten = \"127.0.0.1:0\"\n[sources.orders]\nsecrets = [{secret}, {secret}]\n\
             [sources.acme]\npath = \"/webhooks/acme\"\nkind = \"chargeback\"\nsignature = \"stripe\"\n\
             secrets = [{secret}]\nrate_per_second = 10\n[sources.lab]\npath = \"/lab\"\nkind = \"order\"\nsignature = \"off\"",
        )
        .unwrap();
        assert_eq!(
            settings.sources.paths(),
            ["/webhooks/acme", "/lab", "/webhooks/payments/orders"]
        );
        assert_eq!(settings.sources.unverified(), ["lab"]);
        assert_eq!(settings.listen.port(), 0);
        assert!(!format!("{settings:?}").contains("MfKQ"), "{settings:?}");
    }

    #[test]
    fn a_setting_that_is_unknown_contradictory_or_missing_is_named_with_the_fix() {
        for (text, expect) in [
            ("", "name no source"),
            (
                "[sources.orders]",
                "sources.orders.secrets is missing; add secrets = [",
            ),
            (
                "[sources.orders]\nsecret = 1",
                "line 2: unknown field `secret`",
            ),
            ("[server]\nport = 1", "line 2: unknown field `port`"),
            ("[souces.orders]", "unknown field `souces`"),
            ("[sources.orders", "line 1: "),
            (
                "[sources.orders]\nsecrets = [\"whsec_MfKQ\"]",
                "a secret is never written here",
            ),
            (
                "[sources.orders]\nsecrets = \"whsec_MfKQ\"",
                "line 2: invalid type: a text, expected a sequence",
            ),
            (
                "[sources.orders]\ntolerance_seconds = \"whsec_MfKQ\"",
                "line 2: invalid type: a text, expected u64",
            ),
            (
                "[sources.orders]\nsecrets = [{ text = \"whsec_MfKQ\" }]",
                "a secret is never written here",
            ),
            (
                "[sources.orders]\nsecrets = [{ env = \"SHARDLANE_TEST_NONE\" }]",
                "SHARDLANE_TEST_NONE; set it",
            ),
            (
                "[sources.orders]\nsecrets = [{ file = \"/no/such\" }]",
                "/no/such cannot be read",
            ),
            (
                "[sources.orders]\nsignature = \"none\"",
                "unknown variant `none`",
            ),
            (
                "[sources.orders]\nsignature = \"off\"\nsecrets = [{secret}]",
                "remove one or the other",
            ),
            (
                "[sources.orders]\nsecrets = [{secret}]\ntolerance_seconds = 0",
                "tolerance_seconds is 0; give 1 to 3600",
            ),
            (
                "[sources.orders]\nsecrets = [{secret}]\ntolerance_seconds = 86400",
                "give 1 to 3600",
            ),
            (
                "[sources.orders]\nsecrets = [{secret}]\nbody_bytes_max = 1000000",
                "body_bytes_max is 1000000; give",
            ),
            (
                "[sources.orders]\nsecrets = [{secret}]\ndepth_max = 101",
                "depth_max is 101",
            ),
            (
                "[sources.orders]\nsecrets = [{secret}]\nrate_per_second = 0",
                "rate_per_second is 0",
            ),
            (
                "[sources.orders]\nsecrets = [{secret}]\nrate_burst = 5",
                "rate_burst says nothing",
            ),
            (
                "[sources.orders]\nsecrets = [{secret}]\nschema = \"/no/such\"",
                "sources.orders.schema",
            ),
            (
                "[sources.orders]\nsecrets = [{secret}]\nschema = \"Cargo.toml\"",
                "is no JSON Schema",
            ),
            (
                "[sources.orders]\nsecrets = [{secret}]\npast_days_max = 0",
                "past_days_max is 0",
            ),
            (
                "[sources.acme]\nkind = \"order\"",
                "sources.acme.path is missing",
            ),
            (
                "[sources.acme]\npath = \"/a\"",
                "sources.acme.kind is missing",
            ),
            ("[sources.\"A b\"]", "is no name of a source"),
            ("[sources.orders]\npath = \"/{id}\"", "is no plain path"),
            (
                "[sources.orders]\npath = \"/a/../livez\"",
                "is no plain path",
            ),
            (
                "[sources.orders]\npath = \"/readyz\"",
                "is the server's own",
            ),
            (
                "[sources.orders]\npath = \"/schemas/x\"",
                "is the server's own",
            ),
            (
                "[sources.a]\nkind = \"order\"\npath = \"/x\"\nsignature = \"off\"\n\
                 [sources.b]\nkind = \"order\"\npath = \"/x\"\nsignature = \"off\"",
                "sources.a.path and sources.b.path are both /x",
            ),
            (
                "[server]\nbody_deadline_ms = 0\n[sources.orders]\nsignature = \"off\"",
                "body_deadline is 0",
            ),
        ] {
            check(text, expect);
        }
    }
}
