//! Caddy, which leaves event streams alone unless it is to compress them.

use crate::{
    server::{LAYERED, PLAIN, Server},
    through::{A_WHILE, Asked, Way, long_event},
};
use e2e::{Model, Program, Proxy};
use std::time::Duration;
use support::client::{Protocol, within};
use tokio::time::timeout;
use tower_sse::Heartbeat;

pub(crate) const CADDY: Way = Way {
    program: Program::Caddy,
    accept: "text/event-stream",
    timeout: Duration::from_secs(2),
    tells_of_clients_that_go: true,
    holds_heads: true,
    buffers: false,
};

holds_through!(CADDY);

/// Event streams are not on the list of the model; by default, all of `text/*` is. Caddy decides by the first bytes: a
/// stream of ours that begins with a heartbeat is left alone, as that is short.
#[tokio::test(flavor = "multi_thread")]
async fn it_does_not_heed_no_transform_and_holds_back_what_it_compresses() {
    let mut server = Server::start(Heartbeat::default());
    let model = Model::of(Program::Caddy).with("match {", "match {\nheader Content-Type text/*");
    let proxy = Proxy::start(&model, server.address()).await;
    for path in ["/layer/axums", "/layer/bare"].into_iter().chain(PLAIN) {
        let Asked { answer, open } = CADDY.ask(Protocol::Http1, &proxy, &mut server, path).await;
        open.send(1, &long_event());
        let (_, mut answer) = answer.await.expect("a response");
        assert_eq!(answer.headers["content-encoding"], "gzip", "{path}");
        while let Ok(more) = timeout(A_WHILE, answer.more()).await {
            assert_eq!(more, Ok(true), "{path}");
        }
        // The ten bytes with which gzip begins.
        assert!(answer.body.len() <= 10, "{path}: {:?}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_events_are_not_compressed_either() {
    for path in LAYERED {
        assert_eq!(CADDY.coding(&Model::of(Program::Caddy), path).await, None, "{path}");
    }
}

/// As long as it may still compress it. Ours begins with a first byte.
#[tokio::test(flavor = "multi_thread")]
async fn the_head_of_a_foreign_stream_comes_with_its_first_event_or_heartbeat() {
    let mut server = Server::start(Heartbeat::every(Duration::from_secs(2)));
    let proxy = Proxy::start(&Model::of(Program::Caddy), server.address()).await;
    for path in ["/layer/axums", "/layer/bare"] {
        let Asked { mut answer, open } = CADDY.ask(Protocol::Http1, &proxy, &mut server, path).await;
        assert!(timeout(A_WHILE, &mut answer).await.is_err(), "{path}");
        let (_, mut answer) = within("the heartbeat", answer).await.expect("a response");
        answer.read_until(":\n").await;
        drop(open);
    }
}
