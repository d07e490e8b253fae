//! Graceful shutdown.

use crate::common::{Driver, Running, driven, event_stream};
use axum::{Router, body::Body, routing::get};
use futures_util::{StreamExt, stream};
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use support::client::{Http1, Http2, Protocol, within};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;
use tower_sse::serve::serve;

fn app() -> (mpsc::UnboundedReceiver<Driver>, Router) {
    let (sender, drivers) = mpsc::unbounded_channel();
    let handler = async move || {
        let (driver, body) = driven();
        sender.send(driver).unwrap();
        event_stream(body)
    };
    (drivers, Router::new().route("/live", get(handler)).route("/plain", get(async || "plain")))
}

async fn get_live(protocol: Protocol, address: SocketAddr) -> support::client::Answer {
    protocol.get(address, "/live", &[]).await
}

#[tokio::test]
async fn shutdown_waits_for_open_streams() {
    for protocol in Protocol::ALL {
        let (mut drivers, app) = app();
        let server = Running::new(app).await;
        let mut answer = get_live(protocol, server.address).await;
        let driver = drivers.recv().await.unwrap();
        server.shut_down();
        within("the listener to close", async {
            while TcpStream::connect(server.address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        driver.send("data: one\n\n");
        answer.read_until("data: one\n\n").await;
        assert!(server.is_running(), "{protocol:?}");
        drop(driver);
        // The connection closes after the stream, although the client would keep it.
        let answer = answer.complete().await;
        if protocol == Protocol::Http1 {
            assert!(answer.into_connection().is_closed().await);
        }
        server.returned().await;
    }
}

#[tokio::test]
async fn shutdown_closes_idle_connections() {
    let (mut drivers, app) = app();
    let server = Running::new(app).await;
    // Without a request, after a plain response, after a stream, in half of the preface, and of
    // HTTP/2.
    let mut fresh = TcpStream::connect(server.address).await.unwrap();
    let plain = Protocol::Http1.get(server.address, "/plain", &[]).await.complete().await.into_connection();
    let mut after_stream = get_live(Protocol::Http1, server.address).await;
    let driver = drivers.recv().await.unwrap();
    driver.send("data: one\n\n");
    after_stream.read_until("data: one\n\n").await;
    drop(driver);
    let after_stream: Http1 = after_stream.complete().await.into_connection();
    let mut half = TcpStream::connect(server.address).await.unwrap();
    half.write_all(b"PRI * HT").await.unwrap();
    let http2 = Http2::connect(server.address).await;
    http2.get("/plain", &[]).await.complete().await;

    server.shut_down();
    server.returned().await;
    assert!(plain.is_closed().await && after_stream.is_closed().await);
    for socket in [&mut fresh, &mut half] {
        let read = within("the end", socket.read(&mut [0; 1])).await;
        assert_eq!(read.unwrap_or(0), 0);
    }
}

/// hyper waits for the rest of the head, however long the client takes.
#[tokio::test]
async fn shutdown_closes_connections_with_incomplete_head() {
    for before in [None, Some("/live"), Some("/plain")] {
        for head in ["\r\n", "GET /pl"] {
            let (mut drivers, app) = app();
            let server = Running::new(app).await;
            let mut socket = TcpStream::connect(server.address).await.unwrap();
            let request = before.map(|path| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).unwrap_or_default();
            socket.write_all((request + head).as_bytes()).await.unwrap();
            if before == Some("/live") {
                drop(within("the request", drivers.recv()).await);
            }
            let mut response = Vec::new();
            while before.is_some() && !response.ends_with(b"0\r\n\r\n") && !response.ends_with(b"plain") {
                assert_ne!(within("the response", socket.read_buf(&mut response)).await.unwrap(), 0);
            }
            // The server has one thread. When it responds here, it has read the incomplete head.
            Protocol::Http1.get(server.address, "/plain", &[]).await.complete().await;
            server.shut_down();
            let rest = within("the end", socket.read_to_end(&mut Vec::new())).await;
            assert_eq!(rest.unwrap(), 0, "{before:?}, {head:?}");
            drop(socket);
            server.returned().await;
        }
    }
}

#[tokio::test]
async fn stream_that_begins_after_shutdown_announces_close() {
    let (sender, mut requests) = mpsc::unbounded_channel();
    let slow = async move || {
        let (answer, answered) = tokio::sync::oneshot::channel::<()>();
        sender.send(answer).unwrap();
        answered.await.unwrap();
        event_stream(support::script::Script::of_chunks(["data: one\n\n"]))
    };
    let server = Running::new(Router::new().route("/", get(slow))).await;
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let answer = within("the request", requests.recv()).await.unwrap();
    server.shut_down();
    within("the listener to close", async {
        while TcpStream::connect(server.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // The connection's task has seen the shutdown when it has run once more.
    tokio::time::sleep(Duration::from_millis(20)).await;
    answer.send(()).unwrap();
    let mut response = String::new();
    within("the response", socket.read_to_string(&mut response)).await.unwrap();
    assert!(response.contains("connection: close\r\n"), "{response:?}");
    assert!(response.ends_with("data: one\n\n\r\n0\r\n\r\n"), "{response:?}");
    server.returned().await;
}

#[tokio::test]
async fn dropping_server_ends_connections_gracefully() {
    let (mut drivers, app) = app();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let running = tokio::spawn(serve(listener, app).into_future());
    let idle = Protocol::Http1.get(address, "/plain", &[]).await.complete().await.into_connection();
    let mut live = get_live(Protocol::Http1, address).await;
    let driver = drivers.recv().await.unwrap();
    running.abort();
    assert!(idle.is_closed().await);
    driver.send("data: one\n\n");
    live.read_until("data: one\n\n").await;
    drop(driver);
    assert!(live.complete().await.into_connection().is_closed().await);
}

#[tokio::test]
async fn shutdown_begins_when_future_completes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (signal, received) = tokio::sync::oneshot::channel::<()>();
    let server = serve(listener, app().1).with_graceful_shutdown(async move {
        received.await.unwrap();
    });
    assert_eq!(server.local_addr().unwrap().ip().to_string(), "127.0.0.1");
    let running = tokio::spawn(server.into_future());
    signal.send(()).unwrap();
    within("the server to return", running).await.unwrap().unwrap();
}

/// A value whose drop takes some time, like a callback that writes to a file.
struct SlowDrop(Arc<AtomicBool>);

impl Drop for SlowDrop {
    fn drop(&mut self) {
        std::thread::sleep(Duration::from_millis(200));
        self.0.store(true, Relaxed);
    }
}

/// Code after `serve` may rely on each `on_close` and each released permit.
#[tokio::test(flavor = "multi_thread")]
async fn server_returns_after_the_last_body_is_dropped() {
    for protocol in Protocol::ALL {
        let is_dropped = Arc::new(AtomicBool::new(false));
        let guard = Arc::downgrade(&is_dropped);
        let handler = async move || {
            let guard = SlowDrop(guard.upgrade().unwrap());
            let events = stream::iter([Ok::<_, Infallible>("data: one\n\n")]).chain(stream::pending());
            event_stream(Body::from_stream(events.inspect(move |_| _ = &guard)))
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let server = serve(listener, Router::new().route("/live", get(handler)));
        let server = server.with_graceful_shutdown(shutdown.clone());
        tokio::spawn(async move {
            let mut answer = get_live(protocol, address).await;
            answer.read_until("data: one\n\n").await;
            shutdown.cancel();
            drop(answer);
        });
        // Not in a task of its own: its worker would first drop the connection that wakes it.
        within("the server to return", server.into_future()).await.unwrap();
        assert!(is_dropped.load(Relaxed), "{protocol:?}");
    }
}
