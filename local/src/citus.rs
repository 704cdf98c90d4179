//! A Citus cluster: a coordinator, and workers that know the metadata.

use futures_util::future::{try_join, try_join_all};

use crate::directory::DataDir;
use crate::error::ServerError;
use crate::missing::citus_available;
use crate::postgres::{
    Durability, Postgres, PostgresOptions, connect, create_database, drop_database, quote_name, url,
};

/// How to start a [`CitusCluster`].
#[derive(Debug, Clone)]
pub struct CitusOptions {
    /// Number of workers. With none, the coordinator holds the shards itself.
    pub workers: usize,
    /// What a commit is worth, on each node.
    pub durability: Durability,
    /// Libraries to preload beside `citus`.
    pub preload: Vec<String>,
    /// Further settings of each node.
    pub settings: Vec<(String, String)>,
}

impl Default for CitusOptions {
    /// Two durable workers.
    fn default() -> CitusOptions {
        CitusOptions {
            workers: 2,
            durability: Durability::Durable,
            preload: Vec::new(),
            settings: Vec::new(),
        }
    }
}

/// A coordinator and its workers. Citus works per database: see
/// [`CitusCluster::create_database`].
pub struct CitusCluster {
    /// The node that clients ask.
    pub coordinator: Postgres,
    /// The nodes that hold the shards.
    pub workers: Vec<Postgres>,
    node: PostgresOptions,
}

impl CitusCluster {
    /// Starts a coordinator and `workers` workers, side by side, in temporary directories.
    ///
    /// # Errors
    /// [`ServerError::Missing`] where Citus is not installed; otherwise as [`Postgres::start`].
    /// Nothing is left running.
    pub async fn start(
        workers: usize,
        durability: Durability,
    ) -> Result<CitusCluster, ServerError> {
        CitusCluster::start_with(CitusOptions {
            workers,
            durability,
            ..CitusOptions::default()
        })
        .await
    }

    /// As [`CitusCluster::start`], with further settings.
    ///
    /// # Errors
    /// As [`CitusCluster::start`].
    pub async fn start_with(options: CitusOptions) -> Result<CitusCluster, ServerError> {
        citus_available()?;
        let node = node_options(&options);
        let workers = (0..options.workers).map(|_| Postgres::start(node.clone()));
        let (coordinator, workers) =
            try_join(Postgres::start(node.clone()), try_join_all(workers)).await?;
        Ok(CitusCluster {
            coordinator,
            workers,
            node,
        })
    }

    /// Starts a node that belongs to no cluster yet, with a database that has the extension:
    /// `citus_add_node` can add it.
    ///
    /// # Errors
    /// As [`CitusCluster::start`], and if the node refuses.
    pub async fn start_spare_node(&self, database: &str) -> Result<Postgres, ServerError> {
        let node = Postgres::start(self.node.clone()).await?;
        create_database(&node.url("postgres"), database).await?;
        create_extension(database, node.port()).await?;
        Ok(node)
    }

    /// Creates a database with the extension on each node and joins the nodes into one cluster:
    /// the metadata is synced to each worker, and the coordinator takes no shards (if there
    /// are workers).
    ///
    /// # Errors
    /// If a node refuses, for instance because the database exists.
    pub async fn create_database(&self, name: &str) -> Result<(), ServerError> {
        try_join_all(
            self.nodes()
                .map(|node| async move { create_database(&node.url("postgres"), name).await }),
        )
        .await?;
        let workers: Vec<u16> = self.workers.iter().map(Postgres::port).collect();
        join_nodes(name, self.coordinator.port(), &workers).await
    }

    /// Drops a database on each node, if it exists.
    ///
    /// # Errors
    /// If a node refuses.
    pub async fn drop_database(&self, name: &str) -> Result<(), ServerError> {
        try_join_all(
            self.nodes()
                .map(|node| async move { drop_database(&node.url("postgres"), name).await }),
        )
        .await
        .map(drop)
    }

    /// URL of a database on the coordinator.
    #[must_use]
    pub fn coordinator_url(&self, database: &str) -> String {
        self.coordinator.url(database)
    }

    /// The coordinator, then the workers.
    pub fn nodes(&self) -> impl Iterator<Item = &Postgres> {
        std::iter::once(&self.coordinator).chain(&self.workers)
    }

    /// CPU time of all nodes.
    #[must_use]
    pub fn cpu_seconds(&self) -> f64 {
        self.nodes().map(Postgres::cpu_seconds).sum()
    }

    /// Stops all nodes, side by side.
    ///
    /// # Errors
    /// If one did not stop in time.
    pub async fn stop(mut self) -> Result<(), ServerError> {
        self.nodes().for_each(Postgres::let_go);
        for worker in self.workers.drain(..) {
            worker.stop().await?;
        }
        // The coordinator's own destructor waits for it, and it has been stopping all the while.
        Ok(())
    }
}

impl Drop for CitusCluster {
    /// All nodes begin to stop before the first one is waited for.
    fn drop(&mut self) {
        self.nodes().for_each(Postgres::let_go);
    }
}

/// What each node of a cluster needs.
pub(crate) fn node_options(options: &CitusOptions) -> PostgresOptions {
    let mut preload = vec!["citus".to_owned()];
    preload.extend(options.preload.iter().cloned());
    let mut settings: Vec<(String, String)> = [
        ("max_prepared_transactions", "200"),
        // Citus keeps one worker a database, and each online move or split takes some more.
        ("max_worker_processes", "64"),
        ("max_logical_replication_workers", "16"),
        ("max_replication_slots", "32"),
        ("max_wal_senders", "32"),
        // Nothing of this leaves the machine. Some versions do not know the setting and warn.
        ("citus.enable_statistics_collection", "off"),
        // Citus demands TLS between its nodes otherwise, and there is none on the loopback.
        ("citus.node_conninfo", "sslmode=prefer"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    settings.extend(options.settings.iter().cloned());
    PostgresOptions {
        durability: options.durability,
        preload,
        settings,
        data: DataDir::Temporary,
        port: None,
    }
}

/// Makes one cluster of the nodes on these ports, for one database that exists on each.
/// Doing it again changes nothing.
pub(crate) async fn join_nodes(
    database: &str,
    coordinator: u16,
    workers: &[u16],
) -> Result<(), ServerError> {
    let nodes = std::iter::once(coordinator).chain(workers.iter().copied());
    try_join_all(nodes.map(|port| create_extension(database, port))).await?;

    let what = "cannot join the Citus nodes";
    let client = connect(&url(coordinator, database))
        .await
        .map_err(ServerError::sql(what))?;
    let mut statements = vec![format!(
        "SELECT citus_set_coordinator_host('127.0.0.1', {coordinator})"
    )];
    // Adding a node also activates it and syncs the metadata to it.
    statements.extend(
        workers
            .iter()
            .map(|port| format!("SELECT citus_add_node('127.0.0.1', {port})")),
    );
    let holds_shards = workers.is_empty();
    statements.push(format!(
        "SELECT citus_set_node_property('127.0.0.1', {coordinator}, 'shouldhaveshards', {holds_shards})"
    ));
    for statement in statements {
        client
            .batch_execute(&statement)
            .await
            .map_err(ServerError::sql(what))?;
    }

    let unsynced = client
        .query(
            "SELECT nodeport FROM pg_dist_node
             WHERE NOT (isactive AND hasmetadata AND metadatasynced)",
            &[],
        )
        .await
        .map_err(ServerError::sql(what))?;
    if unsynced.is_empty() {
        return Ok(());
    }
    let ports: Vec<String> = unsynced
        .iter()
        .map(|row| row.get::<_, i32>(0).to_string())
        .collect();
    Err(ServerError::Refused(format!(
        "Citus did not sync its metadata to the nodes on these ports: {}",
        ports.join(", ")
    )))
}

async fn create_extension(database: &str, port: u16) -> Result<(), ServerError> {
    let what = format!("cannot create the extension citus on the node on port {port}");
    let create = async {
        let client = connect(&url(port, database)).await?;
        client
            .batch_execute("CREATE EXTENSION IF NOT EXISTS citus")
            .await?;
        allow_online_splits(&client, database).await
    };
    create.await.map_err(ServerError::sql(&what))
}

/// Newer minor releases of PostgreSQL refuse an output plugin that is not listed, and Citus splits a shard
/// online with one of its own. Older ones do not know the setting.
async fn allow_online_splits(
    client: &tokio_postgres::Client,
    database: &str,
) -> Result<(), tokio_postgres::Error> {
    let known = "SELECT FROM pg_settings WHERE name = 'output_plugin_libraries'";
    if client.query_opt(known, &[]).await?.is_none() {
        return Ok(());
    }
    // For this node alone: each node does it for itself.
    let sql = format!(
        "SET citus.enable_ddl_propagation = off;
         ALTER DATABASE {} SET output_plugin_libraries = pgoutput, test_decoding, citus",
        quote_name(database)
    );
    client.batch_execute(&sql).await
}
