//! The checks for every proxy, with the layer and without it.

use crate::server::{LAYERED, OpenStream, PLAIN, Server};
use e2e::{Proxy, ProxyConfig, ProxyKind};
use futures_util::future::join_all;
use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};
use support::{
    client::{Answer, Protocol, within},
    whatwg,
};
use tokio::{task::JoinHandle, time::timeout};
use tower_sse::{CloseReason, Heartbeat};

/// The limit for the delay of a single event.
const MAX_DELAY: Duration = Duration::from_millis(100);
/// The limit for noticing a disconnect. Shorter than all default heartbeat intervals and timeouts.
const SOON: Duration = Duration::from_secs(5);
/// The waiting time for an event that must not come.
pub(crate) const SHORT_WAIT: Duration = Duration::from_secs(1);

/// A proxy, and its expected behavior.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProxyCase {
    pub(crate) kind: ProxyKind,
    /// The `Accept` header of the requests.
    pub(crate) accept: &'static str,
    /// The shortest timeout that leaves room for heartbeats on a busy machine.
    pub(crate) timeout: Duration,
    /// The server learns of a disconnected client before its next write.
    pub(crate) forwards_disconnects: bool,
    /// The response head waits for the first byte of the body.
    pub(crate) delays_heads: bool,
    /// Without the layer, events wait in a buffer.
    pub(crate) buffers: bool,
}

/// A request that has reached its handler.
pub(crate) struct Exchange {
    /// Resolves when the response head has arrived.
    pub(crate) answer: JoinHandle<(Instant, Answer)>,
    pub(crate) stream: OpenStream,
}

impl ProxyCase {
    /// Sends a request like an `EventSource`.
    pub(crate) async fn get(self, protocol: Protocol, proxy: &Proxy, server: &mut Server, path: &str) -> Exchange {
        self.get_after(None, protocol, proxy, server, path).await
    }

    /// Sends a request like an `EventSource` that reconnects with this id.
    async fn get_after(
        self,
        last_event_id: Option<&'static str>,
        protocol: Protocol,
        proxy: &Proxy,
        server: &mut Server,
        path: &str,
    ) -> Exchange {
        // The number keeps Varnish from serving responses without `Cache-Control` from its cache.
        static REQUESTS: AtomicU64 = AtomicU64::new(0);
        let path = format!("{path}?request={}", REQUESTS.fetch_add(1, Relaxed));
        let mut headers = vec![("accept", self.accept), ("accept-encoding", "gzip, br")];
        headers.extend(last_event_id.map(|id| ("last-event-id", id)));
        let address = proxy.address();
        let answer = tokio::spawn(async move {
            let answer = protocol.get(address, &path, &headers).await;
            (Instant::now(), answer)
        });
        Exchange { answer, stream: server.next().await }
    }

    /// Returns the configuration for clients of this protocol.
    fn config(self, protocol: Protocol) -> ProxyConfig {
        let config = ProxyConfig::new(self.kind);
        if protocol == Protocol::Http2 { config.http2() } else { config }
    }

    /// Checks that events pass unchanged, uncompressed, and without delay.
    pub(crate) async fn check_events(self) {
        let mut server = Server::start(Heartbeat::default());
        for protocol in Protocol::ALL {
            let proxy = Proxy::start(&self.config(protocol), server.address()).await;
            for path in LAYERED {
                let mut rounds = Vec::new();
                // A proxy that delays events does so in every round. A busy machine does not.
                while !rounds.last().is_some_and(Delays::are_short) {
                    assert!(rounds.len() < 3, "{self:?} {protocol:?} {path}: {rounds:?}");
                    let mut delays = Delays::default();
                    for is_silent_at_first in [false, true, false, true, false, true] {
                        let exchange = self.get(protocol, &proxy, &mut server, path).await;
                        // Our stream begins with a byte, so its head always arrives alone.
                        let head_comes_alone = !self.delays_heads || path == "/layer/ours";
                        let answer = delays.measure(exchange, is_silent_at_first && head_comes_alone).await;
                        assert_eq!(answer.headers.get("content-encoding"), None, "{self:?} {path}");
                        assert_eq!(answer.headers["content-type"], "text/event-stream", "{self:?} {path}");
                        assert_eq!(answer.headers["cache-control"], "no-cache, no-transform", "{self:?} {path}");
                        assert_eq!(answer.data(), ["first", "second", "third"], "{self:?} {path}");
                        assert_eq!(whatwg::parse(&answer.body).last_event_id, "3", "{self:?} {path}");
                    }
                    println!("{self:?} {protocol:?} {path}: {delays:?}");
                    rounds.push(delays);
                }
            }
        }
    }

    /// Checks that streams in the layer survive a silence of three timeouts, at their start and
    /// after an event. Streams without the layer do not survive the first timeout.
    pub(crate) async fn check_silence(self) {
        let mut server = Server::start(Heartbeat::every(self.timeout * 2 / 5));
        let proxy = Proxy::start(&ProxyConfig::new(self.kind).timeout(self.timeout), server.address()).await;
        let mut streams = Vec::new();
        for path in LAYERED.into_iter().chain(PLAIN) {
            for before in [&[] as &[_], &["before"]] {
                let begin = Instant::now();
                let exchange = self.get(Protocol::Http1, &proxy, &mut server, path).await;
                before.iter().for_each(|data| exchange.stream.send(1, data));
                streams.push((path, before, begin, exchange));
            }
        }
        join_all(streams.into_iter().map(async |(path, before, begin, exchange)| {
            let what = format!("{path} after {before:?}");
            if PLAIN.contains(&path) {
                self.assert_cut(&what, before, begin, exchange).await;
            } else {
                self.assert_survives(&what, before, exchange).await;
            }
        }))
        .await;
    }

    /// Asserts that a stream survives a silence of three timeouts.
    pub(crate) async fn assert_survives(self, what: &str, before: &[&str], Exchange { answer, stream }: Exchange) {
        let (_, mut answer) = answer.await.expect("a response");
        let begin = Instant::now();
        while begin.elapsed() < self.timeout * 7 / 2 {
            // Each chunk is a heartbeat.
            assert_eq!(answer.more().await, Ok(true), "{self:?} {what}: ended after {:?}", begin.elapsed());
        }
        stream.send(2, "after");
        answer.read_until("data: after\n\n").await;
        drop(stream);
        assert_eq!(answer.complete().await.data(), [before, &["after"]].concat(), "{self:?} {what}");
    }

    /// Asserts that the first timeout ends a stream.
    pub(crate) async fn assert_cut(
        self,
        what: &str,
        before: &[&str],
        begin: Instant,
        Exchange { answer, stream }: Exchange,
    ) {
        within("the proxy to close the upstream connection", stream.wait_for_drop()).await;
        let cut = begin.elapsed();
        assert!((self.timeout * 4 / 5..self.timeout * 3).contains(&cut), "{self:?} {what}: cut after {cut:?}");
        if before.is_empty() {
            // Some proxies respond with their own error, and some do not respond.
            answer.abort();
            return;
        }
        let (_, mut answer) = answer.await.expect("a response");
        let end = answer.end().await;
        println!("{self:?} {what}: cut after {cut:?}, {end:?}");
        // Buffered events are lost.
        let arrived = if self.buffers { &[] } else { before };
        assert_eq!(answer.data(), arrived, "{self:?} {what}");
    }

    /// Checks that a client disconnect drops the stream.
    ///
    /// If the proxy does not forward a disconnect, the next heartbeats detect it. Without
    /// heartbeats, the server never notices.
    pub(crate) async fn check_disconnect(self) {
        let mut server = Server::start(Heartbeat::every(Duration::from_millis(200)));
        for protocol in Protocol::ALL {
            let proxy = Proxy::start(&self.config(protocol), server.address()).await;
            for path in LAYERED {
                let disconnected = Instant::now();
                let stream = self.disconnect(protocol, &proxy, &mut server, path).await;
                within("the proxy to drop the stream", stream.wait_for_drop()).await;
                let summary = within("the summary", server.closed.recv()).await.expect("the server runs");
                let noticed = disconnected.elapsed();
                assert!(noticed < SOON, "{self:?} {path}: noticed after {noticed:?}");
                assert_eq!(summary.reason, CloseReason::ClientGone, "{self:?} {path}");
                println!("{self:?} {protocol:?} {path}: noticed after {noticed:?}");
            }
        }
        let proxy = Proxy::start(&ProxyConfig::new(self.kind), server.address()).await;
        for path in PLAIN {
            let is_forwarded = self.is_disconnect_forwarded(&proxy, &mut server, path).await;
            assert_eq!(is_forwarded, self.forwards_disconnects, "{self:?} {path}");
        }
    }

    /// Returns whether a disconnect drops the stream without another write of the server.
    pub(crate) async fn is_disconnect_forwarded(self, proxy: &Proxy, server: &mut Server, path: &str) -> bool {
        let stream = self.disconnect(Protocol::Http1, proxy, server, path).await;
        let limit = if self.forwards_disconnects { SOON } else { SHORT_WAIT };
        timeout(limit, stream.wait_for_drop()).await.is_ok()
    }

    /// Reads an event, and closes the connection of the client. Returns the stream in the handler.
    async fn disconnect(self, protocol: Protocol, proxy: &Proxy, server: &mut Server, path: &str) -> OpenStream {
        let Exchange { answer, stream } = self.get(protocol, proxy, server, path).await;
        stream.send(1, "first");
        if self.buffers && PLAIN.contains(&path) {
            answer.abort();
        } else {
            let (_, mut answer) = answer.await.expect("a response");
            answer.read_until("data: first\n\n").await;
        }
        stream
    }

    /// Returns the `Content-Encoding` of a stream that ends after a long event.
    pub(crate) async fn content_encoding(self, config: &ProxyConfig, path: &str) -> Option<String> {
        let mut server = Server::start(Heartbeat::default());
        let proxy = Proxy::start(config, server.address()).await;
        let Exchange { answer, stream } = self.get(Protocol::Http1, &proxy, &mut server, path).await;
        stream.send(1, &long_event());
        drop(stream);
        let (_, answer) = answer.await.expect("a response");
        answer.headers.get("content-encoding").map(|coding| coding.to_str().expect("a name").to_owned())
    }

    /// Checks that the handler receives the id of a client that reconnects.
    pub(crate) async fn check_last_event_id(self) {
        let mut server = Server::start(Heartbeat::default());
        for protocol in Protocol::ALL {
            let proxy = Proxy::start(&self.config(protocol), server.address()).await;
            for path in LAYERED {
                for id in ["3", "zwölf-7"] {
                    let exchange = self.get_after(Some(id), protocol, &proxy, &mut server, path).await;
                    assert_eq!(exchange.stream.last.as_str(), Some(id), "{self:?} {protocol:?} {path}");
                    exchange.stream.send(4, "next");
                    drop(exchange.stream);
                    let (_, answer) = exchange.answer.await.expect("a response");
                    assert_eq!(answer.complete().await.data(), ["next"], "{self:?} {protocol:?} {path}");
                }
            }
        }
    }
}

/// The delays from the server to the client.
#[derive(Debug, Default)]
struct Delays {
    heads: Vec<Duration>,
    first_events: Vec<Duration>,
    other_events: Vec<Duration>,
}

impl Delays {
    /// Measures the delays of a stream of three events. Returns the complete response.
    async fn measure(&mut self, Exchange { answer, stream }: Exchange, is_silent_at_first: bool) -> Answer {
        let mut sent = Instant::now();
        if !is_silent_at_first {
            stream.send(1, "first");
        }
        let (arrived, mut answer) = answer.await.expect("a response");
        if is_silent_at_first {
            self.heads.push(arrived.saturating_duration_since(sent));
            sent = Instant::now();
            stream.send(1, "first");
        }
        answer.read_until("data: first\n\n").await;
        self.first_events.push(sent.elapsed());
        for (id, data) in [(2, "second"), (3, "third")] {
            let sent = Instant::now();
            stream.send(id, data);
            answer.read_until(format!("data: {data}\n\n")).await;
            self.other_events.push(sent.elapsed());
        }
        drop(stream);
        answer.complete().await
    }

    fn are_short(&self) -> bool {
        let mut all = [&self.heads, &self.first_events, &self.other_events].into_iter().filter(|some| !some.is_empty());
        all.all(|delays| median(delays) < MAX_DELAY)
    }
}

/// Returns data that is long enough for any compressor.
pub(crate) fn long_event() -> String {
    "long ".repeat(1000)
}

pub(crate) fn median(delays: &[Duration]) -> Duration {
    let mut delays = delays.to_vec();
    delays.sort_unstable();
    delays[delays.len() / 2]
}
