//! The memory of the server for idle streams.

use allocation_counter::measure;
use axum::{Router, routing::get};
use futures_util::future::join_all;
use std::{net::SocketAddr, sync::mpsc, thread, time::Duration};
use support::{
    client::{Http2, Protocol},
    descriptors::allow_descriptors,
};
use tokio::{net::TcpListener, runtime};
use tokio_util::sync::CancellationToken;
use tower_sse::{
    Heartbeat, LastEventId, SseStream,
    hub::{Error, Hub},
    serve::{Serve, serve},
};

/// Metrics and spans of a stream take more.
const OBSERVED: u64 = if cfg!(any(feature = "metrics", feature = "tracing")) { 320 } else { 0 };

/// Returns the greatest number of bytes that the thread of a server had at once. The clients run in
/// another thread.
fn peak(clients: impl AsyncFnOnce(SocketAddr)) -> u64 {
    peak_with(|server| server, clients)
}

/// Returns the greatest number of bytes of a server with the settings that `configure` makes.
fn peak_with(
    configure: impl FnOnce(Serve<TcpListener, Router>) -> Serve<TcpListener, Router> + Send + 'static,
    clients: impl AsyncFnOnce(SocketAddr),
) -> u64 {
    let (sender, address) = mpsc::channel();
    let shutdown = CancellationToken::new();
    let signal = shutdown.clone();
    let server = thread::spawn(move || {
        let run = async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            sender.send(listener.local_addr().unwrap()).unwrap();
            let hub = Hub::new();
            let topic = hub.topic("news");
            let events = async move |last: LastEventId| {
                let stream = SseStream::new(topic.subscribe(last).await?);
                Ok::<_, Error>(stream.heartbeat(Heartbeat::every(Duration::from_secs(60))))
            };
            let ended = signal.clone();
            tokio::spawn(async move {
                ended.cancelled().await;
                hub.shutdown();
            });
            let server = configure(serve(listener, Router::new().route("/", get(events))));
            server.with_graceful_shutdown(signal).await.unwrap();
        };
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        measure(|| runtime.block_on(run)).bytes_max
    });
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(clients(address.recv().unwrap()));
    drop(runtime);
    shutdown.cancel();
    server.join().unwrap()
}

#[test]
fn idle_stream_takes_little_memory() {
    const CONNECTIONS: u64 = 500;
    // Two for each stream, and those of other tests.
    allow_descriptors(2 * CONNECTIONS + 1000);
    let peak = peak(async |address| {
        let mut answers = Vec::new();
        for _ in 0..CONNECTIONS {
            answers.push(Protocol::Http1.get(address, "/", &[]).await);
        }
    });
    println!("an idle stream over HTTP/1: {} bytes", peak / CONNECTIONS);
    assert!(peak / CONNECTIONS <= 1024 + OBSERVED, "{} bytes", peak / CONNECTIONS);
}

/// The requests of a connection arrive together.
#[test]
fn idle_http2_stream_takes_little_memory() {
    const CONNECTIONS: u64 = 20;
    let peak = peak(async |address| {
        let mut answers = Vec::new();
        for _ in 0..CONNECTIONS {
            let connection = Http2::connect(address).await;
            answers.extend(join_all((0..100).map(|_| connection.get("/", &[]))).await);
        }
    });
    println!("an idle stream over HTTP/2: {} bytes", peak / CONNECTIONS / 100);
    assert!(peak / CONNECTIONS / 100 <= 1900 + OBSERVED, "{} bytes", peak / CONNECTIONS / 100);
}

/// A server has a list of its connections for the timeout of its shutdown.
#[test]
fn closed_connections_take_no_memory() {
    const CONNECTIONS: u64 = 2000;
    let peak = peak_with(
        |server| server.shutdown_timeout(Duration::from_secs(3600)),
        async |address| {
            for _ in 0..CONNECTIONS {
                Protocol::Http1.get(address, "/missing", &[]).await.complete().await;
            }
        },
    );
    println!("{peak} bytes after {CONNECTIONS} connections, {} bytes for each", peak / CONNECTIONS);
    assert!(peak / CONNECTIONS <= 100, "{peak} bytes");
}
