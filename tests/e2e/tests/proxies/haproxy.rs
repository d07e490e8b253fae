//! HAProxy. It passes event streams unchanged and, with `http-no-delay`, without delay.

use crate::{
    case::{Exchange, ProxyCase, median},
    server::{LAYERED, PLAIN, Server},
};
use e2e::{Proxy, ProxyConfig, ProxyKind};
use std::time::{Duration, Instant};
use support::client::Protocol;
use tower_sse::Heartbeat;

pub(crate) const HAPROXY: ProxyCase = ProxyCase {
    kind: ProxyKind::HaProxy,
    accept: "text/event-stream",
    timeout: Duration::from_secs(2),
    forwards_disconnects: true,
    delays_heads: false,
    buffers: false,
};

proxy_tests!(HAPROXY);

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_respects_no_transform() {
    let types = "compression type";
    let config = ProxyConfig::new(ProxyKind::HaProxy).replace(types, &format!("# {types}"));
    for path in LAYERED {
        assert_eq!(HAPROXY.content_encoding(&config, path).await, None, "{path}");
    }
    for path in PLAIN {
        assert_eq!(HAPROXY.content_encoding(&config, path).await.as_deref(), Some("gzip"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_http_no_delay_events_are_late() {
    let mut server = Server::start(Heartbeat::default());
    let config = ProxyConfig::new(ProxyKind::HaProxy).replace("option http-no-delay", "");
    let proxy = Proxy::start(&config, server.address()).await;
    for path in LAYERED {
        let Exchange { answer, stream } = HAPROXY.get(Protocol::Http1, &proxy, &mut server, path).await;
        let (_, mut answer) = answer.await.expect("a response");
        let mut delays = Vec::new();
        for n in 1..=5 {
            let sent = Instant::now();
            stream.send(n, &n.to_string());
            answer.read_until(format!("data: {n}\n\n")).await;
            delays.push(sent.elapsed());
        }
        assert!(median(&delays) > Duration::from_millis(150), "{path}: {delays:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_abortonclose_disconnects_are_not_forwarded() {
    let mut server = Server::start(Heartbeat::default());
    let config = ProxyConfig::new(ProxyKind::HaProxy).replace("option abortonclose", "");
    let proxy = Proxy::start(&config, server.address()).await;
    let case = ProxyCase { forwards_disconnects: false, ..HAPROXY };
    for path in LAYERED {
        assert!(!case.is_disconnect_forwarded(&proxy, &mut server, path).await, "{path}");
    }
}
