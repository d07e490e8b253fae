//! A stream that is always ready shares its thread with other tasks.

use axum::body::Body;
use futures_util::stream;
use http::Request;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use std::{
    convert::Infallible,
    future::{poll_fn, ready},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
};
use tokio::net::TcpListener;
use tower_sse::{Event, SseStream};

/// A body takes up to 64 items in a row from a stream that is always ready. hyper polls it up to
/// twice in a turn of its connection.
const MAX_ITEMS: usize = 2 * 64;
/// The number of items after which the test ends.
const ENOUGH: usize = 20_000;

/// Sends a request, and reads as fast as possible until the connection ends.
fn read_all(address: SocketAddr) {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut buffer = vec![0; 1024 * 1024];
    while let Ok(1..) = socket.read(&mut buffer) {}
}

/// Waits until each other ready task has run once. tokio's `yield_now` waits longer.
async fn next_turn() {
    let mut has_waited = false;
    poll_fn(|cx| {
        if has_waited {
            return Poll::Ready(());
        }
        has_waited = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// hyper serves an endless stream on a thread that also runs another task.
#[tokio::test]
async fn other_tasks_wait_for_few_items() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = std::thread::spawn(move || read_all(address));
    let (socket, _) = listener.accept().await.unwrap();
    let items = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&items);
    let service = service_fn(move |_: Request<hyper::body::Incoming>| {
        let count = Arc::clone(&count);
        let events = stream::repeat_with(move || {
            count.fetch_add(1, Relaxed);
            Event::new("x")
        });
        ready(Ok::<_, Infallible>(SseStream::new(events).into_http_response().map(Body::new)))
    });
    let server = tokio::spawn(async move {
        let connection = auto::Builder::new(TokioExecutor::new());
        let _ended = connection.serve_connection(TokioIo::new(socket), service).await;
    });
    // Tokio polls a task more often than the future of the test.
    let most = tokio::spawn(async move {
        let mut most = 0;
        while items.load(Relaxed) < ENOUGH {
            let before = items.load(Relaxed);
            next_turn().await;
            most = most.max(items.load(Relaxed) - before);
        }
        most
    });
    let most = most.await.unwrap();
    assert!(most <= MAX_ITEMS, "{most} items between two turns of another task");
    server.abort();
    let _aborted = server.await;
    client.join().unwrap();
}
