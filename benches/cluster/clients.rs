//! The clients of a node: tasks that read the bodies of responses to their end, or connections of
//! another process.

use futures_util::{Stream, StreamExt};
use http_body_util::BodyExt;
use std::{
    hint::black_box,
    io,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};
use support::server::{Server, serve};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::{JoinSet, yield_now},
};
use tower_sse::{
    EncodedEvents, SseStream,
    hub::{Error, Start, SubscriptionError, Topic},
};

/// Returns the time in nanoseconds, from a clock that all processes share.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

#[derive(Default)]
pub(crate) struct Clients {
    received: Arc<Received>,
    count: usize,
    _tasks: JoinSet<()>,
    _server: Option<Server>,
}

#[derive(Default)]
struct Received {
    events: AtomicUsize,
    /// The number of deliveries. A delivery has one or more events.
    deliveries: AtomicUsize,
    /// The number of events that `wait_for` waits for.
    expected: AtomicUsize,
    is_complete: Notify,
    /// The delay of each event in nanoseconds, if delays are recorded.
    delays: Mutex<Vec<u64>>,
}

impl Clients {
    /// Spawns tasks that read the topic from now on.
    pub(crate) async fn spawn(topic: &Topic, count: usize, is_timed: bool) -> Result<Self, Error> {
        let mut clients = Self { count, ..Self::default() };
        for _ in 0..count {
            let received = clients.received.clone();
            let mut body = Box::pin(received.stream(topic, is_timed).await?.into_http_response().into_body());
            clients._tasks.spawn(async move {
                while let Some(Ok(frame)) = body.frame().await {
                    black_box(frame);
                }
            });
        }
        // Lets each task read its first byte and then wait. The runtime polls about 60 tasks
        // between two polls of this future.
        for _ in 0..=count {
            yield_now().await;
        }
        Ok(clients)
    }

    /// Starts a server for the connections of another process, and returns its port.
    ///
    /// Events count as received just before they are sent.
    pub(crate) async fn serve(topic: &Topic, count: usize) -> (Self, u16) {
        let received = Arc::<Received>::default();
        let (recorder, topic) = (received.clone(), topic.clone());
        let server = serve(tower::service_fn(move |_| {
            let (received, topic) = (recorder.clone(), topic.clone());
            async move { Ok::<_, Error>(received.stream(&topic, false).await?.into_http_response()) }
        }));
        let server = server.await;
        let port = server.address.port();
        (Self { received, count, _server: Some(server), ..Self::default() }, port)
    }

    /// Resets the counters.
    pub(crate) fn begin(&self) {
        self.received.events.store(0, Relaxed);
        self.received.deliveries.store(0, Relaxed);
        self.received.expected.store(usize::MAX, Relaxed);
    }

    /// Returns the average number of events that a client has received since `begin`.
    pub(crate) fn events_per_client(&self) -> usize {
        self.received.events.load(Relaxed) / self.count.max(1)
    }

    /// Waits until the clients have received this many events each since `begin`.
    ///
    /// Returns the number of deliveries to all clients.
    pub(crate) async fn wait_for(&self, events: usize) -> usize {
        let expected = events * self.count;
        self.received.expected.store(expected, Relaxed);
        while self.received.events.load(Relaxed) < expected {
            self.received.is_complete.notified().await;
        }
        self.received.deliveries.load(Relaxed)
    }

    /// Takes the recorded delays, in nanoseconds.
    pub(crate) fn delays(&self) -> Vec<u64> {
        self.received.delays.lock().map(|mut delays| std::mem::take(&mut *delays)).unwrap_or_default()
    }
}

/// Opens connections to the server of another process, and spawns tasks that read them.
pub(crate) async fn connect(port: u16, count: usize) -> io::Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        connection.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await?;
        let mut buffer = [0; 8192];
        // The response has begun, so the connection is subscribed.
        connection.read_u8().await?;
        tasks.spawn(async move { while matches!(connection.read(&mut buffer).await, Ok(1..)) {} });
    }
    Ok(tasks)
}

impl Received {
    async fn stream(
        self: Arc<Self>,
        topic: &Topic,
        is_timed: bool,
    ) -> Result<SseStream<impl Stream<Item = Result<EncodedEvents, SubscriptionError>> + Send + use<>>, Error> {
        let events = topic.subscribe(Start::Latest).await?;
        Ok(SseStream::new(events.inspect(move |events| {
            if let Ok(events) = events {
                self.record(events, is_timed);
            }
        })))
    }

    fn record(&self, events: &EncodedEvents, is_timed: bool) {
        if is_timed {
            self.record_delays(events);
        }
        self.deliveries.fetch_add(1, Relaxed);
        let count = events.count();
        let before = self.events.fetch_add(count, Relaxed);
        let expected = self.expected.load(Relaxed);
        if before < expected && before + count >= expected {
            self.is_complete.notify_one();
        }
    }

    fn record_delays(&self, events: &EncodedEvents) {
        let now = now();
        let text = std::str::from_utf8(events.as_bytes()).unwrap_or_default();
        let sent = text.lines().filter_map(|line| line.strip_prefix("data: ")?.trim_end().parse::<u64>().ok());
        if let Ok(mut delays) = self.delays.lock() {
            delays.extend(sent.map(|sent| now.saturating_sub(sent)));
        }
    }
}
