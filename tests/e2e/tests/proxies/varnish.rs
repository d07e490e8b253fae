//! Varnish, which carries event streams by itself if they are not to be cached, and better if it pipes them.

use crate::{
    server::{LAYERED, Server},
    through::{A_WHILE, Way},
};
use e2e::{Model, Program, Proxy};
use std::time::{Duration, Instant};
use support::client::{Protocol, within};
use tokio::time::timeout;
use tower_sse::Heartbeat;

/// For clients that do not say that they want an event stream.
pub(crate) const VARNISH: Way = Way {
    program: Program::Varnish,
    accept: "*/*",
    timeout: Duration::from_secs(2),
    tells_of_clients_that_go: false,
    holds_heads: false,
    buffers: false,
};

pub(crate) const PIPED: Way = Way { accept: "text/event-stream", tells_of_clients_that_go: true, ..VARNISH };

holds_through!(VARNISH);

mod piped {
    use super::PIPED;

    holds_through!(PIPED);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_client_has_a_stream_of_its_own_and_without_the_layer_the_first_ones() {
    let mut server = Server::start(Heartbeat::default());
    let proxy = Proxy::start(&Model::of(Program::Varnish), server.address()).await;
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
    assert!(timeout(A_WHILE, server.next()).await.is_err(), "the handler was not asked a second time");
}

/// After ten minutes, if it is not set.
#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_do_not_help_against_send_timeout_and_pipes_do() {
    let mut server = Server::start(Heartbeat::every(Duration::from_millis(400)));
    let seconds = VARNISH.timeout.as_secs();
    let model = Model::of(Program::Varnish).parameter(&format!("send_timeout={seconds}"));
    let proxy = Proxy::start(&model, server.address()).await;
    let begin = Instant::now();
    let not_piped = VARNISH.ask(Protocol::Http1, &proxy, &mut server, "/layer/ours").await;
    not_piped.open.send(1, "before");
    let piped = PIPED.ask(Protocol::Http1, &proxy, &mut server, "/layer/ours").await;
    piped.open.send(1, "before");
    tokio::join!(
        VARNISH.is_cut("not piped", &["before"], begin, not_piped),
        PIPED.survives("piped", &["before"], piped),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn it_does_not_heed_no_transform_but_does_not_touch_what_it_pipes() {
    let model = Model::of(Program::Varnish).with("text/(html|", "text/(event-stream|html|");
    for path in LAYERED {
        assert_eq!(VARNISH.coding(&model, path).await.as_deref(), Some("gzip"), "{path}");
        assert_eq!(PIPED.coding(&model, path).await, None, "{path}");
    }
}
