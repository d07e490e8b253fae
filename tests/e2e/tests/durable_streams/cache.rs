//! nginx as a shared cache in front of the service, with the settings of docs/durable-streams.md.

use super::{SOON, app, publish};
use axum::{extract::Request, middleware};
use e2e::{Proxy, ProxyConfig, ProxyKind, Server, eventually};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};
use support::client::{Answer, Protocol};
use tower_sse::hub::Hub;

/// A service behind a cache, and the number of its requests.
struct Cached {
    proxy: Proxy,
    _server: Server,
    requests: Arc<AtomicUsize>,
    _folder: tempfile::TempDir,
}

impl Cached {
    async fn start(hub: &Hub) -> Self {
        let requests: Arc<AtomicUsize> = Arc::default();
        let counter = requests.clone();
        let count = middleware::from_fn(move |request: Request, next: middleware::Next| {
            counter.fetch_add(1, Relaxed);
            next.run(request)
        });
        let server = Server::start(app(hub, |streams| streams.shared_caches()).layer(count));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        // The processes of nginx may run as another user.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(folder.path(), open).unwrap();
        let config = ProxyConfig::new(ProxyKind::Nginx)
            .replace("server {\n", &format!("proxy_cache_path {path} keys_zone=streams:10m;\n\nserver {{\n"))
            .replace(
                "    location / {\n",
                "    location / {\n\
                 proxy_cache streams;\n\
                 proxy_cache_lock on;\n\
                 proxy_cache_lock_timeout 30s;\n\
                 proxy_cache_lock_age 30s;\n",
            );
        let proxy = Proxy::start(&config, server.address()).await;
        Self { proxy, _server: server, requests, _folder: folder }
    }

    async fn get(&self, query: &str) -> Answer {
        Protocol::Http1.get(self.proxy.address(), &format!("/streams/t?{query}"), &[]).await.complete().await
    }

    fn requests(&self) -> usize {
        self.requests.swap(0, Relaxed)
    }
}

fn next_offset(answer: &Answer) -> String {
    answer.headers["stream-next-offset"].to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_answers_pages_and_joins_long_polls() {
    let hub = Hub::new();
    publish(&hub, 0..3).await;
    let cached = Cached::start(&hub).await;
    cached.requests();

    let first = cached.get("offset=-1").await;
    for _ in 0..10 {
        let page = cached.get("offset=-1").await;
        assert_eq!((page.text(), next_offset(&page)), ("[0,1,2]".into(), next_offset(&first)));
    }
    assert_eq!(cached.requests(), 1, "pages come from the cache");

    let end = format!("offset={}", next_offset(&first));
    for _ in 0..3 {
        assert_eq!(cached.get(&end).await.text(), "[]");
    }
    assert_eq!(cached.requests(), 3, "an empty page is not cached");

    let polls: Vec<_> = (0..20)
        .map(|_| {
            let (address, path) = (cached.proxy.address(), format!("/streams/t?cursor=1&live=long-poll&{end}"));
            tokio::spawn(async move { Protocol::Http1.get(address, &path, &[]).await.complete().await })
        })
        .collect();
    let topic = hub.topic("t");
    eventually(SOON, "a long poll waits", async || if topic.subscribers() > 0 { Ok(()) } else { Err(()) }).await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(topic.subscribers(), 1, "the server has one long poll for all clients");
    publish(&hub, 3..4).await;
    for poll in polls {
        assert_eq!(poll.await.unwrap().text(), "[3]");
    }
    assert_eq!(cached.requests(), 1, "one long poll for all clients");

    topic.finish().await.unwrap();
    let last = cached.get(&end).await;
    assert_eq!(last.text(), "[3]");
    let closed = cached.get(&format!("offset={}", next_offset(&last))).await;
    assert_eq!(closed.headers["stream-closed"], "true", "the end is not hidden");
}
