//! Several hosts of Postgres: hosts that do not answer, and errors that name the hosts.

use crate::{
    postgres_sql::{data, start},
    unchanged::{append, postgres},
};
use e2e::{Port, Store};
use std::{net::SocketAddr, time::Duration};
use tokio::net::TcpListener;
use tower_sse::hub::backend::{Backend, PostgresBackend};

/// Listens, and never reads. The kernel accepts the connections.
pub(crate) async fn hanging_host() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("there is a free port")
}

/// Creates a node with two hosts.
pub(crate) fn with_hosts(first: SocketAddr, second: SocketAddr) -> PostgresBackend {
    postgres(&format!("postgres://postgres@{first},{second}/postgres"))
}

fn address(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().expect("the listener has an address")
}

#[tokio::test(flavor = "multi_thread")]
async fn host_that_does_not_answer_is_skipped() {
    let (store, log) = start().await;
    append(&log, "t", 1).await;
    let hanging = hanging_host().await;
    assert_eq!(data(&with_hosts(address(&hanging), store.address())).await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_is_skipped() {
    let (primary, log) = start().await;
    append(&log, "t", 1).await;
    let replica: Store = primary.replica().await;
    let node = with_hosts(replica.address(), primary.address());
    append(&node, "t", 2).await;
    assert_eq!(data(&node).await, ["1", "2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn error_names_each_host_and_its_failure() {
    let (hanging, closed) = (hanging_host().await, Port::free().expect("there is a free port"));
    let node = with_hosts(address(&hanging), closed.address()).timeout(Duration::from_millis(300));
    let error = node.bounds().await.expect_err("no host can be used").to_string();
    println!("{error}");
    let (first, second) = error.split_once("; ").expect("two failures");
    assert!(first.contains(&address(&hanging).to_string()) && first.contains("not answered within 300ms"), "{error}");
    assert!(second.contains(&closed.address().to_string()) && second.contains("refused"), "{error}");
}
