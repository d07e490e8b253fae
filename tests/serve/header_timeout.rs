//! The time limit for the first request of a connection.

use crate::common::event_stream;
use axum::{Router, routing::get};
use std::{future, time::Duration};
use support::{listener::Memory, script::Script};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tower_sse::serve::{Serve, serve};

const HOUR: Duration = Duration::from_secs(3600);

/// Starts a server, and returns a connection to it.
fn connect(configure: impl FnOnce(Serve<Memory, Router>) -> Serve<Memory, Router>) -> DuplexStream {
    let slow = async || {
        sleep(HOUR).await;
        "slow"
    };
    let app = Router::new()
        .route("/plain", get(async || "plain"))
        .route("/events", get(async || event_stream(Script::of_chunks(["data: one\n\n"]))))
        .route("/slow", get(slow))
        .route("/body", get(async |body: String| body));
    let (connections, listener) = mpsc::unbounded_channel();
    let (client, accepted) = duplex(1 << 16);
    connections.send(accepted).unwrap();
    let server = configure(serve(Memory(listener), app));
    tokio::spawn(async move {
        let _open = connections;
        server.await
    });
    client
}

/// Sends these parts of a head, one every nine seconds, and returns the time until the server
/// closes the connection.
async fn closed_after(mut client: DuplexStream, parts: &[&str]) -> Duration {
    let begin = Instant::now();
    let (mut reader, mut writer) = tokio::io::split(&mut client);
    let send = async {
        for part in parts {
            writer.write_all(part.as_bytes()).await.unwrap();
            sleep(Duration::from_secs(9)).await;
        }
        future::pending().await
    };
    let mut response = Vec::new();
    tokio::select! {
        read = timeout(HOUR, reader.read_to_end(&mut response)) => read.expect("the server to close").unwrap(),
        () = send => unreachable!("it is pending"),
    };
    assert_eq!(response, b"");
    begin.elapsed()
}

/// Sends a request, and reads until the end of its response.
async fn exchange(client: &mut DuplexStream, parts: &[&str], end: &str) {
    for part in parts {
        client.write_all(part.as_bytes()).await.unwrap();
        sleep(HOUR).await;
    }
    let mut response = Vec::new();
    while !response.ends_with(end.as_bytes()) {
        let read = timeout(2 * HOUR, client.read_buf(&mut response)).await.expect("a response").unwrap();
        assert_ne!(read, 0, "{:?} before {end:?}", String::from_utf8_lossy(&response));
    }
}

#[tokio::test(start_paused = true)]
async fn connection_without_request_is_closed_after_timeout() {
    let slow = ["GET /plain", " HTTP/1.1\r\n", "Host: ", "a"];
    for parts in [&[][..], &["GET /pl"], &["PRI * HT", "TP/2.0\r\n"], &["\r\n"], &slow] {
        let time = closed_after(connect(|server| server), parts).await;
        assert_eq!(time.as_secs(), 30, "after {parts:?}");
        let time = closed_after(connect(|server| server.header_timeout(Duration::from_secs(5))), parts).await;
        assert_eq!(time.as_secs(), 5, "after {parts:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn header_timeout_does_not_limit_anything_else() {
    let mut client = connect(|server| server);
    exchange(&mut client, &["GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"], "slow").await;
    exchange(&mut client, &["GET /pl", "ain HTTP/1.1\r\nHost: a\r\n\r\n"], "plain").await;
    exchange(&mut client, &["GET /events HTTP/1.1\r\nHost: a\r\n\r\n"], "one\n\n\r\n0\r\n\r\n").await;
    exchange(&mut client, &["GET /events", " HTTP/1.1\r\nHost: a\r\n\r\n"], "one\n\n\r\n0\r\n\r\n").await;
    let mut client = connect(|server| server);
    exchange(&mut client, &["GET /body HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n", "bo", "dy"], "body").await;
    let mut client = connect(|server| server.without_header_timeout());
    exchange(&mut client, &["GET /pl", "ain HTTP/1.1\r\nHost: a\r\n\r\n"], "plain").await;
    // HTTP/2, with the preface, the settings, and a PING after an hour.
    let mut client = connect(|server| server);
    exchange(
        &mut client,
        &["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", "\0\0\x08\x06\0\0\0\0\0answered"],
        "answered",
    )
    .await;
}
