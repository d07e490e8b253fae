//! A stream that is always ready shares its thread with other tasks.

use axum::{
    body::Body,
    response::{
        IntoResponse, Sse,
        sse::{self, KeepAlive},
    },
};
use futures_util::stream;
use http::{Request, Response};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use std::{
    convert::Infallible,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, runtime, task::yield_now};
use tower_sse::{Event, SseStream};

fn ours() -> Response<Body> {
    let response = SseStream::new(stream::repeat_with(|| Event::new("x"))).into_http_response();
    response.map(Body::new)
}

fn axums() -> Response<Body> {
    let events = stream::repeat_with(|| Ok::<_, Infallible>(sse::Event::default().data("x")));
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

/// Serves an endless stream on a thread that also runs another task. Returns the median time that
/// the other task waits for its turn.
fn delay_of_other_task(response: fn() -> Response<Body>) -> Duration {
    const SAMPLES: usize = 31;
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut delays = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let is_streaming = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_streaming);
        let client = std::thread::spawn(move || read_all(address, &flag));
        let (socket, _) = listener.accept().await.unwrap();
        let service =
            service_fn(move |_: Request<hyper::body::Incoming>| std::future::ready(Ok::<_, Infallible>(response())));
        let server = tokio::spawn(async move {
            let connection = auto::Builder::new(TokioExecutor::new());
            let _ended = connection.serve_connection(TokioIo::new(socket), service).await;
        });
        let mut delays = Vec::with_capacity(SAMPLES);
        // Skip the connection's first turns, which send the head.
        while !is_streaming.load(Ordering::Relaxed) {
            yield_now().await;
        }
        while delays.len() < SAMPLES {
            let began = Instant::now();
            yield_now().await;
            delays.push(began.elapsed());
        }
        server.abort();
        let _aborted = server.await;
        client.join().unwrap();
        delays
    });
    delays.sort_unstable();
    delays[SAMPLES / 2]
}

/// Reads as fast as possible until the connection ends.
fn read_all(address: SocketAddr, is_streaming: &AtomicBool) {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut buffer = vec![0; 1024 * 1024];
    let mut received = 0;
    while let Ok(length @ 1..) = socket.read(&mut buffer) {
        received += length;
        is_streaming.store(received > 100_000, Ordering::Relaxed);
    }
    let _unimportant = socket.shutdown(Shutdown::Both);
}

/// One of three comparisons suffices, because another process may use the processor in a
/// comparison.
#[test]
fn other_tasks_wait_no_longer_than_with_axum() {
    let ratios: Vec<f64> =
        (0..3).map(|_| delay_of_other_task(ours).as_secs_f64() / delay_of_other_task(axums).as_secs_f64()).collect();
    println!("ratios of the delays: {ratios:?}");
    assert!(ratios.iter().any(|ratio| *ratio <= 1.0), "{ratios:?}");
}
