//! Guarantee: shutdown ends every open stream, so the graceful shutdown of a server completes by itself, and every client has
//! a complete last event and a time at which to come back. And limits that hold, and summaries that are true, on real sockets.

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
    server::{LingeringSocket, serve},
    whatwg,
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::mpsc::{UnboundedSender, unbounded_channel},
    task::{JoinHandle, JoinSet},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tower_sse::{CloseReason, Event, Heartbeat, Overload, SseLayer, SseStream, StreamSummary};

/// The large tests run one after another: each has thousands of sockets, and tells how long it took.
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

/// One event, and then nothing.
fn idle() -> impl Stream<Item = Event> + Send {
    stream::iter([Event::display(0)]).chain(stream::pending())
}

/// A burst of events every few milliseconds, numbered.
fn busy() -> impl Stream<Item = Event> + Send {
    stream::iter(0_u32..).then(async |n| {
        if n % 10 == 9 {
            sleep(Duration::from_millis(20)).await;
        }
        Event::display(n)
    })
}

/// How many events were taken that are always ready.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Events that are always ready, numbered, as fast as the client reads.
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
    HyperUtil,
}

/// Without it, the graceful shutdown of hyper resets some connections of clients that read slowly.
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
    /// A server that shuts down gracefully, and returns then.
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

/// Opens a stream for each path. Reports the first event of each stream to `there`. Returns the
/// body of each stream after its end, when the client has dropped its connection.
async fn open(
    protocol: Protocol,
    address: SocketAddr,
    paths: Vec<String>,
    there: UnboundedSender<()>,
) -> JoinSet<Vec<u8>> {
    let mut clients = JoinSet::new();
    let mut connection = None;
    for (n, path) in paths.into_iter().enumerate() {
        // As many as hyper's server lets one connection have, with room to spare.
        if protocol == Protocol::Http2 && n % 100 == 0 {
            connection = Some(Http2::connect(address).await);
        }
        let (connection, there) = (connection.clone(), there.clone());
        clients.spawn(async move {
            let mut answer = match connection {
                Some(connection) => connection.get(&path, &[]).await,
                None => protocol.get(address, &path, &[]).await,
            };
            answer.read_until("data: 0\n").await;
            there.send(()).unwrap();
            answer.complete().await.body
        });
        // Not more at a time than a listener's queue holds.
        if n % 50 == 49 {
            sleep(Duration::from_millis(2)).await;
        }
    }
    clients
}

const FAREWELL: &str = "event: shutdown\ndata: bye\n\n";

/// Asserts that a body is every event up to some number, the shutdown event and the reconnection
/// time, all complete. Returns the number of events.
fn assert_whole(body: &[u8]) -> usize {
    let text = std::str::from_utf8(body).unwrap();
    let (events, retry) = text.split_once(FAREWELL).unwrap_or_else(|| panic!("no farewell: {text:?}"));
    assert!(events.ends_with("\n\n") || events.ends_with(":\n"), "an event is cut: {events:?}");
    let retry: u64 = retry.strip_prefix("retry: ").unwrap().strip_suffix('\n').unwrap().parse().unwrap();
    assert!((2_000..=5_000).contains(&retry), "{retry}");
    let data: Vec<_> = whatwg::parse(body).messages.into_iter().map(|message| message.data).collect();
    let (last, numbers) = data.split_last().unwrap();
    assert_eq!(last, "bye");
    assert!(numbers.iter().enumerate().all(|(n, data)| *data == n.to_string()), "{numbers:?}");
    data.len()
}

/// Opens as many streams as there are, cancels the token, and sees them all end.
async fn shut_down(server: Server, protocol: Protocol, paces: &[&str], of_each: usize) {
    let _alone = ONE_AT_A_TIME.lock().await;
    let shutdown = CancellationToken::new();
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let layer = SseLayer::new()
        .shutdown(shutdown.clone())
        .shutdown_event(Event::new("bye").event("shutdown"))
        .retry(Duration::from_secs(2))
        .reconnect_jitter(Duration::from_secs(3))
        .on_close(move |summary| tell.lock().unwrap().push(summary));
    let (address, running) = server.run(app(layer), shutdown.clone()).await;

    let paths: Vec<_> = (0..of_each)
        .flat_map(|n| paces.iter().map(move |pace| format!("/{}/{pace}", KINDS[n % KINDS.len()])))
        .collect();
    let streams = paths.len();
    let (there, mut opened) = unbounded_channel();
    let clients = open(protocol, address, paths, there).await;
    for _ in 0..streams {
        within("every stream to be open", opened.recv()).await.expect("a client that is there");
    }

    let cancelled = Instant::now();
    shutdown.cancel();
    within("the server to return", running).await.unwrap();
    let returned = cancelled.elapsed();
    let bodies = within("every client to see the end", clients.join_all()).await;
    println!(
        "{server:?}, {protocol:?}: {streams} streams of {paces:?} ended, and the server returned, in {returned:?}"
    );

    let dispatched: usize = bodies.iter().map(|body| assert_whole(body)).sum();
    // The transport has let go of each of them, or the server would not have returned.
    let told = told.lock().unwrap();
    assert_eq!(told.len(), streams);
    assert!(told.iter().all(|summary| summary.reason == CloseReason::Shutdown), "{told:?}");
    let received: usize = bodies.iter().map(Vec::len).sum();
    assert_eq!(told.iter().map(|summary| summary.bytes).sum::<u64>(), received as u64);
    assert_eq!(told.iter().map(|summary| summary.events).sum::<u64>(), dispatched as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn axum_shuts_down_by_itself_with_two_thousand_streams_open_over_http_1_1() {
    shut_down(Server::Axum, Protocol::Http1, &["idle", "busy"], 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn axum_shuts_down_by_itself_with_two_thousand_streams_open_over_http_2() {
    shut_down(Server::Axum, Protocol::Http2, &["idle", "busy"], 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hyper_util_shuts_down_by_itself_with_two_thousand_streams_open_over_http_1_1() {
    shut_down(Server::HyperUtil, Protocol::Http1, &["idle", "busy"], 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hyper_util_shuts_down_by_itself_with_two_thousand_streams_open_over_http_2() {
    shut_down(Server::HyperUtil, Protocol::Http2, &["idle", "busy"], 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_always_ready_end_as_well() {
    for protocol in Protocol::ALL {
        shut_down(Server::Axum, protocol, &["ready"], 4).await;
    }
}

/// A connection that has asked for this path, and has at least the beginning of the answer, unread.
async fn asked(address: SocketAddr, path: &str) -> TcpStream {
    let mut socket = within("a connection", TcpStream::connect(address)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    within("the request to be sent", socket.write_all(request.as_bytes())).await.unwrap();
    within("the head of the answer", socket.readable()).await.unwrap();
    socket
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_thousands_of_abrupt_closes_every_place_is_free_and_each_stream_was_told_of_once() {
    const PLACES: usize = 40;
    let _alone = ONE_AT_A_TIME.lock().await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let layer = SseLayer::new().max_streams(PLACES).max_streams_per(PLACES, |parts| parts.method.clone());
    let layer = layer.on_close(move |summary: StreamSummary| tell.lock().unwrap().push(summary));
    let server = serve(app(layer)).await;

    let opened = AtomicUsize::new(0);
    let client = async |n: usize| {
        let path = format!("/{}/{}", KINDS[n % 2], ["idle", "busy"][n / 2 % 2]);
        let socket = asked(server.address, &path).await;
        let mut head = [0; 12];
        let peeked = within("a status", socket.peek(&mut head)).await.unwrap();
        match &head[..peeked] {
            b"HTTP/1.1 200" => opened.fetch_add(1, Ordering::Relaxed),
            // Those before it have gone, which the server may not have seen yet.
            b"HTTP/1.1 503" => 0,
            other => panic!("{:?}", String::from_utf8_lossy(other)),
        };
        // A socket that has something unread is not closed but reset.
        drop(socket);
    };
    stream::iter((0..3_000).map(client)).buffer_unordered(PLACES / 2).for_each(async |()| {}).await;

    let opened = opened.into_inner();
    assert!(opened >= PLACES, "{opened}");
    within("the server to let go of every stream", async {
        while told.lock().unwrap().len() < opened {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let mut open = Vec::new();
    for _ in 0..PLACES {
        open.push(Protocol::Http1.get(server.address, "/ours/idle", &[]).await);
    }
    assert!(open.iter().all(|answer| answer.status == StatusCode::OK));
    let refused = Protocol::Http1.get(server.address, "/ours/idle", &[]).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers.contains_key(header::RETRY_AFTER));
    let told = told.lock().unwrap();
    assert_eq!(told.len(), opened);
    assert!(told.iter().all(|summary| summary.reason == CloseReason::ClientGone), "{told:?}");
    println!("{opened} of 3,000 streams were opened, and each was reset by its client");
}

#[tokio::test]
async fn a_client_that_is_told_to_come_back_later_has_a_stream_that_ends_and_its_connection() {
    for protocol in Protocol::ALL {
        let layer = SseLayer::new().max_streams(0).when_full(Overload::RetryLater).retry(Duration::from_secs(2));
        let server = serve(app(layer.reconnect_jitter(Duration::ZERO))).await;
        let answer = protocol.get(server.address, "/upstream/busy", &[]).await.complete().await;
        assert_eq!((answer.status, answer.text().as_str()), (StatusCode::OK, "retry: 2000\n"));
        assert_eq!(answer.headers[header::CONTENT_TYPE], "text/event-stream");
    }
}

#[tokio::test]
async fn what_is_told_of_a_stream_is_what_its_client_received() {
    for (protocol, kind) in Protocol::ALL.into_iter().flat_map(|protocol| KINDS.map(|kind| (protocol, kind))) {
        let (tell, mut told) = unbounded_channel();
        let layer = SseLayer::new()
            .heartbeat(Heartbeat::every(Duration::from_millis(5)))
            .on_close(move |summary| tell.send(summary).unwrap());
        let handler = async move || {
            let events = stream::iter(0..20).then(async |n| {
                sleep(Duration::from_millis(if n % 4 == 0 { 12 } else { 0 })).await;
                Event::display(n)
            });
            response(kind, events)
        };
        let server = serve(Router::new().route("/", get(handler)).layer(layer)).await;
        let asked = Instant::now();
        let answer = protocol.get(server.address, "/", &[]).await.complete().await;
        let summary = within("the summary", told.recv()).await.unwrap();
        let client = whatwg::parse(&answer.body);
        assert_eq!(summary.reason, CloseReason::Finished);
        assert_eq!(summary.events, client.messages.len() as u64);
        assert_eq!(summary.heartbeats, client.comments.len() as u64, "{protocol:?} {kind}");
        assert_eq!(summary.bytes, answer.body.len() as u64);
        assert!(summary.heartbeats > 0 && summary.duration <= asked.elapsed());
        assert!(told.try_recv().is_err(), "it is told once");
    }
}

#[tokio::test]
async fn a_client_that_goes_from_a_shared_connection_is_told_of_while_the_others_stay() {
    let (tell, mut told) = unbounded_channel();
    // Of the one that stays nobody wants to know when the test is over.
    let layer = SseLayer::new().on_close(move |summary| {
        let _nobody_listens = tell.send(summary);
    });
    let server = serve(app(layer)).await;
    let connection = Http2::connect(server.address).await;
    let mut gone = connection.get("/ours/idle", &[]).await;
    let mut stays = connection.get("/upstream/busy", &[]).await;
    gone.read_until("data: 0\n\n").await;
    drop(gone);
    let summary = within("the summary", told.recv()).await.unwrap();
    assert_eq!((summary.reason, summary.events), (CloseReason::ClientGone, 1));
    stays.read_until("data: 20\n\n").await;
    assert!(told.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_holds_nobody_up_once_its_connection_is_gone() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let shutdown = CancellationToken::new();
    let (tell, mut told) = unbounded_channel();
    let layer = SseLayer::new().shutdown(shutdown.clone()).on_close(move |summary| tell.send(summary).unwrap());
    let (address, mut running) = Server::Axum.run(app(layer), shutdown.clone()).await;
    let stalled = [asked(address, "/ours/ready").await, asked(address, "/upstream/ready").await];
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
    // The others end at once.
    assert!(reads.complete().await.text().contains("retry: "));
    // What is full of events that nobody reads is not asked for more, so these wait for their connections.
    let waits = tokio::time::timeout(Duration::from_millis(200), &mut running).await.is_err();
    println!("the server waits for clients that do not read: {waits}");
    drop(stalled);
    if waits {
        within("the server to return", running).await.unwrap();
    }
    let mut reasons = Vec::new();
    while let Some(summary) = within("the summaries", told.recv()).await {
        reasons.push(summary.reason);
    }
    assert_eq!(reasons.len(), 3);
}
