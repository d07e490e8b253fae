//! What holds through every proxy, and what of it does not hold there without the layer.

use crate::server::{LAYERED, Open, PLAIN, Server};
use e2e::{Model, Program, Proxy};
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

/// What is asked for of an event that comes alone.
const AT_ONCE: Duration = Duration::from_millis(100);
/// Of a client that goes: less than any heartbeat or timeout that is not short on purpose.
const SOON: Duration = Duration::from_secs(5);
/// For what is not to happen.
pub(crate) const A_WHILE: Duration = Duration::from_secs(1);

/// A proxy, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) program: Program,
    /// The `Accept` of the requests.
    pub(crate) accept: &'static str,
    /// The shortest timeout that leaves room for heartbeats on a busy machine.
    pub(crate) timeout: Duration,
    /// Whether the server hears of a client that goes before it writes to it.
    pub(crate) tells_of_clients_that_go: bool,
    /// Whether the head of a response waits for the first byte of its body.
    pub(crate) holds_heads: bool,
    /// Whether what was sent, without the layer, waits in a buffer.
    pub(crate) buffers: bool,
}

/// A request that has reached its handler.
pub(crate) struct Asked {
    /// The response when its head is there.
    pub(crate) answer: JoinHandle<(Instant, Answer)>,
    pub(crate) open: Open,
}

impl Way {
    /// Asks as an `EventSource` does.
    pub(crate) async fn ask(self, protocol: Protocol, proxy: &Proxy, server: &mut Server, path: &str) -> Asked {
        self.ask_from(None, protocol, proxy, server, path).await
    }

    /// Asks as an `EventSource` does that has come back.
    async fn ask_from(
        self,
        last_event_id: Option<&'static str>,
        protocol: Protocol,
        proxy: &Proxy,
        server: &mut Server,
        path: &str,
    ) -> Asked {
        // Varnish would answer from its cache what has no `Cache-Control`.
        static REQUESTS: AtomicU64 = AtomicU64::new(0);
        let path = format!("{path}?request={}", REQUESTS.fetch_add(1, Relaxed));
        let mut headers = vec![("accept", self.accept), ("accept-encoding", "gzip, br")];
        headers.extend(last_event_id.map(|id| ("last-event-id", id)));
        let address = proxy.address();
        let answer = tokio::spawn(async move {
            let answer = protocol.get(address, &path, &headers).await;
            (Instant::now(), answer)
        });
        Asked { answer, open: server.next().await }
    }

    /// Its model, for clients that speak this.
    fn model(self, protocol: Protocol) -> Model {
        let model = Model::of(self.program);
        if protocol == Protocol::Http2 { model.http2() } else { model }
    }

    pub(crate) async fn carries_events_at_once_and_as_they_are(self) {
        let mut server = Server::start(Heartbeat::default());
        for protocol in Protocol::ALL {
            let proxy = Proxy::start(&self.model(protocol), server.address()).await;
            for path in LAYERED {
                let mut rounds = Vec::new();
                // What a proxy holds back is held back in each of them; what a busy machine does, is not.
                while !rounds.last().is_some_and(Delays::are_short) {
                    assert!(rounds.len() < 3, "{self:?} {protocol:?} {path}: {rounds:?}");
                    let mut delays = Delays::default();
                    for is_silent_at_first in [false, true, false, true, false, true] {
                        let asked = self.ask(protocol, &proxy, &mut server, path).await;
                        // Nobody can wait for a head that waits for the first byte.
                        let head_comes_alone = !self.holds_heads || path == "/layer/ours";
                        let answer = delays.measure(asked, is_silent_at_first && head_comes_alone).await;
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

    /// Three of its timeouts without an event, from the beginning or after one. Those without the layer, at the same
    /// time, do not even survive the first.
    pub(crate) async fn carries_silence_only_with_the_layer(self) {
        let mut server = Server::start(Heartbeat::every(self.timeout * 2 / 5));
        let proxy = Proxy::start(&Model::of(self.program).timeout(self.timeout), server.address()).await;
        let mut streams = Vec::new();
        for path in LAYERED.into_iter().chain(PLAIN) {
            for before in [&[] as &[_], &["before"]] {
                let begin = Instant::now();
                let asked = self.ask(Protocol::Http1, &proxy, &mut server, path).await;
                before.iter().for_each(|data| asked.open.send(1, data));
                streams.push((path, before, begin, asked));
            }
        }
        join_all(streams.into_iter().map(async |(path, before, begin, asked)| {
            let what = format!("{path} after {before:?}");
            if PLAIN.contains(&path) {
                self.is_cut(&what, before, begin, asked).await;
            } else {
                self.survives(&what, before, asked).await;
            }
        }))
        .await;
    }

    /// Three timeouts.
    pub(crate) async fn survives(self, what: &str, before: &[&str], Asked { answer, open }: Asked) {
        let (_, mut answer) = answer.await.expect("a response");
        let begin = Instant::now();
        while begin.elapsed() < self.timeout * 7 / 2 {
            // A heartbeat.
            assert_eq!(answer.more().await, Ok(true), "{self:?} {what}: it ended after {:?}", begin.elapsed());
        }
        open.send(2, "after");
        answer.read_until("data: after\n\n").await;
        drop(open);
        assert_eq!(answer.complete().await.data(), [before, &["after"]].concat(), "{self:?} {what}");
    }

    /// By its first timeout, or a little later.
    pub(crate) async fn is_cut(self, what: &str, before: &[&str], begin: Instant, Asked { answer, open }: Asked) {
        within("the proxy to give up the server", open.is_let_go()).await;
        let cut = begin.elapsed();
        assert!((self.timeout * 4 / 5..self.timeout * 3).contains(&cut), "{self:?} {what}: cut after {cut:?}");
        if before.is_empty() {
            // Some answer with an error of their own, and some not at all.
            answer.abort();
            return;
        }
        let (_, mut answer) = answer.await.expect("a response");
        let end = answer.end().await;
        println!("{self:?} {what}: cut after {cut:?}, {end:?}");
        // What it holds is lost.
        let arrived = if self.buffers { &[] } else { before };
        assert_eq!(answer.data(), arrived, "{self:?} {what}");
    }

    /// At once where the proxy tells, and otherwise thanks to heartbeats: without them, it is not noticed at all.
    pub(crate) async fn lets_a_client_go(self) {
        let mut server = Server::start(Heartbeat::every(Duration::from_millis(200)));
        for protocol in Protocol::ALL {
            let proxy = Proxy::start(&self.model(protocol), server.address()).await;
            for path in LAYERED {
                let gone = Instant::now();
                let open = self.goes(protocol, &proxy, &mut server, path).await;
                within("the proxy to let go of the stream", open.is_let_go()).await;
                let summary = within("the layer to tell", server.closed.recv()).await.expect("the server is there");
                assert!(gone.elapsed() < SOON, "{self:?} {path}: noticed after {:?}", gone.elapsed());
                assert_eq!(summary.reason, CloseReason::ClientGone, "{self:?} {path}");
                println!("{self:?} {protocol:?} {path}: noticed after {:?}", gone.elapsed());
            }
        }
        let proxy = Proxy::start(&Model::of(self.program), server.address()).await;
        for path in PLAIN {
            assert_eq!(self.tells(&proxy, &mut server, path).await, self.tells_of_clients_that_go, "{self:?} {path}");
        }
    }

    /// Whether the handler's stream is dropped although nothing more is sent.
    pub(crate) async fn tells(self, proxy: &Proxy, server: &mut Server, path: &str) -> bool {
        let open = self.goes(Protocol::Http1, proxy, server, path).await;
        let limit = if self.tells_of_clients_that_go { SOON } else { A_WHILE };
        timeout(limit, open.is_let_go()).await.is_ok()
    }

    async fn goes(self, protocol: Protocol, proxy: &Proxy, server: &mut Server, path: &str) -> Open {
        let Asked { answer, open } = self.ask(protocol, proxy, server, path).await;
        open.send(1, "first");
        if self.buffers && PLAIN.contains(&path) {
            answer.abort();
        } else {
            let (_, mut answer) = answer.await.expect("a response");
            answer.read_until("data: first\n\n").await;
        }
        open
    }

    /// How a stream is encoded that ends after a long event.
    pub(crate) async fn coding(self, model: &Model, path: &str) -> Option<String> {
        let mut server = Server::start(Heartbeat::default());
        let proxy = Proxy::start(model, server.address()).await;
        let Asked { answer, open } = self.ask(Protocol::Http1, &proxy, &mut server, path).await;
        open.send(1, &long_event());
        drop(open);
        let (_, answer) = answer.await.expect("a response");
        answer.headers.get("content-encoding").map(|coding| coding.to_str().expect("a name").to_owned())
    }

    pub(crate) async fn passes_on_where_a_client_was(self) {
        let mut server = Server::start(Heartbeat::default());
        for protocol in Protocol::ALL {
            let proxy = Proxy::start(&self.model(protocol), server.address()).await;
            for path in LAYERED {
                for id in ["3", "zwölf-7"] {
                    let asked = self.ask_from(Some(id), protocol, &proxy, &mut server, path).await;
                    assert_eq!(asked.open.last.as_str(), Some(id), "{self:?} {protocol:?} {path}");
                    asked.open.send(4, "next");
                    drop(asked.open);
                    let (_, answer) = asked.answer.await.expect("a response");
                    assert_eq!(answer.complete().await.data(), ["next"], "{self:?} {protocol:?} {path}");
                }
            }
        }
    }
}

/// For how long things were under way.
#[derive(Debug, Default)]
struct Delays {
    heads: Vec<Duration>,
    first_events: Vec<Duration>,
    other_events: Vec<Duration>,
}

impl Delays {
    /// Those of one stream of three events, which it returns when it has ended.
    async fn measure(&mut self, Asked { answer, open }: Asked, is_silent_at_first: bool) -> Answer {
        let mut sent = Instant::now();
        if !is_silent_at_first {
            open.send(1, "first");
        }
        let (came, mut answer) = answer.await.expect("a response");
        if is_silent_at_first {
            self.heads.push(came.saturating_duration_since(sent));
            sent = Instant::now();
            open.send(1, "first");
        }
        answer.read_until("data: first\n\n").await;
        self.first_events.push(sent.elapsed());
        for (id, data) in [(2, "second"), (3, "third")] {
            let sent = Instant::now();
            open.send(id, data);
            answer.read_until(format!("data: {data}\n\n")).await;
            self.other_events.push(sent.elapsed());
        }
        drop(open);
        answer.complete().await
    }

    fn are_short(&self) -> bool {
        let mut all = [&self.heads, &self.first_events, &self.other_events].into_iter().filter(|some| !some.is_empty());
        all.all(|delays| median(delays) < AT_ONCE)
    }
}

/// Long enough for any compressor.
pub(crate) fn long_event() -> String {
    "long ".repeat(1000)
}

pub(crate) fn median(delays: &[Duration]) -> Duration {
    let mut delays = delays.to_vec();
    delays.sort_unstable();
    delays[delays.len() / 2]
}
