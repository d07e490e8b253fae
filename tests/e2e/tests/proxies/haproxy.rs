//! HAProxy, which leaves event streams alone when it is told not to wait.

use crate::{
    server::{LAYERED, PLAIN, Server},
    through::{Asked, Way, median},
};
use e2e::{Model, Program, Proxy};
use std::time::{Duration, Instant};
use support::client::Protocol;
use tower_sse::Heartbeat;

pub(crate) const HAPROXY: Way = Way {
    program: Program::HaProxy,
    accept: "text/event-stream",
    timeout: Duration::from_secs(2),
    tells_of_clients_that_go: true,
    holds_heads: false,
    buffers: false,
};

holds_through!(HAPROXY);

#[tokio::test(flavor = "multi_thread")]
async fn it_heeds_no_transform_where_it_compresses_everything() {
    let types = "compression type";
    let model = Model::of(Program::HaProxy).with(types, &format!("# {types}"));
    for path in LAYERED {
        assert_eq!(HAPROXY.coding(&model, path).await, None, "{path}");
    }
    for path in PLAIN {
        assert_eq!(HAPROXY.coding(&model, path).await.as_deref(), Some("gzip"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_http_no_delay_it_holds_each_event_back_for_200_ms() {
    let mut server = Server::start(Heartbeat::default());
    let model = Model::of(Program::HaProxy).with("option http-no-delay", "");
    let proxy = Proxy::start(&model, server.address()).await;
    for path in LAYERED {
        let Asked { answer, open } = HAPROXY.ask(Protocol::Http1, &proxy, &mut server, path).await;
        let (_, mut answer) = answer.await.expect("a response");
        let mut delays = Vec::new();
        for n in 1..=5 {
            let sent = Instant::now();
            open.send(n, &n.to_string());
            answer.read_until(format!("data: {n}\n\n")).await;
            delays.push(sent.elapsed());
        }
        assert!(median(&delays) > Duration::from_millis(150), "{path}: {delays:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_abortonclose_it_does_not_tell_of_a_client_that_goes() {
    let mut server = Server::start(Heartbeat::default());
    let model = Model::of(Program::HaProxy).with("option abortonclose", "");
    let proxy = Proxy::start(&model, server.address()).await;
    let way = Way { tells_of_clients_that_go: false, ..HAPROXY };
    for path in LAYERED {
        assert!(!way.tells(&proxy, &mut server, path).await, "{path}");
    }
}
