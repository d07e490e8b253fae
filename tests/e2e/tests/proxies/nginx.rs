//! nginx. It buffers responses, unless a header disables that.

use crate::{
    case::{Exchange, ProxyCase, SHORT_WAIT},
    server::{LAYERED, PLAIN, Server},
};
use e2e::{Proxy, ProxyConfig, ProxyKind};
use std::time::Duration;
use support::client::Protocol;
use tokio::time::timeout;
use tower_sse::Heartbeat;

pub(crate) const NGINX: ProxyCase = ProxyCase {
    kind: ProxyKind::Nginx,
    accept: "text/event-stream",
    timeout: Duration::from_secs(5),
    forwards_disconnects: true,
    delays_heads: false,
    buffers: true,
};

proxy_tests!(NGINX);

#[tokio::test(flavor = "multi_thread")]
async fn nginx_buffers_whole_stream_without_the_layer() {
    assert_buffered(&ProxyConfig::new(ProxyKind::Nginx), &PLAIN).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_buffers_whole_stream_if_header_is_ignored() {
    let timeout = "proxy_read_timeout";
    let config = ProxyConfig::new(ProxyKind::Nginx)
        .replace(timeout, &format!("proxy_ignore_headers X-Accel-Buffering; {timeout}"));
    assert_buffered(&config, &LAYERED).await;
}

async fn assert_buffered(config: &ProxyConfig, paths: &[&str]) {
    let mut server = Server::start(Heartbeat::default());
    let proxy = Proxy::start(config, server.address()).await;
    for path in paths {
        let Exchange { mut answer, stream } = NGINX.get(Protocol::Http1, &proxy, &mut server, path).await;
        stream.send(1, "first");
        stream.send(2, "second");
        assert!(timeout(SHORT_WAIT, &mut answer).await.is_err(), "{path}: the response head arrived");
        drop(stream);
        let (_, answer) = answer.await.expect("a response");
        assert_eq!(answer.complete().await.data(), ["first", "second"], "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_ignores_no_transform_for_configured_types() {
    for types in ["*", "text/event-stream"] {
        let config = ProxyConfig::new(ProxyKind::Nginx).replace("gzip_types", &format!("gzip_types {types}"));
        for path in LAYERED {
            assert_eq!(NGINX.content_encoding(&config, path).await.as_deref(), Some("gzip"), "{path} {types}");
        }
    }
}
