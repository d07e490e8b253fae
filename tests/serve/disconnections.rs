//! The ends of connections: by the client, by an error of the body, and by a panic.

use crate::common::{Driver, Running, driven, event_stream};
use axum::{Router, extract::Path, middleware::map_response, response::Response, routing::get};
use futures_util::stream;
use http::{HeaderValue, header::TRANSFER_ENCODING};
use std::sync::{Arc, Mutex};
use support::{
    client::{Answer, Http2, Protocol, within},
    script::{Script, Step},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use tower_sse::{CloseReason, Event, SseLayer, SseStream};

/// Returns an app with a driven stream at `/`, which sends its drivers to the test.
fn streams() -> (mpsc::UnboundedReceiver<Driver>, Router) {
    let (sender, drivers) = mpsc::unbounded_channel();
    let handler = async move || {
        let (driver, body) = driven();
        sender.send(driver).unwrap();
        event_stream(body)
    };
    (drivers, Router::new().route("/", get(handler)))
}

async fn open_stream(address: std::net::SocketAddr) -> (TcpStream, Vec<u8>) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        within("the head", socket.read_buf(&mut head)).await.unwrap();
    }
    (socket, head)
}

#[tokio::test]
async fn silent_stream_is_dropped_when_client_disconnects() {
    let (mut drivers, app) = streams();
    let server = Running::new(app).await;
    for is_reset in [false, true] {
        let (socket, _) = open_stream(server.address).await;
        let driver = drivers.recv().await.unwrap();
        if is_reset {
            socket2::SockRef::from(&socket).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        }
        drop(socket);
        driver.body_dropped().await;
    }
}

#[tokio::test]
async fn silent_stream_is_dropped_when_client_has_sent_more_bytes() {
    let (mut drivers, app) = streams();
    let server = Running::new(app).await;
    for length in [10, 100_000] {
        let (mut socket, _) = open_stream(server.address).await;
        let driver = drivers.recv().await.unwrap();
        within("the server to read", socket.write_all(&vec![b'x'; length])).await.unwrap();
        drop(socket);
        driver.body_dropped().await;
    }
}

/// hyper's client leaves `Transfer-Encoding: chunked` in the response that a gateway passes on.
/// hyper's server would not notice the disconnection.
#[tokio::test]
async fn chunked_stream_of_gateway_is_dropped_when_client_disconnects() {
    let (mut drivers, app) = streams();
    let chunked = async |mut response: Response| {
        response.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("Chunked"));
        response
    };
    let server = Running::new(app.layer(map_response(chunked))).await;
    let (mut socket, head) = open_stream(server.address).await;
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert_eq!(head.matches("chunked").count(), 1, "{head}");
    let driver = drivers.recv().await.unwrap();
    driver.send("data: one\n\n");
    let mut chunk = [0; 16];
    within("an event", socket.read_exact(&mut chunk)).await.unwrap();
    assert_eq!(chunk, *b"B\r\ndata: one\n\n\r\n");
    within("the server to read", socket.write_all(b"more")).await.unwrap();
    drop(socket);
    driver.body_dropped().await;
}

/// A client that shuts down its own direction has disconnected, like in hyper.
#[tokio::test]
async fn stream_is_dropped_when_client_closes_its_direction() {
    let (mut drivers, app) = streams();
    let server = Running::new(app).await;
    let (mut socket, _) = open_stream(server.address).await;
    let driver = drivers.recv().await.unwrap();
    socket.shutdown().await.unwrap();
    driver.body_dropped().await;
    let mut rest = Vec::new();
    within("the end", socket.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn body_is_not_polled_while_client_does_not_read() {
    let polled = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&polled);
    let endless = async move || {
        event_stream(axum::body::Body::from_stream(stream::repeat_with(move || {
            *counted.lock().unwrap() += 1;
            Ok::<_, std::io::Error>(vec![b'x'; 10_000])
        })))
    };
    let (mut drivers, app) = streams();
    let server = Running::new(app.route("/endless", get(endless))).await;
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    within("the sockets to be full", async {
        let mut before = 0;
        while before == 0 || before != *polled.lock().unwrap() {
            before = *polled.lock().unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    // Other clients are served meanwhile.
    let (mut other, _) = open_stream(server.address).await;
    drivers.recv().await.unwrap().send("data: one\n\n");
    within("an event", other.read_exact(&mut [0; 16])).await.unwrap();
    // The stalled client gets the rest, without a gap, when it reads again.
    let mut received = Vec::new();
    within("64 MiB", async {
        while received.len() < 64 << 20 {
            socket.read_buf(&mut received).await.unwrap();
        }
    })
    .await;
    let head = received.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let chunk = [b"2710\r\n".as_slice(), &[b'x'; 10_000], b"\r\n"].concat();
    assert!(received[head..].chunks(chunk.len()).all(|received| chunk.starts_with(received)));
}

fn failing(path: &str) -> Response {
    let events = [Step::chunk("data: one\n\n"), Step::chunk("data: two\n\n")];
    match path {
        "error" => event_stream(Script::new(events.into_iter().chain([Step::Fail("broken")]))),
        _ => {
            let panics = stream::iter(0..3).map(|n| match n {
                2 => panic!("a panic in a body"),
                n => Event::display(n),
            });
            use axum::response::IntoResponse;
            use futures_util::StreamExt;
            SseStream::new(panics).into_response()
        }
    }
}

#[tokio::test]
async fn failed_body_breaks_transfer_after_its_events() {
    let app = Router::new().route("/{path}", get(async |Path(path): Path<String>| failing(&path)));
    let server = Running::new(app).await;
    let mut answer = Protocol::Http1.get(server.address, "/error", &[]).await;
    assert!(answer.end().await.is_err());
    assert_eq!(answer.text(), "data: one\n\ndata: two\n\n");
}

#[tokio::test]
async fn panic_in_body_ends_only_its_stream() {
    let (sender, mut summaries) = mpsc::unbounded_channel();
    let layer = SseLayer::new().on_close(move |summary| sender.send(summary).unwrap());
    let app = Router::new()
        .route("/{path}", get(async |Path(path): Path<String>| failing(&path)))
        .route("/idle", get(async || SseStream::new(stream::pending::<Event>())));
    let server = Running::new(app.layer(layer)).await;
    for protocol in Protocol::ALL {
        let shared = match protocol {
            Protocol::Http2 => Some(Http2::connect(server.address).await),
            Protocol::Http1 => None,
        };
        let get = async |path: &'static str| -> Answer {
            match &shared {
                Some(connection) => connection.get(path, &[]).await,
                None => protocol.get(server.address, path, &[]).await,
            }
        };
        let mut other = get("/idle").await;
        let mut broken = get("/panic").await;
        assert!(broken.end().await.is_err(), "{protocol:?}");
        let summary = within("the summary", summaries.recv()).await.unwrap();
        assert_eq!(summary.reason, CloseReason::Error, "{protocol:?}");
        other.read_until(":").await;
        assert_eq!(get("/idle").await.status, 200, "{protocol:?}");
        drop((other, shared));
        for _ in 0..2 {
            within("the summary", summaries.recv()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn panic_in_handler_ends_only_its_request() {
    let panics = async || -> Response { panic!("a panic in a handler") };
    let app = Router::new().route("/panic", get(panics)).route("/fine", get(async || "fine"));
    let server = Running::new(app).await;
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(b"GET /panic HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert_eq!(within("the end", socket.read(&mut [0; 1])).await.unwrap(), 0);

    let connection = Http2::connect(server.address).await;
    assert!(connection.request(http::Method::GET, "/panic", &[], "").await.is_err());
    assert_eq!(connection.get("/fine", &[]).await.complete().await.text(), "fine");
}
