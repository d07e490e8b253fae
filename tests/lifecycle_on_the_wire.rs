//! Guarantee: a shutdown ends every open stream, so the graceful shutdown of a server completes.
//! Every client receives a complete last event and a reconnect delay.
//!
//! Also limits and summaries on real sockets.

use axum::{
    Router,
    body::Body,
    extract::Path,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{Stream, StreamExt, stream};
use http::{StatusCode, header};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use support::{
    client::{Http2, Protocol, within},
    descriptors::allow_descriptors,
    server, whatwg,
};
// In `over_serve`, this is the server of the crate.
use crate::server::{LingeringSocket, serve};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::{
        Notify,
        mpsc::{UnboundedSender, unbounded_channel},
    },
    task::{JoinHandle, JoinSet},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tower_sse::{CloseReason, Event, Heartbeat, SseLayer, SseStream, StreamSummary};

/// Runs the large tests one after another: each opens thousands of sockets and prints its duration.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

const KINDS: [&str; 2] = ["ours", "upstream"];

fn response(kind: &str, events: impl Stream<Item = Event> + Send + 'static) -> Response {
    if kind == "ours" {
        SseStream::new(events).into_http_response().map(Body::new)
    } else {
        let body = Body::from_stream(events.map(|event| Ok::<_, Infallible>(event.encode())));
        ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
    }
}

/// Returns a stream of one event, which then stays silent.
fn idle() -> impl Stream<Item = Event> + Send {
    stream::iter([Event::display(0)]).chain(stream::pending())
}

/// Returns a stream of numbered events, in a burst of ten every 20 milliseconds.
fn busy() -> impl Stream<Item = Event> + Send {
    stream::iter(0_u32..).then(async |n| {
        if n % 10 == 9 {
            sleep(Duration::from_millis(20)).await;
        }
        Event::display(n)
    })
}

/// The number of events that the streams of [`always_ready`] have yielded.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Returns a stream of numbered events that are always ready.
fn always_ready() -> impl Stream<Item = Event> + Send {
    let text = "x".repeat(200);
    stream::iter(0_u32..).map(move |n| {
        TAKEN.fetch_add(1, Ordering::Relaxed);
        Event::display(n).comment(&text)
    })
}

async fn handler(Path((kind, pace)): Path<(String, String)>) -> Response {
    match &*pace {
        "idle" => response(&kind, idle()),
        "busy" => response(&kind, busy()),
        _ => response(&kind, always_ready()),
    }
}

fn app(layer: SseLayer) -> Router {
    Router::new().route("/{kind}/{pace}", get(handler)).layer(layer)
}

#[derive(Clone, Copy, Debug)]
enum Server {
    Axum,
    Serve,
    HyperUtil,
}

/// A listener whose connections close without a TCP reset.
///
/// The graceful shutdown of hyper would reset some connections of clients that read slowly.
struct LingeringListener(TcpListener);

impl axum::serve::Listener for LingeringListener {
    type Io = LingeringSocket;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (LingeringSocket, SocketAddr) {
        let (socket, address) = axum::serve::Listener::accept(&mut self.0).await;
        (LingeringSocket::new(socket), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl Server {
    /// Runs a server until its graceful shutdown completes.
    async fn run(self, app: Router, shutdown: CancellationToken) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let running = match self {
            Self::Axum => tokio::spawn(async move {
                axum::serve(LingeringListener(listener), app)
                    .with_graceful_shutdown(shutdown.cancelled_owned())
                    .await
                    .unwrap();
            }),
            Self::Serve => tokio::spawn(async move {
                tower_sse::serve(listener, app).with_graceful_shutdown(shutdown).await.unwrap();
            }),
            Self::HyperUtil => tokio::spawn(async move {
                let graceful = GracefulShutdown::new();
                let builder = auto::Builder::new(TokioExecutor::new());
                while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
                    let (socket, _) = accepted.unwrap();
                    let service = TowerToHyperService::new(app.clone());
                    let connection =
                        builder.serve_connection(TokioIo::new(LingeringSocket::new(socket)), service).into_owned();
                    tokio::spawn(graceful.watch(connection));
                }
                graceful.shutdown().await;
            }),
        };
        (address, running)
    }
}

/// Opens a stream for each path. Reports the first event of each stream to `arrived`. Returns the
/// body of each stream after its end, when the client has dropped its connection.
async fn open(
    protocol: Protocol,
    address: SocketAddr,
    paths: Vec<String>,
    arrived: UnboundedSender<()>,
) -> JoinSet<Vec<u8>> {
    let mut clients = JoinSet::new();
    let mut connection = None;
    for (n, path) in paths.into_iter().enumerate() {
        // hyper's server allows 200 streams per connection.
        if protocol == Protocol::Http2 && n % 100 == 0 {
            connection = Some(Http2::connect(address).await);
        }
        let (connection, arrived) = (connection.clone(), arrived.clone());
        clients.spawn(async move {
            let mut answer = match connection {
                Some(connection) => connection.get(&path, &[]).await,
                None => protocol.get(address, &path, &[]).await,
            };
            answer.read_until("data: 0\n").await;
            arrived.send(()).unwrap();
            answer.complete().await.body
        });
        // The backlog of a listener is limited.
        if n % 50 == 49 {
            sleep(Duration::from_millis(2)).await;
        }
    }
    clients
}

const SHUTDOWN_EVENT: &str = "event: shutdown\ndata: bye\n\n";

/// Asserts that a body has the events up to some number, the shutdown event and the reconnection
/// time, all complete. Returns the number of events.
fn assert_whole(body: &[u8]) -> usize {
    let text = std::str::from_utf8(body).unwrap();
    let text = text.strip_suffix(SHUTDOWN_EVENT).unwrap_or_else(|| panic!("no shutdown event: {text:?}"));
    let (events, retry) = text.split_at(text.rfind("retry: ").unwrap());
    assert!(events.ends_with("\n\n") || events.ends_with(":\n"), "an event is incomplete: {events:?}");
    let retry: u64 = retry.strip_prefix("retry: ").unwrap().strip_suffix('\n').unwrap().parse().unwrap();
    assert!((2_000..=5_000).contains(&retry), "{retry}");
    let data: Vec<_> = whatwg::parse(body).messages.into_iter().map(|message| message.data).collect();
    let (last, numbers) = data.split_last().unwrap();
    assert_eq!(last, "bye");
    assert!(numbers.iter().enumerate().all(|(n, data)| *data == n.to_string()), "{numbers:?}");
    data.len()
}

/// Opens streams, cancels the token, and checks that all streams end.
async fn shut_down(server: Server, protocol: Protocol, paces: &[&str], per_pace: usize) {
    let _alone = ONE_AT_A_TIME.lock().await;
    let shutdown = CancellationToken::new();
    let summaries = Arc::new(Mutex::new(Vec::new()));
    let callback_summaries = Arc::clone(&summaries);
    let layer = SseLayer::new()
        .shutdown(shutdown.clone())
        .shutdown_event(Event::new("bye").event("shutdown"))
        .retry(Duration::from_secs(2))
        .reconnect_jitter(Duration::from_secs(3))
        .on_close(move |summary| callback_summaries.lock().unwrap().push(summary));
    let (address, running) = server.run(app(layer), shutdown.clone()).await;

    let paths: Vec<_> = (0..per_pace)
        .flat_map(|n| paces.iter().map(move |pace| format!("/{}/{pace}", KINDS[n % KINDS.len()])))
        .collect();
    let streams = paths.len();
    // Two for each stream, and those of other tests.
    allow_descriptors(2 * streams as u64 + 1000);
    let (arrived, mut opened) = unbounded_channel();
    let clients = open(protocol, address, paths, arrived).await;
    for _ in 0..streams {
        within("every stream to be open", opened.recv()).await.expect("an open stream");
    }

    let cancelled = Instant::now();
    shutdown.cancel();
    within("the server to return", running).await.unwrap();
    let returned = cancelled.elapsed();
    let bodies = within("every stream to end at its client", clients.join_all()).await;
    println!(
        "{server:?}, {protocol:?}: {streams} streams of {paces:?} ended, and the server returned, in {returned:?}"
    );

    let dispatched: usize = bodies.iter().map(|body| assert_whole(body)).sum();
    // The server has returned, so the transport has dropped every stream.
    let summaries = summaries.lock().unwrap();
    assert_eq!(summaries.len(), streams);
    assert!(summaries.iter().all(|summary| summary.reason == CloseReason::Shutdown), "{summaries:?}");
    let received: usize = bodies.iter().map(Vec::len).sum();
    assert_eq!(summaries.iter().map(|summary| summary.bytes).sum::<u64>(), received as u64);
    assert_eq!(summaries.iter().map(|summary| summary.events).sum::<u64>(), dispatched as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn axum_shuts_down_with_2000_http1_streams() {
    shut_down(Server::Axum, Protocol::Http1, &["idle", "busy"], 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn axum_shuts_down_with_2000_http2_streams() {
    shut_down(Server::Axum, Protocol::Http2, &["idle", "busy"], 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_shuts_down_with_2000_http1_streams() {
    shut_down(Server::Serve, Protocol::Http1, &["idle", "busy"], 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_shuts_down_with_2000_http2_streams() {
    shut_down(Server::Serve, Protocol::Http2, &["idle", "busy"], 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hyper_util_shuts_down_with_2000_http1_streams() {
    shut_down(Server::HyperUtil, Protocol::Http1, &["idle", "busy"], 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hyper_util_shuts_down_with_2000_http2_streams() {
    shut_down(Server::HyperUtil, Protocol::Http2, &["idle", "busy"], 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_ends_always_ready_streams() {
    for protocol in Protocol::ALL {
        shut_down(Server::Axum, protocol, &["ready"], 4).await;
        shut_down(Server::Serve, protocol, &["ready"], 4).await;
    }
}

/// Sends a request, and returns its connection with the start of the answer, unread.
async fn request_unread(address: SocketAddr, path: &str) -> TcpStream {
    let mut socket = within("a connection", TcpStream::connect(address)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    within("the request to be sent", socket.write_all(request.as_bytes())).await.unwrap();
    within("the head of the answer", socket.readable()).await.unwrap();
    socket
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reset_streams_release_permits_and_are_reported_once() {
    const LIMIT: usize = 40;
    let _alone = ONE_AT_A_TIME.lock().await;
    let summaries = Arc::new(Mutex::new(Vec::new()));
    let callback_summaries = Arc::clone(&summaries);
    let layer = SseLayer::new().max_streams(LIMIT).max_streams_per(LIMIT, |parts| Some(parts.method.clone()));
    let layer = layer.on_close(move |summary: StreamSummary| callback_summaries.lock().unwrap().push(summary));
    let server = serve(app(layer)).await;

    let opened = AtomicUsize::new(0);
    let client = async |n: usize| {
        let path = format!("/{}/{}", KINDS[n % 2], ["idle", "busy"][n / 2 % 2]);
        let socket = request_unread(server.address, &path).await;
        let mut head = [0; 12];
        let peeked = within("a status", socket.peek(&mut head)).await.unwrap();
        match &head[..peeked] {
            b"HTTP/1.1 200" => opened.fetch_add(1, Ordering::Relaxed),
            // The server may not yet know that earlier clients have disconnected.
            b"HTTP/1.1 503" => 0,
            other => panic!("{:?}", String::from_utf8_lossy(other)),
        };
        // Dropping a socket with unread bytes resets its connection.
        drop(socket);
    };
    stream::iter((0..3_000).map(client)).buffer_unordered(LIMIT / 2).for_each(async |()| {}).await;

    let opened = opened.into_inner();
    assert!(opened >= LIMIT, "{opened}");
    within("the server to drop every stream", async {
        while summaries.lock().unwrap().len() < opened {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let mut open = Vec::new();
    for _ in 0..LIMIT {
        open.push(Protocol::Http1.get(server.address, "/ours/idle", &[]).await);
    }
    assert!(open.iter().all(|answer| answer.status == StatusCode::OK));
    let rejected = Protocol::Http1.get(server.address, "/ours/idle", &[]).await;
    assert_eq!(rejected.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(rejected.headers.contains_key(header::RETRY_AFTER));
    let summaries = summaries.lock().unwrap();
    assert_eq!(summaries.len(), opened);
    assert!(summaries.iter().all(|summary| summary.reason == CloseReason::ClientGone), "{summaries:?}");
    println!("{opened} of 3,000 streams were opened, and each was reset by its client");
}

#[tokio::test]
async fn retry_later_is_a_complete_response() {
    for protocol in Protocol::ALL {
        let layer = SseLayer::new().max_streams(0).retry(Duration::from_secs(2)).reconnect_jitter(Duration::ZERO);
        let server = serve(app(layer)).await;
        let event_source = [("accept", "text/event-stream")];
        let answer = protocol.get(server.address, "/upstream/busy", &event_source).await.complete().await;
        assert_eq!((answer.status, answer.text().as_str()), (StatusCode::OK, "retry: 2000\n"));
        assert_eq!(answer.headers[header::CONTENT_TYPE], "text/event-stream");
    }
}

#[tokio::test]
async fn summary_matches_bytes_that_client_received() {
    for (protocol, kind) in Protocol::ALL.into_iter().flat_map(|protocol| KINDS.map(|kind| (protocol, kind))) {
        let (sender, mut summaries) = unbounded_channel();
        let layer = SseLayer::new()
            .heartbeat(Heartbeat::every(Duration::from_millis(5)))
            .on_close(move |summary| sender.send(summary).unwrap());
        let heard = Arc::new(Notify::new());
        let is_heard = Arc::clone(&heard);
        let handler = async move || {
            // On a busy machine, a short silence can end before its heartbeat.
            let first = async move {
                is_heard.notified().await;
                Event::display(0)
            };
            let others = stream::iter(1..20).then(async |n| {
                sleep(Duration::from_millis(if n % 4 == 0 { 12 } else { 0 })).await;
                Event::display(n)
            });
            response(kind, stream::once(first).chain(others))
        };
        let server = serve(Router::new().route("/", get(handler)).layer(layer)).await;
        let requested = Instant::now();
        let mut answer = protocol.get(server.address, "/", &[]).await;
        answer.read_until(":\n").await;
        heard.notify_one();
        let answer = answer.complete().await;
        let summary = within("the summary", summaries.recv()).await.unwrap();
        let client = whatwg::parse(&answer.body);
        assert_eq!(summary.reason, CloseReason::Finished);
        assert_eq!(summary.events, client.messages.len() as u64);
        assert_eq!(summary.heartbeats, client.comments.len() as u64, "{protocol:?} {kind}");
        assert_eq!(summary.bytes, answer.body.len() as u64);
        assert!(summary.heartbeats > 0 && summary.duration <= requested.elapsed());
        assert!(summaries.try_recv().is_err(), "the stream is reported twice");
    }
}

#[tokio::test]
async fn reset_http2_stream_leaves_others_open() {
    let (sender, mut summaries) = unbounded_channel();
    // The other stream ends after the test, when the receiver is dropped.
    let layer = SseLayer::new().on_close(move |summary| {
        let _test_has_ended = sender.send(summary);
    });
    let server = serve(app(layer)).await;
    let connection = Http2::connect(server.address).await;
    let mut reset = connection.get("/ours/idle", &[]).await;
    let mut stays = connection.get("/upstream/busy", &[]).await;
    reset.read_until("data: 0\n\n").await;
    drop(reset);
    let summary = within("the summary", summaries.recv()).await.unwrap();
    assert_eq!((summary.reason, summary.events), (CloseReason::ClientGone, 1));
    stays.read_until("data: 20\n\n").await;
    assert!(summaries.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_returns_when_stalled_clients_disconnect() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let shutdown = CancellationToken::new();
    let (sender, mut summaries) = unbounded_channel();
    let layer = SseLayer::new().shutdown(shutdown.clone()).on_close(move |summary| sender.send(summary).unwrap());
    let (address, running) = Server::Axum.run(app(layer), shutdown.clone()).await;
    let stalled = [request_unread(address, "/ours/ready").await, request_unread(address, "/upstream/ready").await];
    let mut reads = Protocol::Http1.get(address, "/ours/idle", &[]).await;
    reads.read_until("data: 0\n\n").await;
    within("all buffers to be full", async {
        let mut before = 0;
        while before != TAKEN.load(Ordering::Relaxed) {
            before = TAKEN.load(Ordering::Relaxed);
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;

    shutdown.cancel();
    // The stream of the other client ends after the flush time.
    assert!(reads.complete().await.text().contains("retry: "));
    // The transport does not poll a stream whose client does not read. Such a stream ends with its
    // connection.
    drop(stalled);
    within("the server to return", running).await.unwrap();
    let mut reasons = Vec::new();
    while let Some(summary) = within("the summaries", summaries.recv()).await {
        reasons.push(summary.reason);
    }
    assert_eq!(reasons.len(), 3);
}
