//! Direct mode while one of two shards is away.

use std::time::Duration;

use serde_json::json;
use shardlane_ingest::{Mode, router};
use shardlane_local::{Postgres, PostgresOptions, create_database};
use shardlane_router::RouteKey;
use shardlane_sql::testing::{test_map, unique};
use shardlane_sql::{Backend, Detail, Layout, Store, StoreOptions, migrate};
use uuid::Uuid;

use crate::support::{ORDERS, get, order, post, send, unsigned};

/// It takes seconds: two servers of its own, one of which is started twice.
#[tokio::test(flavor = "multi_thread")]
async fn it_starts_without_a_shard_and_serves_its_users_when_it_is_back() {
    let Some(()) = shardlane_local::require("postgres") else {
        return;
    };
    let (map, name) = (test_map(), unique("away"));
    let (mut servers, mut urls) = (Vec::new(), Vec::new());
    for shard in map.shards() {
        let server = Postgres::start(PostgresOptions::fast()).await.unwrap();
        let admin = server.url("postgres");
        create_database(&admin, &name).await.unwrap();
        let (url, detail) = (server.url(&name), Detail::Shard(&map, *shard));
        migrate(&url, Layout::Shards, detail).await.unwrap();
        servers.push(server);
        urls.push(url);
    }
    let user_of = |shard: usize| {
        let is_there = |user: &Uuid| map.shard_for(&RouteKey::Uuid(*user)) == map.shards()[shard];
        std::iter::repeat_with(Uuid::now_v7).find(is_there).unwrap()
    };
    let [near, away] = [user_of(0), user_of(1)];

    servers[1].kill().await.unwrap();
    let backend = Backend::Shards {
        urls,
        map: map.clone(),
    };
    let options = StoreOptions {
        connect_timeout: Duration::from_secs(1),
        ..StoreOptions::default()
    };
    let store = Store::connect(backend, options).await.unwrap();
    let app = router(Mode::Direct(store.into()), &unsigned());
    let applied = json!({"status": "applied"});
    let created = |user| post(ORDERS, order(user, "e-1", "created", 10));
    send(&app, created(near)).await.is(200, &applied);
    let refused = send(&app, created(away)).await;
    refused.is_problem(503, "unavailable");
    // The outage of one is not the other's.
    let updated = post(ORDERS, order(near, "e-2", "updated", 20));
    send(&app, updated).await.is(200, &applied);

    servers[1].restart().await.unwrap();
    send(&app, created(away)).await.is(200, &applied);
    let ready = send(&app, get("/readyz")).await;
    ready.is(200, &json!({"status": "ready"}));
    for server in servers {
        server.stop().await.unwrap();
    }
}
