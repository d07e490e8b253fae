//! The clients of a node: responses whose bodies are read to the last byte, each by a task of its own; or connections of another
//! process.

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

/// Nanoseconds, the same for all processes.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

#[derive(Default)]
pub(crate) struct Audience {
    heard: Arc<Heard>,
    clients: usize,
    _tasks: JoinSet<()>,
    _server: Option<Server>,
}

#[derive(Default)]
struct Heard {
    events: AtomicUsize,
    /// How often somebody got some of them.
    times: AtomicUsize,
    /// As many are waited for.
    enough: AtomicUsize,
    is_enough: Notify,
    /// How late each came, if that is noted.
    delays: Mutex<Vec<u64>>,
}

impl Audience {
    pub(crate) async fn of(topic: &Topic, clients: usize, is_timed: bool) -> Result<Self, Error> {
        let mut audience = Self { clients, ..Self::default() };
        for _ in 0..clients {
            let heard = audience.heard.clone();
            let mut body = Box::pin(heard.stream(topic, is_timed).await?.into_http_response().into_body());
            audience._tasks.spawn(async move {
                while let Some(Ok(frame)) = body.frame().await {
                    black_box(frame);
                }
            });
        }
        // Each has its first byte, and waits: some 60 tasks have their turn between two of this one.
        for _ in 0..=clients {
            yield_now().await;
        }
        Ok(audience)
    }

    /// Connections that are still to come, to the port that is returned. What they get is noted before it is sent.
    pub(crate) async fn of_connections(topic: &Topic, clients: usize) -> (Self, u16) {
        let heard = Arc::<Heard>::default();
        let (noted, topic) = (heard.clone(), topic.clone());
        let server = serve(tower::service_fn(move |_| {
            let (heard, topic) = (noted.clone(), topic.clone());
            async move { Ok::<_, Error>(heard.stream(&topic, false).await?.into_http_response()) }
        }));
        let server = server.await;
        let port = server.address.port();
        (Self { heard, clients, _server: Some(server), ..Self::default() }, port)
    }

    pub(crate) fn begin(&self) {
        self.heard.events.store(0, Relaxed);
        self.heard.times.store(0, Relaxed);
        self.heard.enough.store(usize::MAX, Relaxed);
    }

    pub(crate) fn has_heard(&self) -> usize {
        self.heard.events.load(Relaxed) / self.clients.max(1)
    }

    /// Waits until everybody has got so many events since it began. Returns how often they got some, together.
    pub(crate) async fn hears(&self, events: usize) -> usize {
        let enough = events * self.clients;
        self.heard.enough.store(enough, Relaxed);
        while self.heard.events.load(Relaxed) < enough {
            self.heard.is_enough.notified().await;
        }
        self.heard.times.load(Relaxed)
    }

    /// How late each of them came.
    pub(crate) fn delays(&self) -> Vec<u64> {
        self.heard.delays.lock().map(|mut delays| std::mem::take(&mut *delays)).unwrap_or_default()
    }
}

/// So many connections to this port of another process, and how to read them to their end.
pub(crate) async fn connect(port: u16, clients: usize) -> io::Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        connection.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await?;
        let mut buffer = [0; 8192];
        // The head of the response, so it is subscribed.
        connection.read_u8().await?;
        tasks.spawn(async move { while matches!(connection.read(&mut buffer).await, Ok(1..)) {} });
    }
    Ok(tasks)
}

impl Heard {
    async fn stream(
        self: Arc<Self>,
        topic: &Topic,
        is_timed: bool,
    ) -> Result<SseStream<impl Stream<Item = Result<EncodedEvents, SubscriptionError>> + Send + use<>>, Error> {
        let events = topic.subscribe(Start::Latest).await?;
        Ok(SseStream::new(events.inspect(move |events| {
            if let Ok(events) = events {
                self.hear(events, is_timed);
            }
        })))
    }

    fn hear(&self, events: &EncodedEvents, is_timed: bool) {
        if is_timed {
            self.note(events);
        }
        self.times.fetch_add(1, Relaxed);
        let count = events.count();
        let before = self.events.fetch_add(count, Relaxed);
        let enough = self.enough.load(Relaxed);
        if before < enough && before + count >= enough {
            self.is_enough.notify_one();
        }
    }

    fn note(&self, events: &EncodedEvents) {
        let now = now();
        let text = std::str::from_utf8(events.as_bytes()).unwrap_or_default();
        let sent = text.lines().filter_map(|line| line.strip_prefix("data: ")?.trim_end().parse::<u64>().ok());
        if let Ok(mut delays) = self.delays.lock() {
            delays.extend(sent.map(|sent| now.saturating_sub(sent)));
        }
    }
}
