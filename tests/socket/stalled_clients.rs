//! The memory of clients that do not read, and the latency of other clients beside them.

use crate::request;
use axum::{Router, extract::State, routing::get, serve::ListenerExt};
use futures_util::future::join;
use std::{
    env, fmt, fs,
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};
use support::client::{Answer, Protocol, within};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::TcpListener,
    time::sleep,
};
use tower_sse::{
    ClientTimeout, Event, SseStream,
    hub::{Error, Hub, Start, Subscription},
};

const STALLED: usize = 50;
/// Ten minutes of 20 events per second. Each event has 256 bytes.
const SECONDS: usize = 600;
const EVENTS_PER_SECOND: usize = 20;
const EVENTS: usize = SECONDS * EVENTS_PER_SECOND;
const MAX_KIB_PER_CLIENT: usize = 512;

/// The environment variable that makes this test the server.
///
/// The test starts itself again as a separate process, so that the memory of the server contains
/// nothing of the clients.
const SERVER: &str = "TOWER_SSE_SERVER_OF_STALLED_CLIENTS";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_clients_use_bounded_memory_without_delaying_readers() {
    const NAME: &str = "stalled_clients::stalled_clients_use_bounded_memory_without_delaying_readers";
    if env::var_os(SERVER).is_some() {
        return serve_stalled_clients().await;
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
    let text = async |path| Protocol::Http1.get(address, path, &[]).await.complete().await.text();
    let number = async |path| text(path).await.parse::<usize>().unwrap();
    let reader = Protocol::Http1.get(address, "/events", &[]).await;
    let mut reader = Reader { answer: reader };

    // The first ten minutes fill the topic and all buffers that grow only once.
    let (_, alone) = join(text("/ten_minutes"), reader.read()).await;
    let before = number("/memory").await;
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        stalled.push(request(address, "/events").await);
    }
    while number("/subscribers").await < STALLED + 1 {
        sleep(Duration::from_millis(5)).await;
    }
    let (_, beside_stalled) = join(text("/ten_minutes"), reader.read()).await;
    let after = number("/memory").await;
    let in_kernel = longest_queue(address.port());

    drop(stalled);
    while number("/subscribers").await > 1 {
        sleep(Duration::from_millis(5)).await;
    }
    let most = number("/most_events").await;
    let per_client = after.saturating_sub(before) / STALLED + in_kernel;
    println!("memory of the server: {before} KiB, then {after} KiB with {STALLED} stalled clients");
    println!("per stalled client: {per_client} KiB, at most {in_kernel} KiB of them in the kernel");
    println!("events that the transport took for a stalled client: at most {most} of {EVENTS}");
    println!("latency of a client that reads: {alone}; beside stalled clients: {beside_stalled}");
    assert!(most < EVENTS, "a client did not stall");
    assert!(per_client <= MAX_KIB_PER_CLIENT, "{per_client} KiB per stalled client");
    // The machine may be busier in the second run.
    let limit = 10 * alone.median + Duration::from_secs(2);
    assert!(beside_stalled.median < limit, "{alone}; beside stalled clients: {beside_stalled}");
}

async fn serve_stalled_clients() {
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
            for _ in 0..EVENTS_PER_SECOND {
                let event = Event::new(format!("{:<256}", micros()));
                hub.topic("news").publish(event).await.unwrap();
            }
        }
    };
    let memory = async || {
        // `statm` is less exact: each thread can lag by some pages.
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
        // The topic retains all events, so that a reader gets them all on a busy machine, too.
        .with_state(Shared { hub: Hub::builder().max_events(EVENTS).build(), most: Arc::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("listening on {}", listener.local_addr().unwrap());
    let listener = listener.tap_io(|tcp| ClientTimeout::default().apply(tcp).unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    // The end of the parent process closes the standard input and ends this process.
    let mut input = Vec::new();
    tokio::io::stdin().read_to_end(&mut input).await.unwrap();
}

/// Returns the longest send queue of a connection of this port, in KiB.
///
/// The queue has the bytes that the kernel has not sent, and those without an acknowledgement.
fn longest_queue(port: u16) -> usize {
    let connections = fs::read_to_string("/proc/net/tcp").unwrap();
    let queues = connections.lines().skip(1).filter_map(|line| {
        // Index, local address, remote address, state, and the queues `tx:rx` in hexadecimal.
        let fields: Vec<_> = line.split_whitespace().collect();
        let (sent, _) = fields[4].split_once(':').unwrap();
        fields[1].ends_with(&format!(":{port:04X}")).then(|| usize::from_str_radix(sent, 16).unwrap())
    });
    queues.max().unwrap().div_ceil(1024)
}

fn micros() -> u128 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros()
}

/// A client that reads, and measures the latency of each event.
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
            // A piece is a frame, which has whole events. The first event is the cursor, without
            // data.
            for line in String::from_utf8(body).unwrap().lines() {
                if let Some(published) = line.strip_prefix("data: ").filter(|data| !data.is_empty()) {
                    let published = published.trim_end().parse::<u128>().expect("the time of publishing, and no gap");
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
