//! [`node_config`]: how to reach a node of a map.

use shardlane_router::Node;
use tokio_postgres::Config;

/// The settings that lead to `node`, and are otherwise those of `config`: user, password, database, TLS, timeouts.
#[must_use]
pub fn node_config(config: &Config, node: &Node) -> Config {
    let mut there = Config::new();
    there
        .host(&node.host)
        .port(node.port)
        .ssl_mode(config.get_ssl_mode())
        .channel_binding(config.get_channel_binding())
        .target_session_attrs(config.get_target_session_attrs())
        .keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle());
    if let Some(user) = config.get_user() {
        there.user(user);
    }
    if let Some(password) = config.get_password() {
        there.password(password);
    }
    if let Some(database) = config.get_dbname() {
        there.dbname(database);
    }
    if let Some(options) = config.get_options() {
        there.options(options);
    }
    if let Some(name) = config.get_application_name() {
        there.application_name(name);
    }
    if let Some(timeout) = config.get_connect_timeout() {
        there.connect_timeout(*timeout);
    }
    if let Some(timeout) = config.get_tcp_user_timeout() {
        there.tcp_user_timeout(*timeout);
    }
    there
}

/// `host:port` of each host of a config, for people.
pub(crate) fn describe(config: &Config) -> String {
    let port = |index: usize| {
        let ports = config.get_ports();
        ports.get(index).or(ports.first()).copied().unwrap_or(5432)
    };
    let hosts: Vec<String> = config
        .get_hosts()
        .iter()
        .enumerate()
        .map(|(index, host)| match host {
            tokio_postgres::config::Host::Tcp(name) => format!("{name}:{}", port(index)),
            #[cfg(unix)]
            tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
        })
        .collect();
    hosts.join(",")
}
