//! Caddy. It passes event streams unchanged, unless its configuration compresses them.

use crate::{
    case::{Exchange, ProxyCase, SHORT_WAIT, long_event},
    server::{LAYERED, PLAIN, Server},
};
use e2e::{Proxy, ProxyConfig, ProxyKind};
use std::time::Duration;
use support::client::{Protocol, within};
use tokio::time::timeout;
use tower_sse::Heartbeat;

pub(crate) const CADDY: ProxyCase = ProxyCase {
    kind: ProxyKind::Caddy,
    accept: "text/event-stream",
    timeout: Duration::from_secs(2),
    forwards_disconnects: true,
    delays_heads: true,
    buffers: false,
};

proxy_tests!(CADDY);

/// Caddy compresses all of `text/*` by default. It decides by the first bytes: a stream of ours
/// begins with a heartbeat, which is too short to compress.
#[tokio::test(flavor = "multi_thread")]
async fn caddy_ignores_no_transform_and_delays_compressed_events() {
    let mut server = Server::start(Heartbeat::default());
    let config = ProxyConfig::new(ProxyKind::Caddy).replace("match {", "match {\nheader Content-Type text/*");
    let proxy = Proxy::start(&config, server.address()).await;
    for path in ["/layer/axum", "/layer/bare"].into_iter().chain(PLAIN) {
        let Exchange { answer, stream } = CADDY.get(Protocol::Http1, &proxy, &mut server, path).await;
        stream.send(1, &long_event());
        let (_, mut answer) = answer.await.expect("a response");
        assert_eq!(answer.headers["content-encoding"], "gzip", "{path}");
        while let Ok(more) = timeout(SHORT_WAIT, answer.more()).await {
            assert_eq!(more, Ok(true), "{path}");
        }
        // Only the header of gzip, which has ten bytes.
        assert!(answer.body.len() <= 10, "{path}: {:?}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_events_are_not_compressed() {
    for path in LAYERED {
        assert_eq!(CADDY.content_encoding(&ProxyConfig::new(ProxyKind::Caddy), path).await, None, "{path}");
    }
}

/// Caddy delays the head until it has decided on compression. Our stream begins with a byte.
#[tokio::test(flavor = "multi_thread")]
async fn head_of_upstream_stream_waits_for_first_byte() {
    let mut server = Server::start(Heartbeat::every(Duration::from_secs(2)));
    let proxy = Proxy::start(&ProxyConfig::new(ProxyKind::Caddy), server.address()).await;
    for path in ["/layer/axum", "/layer/bare"] {
        let Exchange { mut answer, stream } = CADDY.get(Protocol::Http1, &proxy, &mut server, path).await;
        assert!(timeout(SHORT_WAIT, &mut answer).await.is_err(), "{path}");
        let (_, mut answer) = within("the heartbeat", answer).await.expect("a response");
        answer.read_until(":\n").await;
        drop(stream);
    }
}
