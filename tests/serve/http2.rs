//! HTTP/2: the streams of a connection run in the task of the connection.

use crate::{
    common::{Running, driven, event_stream, live},
    raw_http2::{ACK, DATA, END_STREAM, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE, Wire, frame, request},
};
use axum::{
    Router,
    extract::{RawQuery, Request},
    response::IntoResponse,
    routing::get,
    serve::Listener,
};
use bytes::Bytes;
use http::{Method, StatusCode, header::CONTENT_TYPE};
use std::{
    convert::Infallible,
    future,
    io::{self, IoSlice},
    iter,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};
use support::{
    client::{Http1, Http2, within},
    listener::Memory,
    script::{Script, Step},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, duplex},
    net::{TcpListener, TcpStream},
    sync::{broadcast, mpsc},
    time::sleep,
};
use tokio_stream::{StreamExt, wrappers::BroadcastStream};
use tower_sse::serve::serve;

/// A listener that counts the writes on its connections.
struct CountingListener {
    listener: TcpListener,
    writes: Arc<AtomicUsize>,
}

struct Counting {
    socket: TcpStream,
    writes: Arc<AtomicUsize>,
}

impl Listener for CountingListener {
    type Io = Counting;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Counting, SocketAddr) {
        let (socket, address) = Listener::accept(&mut self.listener).await;
        socket.set_nodelay(true).unwrap();
        (Counting { socket, writes: Arc::clone(&self.writes) }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl AsyncRead for Counting {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Counting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn event_to_100_streams_leaves_in_one_write() {
    let (events, _) = broadcast::channel::<Bytes>(16);
    let source = events.clone();
    let handler = async move || {
        let frames = BroadcastStream::new(source.subscribe()).filter_map(Result::ok);
        event_stream(axum::body::Body::from_stream(frames.map(Ok::<_, io::Error>)))
    };
    let writes = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let listener = CountingListener { listener, writes: Arc::clone(&writes) };
    let running = tokio::spawn(serve(listener, Router::new().route("/", get(handler))).into_future());

    let connection = Http2::connect(address).await;
    let mut answers = Vec::new();
    for _ in 0..100 {
        answers.push(connection.get("/", &[]).await);
    }
    let before = writes.load(Ordering::Relaxed);
    for text in ["data: one\n\n", "data: two\n\n"] {
        events.send(Bytes::from_static(text.as_bytes())).unwrap();
        for answer in &mut answers {
            answer.read_until(text).await;
        }
    }
    let writes = writes.load(Ordering::Relaxed) - before;
    assert!(writes <= 10, "{writes} writes for two events to 100 streams");
    running.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn handlers_of_one_connection_run_in_parallel() {
    let running = Arc::new((Mutex::new(0), Condvar::new()));
    // Blocks its thread until the other request runs, too.
    let handler = async move || {
        let (running, changed) = &*running;
        let mut running = running.lock().unwrap();
        *running += 1;
        changed.notify_all();
        // Less than the time limit of the client, so that the test fails with these texts.
        let (_running, waited) =
            changed.wait_timeout_while(running, Duration::from_secs(20), |running| *running < 2).unwrap();
        if waited.timed_out() { "alone" } else { "together" }
    };
    let server = Running::new(Router::new().route("/", get(handler))).await;
    let connection = Http2::connect(server.address).await;
    let [one, two] = [connection.clone(), connection];
    let (one, two) = tokio::join!(one.get("/", &[]), two.get("/", &[]));
    let texts = [one.complete().await.text(), two.complete().await.text()];
    assert_eq!(texts, ["together", "together"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn server_returns_after_handlers_of_disconnected_clients() {
    let (sender, mut requests) = mpsc::unbounded_channel();
    let has_ended = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&has_ended);
    // Blocks its thread for longer than the server needs to close the connection.
    let handler = async move || {
        sender.send(()).unwrap();
        thread::sleep(Duration::from_millis(200));
        ended.store(true, Ordering::Relaxed);
    };
    let server = Running::new(Router::new().route("/", get(handler))).await;
    let connection = Http2::connect(server.address).await;
    let request = tokio::spawn(async move { connection.request(Method::GET, "/", &[], "").await.map(drop) });
    within("the request", requests.recv()).await.unwrap();
    server.shut_down();
    request.abort();
    server.returned().await;
    assert!(has_ended.load(Ordering::Relaxed), "the handler still runs");
}

/// 500 UUIDs in a query have 18.5 KB.
#[tokio::test]
async fn limit_of_request_headers_is_set() {
    let query = vec!["9ba0f5a4-7a3c-4b0c-8a55-1c4b5d9f3a10"; 500].join(",");
    let app = Router::new().route("/", get(async |RawQuery(query): RawQuery| query.unwrap().len().to_string()));
    for (limit, expected) in [(None, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE), (Some(20 << 10), StatusCode::OK)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = serve(listener, app.clone());
        if let Some(limit) = limit {
            server = server.max_header_list_size(limit);
        }
        let running = tokio::spawn(server.into_future());
        let answer = Http2::connect(address).await.get(&format!("/?{query}"), &[]).await;
        assert_eq!(answer.status, expected, "{limit:?}");
        let complete = answer.complete().await;
        if limit.is_some() {
            assert_eq!(complete.text(), query.len().to_string());
        }
        // HTTP/1 has no such limit.
        let request = format!("GET /?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let answer = Http1::connect(address).await.request(request).await;
        assert_eq!(answer.status, StatusCode::OK);
        running.abort();
    }
}

/// Such a request could fill the memory of the server.
#[tokio::test]
async fn huge_request_headers_close_the_connection() {
    let app =
        Router::new().route("/", get(async || event_stream(Script::new([Step::chunk("data: one\n\n"), Step::Hang]))));
    let server = Running::new(app).await;
    let connection = Http2::connect(server.address).await;
    let mut other = connection.get("/", &[]).await;
    other.read_until("data: one\n\n").await;
    // The limit is 16 KiB. Up to four times the limit is an error of this request alone.
    let answer = connection.get("/", &[("x-large", &"x".repeat(60 << 10))]).await;
    assert_eq!(answer.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    let error = connection.request(Method::GET, "/", &[("x-large", &"x".repeat(68 << 10))], "").await.unwrap_err();
    assert!(error.contains("excessive load"), "{error}");
    other.end().await.expect_err("the connection is closed");
}

#[tokio::test]
async fn http1_head_and_any_uri_have_size_limits() {
    let app =
        Router::new().route("/", get(async |RawQuery(query): RawQuery| query.unwrap_or_default().len().to_string()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let running = tokio::spawn(serve(listener, app).max_header_list_size(1 << 20).into_future());
    for (query, header, expected) in [
        (0, 400 << 10, StatusCode::OK),
        (0, 1 << 20, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        (65_500, 0, StatusCode::OK),
        (65_536, 0, StatusCode::URI_TOO_LONG),
    ] {
        let (query, value) = ("x".repeat(query), "x".repeat(header));
        let request = format!("GET /?{query} HTTP/1.1\r\nHost: localhost\r\nX-Large: {value}\r\n\r\n");
        let answer = Http1::connect(address).await.request(request).await;
        assert_eq!(answer.status, expected, "a query of {} bytes, and a header of {header} bytes", query.len());
        // The client of HTTP/2 cannot send a longer URI.
        if answer.status == StatusCode::OK && header == 0 {
            let answer = Http2::connect(address).await.get(&format!("/?{query}"), &[]).await;
            assert_eq!(answer.complete().await.text(), query.len().to_string());
        }
    }
    running.abort();
}

#[tokio::test]
async fn handler_is_cancelled_when_stream_is_reset() {
    let (sender, mut cancelled) = mpsc::unbounded_channel::<()>();
    let (begun, mut begins) = mpsc::unbounded_channel::<()>();
    let handler = async move || {
        let _dropped_at_cancellation = sender.clone();
        begun.send(()).unwrap();
        future::pending::<()>().await;
    };
    let server = Running::new(Router::new().route("/", get(handler)).route("/fine", get(async || "fine"))).await;
    let connection = Http2::connect(server.address).await;
    let requester = connection.clone();
    let request = tokio::spawn(async move { requester.request(Method::GET, "/", &[], "").await.map(drop) });
    within("the request", begins.recv()).await.unwrap();
    request.abort();
    assert_eq!(connection.get("/fine", &[]).await.complete().await.text(), "fine");
    // Only the router has a sender now.
    within("the handler to be cancelled", async {
        while cancelled.sender_strong_count() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(cancelled.try_recv().is_err());
}

/// axum's `Router` removes the body of a response to `HEAD`. Other services may not.
#[tokio::test]
async fn head_response_of_any_service_has_no_content() {
    let (driver, body) = driven();
    let body = Arc::new(Mutex::new(Some(body)));
    let service = tower::service_fn(move |request: Request| {
        let stream = body.lock().unwrap().take().filter(|_| request.uri().path() == "/stream");
        future::ready(Ok::<_, Infallible>(stream.map_or_else(|| "text".into_response(), event_stream)))
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let running = tokio::spawn(serve(listener, service).into_future());
    let connection = Http2::connect(address).await;
    let answer = connection.request(Method::HEAD, "/stream", &[], "").await.unwrap();
    assert_eq!(answer.headers[CONTENT_TYPE], "text/event-stream");
    assert_eq!(answer.complete().await.text(), "");
    driver.body_dropped().await;
    let answer = connection.request(Method::HEAD, "/text", &[], "").await.unwrap();
    assert_eq!(answer.complete().await.text(), "");
    assert_eq!(connection.get("/text", &[]).await.complete().await.text(), "text");
    running.abort();
}

/// The default is hyper's.
#[tokio::test]
async fn client_can_open_exactly_configured_number_of_streams() {
    for (limit, expected) in [(None, 200_u32), (Some(1), 1), (Some(250), 250)] {
        let (mut drivers, app) = live();
        let server = Running::with(app, |server| match limit {
            Some(limit) => server.max_concurrent_streams(limit),
            None => server,
        })
        .await;
        let mut wire = Wire { io: TcpStream::connect(server.address).await.unwrap() };
        wire.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
        let settings = within("the settings", wire.next_of(SETTINGS)).await.payload;
        let number = settings.chunks(6).find(|setting| setting[..2] == [0, 3]).expect("MAX_CONCURRENT_STREAMS");
        assert_eq!(number[2..], expected.to_be_bytes());
        wire.send(&frame(SETTINGS, ACK, 0, &[])).await;
        let mut open = Vec::new();
        for number in 0..expected {
            wire.send(&request(2 * number + 1, "/")).await;
            open.push(drivers.next().await);
        }
        // One more stream is refused, until another one has ended.
        wire.send(&request(2 * expected + 1, "/")).await;
        let reset = within("the refusal", wire.next_of(RST_STREAM)).await;
        assert_eq!((reset.stream, &reset.payload[..]), (2 * expected + 1, &[0, 0, 0, 7][..]));
        drop(open.pop());
        within("the end of a stream", async { while wire.next_of(DATA).await.flags & END_STREAM == 0 {} }).await;
        wire.send(&request(2 * expected + 3, "/")).await;
        drivers.next().await;
        assert!(drivers.is_empty());
    }
}

/// The windows of the client are open, and it does not read. hyper's default is 400 KiB.
#[tokio::test(start_paused = true)]
async fn stream_has_documented_buffer_for_stalled_client() {
    const LIMIT: usize = 64 << 10;
    for length in [10, 1000, 16_000, 300_000] {
        let polled = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&polled);
        let endless = async move || {
            let frames = tokio_stream::iter(iter::repeat_with(move || {
                counted.fetch_add(length, Ordering::Relaxed);
                Ok::<_, io::Error>("x".repeat(length))
            }));
            event_stream(axum::body::Body::from_stream(frames))
        };
        let (connections, listener) = mpsc::unbounded_channel();
        let (io, accepted) = duplex(64);
        connections.send(accepted).unwrap();
        let running = tokio::spawn(serve(Memory(listener), Router::new().route("/", get(endless))).into_future());
        let mut wire = Wire { io };
        // INITIAL_WINDOW_SIZE, and the window of the connection.
        let settings = frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
        let window = frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]);
        wire.send(&[PREFACE, &settings, &window, &request(1, "/")].concat()).await;
        // Paused time moves on when the server waits for the client.
        sleep(Duration::from_secs(1)).await;
        let polled = polled.load(Ordering::Relaxed);
        let longest = LIMIT + (3 * length).max(16 << 10);
        assert!((LIMIT..=longest).contains(&polled), "{polled} bytes in frames of {length} bytes");
        running.abort();
    }
}
