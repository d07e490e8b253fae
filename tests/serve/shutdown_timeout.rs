//! The time limit of a graceful shutdown, for connections of each kind.

use crate::{
    common::{Driver, Drivers, Running, event_stream, live},
    raw_http2::{DATA, HEADERS, PREFACE, SETTINGS, Wire, frame, request},
};
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    response::IntoResponse,
    routing::get,
};
use futures_util::{StreamExt, stream};
use http::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use std::{
    future, io,
    net::SocketAddr,
    time::{Duration, Instant},
};
use support::client::{Answer, Protocol, within};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc::{self, error::TryRecvError},
};
use tower_sse::{BoxError, CloseReason, Event, SseLayer, SseStream, serve::serve};

const SHORT: Duration = Duration::from_millis(50);
const HOUR: Duration = Duration::from_secs(3600);

/// Begins a stream on a new connection, and returns it after its first event.
async fn first_event(protocol: Protocol, address: SocketAddr, drivers: &mut Drivers) -> (Answer, Driver) {
    let mut answer = protocol.get(address, "/", &[]).await;
    let driver = drivers.next().await;
    driver.send("data: one\n\n");
    answer.read_until("data: one\n\n").await;
    (answer, driver)
}

#[tokio::test]
async fn shutdown_timeout_closes_streams_that_never_end() {
    for protocol in Protocol::ALL {
        let (mut drivers, app) = live();
        let server = Running::with(app, |server| server.shutdown_timeout(SHORT)).await;
        let (mut answer, driver) = first_event(protocol, server.address, &mut drivers).await;
        let begin = Instant::now();
        server.shut_down();
        server.returned().await;
        assert!(begin.elapsed() >= SHORT, "{protocol:?}: {:?}", begin.elapsed());
        driver.body_dropped().await;
        // The client notices that the response is incomplete.
        answer.end().await.unwrap_err();
    }
}

#[tokio::test]
async fn streams_that_end_before_shutdown_timeout_are_complete() {
    for protocol in Protocol::ALL {
        let (mut drivers, app) = live();
        let server = Running::with(app, |server| server.shutdown_timeout(HOUR)).await;
        let (mut answer, driver) = first_event(protocol, server.address, &mut drivers).await;
        server.shut_down();
        driver.send("data: two\n\n");
        answer.read_until("data: two\n\n").await;
        assert!(server.is_running());
        drop(driver);
        assert_eq!(answer.complete().await.data(), ["one", "two"]);
        server.returned().await;
    }
}

/// Returns an app with handlers and responses that end neither by themselves nor at a shutdown. The
/// receiver gets an item for each request, and ends when no handler runs and the app is dropped.
fn endless() -> (mpsc::UnboundedReceiver<()>, Router) {
    let (sender, requests) = mpsc::unbounded_channel();
    let handler = async move |mut request: Request| {
        sender.send(()).unwrap();
        let pending = || Body::from_stream(stream::pending::<Result<&str, io::Error>>());
        match (request.method(), request.uri().path()) {
            (&Method::CONNECT, _) => {
                let alive = sender.clone();
                tokio::spawn(async move {
                    let _alive = alive;
                    let mut io = TokioIo::new(hyper::upgrade::on(&mut request).await?);
                    io.write_all(b"upgraded").await?;
                    io.read_to_end(&mut Vec::new()).await?;
                    Ok::<_, BoxError>(())
                });
                StatusCode::OK.into_response()
            }
            (_, "/body") => to_bytes(request.into_body(), 100).await.unwrap().into_response(),
            (_, "/pending") => future::pending().await,
            (_, "/plain") => pending().into_response(),
            (_, "/large") => "x".repeat(200_000).into_response(),
            (_, "/flood") => {
                let flood = stream::repeat_with(|| Ok::<_, io::Error>("data: x\n\n".repeat(1000)));
                event_stream(Body::from_stream(flood))
            }
            _ => event_stream(pending()),
        }
    };
    (requests, Router::new().fallback(handler))
}

#[tokio::test]
async fn shutdown_timeout_closes_http1_connections_in_each_state() {
    for request in [
        // The handler waits for the body of the request.
        "POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\npart",
        "POST /body HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n9\r\npart",
        // The handler does not respond.
        "GET /pending HTTP/1.1\r\nHost: a\r\n\r\n",
        // hyper writes the response.
        "GET /plain HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /events HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\npart",
        // The client does not read.
        "GET /flood HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let (mut requests, app) = endless();
        let server = Running::with(app, |server| server.shutdown_timeout(SHORT)).await;
        let mut client = TcpStream::connect(server.address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        within("the request", requests.recv()).await.unwrap();
        server.shut_down();
        server.returned().await;
        assert!(within("the end of all handlers", requests.recv()).await.is_none(), "{request}");
    }
}

#[tokio::test]
async fn shutdown_timeout_closes_http2_connections_in_each_state() {
    // POST, http, /body, and CONNECT (RFC 9113, section 8.5).
    let post = frame(HEADERS, 4, 1, b"\x83\x86\x04\x05/body\x01\x01a");
    let connect = frame(HEADERS, 4, 1, b"\x02\x07CONNECT\x01\x01a");
    for first in [
        [post.clone(), frame(DATA, 0, 1, b"part")].concat(),
        request(1, "/pending"),
        request(1, "/plain"),
        request(1, "/events"),
        // The window of the client is smaller than the response.
        request(1, "/large"),
        // The client has sent a part of a frame.
        [request(1, "/events"), frame(DATA, 0, 1, b"part")[..7].to_vec()].concat(),
        connect,
    ] {
        let (mut requests, app) = endless();
        let server = Running::with(app, |server| server.shutdown_timeout(SHORT)).await;
        let io = TcpStream::connect(server.address).await.unwrap();
        let mut wire = Wire { io };
        wire.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &first].concat()).await;
        within("the request", requests.recv()).await.unwrap();
        server.shut_down();
        server.returned().await;
        assert!(within("the end of all handlers", requests.recv()).await.is_none(), "{first:?}");
    }
}

/// The protocol after an upgrade is the application's, and so is the connection.
#[tokio::test]
async fn shutdown_does_not_wait_for_upgraded_http1_connection() {
    let (mut requests, app) = endless();
    let server = Running::with(app, |server| server.shutdown_timeout(HOUR)).await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut response = Vec::new();
    while !response.ends_with(b"\r\n\r\nupgraded") {
        assert_ne!(within("the response", client.read_buf(&mut response)).await.unwrap(), 0);
    }
    server.shut_down();
    server.returned().await;
    within("the request", requests.recv()).await.unwrap();
    assert!(requests.try_recv().is_err_and(|error| error == TryRecvError::Empty), "the connection is closed");
    drop(client);
    assert!(within("the end of the connection", requests.recv()).await.is_none());
}

#[tokio::test]
async fn shutdown_timeout_applies_when_server_is_dropped() {
    for protocol in Protocol::ALL {
        let (mut drivers, app) = live();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let running = tokio::spawn(serve(listener, app).shutdown_timeout(SHORT).into_future());
        let (mut answer, driver) = first_event(protocol, address, &mut drivers).await;
        running.abort();
        driver.body_dropped().await;
        answer.end().await.unwrap_err();
    }
}

#[tokio::test]
async fn stream_closed_by_shutdown_timeout_reports_client_gone() {
    for protocol in Protocol::ALL {
        let (sender, mut summaries) = mpsc::unbounded_channel();
        let events = async || SseStream::new(stream::iter([Event::new("one")]).chain(stream::pending()));
        let layer = SseLayer::new().on_close(move |summary| sender.send(summary.reason).unwrap());
        let app = Router::new().route("/", get(events)).layer(layer);
        let server = Running::with(app, |server| server.shutdown_timeout(SHORT)).await;
        let mut answer = protocol.get(server.address, "/", &[]).await;
        answer.read_until("data: one\n\n").await;
        server.shut_down();
        server.returned().await;
        assert_eq!(summaries.try_recv(), Ok(CloseReason::ClientGone));
    }
}
