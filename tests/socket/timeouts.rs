//! The time after which the server closes the connection of a client.

use crate::request;
use axum::{Router, extract::State, routing::get, serve::ListenerExt};
use futures_util::{StreamExt, future::join_all, stream};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use nix::{
    libc,
    sys::socket::{SetSockOpt, sockopt::SetUsize},
};
use socket2::SockRef;
use static_assertions::assert_impl_all;
use std::{
    collections::HashSet,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use support::client::{Answer, Http2, Protocol, within};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::{self, Runtime},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::{AbortHandle, spawn_blocking},
    time::sleep,
};
use tower_sse::{ClientTimeout, CloseReason, Event, Heartbeat, SseStream, StreamSummary};

/// The timeout of the tests, so long that [`TOLERANCE`] covers the delays of the kernel.
///
/// The first probe of a full window is sent after 200 milliseconds, and can fill the window again.
/// The timers of the kernel are up to 256 milliseconds late.
const TIMEOUT: Duration = Duration::from_secs(4);
const TOLERANCE: Duration = Duration::from_millis(800);

assert_impl_all!(ClientTimeout: Send, Sync, Unpin, Copy, fmt::Debug);

/// A server that reports the end of each stream.
struct Server {
    address: SocketAddr,
    closed: UnboundedReceiver<Closed>,
    serving: AbortHandle,
}

struct Closed {
    summary: StreamSummary,
    at: Instant,
    /// The last time that the transport polled the stream.
    last_polled: Instant,
}

#[derive(Clone)]
struct Streams {
    closed: UnboundedSender<Closed>,
}

impl Streams {
    fn stream<S: stream::Stream<Item = Event> + Send + 'static>(
        self,
        events: S,
    ) -> SseStream<impl stream::Stream<Item = Event>> {
        let last_polled = Arc::new(Mutex::new(Instant::now()));
        let polled = Arc::clone(&last_polled);
        let mut events = Box::pin(events);
        let events = stream::poll_fn(move |cx| {
            *polled.lock().unwrap() = Instant::now();
            events.as_mut().poll_next(cx)
        });
        SseStream::new(events).on_close(move |summary| {
            let last_polled = *last_polled.lock().unwrap();
            // A test that has ended has dropped the receiver.
            let _ended = self.closed.send(Closed { summary, at: Instant::now(), last_polled });
        })
    }
}

/// Serves three streams.
///
/// `/endless` has always another event. `/silent` has one event and no heartbeats. `/heartbeats`
/// has one event and a heartbeat every 100 milliseconds.
fn app() -> (Router, UnboundedReceiver<Closed>) {
    let (sender, closed) = unbounded_channel();
    let hello = || stream::iter([Event::new("hello")]).chain(stream::pending());
    let endless = async |State(streams): State<Streams>| {
        let event = Event::new("x".repeat(4096));
        streams.stream(stream::repeat_with(move || event.clone()))
    };
    let silent = async move |State(streams): State<Streams>| streams.stream(hello()).without_heartbeat();
    let heartbeats = async move |State(streams): State<Streams>| {
        streams.stream(hello()).heartbeat(Heartbeat::every(Duration::from_millis(100)))
    };
    let app = Router::new().route("/endless", get(endless)).route("/silent", get(silent));
    (app.route("/heartbeats", get(heartbeats)).with_state(Streams { closed: sender }), closed)
}

/// The program that accepts the connections.
#[derive(Clone, Copy, Debug)]
enum By {
    Axum,
    Serve,
}

impl By {
    const ALL: [Self; 2] = [Self::Axum, Self::Serve];
}

impl Server {
    /// Starts a server as the documentation shows.
    async fn start(by: By, timeout: Option<ClientTimeout>) -> Self {
        let (app, closed) = app();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = match (by, timeout) {
            (By::Axum, Some(timeout)) => {
                let listener = listener.tap_io(move |tcp| timeout.apply(tcp).unwrap());
                tokio::spawn(axum::serve(listener, app).into_future()).abort_handle()
            }
            (By::Axum, None) => tokio::spawn(axum::serve(listener, app).into_future()).abort_handle(),
            (By::Serve, timeout) => {
                let server = tower_sse::serve(listener, app);
                let server = match timeout {
                    Some(timeout) => server.client_timeout(timeout),
                    None => server.without_client_timeout(),
                };
                tokio::spawn(server.into_future()).abort_handle()
            }
        };
        Self { address, closed, serving }
    }

    /// Starts a server of hyper alone, whose setting `half_close` axum does not offer.
    async fn with_half_close(half_close: bool) -> Self {
        let (app, closed) = app();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accept = async move {
            while let Ok((tcp, _)) = listener.accept().await {
                ClientTimeout::default().apply(&tcp).unwrap();
                let service = TowerToHyperService::new(app.clone());
                let mut builder = hyper::server::conn::http1::Builder::new();
                tokio::spawn(builder.half_close(half_close).serve_connection(TokioIo::new(tcp), service));
            }
        };
        Self { address, closed, serving: tokio::spawn(accept).abort_handle() }
    }

    /// Waits until a stream has ended, and checks that its client is gone.
    async fn client_gone(&mut self) -> Closed {
        let closed = within("the server to close the connection", self.closed.recv()).await.unwrap();
        assert_eq!(closed.summary.reason, CloseReason::ClientGone);
        closed
    }

    /// Returns whether no stream has ended.
    fn is_serving(&self) -> bool {
        self.closed.is_empty()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A client that receives the head of a response, and then stops: no thread runs its runtime.
struct Stopped {
    runtime: Option<Runtime>,
    _answer: Answer,
}

impl Stopped {
    async fn get(protocol: Protocol, address: SocketAddr, path: &'static str) -> Self {
        let client = move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let answer = runtime.block_on(protocol.get(address, path, &[]));
            Self { runtime: Some(runtime), _answer: answer }
        };
        spawn_blocking(client).await.unwrap()
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn read_until(tcp: &mut TcpStream, text: &str) {
    let mut received = Vec::new();
    while !received.windows(text.len()).any(|window| window == text.as_bytes()) {
        let length = within(text, tcp.read_buf(&mut received)).await.unwrap();
        assert!(length > 0, "the stream ended before {text:?}: {:?}", String::from_utf8_lossy(&received));
    }
}

#[derive(Clone, Copy)]
struct MinTtl;
nix::setsockopt_impl!(MinTtl, libc::IPPROTO_IP, libc::IP_MINTTL, usize, SetUsize);

/// Drops all packets to a client from now on, as if its network had failed.
///
/// Its kernel drops packets without the highest TTL, because they may have crossed a router
/// (RFC 5082). This includes all packets, whose TTL is usually 64. It sends no reply to them. A
/// packet filter would do the same, but needs privileges on newer kernels.
fn vanish(client: &TcpStream) {
    MinTtl.set(client, &255).unwrap();
}

fn assert_about_timeout(what: &str, seen: Duration) {
    println!("{what}: closed after {seen:?} with a timeout of {TIMEOUT:?}");
    assert!(seen.abs_diff(TIMEOUT) < TOLERANCE, "{what}: closed after {seen:?}, not {TIMEOUT:?}");
}

#[tokio::test]
async fn client_that_stops_reading_is_closed_after_timeout() {
    let one = async |by, protocol| {
        let mut server = Server::start(by, Some(ClientTimeout::after(TIMEOUT))).await;
        let _client = Stopped::get(protocol, server.address, "/endless").await;
        let closed = server.client_gone().await;
        assert_about_timeout(&format!("{by:?}, {protocol:?}, the window is zero"), closed.at - closed.last_polled);
    };
    join_all(By::ALL.into_iter().flat_map(|by| Protocol::ALL.map(|protocol| one(by, protocol)))).await;
}

#[tokio::test]
async fn vanished_client_is_closed_after_timeout() {
    let one = async |by, path| {
        let mut server = Server::start(by, Some(ClientTimeout::after(TIMEOUT))).await;
        let mut client = request(server.address, path).await;
        read_until(&mut client, "hello\n\n").await;
        vanish(&client);
        let vanished = Instant::now();
        let closed = server.client_gone().await;
        assert_about_timeout(&format!("{by:?}, {path}, the packets are dropped"), closed.at - vanished);
    };
    join_all(By::ALL.into_iter().flat_map(|by| ["/silent", "/heartbeats"].map(|path| one(by, path)))).await;
}

/// Checks that only the timeout closes the connections in the two tests above.
#[tokio::test]
async fn without_timeout_both_clients_stay_connected() {
    let mut servers = Vec::new();
    let mut stopped = Vec::new();
    for (by, protocol) in By::ALL.into_iter().flat_map(|by| Protocol::ALL.map(|protocol| (by, protocol))) {
        let server = Server::start(by, None).await;
        stopped.push(Stopped::get(protocol, server.address, "/endless").await);
        servers.push(server);
    }
    let mut vanished = Vec::new();
    for (by, path) in By::ALL.into_iter().flat_map(|by| ["/silent", "/heartbeats"].map(|path| (by, path))) {
        let server = Server::start(by, None).await;
        let mut client = request(server.address, path).await;
        read_until(&mut client, "hello\n\n").await;
        vanish(&client);
        vanished.push(client);
        servers.push(server);
    }
    sleep(TIMEOUT + TOLERANCE).await;
    assert!(servers.iter().all(Server::is_serving));
    for client in vanished {
        assert!(client.try_read(&mut [0]).is_err(), "the client received a packet");
    }
}

#[tokio::test]
async fn slow_reader_is_not_closed() {
    let timeout = Duration::from_secs(1);
    let one = async |by| {
        let server = Server::start(by, Some(ClientTimeout::after(timeout))).await;
        let mut client = request(server.address, "/endless").await;
        let mut piece = vec![0; 32 * 1024];
        let end = Instant::now() + 3 * timeout;
        let mut received = 0;
        while Instant::now() < end {
            received += within("more bytes", client.read(&mut piece)).await.unwrap();
            sleep(Duration::from_millis(100)).await;
        }
        assert!(server.is_serving());
        println!("{by:?}: {} KiB in {:?}", received / 1024, 3 * timeout);
    };
    join_all(By::ALL.map(one)).await;
}

#[tokio::test]
async fn unread_http2_stream_stays_open_within_its_window() {
    /// The window that hyper's client gives to a stream.
    const WINDOW: u64 = 2 * 1024 * 1024;
    /// The buffers of hyper's server.
    const BUFFERS: u64 = 512 * 1024;
    let timeout = Duration::from_secs(1);
    let one = async |by| {
        let mut server = Server::start(by, Some(ClientTimeout::after(timeout))).await;
        let client = Http2::connect(server.address).await;
        let unread = client.get("/endless", &[]).await;
        sleep(2 * timeout).await;
        assert!(server.is_serving());
        // The other streams of the connection continue.
        client.get("/silent", &[]).await.read_until("hello\n\n").await;
        let other = server.client_gone().await;
        assert_eq!(other.summary.events, 1);
        drop(unread);
        let closed = server.client_gone().await;
        println!("{by:?}: the transport took {} KiB of an unread stream", closed.summary.bytes / 1024);
        assert!((WINDOW..WINDOW + BUFFERS).contains(&closed.summary.bytes), "{:?}", closed.summary);
    };
    join_all(By::ALL.map(one)).await;
}

#[tokio::test]
async fn half_closed_connection_counts_as_closed() {
    for mut server in [Server::with_half_close(false).await, Server::start(By::Serve, None).await] {
        let mut client = request(server.address, "/heartbeats").await;
        read_until(&mut client, "hello\n\n").await;
        client.shutdown().await.unwrap();
        server.client_gone().await;
        let mut rest = Vec::new();
        within("the end", client.read_to_end(&mut rest)).await.unwrap();
        assert!(
            !String::from_utf8(rest).unwrap().ends_with("0\r\n\r\n"),
            "the body has an end, although the client is gone"
        );
    }
}

#[tokio::test]
async fn half_closed_client_receives_events_until_it_disconnects() {
    let mut server = Server::with_half_close(true).await;
    let mut client = request(server.address, "/heartbeats").await;
    read_until(&mut client, "hello\n\n").await;
    client.shutdown().await.unwrap();
    for _ in 0..5 {
        read_until(&mut client, ":\n").await;
    }
    assert!(server.is_serving());
    drop(client);
    server.client_gone().await;
}

#[tokio::test]
async fn every_timeout_sets_the_documented_options() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let socket = SockRef::from(&tcp);
    let seconds = Duration::from_secs;
    for (timeout, user_timeout, idle, interval, retries) in [
        (Duration::ZERO, seconds(1), 1..=1, 1, 1..=1),
        (seconds(1), seconds(1), 1..=1, 1, 1..=1),
        (Duration::from_millis(2500), Duration::from_millis(2500), 1..=1, 1, 2..=2),
        (seconds(3), seconds(3), 1..=1, 1, 2..=2),
        (seconds(10), seconds(10), 4..=7, 1, 3..=6),
        (seconds(30), seconds(30), 15..=23, 1, 7..=15),
        (seconds(100), seconds(100), 50..=75, 1, 25..=50),
        (seconds(300), seconds(300), 150..=225, 5, 15..=30),
        (Duration::MAX, Duration::from_millis(i32::MAX as u64), 16_387..=24_577, 546, 15..=30),
    ] {
        let keep_alive_timeout = (user_timeout + Duration::from_millis(999)).as_secs().clamp(2, 32_767);
        let mut idle_times = HashSet::new();
        for _ in 0..50 {
            ClientTimeout::after(timeout).apply(&tcp).unwrap();
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(user_timeout), "{timeout:?}");
            assert!(socket.keepalive().unwrap());
            let first = socket.tcp_keepalive_time().unwrap().as_secs();
            let count = socket.tcp_keepalive_retries().unwrap();
            assert!(idle.contains(&first), "{timeout:?}: {first}");
            assert!(retries.contains(&count), "{timeout:?}: {count}");
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), seconds(interval), "{timeout:?}");
            assert_eq!(first + u64::from(count) * interval, keep_alive_timeout, "{timeout:?}");
            assert_eq!(socket.tcp_notsent_lowat().unwrap(), 128 * 1024);
            assert!(socket.tcp_nodelay().unwrap());
            idle_times.insert(first);
        }
        assert_eq!(idle_times.len() > 1, idle.start() < idle.end(), "{timeout:?}: {idle_times:?}");
    }
    assert_eq!(ClientTimeout::default(), ClientTimeout::after(seconds(30)));
}

#[test]
fn apply_to_unix_socket_is_an_error() {
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    ClientTimeout::default().apply(&socket).unwrap_err();
}
