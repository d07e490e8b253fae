//! Connections that the server closes.

use crate::common::{Running, event_stream};
use axum::{Router, routing::get};
use std::time::{Duration, Instant};
use support::{client::within, script::Script};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
};

/// The system of the client has room for a small part of it.
const LARGE: usize = 64 * 1024;

fn app() -> Router {
    let events = async || event_stream(Script::of_chunks(["x".repeat(LARGE)]));
    Router::new().route("/events", get(events)).route("/plain", get(async || "x".repeat(LARGE)))
}

/// The server closes the connection while bytes of the client are unread. Then the kernel discards
/// what it has not sent yet, unless the server reads these bytes.
#[tokio::test]
async fn client_that_has_sent_more_gets_whole_response() {
    let server = Running::new(app()).await;
    for path in ["/events", "/plain"] {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut client = within("a connection", socket.connect(server.address)).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let more = "x".repeat(32 * 1024);
        within("the server's kernel to take all", client.write_all((request + &more).as_bytes())).await.unwrap();
        let mut response = Vec::new();
        let read = within("the end", client.read_to_end(&mut response)).await;
        assert!(read.is_ok() && response.len() > LARGE, "{path}: {read:?} after {} bytes", response.len());
    }
}

#[tokio::test]
async fn client_has_one_second_to_close() {
    let server = Running::new(app()).await;
    let begin = Instant::now();
    let mut client = tokio::net::TcpStream::connect(server.address).await.unwrap();
    client.write_all(b"GET /events HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut response = Vec::new();
    within("the end", client.read_to_end(&mut response)).await.unwrap();
    server.shut_down();
    // The client keeps its socket open.
    server.returned().await;
    assert!(begin.elapsed() >= Duration::from_secs(1), "{:?}", begin.elapsed());
    drop(client);
}
