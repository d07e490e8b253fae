//! Messages of other programs in the stream of NATS whose headers the client library rejects.

use crate::{
    nats::{SOON, admin, backend, connect, publish, publish_retrying, read_until, replay_with_gap},
    unchanged::{nats, read},
};
use async_nats::HeaderMap;
use e2e::{Store, StoreKind};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tower_sse::hub::{Hub, Start};

/// Header blocks that a server stores. If a consumer delivers such a message, `async_nats` ends the
/// connection.
const MALFORMED: [&[u8]; 4] = [
    b"NATS/1.0\r\nno colon\r\n\r\n",
    b"NATS/1.0\r\nNote: \xFF\r\n\r\n",
    b"NATS/1.0\r\nNote: line one\nline two\r\n\r\n",
    b"NATS/1.0 no status\r\n\r\n",
];

/// Header blocks for which a consumer of `async_nats` returns an error, or skips the message.
const STATUSES: [&[u8]; 2] = [b"NATS/1.0 404 No Messages\r\n\r\n", b"NATS/1.0 100 Idle Heartbeat\r\n\r\n"];

/// Publishes messages with these header blocks over a connection of its own.
async fn publish_raw(store: &Store, subject: &str, headers: &[&[u8]]) {
    let mut stream = TcpStream::connect(store.address()).await.expect("the server responds");
    let mut bytes = b"CONNECT {\"verbose\":false,\"headers\":true}\r\n".to_vec();
    for headers in headers {
        let payload = b"data: malformed\n\n";
        let line = format!("HPUB {subject} {} {}\r\n", headers.len(), headers.len() + payload.len());
        bytes.extend([line.as_bytes(), headers, payload, b"\r\n"].concat());
    }
    bytes.extend(b"PING\r\n");
    stream.write_all(&bytes).await.expect("the server reads");
    let mut received = Vec::new();
    while !String::from_utf8_lossy(&received).contains("PONG") {
        assert!(stream.read_buf(&mut received).await.expect("the server responds") > 0, "{received:?}");
    }
}

/// Connects a node within the first attempt.
async fn connect_soon(store: &Store) -> Hub {
    timeout(SOON, connect(backend(&store.url()))).await.expect("the node connects")
}

/// Checks that a node, its clients, later nodes and history reads pass these messages.
async fn assert_passed(subject: &str, headers: &[&[u8]]) {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let node = connect(backend(&store.url())).await;
    let mut client = node.topic("news").subscribe(Start::Latest).await.expect("the hub accepts the subscription");
    let first = publish(&node, "first").await;
    read_until(&mut client, "data: first\n").await;
    publish_raw(&store, subject, headers).await;
    publish_retrying(&node, "second").await;
    let what = format!("{subject}: {:?}", headers.iter().map(|it| String::from_utf8_lossy(it)).collect::<Vec<_>>());
    let got = read_until(&mut client, "data: second\n").await;
    assert!(!got.contains("gap") && !got.contains("malformed"), "{what}: {got}");

    let later = connect_soon(&store).await;
    let mut late = later.topic("news").subscribe(first).await.expect("the hub accepts the subscription");
    let got = read_until(&mut late, "data: second\n").await;
    assert!(!got.contains("gap") && !got.contains("malformed"), "{what}: {got}");
    assert_eq!(read(&nats(&store.url()), "news").await, ["first", "second"], "{what}");
    // The follower uses a consumer again.
    publish_retrying(&node, "third").await;
    for client in [&mut client, &mut late] {
        read_until(client, "data: third\n").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_headers_stop_no_node() {
    for headers in MALFORMED.into_iter().chain(STATUSES) {
        assert_passed("tower-sse.x", &[headers]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_headers_of_a_topic_stop_no_node() {
    for headers in MALFORMED {
        assert_passed("tower-sse.news=", &[headers]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_malformed_messages_stop_no_node() {
    assert_passed("tower-sse.x", &[&MALFORMED[..], &STATUSES].concat().repeat(5)).await;
}

/// The client library writes any text into a header.
#[tokio::test(flavor = "multi_thread")]
async fn header_of_two_lines_from_the_client_library_stops_no_node() {
    let store = Store::start(StoreKind::Nats, &[]).await;
    let node = connect(backend(&store.url())).await;
    let mut client = node.topic("news").subscribe(Start::Latest).await.expect("the hub accepts the subscription");
    let mut headers = HeaderMap::new();
    headers.insert("Note", "line one\nline two");
    let admin = admin(&store.url()).await;
    let ack = admin.publish_with_headers("tower-sse.x", headers, "text".into()).await.expect("the server responds");
    ack.await.expect("the message is stored");
    publish_retrying(&node, "second").await;
    read_until(&mut client, "data: second\n").await;
    connect_soon(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mark_with_any_payload_begins_another_log() {
    let long = "a mark ".repeat(1000);
    for payload in ["restored on Monday", "restored on Monday\nby the operator", "a mark\n", " a mark ", &long] {
        let store = Store::start(StoreKind::Nats, &[]).await;
        let nodes = [connect(backend(&store.url())).await, connect(backend(&store.url())).await];
        let first = publish(&nodes[0], "first").await;
        let admin = admin(&store.url()).await;
        let ack = admin.publish("tower-sse._log", payload.to_owned().into()).await.expect("the server responds");
        ack.await.expect("the message is stored");
        publish_retrying(&nodes[0], "second").await;
        for node in &nodes {
            replay_with_gap(node, &first, "data: second\n").await;
        }
        // All nodes have the same epoch, so they accept the ids of each other.
        let third = publish_retrying(&nodes[0], "third").await;
        publish_retrying(&nodes[1], "fourth").await;
        for node in [&nodes[0], &nodes[1], &connect_soon(&store).await] {
            let mut late = node.topic("news").subscribe(third.clone()).await.expect("the hub accepts it");
            let got = read_until(&mut late, "data: fourth\n").await;
            assert!(!got.contains("gap"), "{payload:?}: {got}");
        }
    }
}
