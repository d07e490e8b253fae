//! The connections of a process to its backend.

use crate::{
    nodes::{Node, NodeStream, Parser},
    processes::Process,
    with_each_store,
};
use e2e::{Port, Store, StoreKind, eventually, request};
use serde_json::Value;
use std::{net::SocketAddr, time::Duration};
use support::descriptors::allow_descriptors;

with_each_store! {
    connections_do_not_grow_with_clients,
}

/// More events than a node of the example retains.
const REPLAYED: usize = 1500;

const SOON: Duration = Duration::from_secs(20);

async fn connections_do_not_grow_with_clients(kind: StoreKind) {
    // One for each client in this process and in the server, and those of other tests.
    allow_descriptors(4096);
    let monitor = Port::free().expect("there is a free port");
    let port = monitor.address().port().to_string();
    let arguments: &[&str] = if kind == StoreKind::Nats { &["-m", &port] } else { &[] };
    let store = Store::start(kind, arguments).await;
    let process = Process::start(&store);
    let node = Node::Server(process.address());
    let connections = async || match kind {
        StoreKind::Redis => redis_connections(&store).await,
        StoreKind::Nats => nats_connections(monitor.address()).await,
        StoreKind::Postgres => postgres_connections(&store),
    };

    // More events than the node retains.
    let first = node.publish(&["first".to_owned()]).await.expect("the node runs");
    for n in 0..REPLAYED / 100 {
        let data: Vec<_> = (0..100).map(|i| format!("{n}/{i}")).collect();
        node.publish(&data).await.expect("the node runs");
    }
    let mut clients: Vec<NodeStream> = Vec::new();
    let mut seen = Vec::new();
    let mut late = 0;
    for number in [1, 100, 1000] {
        while clients.len() < number {
            // Every twentieth client resumes after the first event, so the node reads from the
            // backend.
            let last = (clients.len() % 20 == 19).then_some(&*first);
            clients.push(node.follow(last).await.expect("the node accepts the subscription"));
        }
        let most = connections().await;
        let data = format!("for {number}");
        node.publish(std::slice::from_ref(&data)).await.expect("the node runs");
        let mut received = 0;
        for client in &mut clients {
            let mut has_arrived = false;
            while !has_arrived {
                let bytes = client.next().await.expect("the stream does not end");
                Parser::Fast.read(&bytes, |_, kind, other| {
                    assert_ne!(kind, "gap", "{other}");
                    has_arrived |= other == data;
                    received += 1;
                });
            }
        }
        late = number / 20 - late;
        assert!(received >= number + late * REPLAYED, "{received}");
        seen.push(most.max(connections().await));
    }
    println!("{kind:?}: {seen:?} connections for 1, 100 and 1,000 clients");
    let most = match kind {
        StoreKind::Redis | StoreKind::Postgres => 2,
        StoreKind::Nats => 1,
    };
    assert_eq!(seen, [most; 3]);
    if kind == StoreKind::Nats {
        // The consumers of the replays are removed.
        eventually(SOON, "one consumer is left", async || match consumers(monitor.address()).await {
            1 => Ok(()),
            consumers => Err(consumers),
        })
        .await;
    }
}

/// Returns the number of connections to Redis, without those of this function. The server may still
/// be closing the connection of an earlier call.
async fn redis_connections(store: &Store) -> usize {
    let list = store.redis("CLIENT LIST").await;
    list.lines()
        .filter(|line| line.starts_with("id=") && !line.contains(" cmd=client") && !line.contains(" cmd=ping"))
        .count()
}

/// Returns the number of connections to Postgres, without those of this function. The server may
/// still be ending the connection of an earlier call. So all connections of `psql` are left out.
fn postgres_connections(store: &Store) -> usize {
    let clients = "backend_type = 'client backend' AND application_name <> 'psql'";
    store.sql(&format!("SELECT count(*) FROM pg_stat_activity WHERE {clients}")).parse().expect("a number")
}

pub(crate) async fn nats_connections(monitor: SocketAddr) -> usize {
    nats_monitor(monitor, "/connz").await["num_connections"].as_u64().expect("a number") as usize
}

async fn consumers(monitor: SocketAddr) -> u64 {
    nats_monitor(monitor, "/jsz").await["consumers"].as_u64().expect("a number")
}

/// Requests a page of the NATS monitoring server.
async fn nats_monitor(monitor: SocketAddr, path: &str) -> Value {
    let answer = request(monitor, &format!("GET {path} HTTP/1.0\r\n\r\n")).await;
    let (_, body) = answer.split_once("\r\n\r\n").expect("the response has a body");
    serde_json::from_str(body).expect("the body is JSON")
}
