//! Varnish. It passes event streams that must not be cached, and works best if it pipes them.

use crate::{
    case::{ProxyCase, SHORT_WAIT},
    server::{LAYERED, Server},
};
use e2e::{Proxy, ProxyConfig, ProxyKind};
use std::time::{Duration, Instant};
use support::client::{Protocol, within};
use tokio::time::timeout;
use tower_sse::Heartbeat;

/// The case of clients whose `Accept` header does not name event streams.
pub(crate) const VARNISH: ProxyCase = ProxyCase {
    kind: ProxyKind::Varnish,
    accept: "*/*",
    timeout: Duration::from_secs(2),
    forwards_disconnects: false,
    delays_heads: false,
    buffers: false,
};

pub(crate) const PIPED: ProxyCase = ProxyCase { accept: "text/event-stream", forwards_disconnects: true, ..VARNISH };

proxy_tests!(VARNISH);

mod piped {
    use super::PIPED;

    proxy_tests!(PIPED);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_share_a_stream_only_without_the_layer() {
    let mut server = Server::start(Heartbeat::default());
    let proxy = Proxy::start(&ProxyConfig::new(ProxyKind::Varnish), server.address()).await;
    let get = |path| Protocol::Http1.get(proxy.address(), path, &[]);

    let (mut one, first) = tokio::join!(get("/layer/bare"), server.next());
    first.send(1, "for the first");
    one.read_until("data: for the first\n\n").await;
    let (mut another, second) = tokio::join!(get("/layer/bare"), server.next());
    second.send(1, "for the second");
    another.read_until("data: for the second\n\n").await;
    assert_eq!(another.data(), ["for the second"]);

    let (mut one, first) = tokio::join!(get("/plain/bare"), server.next());
    first.send(1, "for the first");
    one.read_until("data: for the first\n\n").await;
    let mut another = within("a response", get("/plain/bare")).await;
    another.read_until("data: for the first\n\n").await;
    assert!(timeout(SHORT_WAIT, server.next()).await.is_err(), "the handler was called once");
}

/// The default of `send_timeout` is ten minutes.
#[tokio::test(flavor = "multi_thread")]
async fn only_piped_streams_survive_send_timeout() {
    let mut server = Server::start(Heartbeat::every(Duration::from_millis(400)));
    let seconds = VARNISH.timeout.as_secs();
    let config = ProxyConfig::new(ProxyKind::Varnish).parameter(&format!("send_timeout={seconds}"));
    let proxy = Proxy::start(&config, server.address()).await;
    let begin = Instant::now();
    let not_piped = VARNISH.get(Protocol::Http1, &proxy, &mut server, "/layer/ours").await;
    not_piped.stream.send(1, "before");
    let piped = PIPED.get(Protocol::Http1, &proxy, &mut server, "/layer/ours").await;
    piped.stream.send(1, "before");
    tokio::join!(
        VARNISH.assert_cut("not piped", &["before"], begin, not_piped),
        PIPED.assert_survives("piped", &["before"], piped),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn varnish_ignores_no_transform_except_in_pipes() {
    let config = ProxyConfig::new(ProxyKind::Varnish).replace("text/(html|", "text/(event-stream|html|");
    for path in LAYERED {
        assert_eq!(VARNISH.content_encoding(&config, path).await.as_deref(), Some("gzip"), "{path}");
        assert_eq!(PIPED.content_encoding(&config, path).await, None, "{path}");
    }
}
