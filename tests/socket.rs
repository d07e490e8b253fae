//! Clients that do not read, or are not there any more, on real sockets: when they are given up, and what they cost.
//!
//! On Linux, which has `TCP_USER_TIMEOUT`. Neither privileges nor programs are needed: packets are dropped by an option of
//! the client's own socket.
#![cfg(target_os = "linux")]

use axum::{Router, extract::State, routing::get, serve::ListenerExt};
use futures_util::{StreamExt, future::join, stream};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use nix::{
    libc,
    sys::socket::{SetSockOpt, sockopt::SetUsize},
};
use socket2::SockRef;
use static_assertions::assert_impl_all;
use std::{
    env, fmt, fs,
    net::SocketAddr,
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};
use support::client::{Answer, Http2, Protocol, within};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    runtime::{self, Runtime},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::{AbortHandle, spawn_blocking},
    time::sleep,
};
use tower_sse::{
    ClientTimeout, CloseReason, Event, Heartbeat, SseStream, StreamSummary,
    hub::{Error, Hub, Start, Subscription},
};

/// Long enough for a fifth of it to be more than what does not depend on it: the first probe of a window goes out 200
/// milliseconds after it was full, may fill it again, and the kernel's timers are up to 256 milliseconds late.
const TIMEOUT: Duration = Duration::from_secs(4);
const TOLERANCE: Duration = Duration::from_millis(800);

assert_impl_all!(ClientTimeout: Send, Sync, Unpin, Copy, fmt::Debug);

/// A server with one stream on each path, of which it tells how it ended.
struct Server {
    address: SocketAddr,
    closed: UnboundedReceiver<Closed>,
    serving: AbortHandle,
}

struct Closed {
    summary: StreamSummary,
    at: Instant,
    /// When the transport asked the stream for an event for the last time.
    last_asked: Instant,
}

#[derive(Clone)]
struct Streams {
    tell: UnboundedSender<Closed>,
}

impl Streams {
    fn stream<S: stream::Stream<Item = Event> + Send + 'static>(
        self,
        events: S,
    ) -> SseStream<impl stream::Stream<Item = Event>> {
        let last_asked = Arc::new(Mutex::new(Instant::now()));
        let asked = Arc::clone(&last_asked);
        let mut events = Box::pin(events);
        let events = stream::poll_fn(move |cx| {
            *asked.lock().unwrap() = Instant::now();
            events.as_mut().poll_next(cx)
        });
        SseStream::new(events).on_close(move |summary| {
            let last_asked = *last_asked.lock().unwrap();
            // A test that has seen enough does not listen any more.
            let _unheard = self.tell.send(Closed { summary, at: Instant::now(), last_asked });
        })
    }
}

/// `/full` has always one more event, `/silent` has one and no heartbeat, `/beats` has one and a heartbeat every 100 ms.
fn app() -> (Router, UnboundedReceiver<Closed>) {
    let (tell, closed) = unbounded_channel();
    let hello = || stream::iter([Event::new("hello")]).chain(stream::pending());
    let full = async |State(streams): State<Streams>| {
        let event = Event::new("x".repeat(4096));
        streams.stream(stream::repeat_with(move || event.clone()))
    };
    let silent = async move |State(streams): State<Streams>| streams.stream(hello()).without_heartbeat();
    let beats = async move |State(streams): State<Streams>| {
        streams.stream(hello()).heartbeat(Heartbeat::every(Duration::from_millis(100)))
    };
    let app = Router::new().route("/full", get(full)).route("/silent", get(silent)).route("/beats", get(beats));
    (app.with_state(Streams { tell }), closed)
}

impl Server {
    /// By axum, in the way that the documentation shows.
    async fn start(timeout: Option<ClientTimeout>) -> Self {
        let (app, closed) = app();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let listener = listener.tap_io(move |tcp| {
            if let Some(timeout) = timeout {
                timeout.apply(tcp).unwrap();
            }
        });
        let serving = tokio::spawn(async move { axum::serve(listener, app).await }).abort_handle();
        Self { address, closed, serving }
    }

    /// By hyper alone, of which `half_close` is a setting.
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

    async fn gone(&mut self) -> Closed {
        let closed = within("the server to give up the client", self.closed.recv()).await.unwrap();
        assert_eq!(closed.summary.reason, CloseReason::ClientGone);
        closed
    }

    fn is_serving(&self) -> bool {
        self.closed.is_empty()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A client that has got the head of its response, and then stops: nothing runs its runtime.
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

async fn request(address: SocketAddr, path: &str) -> TcpStream {
    let mut tcp = within("a connection", TcpStream::connect(address)).await.unwrap();
    tcp.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await.unwrap();
    tcp
}

async fn read_until(tcp: &mut TcpStream, text: &str) {
    let mut received = Vec::new();
    while !received.windows(text.len()).any(|window| window == text.as_bytes()) {
        let length = within(text, tcp.read_buf(&mut received)).await.unwrap();
        assert!(length > 0, "it ended before {text:?}: {:?}", String::from_utf8_lossy(&received));
    }
}

#[derive(Clone, Copy)]
struct MinTtl;
nix::setsockopt_impl!(MinTtl, libc::IPPROTO_IP, libc::IP_MINTTL, usize, SetUsize);

/// From now on no packet gets to the client, and it says nothing by itself: it is as if its network were gone.
///
/// Its kernel drops without an answer what could have been through a router, as it has not the highest TTL (RFC 5082).
/// That is everything, as 64 is usual. A packet filter would do the same, but newer kernels ask for privileges then.
fn vanish(client: &TcpStream) {
    MinTtl.set(client, &255).unwrap();
}

fn assert_about_the_timeout(what: &str, seen: Duration) {
    println!("{what}: given up after {seen:?} of {TIMEOUT:?}");
    assert!(seen.abs_diff(TIMEOUT) < TOLERANCE, "{what}: given up after {seen:?}, not {TIMEOUT:?}");
}

#[tokio::test]
async fn a_client_that_stops_reading_is_given_up_when_its_time_is_over() {
    let one = async |protocol| {
        let mut server = Server::start(Some(ClientTimeout::after(TIMEOUT))).await;
        let _client = Stopped::get(protocol, server.address, "/full").await;
        let closed = server.gone().await;
        let seen = closed.at - closed.last_asked;
        assert_about_the_timeout(&format!("{protocol:?}, its window is zero"), seen);
    };
    join(one(Protocol::Http1), one(Protocol::Http2)).await;
}

#[tokio::test]
async fn a_client_that_vanishes_is_given_up_when_its_time_is_over() {
    let one = async |path| {
        let mut server = Server::start(Some(ClientTimeout::after(TIMEOUT))).await;
        let mut client = request(server.address, path).await;
        read_until(&mut client, "hello\n\n").await;
        vanish(&client);
        let vanished = Instant::now();
        let closed = server.gone().await;
        assert_about_the_timeout(&format!("{path}, its packets are dropped"), closed.at - vanished);
    };
    join(one("/silent"), one("/beats")).await;
}

/// What the two tests above would show without a timeout: that it is the timeout which they show.
#[tokio::test]
async fn without_a_timeout_they_are_still_there_after_the_same_time() {
    let mut servers = Vec::new();
    let mut stopped = Vec::new();
    for protocol in Protocol::ALL {
        let server = Server::start(None).await;
        stopped.push(Stopped::get(protocol, server.address, "/full").await);
        servers.push(server);
    }
    let mut vanished = Vec::new();
    for path in ["/silent", "/beats"] {
        let server = Server::start(None).await;
        let mut client = request(server.address, path).await;
        read_until(&mut client, "hello\n\n").await;
        vanish(&client);
        vanished.push(client);
        servers.push(server);
    }
    sleep(TIMEOUT + TOLERANCE).await;
    assert!(servers.iter().all(Server::is_serving));
    for client in vanished {
        assert!(client.try_read(&mut [0]).is_err(), "its packets are dropped indeed");
    }
}

#[tokio::test]
async fn a_client_that_reads_slowly_is_not_given_up() {
    let timeout = Duration::from_secs(1);
    let server = Server::start(Some(ClientTimeout::after(timeout))).await;
    let mut client = request(server.address, "/full").await;
    let mut piece = vec![0; 32 * 1024];
    let end = Instant::now() + 3 * timeout;
    let mut received = 0;
    while Instant::now() < end {
        received += within("more", client.read(&mut piece)).await.unwrap();
        sleep(Duration::from_millis(100)).await;
    }
    assert!(server.is_serving());
    println!("{} KiB in {:?}", received / 1024, 3 * timeout);
}

#[tokio::test]
async fn an_http2_client_that_reads_its_connection_but_not_its_stream_is_left_alone_and_takes_no_more_than_its_window()
{
    /// What hyper's client grants to a stream, and what hyper's server takes beside.
    const WINDOW: u64 = 2 * 1024 * 1024;
    const BESIDE: u64 = 512 * 1024;
    let timeout = Duration::from_secs(1);
    let mut server = Server::start(Some(ClientTimeout::after(timeout))).await;
    let client = Http2::connect(server.address).await;
    let unread = client.get("/full", &[]).await;
    sleep(2 * timeout).await;
    assert!(server.is_serving());
    // The other streams of the connection go on.
    client.get("/silent", &[]).await.read_until("hello\n\n").await;
    let other = server.gone().await;
    assert_eq!(other.summary.events, 1);
    drop(unread);
    let closed = server.gone().await;
    println!("{} KiB of an unread stream were taken", closed.summary.bytes / 1024);
    assert!((WINDOW..WINDOW + BESIDE).contains(&closed.summary.bytes), "{:?}", closed.summary);
}

#[tokio::test]
async fn a_client_that_closes_its_own_direction_is_taken_for_one_that_has_closed() {
    let mut server = Server::with_half_close(false).await;
    let mut client = request(server.address, "/beats").await;
    read_until(&mut client, "hello\n\n").await;
    client.shutdown().await.unwrap();
    server.gone().await;
    let mut rest = Vec::new();
    within("the end", client.read_to_end(&mut rest)).await.unwrap();
    assert!(!String::from_utf8(rest).unwrap().ends_with("0\r\n\r\n"), "it is not the end of the body");
}

#[tokio::test]
async fn with_half_close_it_goes_on_receiving_and_is_noticed_when_it_is_gone() {
    let mut server = Server::with_half_close(true).await;
    let mut client = request(server.address, "/beats").await;
    read_until(&mut client, "hello\n\n").await;
    client.shutdown().await.unwrap();
    for _ in 0..5 {
        read_until(&mut client, ":\n").await;
    }
    assert!(server.is_serving());
    drop(client);
    server.gone().await;
}

#[tokio::test]
async fn every_timeout_can_be_applied_and_the_options_are_those_of_the_documentation() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let socket = SockRef::from(&tcp);
    let seconds = Duration::from_secs;
    for (timeout, user_timeout, idle, interval, retries) in [
        (Duration::ZERO, seconds(1), 1, 1, 1),
        (seconds(1), seconds(1), 1, 1, 1),
        (Duration::from_millis(2500), Duration::from_millis(2500), 1, 1, 2),
        (seconds(3), seconds(3), 1, 1, 2),
        (seconds(10), seconds(10), 7, 1, 3),
        (seconds(30), seconds(30), 15, 5, 3),
        (seconds(100), seconds(100), 52, 16, 3),
        (Duration::MAX, Duration::from_millis(i32::MAX as u64), 16_384, 5461, 3),
    ] {
        ClientTimeout::after(timeout).apply(&tcp).unwrap();
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(user_timeout), "{timeout:?}");
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), seconds(idle), "{timeout:?}");
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), seconds(interval), "{timeout:?}");
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), retries, "{timeout:?}");
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), 128 * 1024);
        assert!(socket.tcp_nodelay().unwrap());
    }
    assert_eq!(ClientTimeout::default(), ClientTimeout::after(seconds(30)));
}

#[test]
fn what_is_no_tcp_socket_is_an_error_and_not_a_panic() {
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    ClientTimeout::default().apply(&socket).unwrap_err();
}

const STALLED: usize = 50;
/// Twenty events a second, of 256 bytes, for ten minutes.
const SECONDS: usize = 600;
const A_SECOND: usize = 20;
const EVENTS: usize = SECONDS * A_SECOND;
const KIB_FOR_EACH: usize = 512;

/// The server is a process of its own, so that its memory is nobody else's: this test, started again with this variable.
const SERVER: &str = "TOWER_SSE_SERVER_OF_STALLED_CLIENTS";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_costs_bounded_memory_and_nobody_else_any_time() {
    const NAME: &str = "a_client_that_does_not_read_costs_bounded_memory_and_nobody_else_any_time";
    if env::var_os(SERVER).is_some() {
        return be_the_server().await;
    }
    let mut server = tokio::process::Command::new(env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture", "--test-threads=1"])
        .env(SERVER, "")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let address = loop {
        let line = within("the server's address", lines.next_line()).await.unwrap().expect("a server that starts");
        if let Some((_, address)) = line.split_once("listening on ") {
            break address.parse().unwrap();
        }
    };
    let ask = async |path| Protocol::Http1.get(address, path, &[]).await.complete().await.text();
    let number = async |path| ask(path).await.parse::<usize>().unwrap();
    let reader = Protocol::Http1.get(address, "/events", &[]).await;
    let mut reader = Reader { answer: reader };

    // The first ten minutes fill the topic, and whatever else fills itself once.
    let (_, alone) = join(ask("/ten_minutes"), reader.read()).await;
    let before = number("/memory").await;
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        stalled.push(request(address, "/events").await);
    }
    while number("/subscribers").await < STALLED + 1 {
        sleep(Duration::from_millis(5)).await;
    }
    let (_, beside) = join(ask("/ten_minutes"), reader.read()).await;
    let after = number("/memory").await;
    let in_the_kernel = longest_queue(address.port());

    drop(stalled);
    while number("/subscribers").await > 1 {
        sleep(Duration::from_millis(5)).await;
    }
    let most = number("/most_events").await;
    let each = after.saturating_sub(before) / STALLED + in_the_kernel;
    println!("memory of the server: {before} KiB, then {after} KiB with {STALLED} stalled clients");
    println!("for each of these: {each} KiB, of which the kernel holds at most {in_the_kernel}");
    println!("events that the transport took for a stalled client: at most {most} of {EVENTS}");
    println!("latency of a client that reads: {alone}; beside those that do not: {beside}");
    assert!(most < EVENTS, "they did not stall");
    assert!(each <= KIB_FOR_EACH, "{each} KiB for each");
    assert!(beside.median < alone.median + Duration::from_millis(250), "{alone}; beside stalled clients: {beside}");
}

async fn be_the_server() {
    #[derive(Clone)]
    struct Shared {
        hub: Hub,
        most: Arc<Mutex<u64>>,
    }
    let events = async |State(Shared { hub, most }): State<Shared>| -> Result<SseStream<Subscription>, Error> {
        let subscription = hub.topic("news").subscribe(Start::Latest).await?;
        Ok(SseStream::new(subscription).on_close(move |summary| {
            let mut most = most.lock().unwrap();
            *most = summary.events.max(*most);
        }))
    };
    let ten_minutes = async |State(Shared { hub, .. }): State<Shared>| {
        let mut seconds = tokio::time::interval(Duration::from_millis(4));
        for _ in 0..SECONDS {
            seconds.tick().await;
            for _ in 0..A_SECOND {
                let event = Event::new(format!("{:<256}", micros()));
                hub.topic("news").publish(event).await.unwrap();
            }
        }
    };
    let memory = async || {
        // Not `statm`, which is behind by some pages for each thread.
        let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let resident = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
        resident.trim().trim_end_matches(" kB").to_owned()
    };
    let subscribers = async |State(Shared { hub, .. }): State<Shared>| hub.topic("news").subscribers().to_string();
    let most_events = async |State(Shared { most, .. }): State<Shared>| most.lock().unwrap().to_string();
    let app = Router::new()
        .route("/events", get(events))
        .route("/ten_minutes", get(ten_minutes))
        .route("/memory", get(memory))
        .route("/subscribers", get(subscribers))
        .route("/most_events", get(most_events))
        // As much as is published, so that one who reads gets it all, however busy the machine is.
        .with_state(Shared { hub: Hub::builder().max_events(EVENTS).build(), most: Arc::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("listening on {}", listener.local_addr().unwrap());
    let listener = listener.tap_io(|tcp| ClientTimeout::default().apply(tcp).unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    // It ends with the test that has started it, however that ends.
    let mut nothing = Vec::new();
    tokio::io::stdin().read_to_end(&mut nothing).await.unwrap();
}

/// How many KiB the kernel holds at most for one connection of this port: what it has not sent, or not been acknowledged.
fn longest_queue(port: u16) -> usize {
    let connections = fs::read_to_string("/proc/net/tcp").unwrap();
    let queues = connections.lines().skip(1).filter_map(|line| {
        // Its number, the local address, the remote one, the state, and the queues `tx:rx`, in hexadecimal.
        let fields: Vec<_> = line.split_whitespace().collect();
        let (sent, _) = fields[4].split_once(':').unwrap();
        fields[1].ends_with(&format!(":{port:04X}")).then(|| usize::from_str_radix(sent, 16).unwrap())
    });
    queues.max().unwrap().div_ceil(1024)
}

fn micros() -> u128 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros()
}

/// A client that reads, and knows how long each event was under way.
struct Reader {
    answer: Answer,
}

struct Latency {
    median: Duration,
    slowest_percent: Duration,
}

impl Reader {
    /// Reads ten minutes of events.
    async fn read(&mut self) -> Latency {
        let mut latencies = Vec::new();
        while latencies.len() < EVENTS {
            assert_eq!(self.answer.more().await, Ok(true));
            let now = micros();
            let body = std::mem::take(&mut self.answer.body);
            // Its pieces are frames, and a frame has whole events. The first one is the place where it begins, without data.
            for line in String::from_utf8(body).unwrap().lines() {
                if let Some(published) = line.strip_prefix("data: ").filter(|data| !data.is_empty()) {
                    let published = published.trim_end().parse::<u128>().expect("when it was published, and no gap");
                    latencies.push(Duration::from_micros(now.saturating_sub(published) as u64));
                }
            }
        }
        latencies.sort_unstable();
        Latency { median: latencies[EVENTS / 2], slowest_percent: latencies[EVENTS * 99 / 100] }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in the median, {:?} at 99 %", self.median, self.slowest_percent)
    }
}
