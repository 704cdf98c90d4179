//! The four layouts on servers that this process starts and owns.

use shardlane_local::{
    CitusCluster, CitusOptions, Durability, Missing, Postgres, PostgresOptions, ServerError,
    citus_available, create_database, drop_database, partman_available, postgres_available,
};
use shardlane_router::SlotMap;

use crate::migrate::{Detail, MigrateError, migrate};
use crate::{Backend, CitusPath, Layout};

/// A layout's servers could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// A server did not start.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The schema could not be set up.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
}

/// The running servers of a layout.
pub struct LayoutServers {
    layout: Layout,
    servers: Servers,
}

enum Servers {
    Postgres(Vec<Postgres>),
    Citus(Box<CitusCluster>),
}

/// A database of a layout, with the schema in place: on each server, under one name.
#[derive(Debug, Clone)]
pub struct LayoutDatabase {
    layout: Layout,
    urls: Vec<String>,
    map: SlotMap,
}

impl LayoutServers {
    /// Whether a layout can run here.
    ///
    /// # Errors
    /// [`Missing`] says what to install.
    pub fn available(layout: Layout) -> Result<(), Missing> {
        match layout {
            Layout::Single | Layout::Shards => postgres_available(),
            Layout::Partman => partman_available(),
            Layout::Citus => citus_available(),
        }
    }

    /// Starts the servers of a layout: one Postgres, `shards` primaries, or a coordinator and two workers.
    ///
    /// # Errors
    /// [`ServerError`]; nothing is left running.
    pub async fn start(
        layout: Layout,
        durability: Durability,
        shards: usize,
        preload: &[String],
    ) -> Result<LayoutServers, ServerError> {
        let postgres = PostgresOptions {
            durability,
            preload: preload.to_vec(),
            ..PostgresOptions::default()
        };
        let servers = match layout {
            Layout::Single => Servers::Postgres(vec![Postgres::start(postgres).await?]),
            Layout::Partman => {
                let mut partman = postgres;
                partman.preload.push("pg_partman_bgw".to_owned());
                Servers::Postgres(vec![Postgres::start(partman).await?])
            }
            Layout::Shards => {
                let starts = (0..shards).map(|_| Postgres::start(postgres.clone()));
                Servers::Postgres(futures_util::future::try_join_all(starts).await?)
            }
            Layout::Citus => {
                let options = CitusOptions {
                    durability,
                    preload: preload.to_vec(),
                    ..CitusOptions::default()
                };
                Servers::Citus(Box::new(CitusCluster::start_with(options).await?))
            }
        };
        Ok(LayoutServers { layout, servers })
    }

    /// The layout.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The cluster, where the layout is Citus.
    pub fn citus(&self) -> Option<&CitusCluster> {
        match &self.servers {
            Servers::Postgres(_) => None,
            Servers::Citus(cluster) => Some(cluster),
        }
    }

    /// Every server.
    pub fn nodes(&self) -> Vec<&Postgres> {
        match &self.servers {
            Servers::Postgres(nodes) => nodes.iter().collect(),
            Servers::Citus(cluster) => cluster.nodes().collect(),
        }
    }

    /// Makes a database `name` on each server and brings it to the layout's schema. `map` cuts manual shards,
    /// `citus_shards` the Citus tables.
    ///
    /// # Errors
    /// [`SetUpError`].
    pub async fn create(
        &self,
        name: &str,
        map: &SlotMap,
        citus_shards: u32,
    ) -> Result<LayoutDatabase, SetUpError> {
        match &self.servers {
            Servers::Postgres(nodes) => {
                let nodes: Vec<&Postgres> = nodes.iter().collect();
                LayoutDatabase::create(self.layout, &nodes, name, map).await
            }
            Servers::Citus(cluster) => {
                cluster.create_database(name).await?;
                let url = cluster.coordinator_url(name);
                migrate(&url, Layout::Citus, Detail::CitusShards(citus_shards)).await?;
                Ok(LayoutDatabase::on_citus(url, map.clone()))
            }
        }
    }

    /// Drops the database `name` on each server.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn drop(&self, name: &str) -> Result<(), ServerError> {
        match &self.servers {
            Servers::Postgres(nodes) => {
                for node in nodes {
                    drop_database(&node.url("postgres"), name).await?;
                }
                Ok(())
            }
            Servers::Citus(cluster) => cluster.drop_database(name).await,
        }
    }
}

impl LayoutDatabase {
    /// Makes the databases of a layout without Citus, one a node; where there are fewer nodes than shards, the
    /// nodes take several, under the name and a number.
    pub(crate) async fn create(
        layout: Layout,
        nodes: &[&Postgres],
        name: &str,
        map: &SlotMap,
    ) -> Result<LayoutDatabase, SetUpError> {
        let shards: &[_] = if layout == Layout::Shards {
            map.shards()
        } else {
            &map.shards()[..1]
        };
        let mut urls = Vec::new();
        for (index, shard) in shards.iter().enumerate() {
            let node = nodes[index % nodes.len()];
            let name = match index / nodes.len() {
                0 => name.to_owned(),
                more => format!("{name}_{more}"),
            };
            create_database(&node.url("postgres"), &name).await?;
            let url = node.url(&name);
            let detail = match layout {
                Layout::Shards => Detail::Shard(map, *shard),
                _ => Detail::None,
            };
            migrate(&url, layout, detail).await?;
            urls.push(url);
        }
        Ok(LayoutDatabase {
            layout,
            urls,
            map: map.clone(),
        })
    }

    pub(crate) fn on_citus(url: String, map: SlotMap) -> LayoutDatabase {
        LayoutDatabase {
            layout: Layout::Citus,
            urls: vec![url],
            map,
        }
    }

    /// The DSNs: one, or one a manual shard; for Citus the coordinator's.
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// The map that cuts manual shards.
    pub fn map(&self) -> &SlotMap {
        &self.map
    }

    /// What [`crate::Store::connect`] takes; `path` matters on Citus only.
    pub fn backend(&self, path: CitusPath) -> Backend {
        match self.layout {
            Layout::Single | Layout::Partman => Backend::One {
                url: self.urls[0].clone(),
            },
            Layout::Shards => Backend::Shards {
                urls: self.urls.clone(),
                map: self.map.clone(),
            },
            Layout::Citus => Backend::Citus {
                coordinator: self.urls[0].clone(),
                path,
            },
        }
    }
}
