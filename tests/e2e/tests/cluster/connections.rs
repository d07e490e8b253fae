//! What a process takes of its backend.

use crate::{
    nodes::{Following, Node, Parser},
    processes::Process,
    with_each_engine,
};
use e2e::{
    Port, eventually, request,
    store::{Engine, Store},
};
use serde_json::Value;
use std::{net::SocketAddr, time::Duration};

with_each_engine! {
    a_process_has_as_many_connections_for_a_thousand_clients_as_for_one,
}

/// So many events are more than a node of the example holds.
const LONG_AGO: usize = 1500;

const SOON: Duration = Duration::from_secs(20);

async fn a_process_has_as_many_connections_for_a_thousand_clients_as_for_one(engine: Engine) {
    let monitor = Port::free().expect("there is a free port");
    let port = monitor.address().port().to_string();
    let more: &[&str] = if engine == Engine::Nats { &["-m", &port] } else { &[] };
    let store = Store::start(engine, more).await;
    let process = Process::start(&store);
    let node = Node::Server(process.address());
    let connections = async || match engine {
        Engine::Redis => of_redis(&store).await,
        Engine::Nats => of_nats(monitor.address()).await,
    };

    // More than the node itself holds.
    let first = node.publish(&["first".to_owned()]).await.expect("it is there");
    for n in 0..LONG_AGO / 100 {
        let data: Vec<_> = (0..100).map(|i| format!("{n}/{i}")).collect();
        node.publish(&data).await.expect("it is there");
    }
    let mut clients: Vec<Following> = Vec::new();
    let mut seen = Vec::new();
    let mut late = 0;
    for number in [1, 100, 1000] {
        while clients.len() < number {
            // Every twentieth comes back from long ago, so the node asks the backend for it.
            let last = (clients.len() % 20 == 19).then_some(&*first);
            clients.push(node.follow(last).await.expect("there is room"));
        }
        let most = connections().await;
        let data = format!("for {number}");
        node.publish(std::slice::from_ref(&data)).await.expect("it is there");
        let mut received = 0;
        for client in &mut clients {
            let mut is_there = false;
            while !is_there {
                let bytes = client.next().await.expect("it goes on");
                Parser::Fast.read(&bytes, |_, kind, other| {
                    assert_ne!(kind, "gap", "{other}");
                    is_there |= other == data;
                    received += 1;
                });
            }
        }
        late = number / 20 - late;
        assert!(received >= number + late * LONG_AGO, "{received}");
        seen.push(most.max(connections().await));
    }
    println!("{engine:?}: {seen:?} connections for 1, 100 and 1,000 clients");
    let most = match engine {
        Engine::Redis => 2,
        Engine::Nats => 1,
    };
    assert_eq!(seen, [most; 3]);
    if engine == Engine::Nats {
        // Those by which somebody has read what was long ago are gone.
        eventually(SOON, "there is one consumer", async || match consumers(monitor.address()).await {
            1 => Ok(()),
            consumers => Err(consumers),
        })
        .await;
    }
}

/// All but the one that asks.
async fn of_redis(store: &Store) -> usize {
    let list = store.redis("CLIENT LIST").await;
    list.lines().filter(|line| line.starts_with("id=")).count() - 1
}

async fn of_nats(monitor: SocketAddr) -> usize {
    told(monitor, "/connz").await["num_connections"].as_u64().expect("a number") as usize
}

async fn consumers(monitor: SocketAddr) -> u64 {
    told(monitor, "/jsz").await["consumers"].as_u64().expect("a number")
}

async fn told(monitor: SocketAddr, path: &str) -> Value {
    let answer = request(monitor, &format!("GET {path} HTTP/1.0\r\n\r\n")).await;
    let (_, body) = answer.split_once("\r\n\r\n").expect("it answers");
    serde_json::from_str(body).expect("it is JSON")
}
