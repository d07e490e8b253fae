//! Connections before, during and after a stream.

use crate::common::{Driver, Running, driven, event_stream};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    response::Response,
    routing::{any, get},
};
use http::StatusCode;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use support::{
    client::{Http1, Protocol, within},
    script::Script,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Sends a request, and returns everything that the server sends until it closes the connection.
pub(crate) async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    within("the server to close", socket.read_to_string(&mut response)).await.unwrap();
    response
}

/// Returns an app with a driven stream at `/live`, for one request, and `/plain`.
fn live() -> (Driver, Router) {
    let (driver, body) = driven();
    let body = Arc::new(Mutex::new(Some(body)));
    let handler = async move || event_stream(body.lock().unwrap().take().expect("one request"));
    (driver, Router::new().route("/live", any(handler)).route("/plain", get(async || "plain")))
}

#[tokio::test]
async fn pipelined_request_is_answered_after_stream() {
    let (driver, app) = live();
    let server = Running::new(app).await;
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    // The first part arrives with the request, the second while the stream runs.
    socket.write_all(b"GET /live HTTP/1.1\r\nHost: a\r\n\r\nGET /pl").await.unwrap();
    driver.send("data: one\n\n");
    let mut received = Vec::new();
    while !received.ends_with(b"one\n\n\r\n") {
        within("the event", socket.read_buf(&mut received)).await.unwrap();
    }
    socket.write_all(b"ain HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    driver.send("data: two\n\n");
    drop(driver);
    within("the second response", socket.read_to_end(&mut received)).await.unwrap();
    let text = String::from_utf8(received).unwrap();
    let (stream, plain) = text.split_once("0\r\n\r\n").unwrap();
    assert!(stream.ends_with("B\r\ndata: one\n\n\r\nB\r\ndata: two\n\n\r\n"), "{stream:?}");
    assert!(plain.starts_with("HTTP/1.1 200 OK\r\n") && plain.ends_with("\r\n\r\nplain"), "{plain:?}");
}

#[tokio::test]
async fn connection_with_too_many_pipelined_bytes_closes_after_stream() {
    let (driver, app) = live();
    let server = Running::new(app).await;
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    let mut received = Vec::new();
    socket.write_all(b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    within("the head", socket.read_buf(&mut received)).await.unwrap();
    // More than the sockets hold: the server has to read it.
    within("the server to read", socket.write_all(&vec![b'x'; 16 << 20])).await.unwrap();
    driver.send("data: one\n\n");
    drop(driver);
    within("the end", socket.read_to_end(&mut received)).await.unwrap();
    assert!(received.ends_with(b"data: one\n\n\r\n0\r\n\r\n"), "{:?}", String::from_utf8_lossy(&received));
}

#[tokio::test]
async fn stream_follows_request_with_body() {
    let echo = async |body: Bytes| event_stream(Script::of_chunks([b"data: ".as_slice(), &body, b"\n\n"]));
    let server = Running::new(Router::new().route("/", any(echo))).await;
    let mut connection = Http1::connect(server.address).await;
    for request in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
    ] {
        let answer = connection.request(request).await.complete().await;
        assert_eq!(answer.text(), "data: hello\n\n");
        connection = answer.into_connection();
    }
}

/// RFC 9112, §6.1: the server must close the connection. Another server may have read the request
/// with its `Content-Length`, and may see the rest as a part of another request.
#[tokio::test]
async fn connection_closes_after_request_with_length_and_chunks() {
    let echo = async |body: Bytes| event_stream(Script::of_chunks([body]));
    let server = Running::new(Router::new().route("/", any(echo))).await;
    let fields = ["Content-Length: 5", "Transfer-Encoding: chunked"];
    for [first, second] in [fields, [fields[1], fields[0]]] {
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{first}\r\n{second}\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
        let response = exchange(server.address, &(request + "GET /other HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert!(response.contains("connection: close\r\n"), "{response:?}");
        assert!(response.ends_with("\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), "{response:?}");
        assert_eq!(response.matches("HTTP/1.1").count(), 1, "{response:?}");
    }
}

#[tokio::test]
async fn unread_request_body_does_not_disturb_stream() {
    let (driver, app) = live();
    let server = Running::new(app).await;
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    let request = "POST /live HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\n\r\nGET /plain HTTP/1.1\r\n\r\n";
    socket.write_all(request.as_bytes()).await.unwrap();
    driver.send("data: one\n\n");
    drop(driver);
    let mut received = String::new();
    within("the end", socket.read_to_string(&mut received)).await.unwrap();
    assert!(received.ends_with("data: one\n\n\r\n0\r\n\r\n"), "{received:?}");
    assert_eq!(received.matches("HTTP/1.1").count(), 1, "{received:?}");
}

#[tokio::test]
async fn request_body_is_read_while_stream_runs() {
    let echo = async |request: Request| event_stream(request.into_body().map_frame(|frame| frame));
    let server = Running::new(Router::new().route("/", any(echo))).await;
    let connection = Http1::connect(server.address).await;
    let request = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n";
    let answer = connection.request(request).await.complete().await;
    assert_eq!(answer.text(), "hello");
}

#[tokio::test]
async fn expected_continue_is_sent_before_stream() {
    let echo = async |body: Bytes| event_stream(Script::of_chunks([body]));
    let server = Running::new(Router::new().route("/", any(echo))).await;
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut received = vec![0; 25];
    within("the interim response", socket.read_exact(&mut received)).await.unwrap();
    assert_eq!(received, b"HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(b"hello").await.unwrap();
    let mut rest = String::new();
    within("the response", socket.read_to_string(&mut rest)).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 200 OK\r\n") && rest.ends_with("5\r\nhello\r\n0\r\n\r\n"), "{rest:?}");
}

#[tokio::test]
async fn connection_is_upgraded() {
    let upgrade = async |mut request: Request| {
        tokio::spawn(async move {
            let upgraded = hyper::upgrade::on(&mut request).await.unwrap();
            let mut io = TokioIo::new(upgraded);
            let mut bytes = [0; 4];
            io.read_exact(&mut bytes).await.unwrap();
            io.write_all(&bytes).await.unwrap();
        });
        let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS).header("Upgrade", "echo");
        response.header("Connection", "upgrade").body(Body::empty()).unwrap()
    };
    let server = Running::new(Router::new().route("/", get(upgrade))).await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nping";
    let response = exchange(server.address, request).await;
    assert!(response.starts_with("HTTP/1.1 101 ") && response.ends_with("\r\n\r\nping"), "{response:?}");
}

/// The server does not discard bytes of another protocol after a shutdown.
#[tokio::test]
async fn upgraded_connection_reads_after_its_shutdown() {
    let (sender, mut received) = tokio::sync::mpsc::unbounded_channel();
    let upgrade = async move |mut request: Request| {
        tokio::spawn(async move {
            let upgraded = hyper::upgrade::on(&mut request).await.unwrap();
            let mut io = TokioIo::new(upgraded);
            io.shutdown().await.unwrap();
            let mut bytes = String::new();
            io.read_to_string(&mut bytes).await.unwrap();
            sender.send(bytes).unwrap();
        });
        let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS).header("Upgrade", "echo");
        response.header("Connection", "upgrade").body(Body::empty()).unwrap()
    };
    let server = Running::new(Router::new().route("/", get(upgrade))).await;
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n").await.unwrap();
    let mut response = String::new();
    within("the shutdown", socket.read_to_string(&mut response)).await.unwrap();
    socket.write_all(b"ping").await.unwrap();
    drop(socket);
    assert_eq!(within("the bytes", received.recv()).await.unwrap(), "ping");
}

#[tokio::test]
async fn stream_answers_request_that_offers_upgrade() {
    let (driver, app) = live();
    let server = Running::new(app).await;
    driver.send("data: one\n\n");
    drop(driver);
    let fields = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABk")];
    let answer = Protocol::Http1.get(server.address, "/live", &fields).await;
    assert_eq!((answer.status, answer.complete().await.text().as_str()), (StatusCode::OK, "data: one\n\n"));
}
