//! nginx, which buffers unless it is told not to.

use crate::{
    server::{LAYERED, PLAIN, Server},
    through::{A_WHILE, Asked, Way},
};
use e2e::{Model, Program, Proxy};
use std::time::Duration;
use support::client::Protocol;
use tokio::time::timeout;
use tower_sse::Heartbeat;

pub(crate) const NGINX: Way = Way {
    program: Program::Nginx,
    accept: "text/event-stream",
    timeout: Duration::from_secs(5),
    tells_of_clients_that_go: true,
    holds_heads: false,
    buffers: true,
};

holds_through!(NGINX);

#[tokio::test(flavor = "multi_thread")]
async fn without_the_layer_it_holds_everything_back_until_the_end() {
    assert_held_back(&Model::of(Program::Nginx), &PLAIN).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_it_does_where_it_is_told_to_ignore_the_header() {
    let timeout = "proxy_read_timeout";
    let model = Model::of(Program::Nginx).with(timeout, &format!("proxy_ignore_headers X-Accel-Buffering; {timeout}"));
    assert_held_back(&model, &LAYERED).await;
}

async fn assert_held_back(model: &Model, paths: &[&str]) {
    let mut server = Server::start(Heartbeat::default());
    let proxy = Proxy::start(model, server.address()).await;
    for path in paths {
        let Asked { mut answer, open } = NGINX.ask(Protocol::Http1, &proxy, &mut server, path).await;
        open.send(1, "first");
        open.send(2, "second");
        assert!(timeout(A_WHILE, &mut answer).await.is_err(), "{path}: not even a head");
        drop(open);
        let (_, answer) = answer.await.expect("a response");
        assert_eq!(answer.complete().await.data(), ["first", "second"], "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_does_not_heed_no_transform_so_the_types_to_compress_must_not_be_all() {
    for types in ["*", "text/event-stream"] {
        let model = Model::of(Program::Nginx).with("gzip_types", &format!("gzip_types {types}"));
        for path in LAYERED {
            assert_eq!(NGINX.coding(&model, path).await.as_deref(), Some("gzip"), "{path} {types}");
        }
    }
}
