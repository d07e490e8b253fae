//! A live page of the machine it runs on: its load, memory and uptime, once a second.
//!
//! ```console
//! $ cargo run --example quickstart                        # http://127.0.0.1:3000
//! $ cargo run --example quickstart 127.0.0.1:0 100        # any free port, a sample every 100 milliseconds
//! ```
//!
//! Stop the server and start it again, or cut the network, while the page is open: it catches up by itself.

use axum::{Router, extract::State, response::Html, routing::get};
use std::{
    collections::VecDeque,
    env,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};
use sysinfo::System;
use tokio::{net::TcpListener, sync::broadcast, time::sleep};
use tokio_stream::{Stream, StreamExt, wrappers::BroadcastStream};
use tower_sse::{BoxError, EncodedEvents, Event, Heartbeat, LastEventId, Rejection, SseLayer, SseStream};

/// How many milliseconds of events are kept for those who come back, and how many of them a newcomer gets.
const KEPT: u64 = 5 * 60 * 1000;
const RECENT: u64 = 60 * 1000;

#[tokio::main]
async fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let address = args.next().unwrap_or_else(|| "127.0.0.1:3000".into());
    let every = args.next().unwrap_or_else(|| "1000".into());
    if let Err(error) = run(&address, &every).await {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

async fn run(address: &str, every: &str) -> Result<(), BoxError> {
    let every = match every.parse() {
        Ok(milliseconds @ 1..=60_000) => Duration::from_millis(milliseconds),
        _ => return Err(format!("samples every {every:?}? Give milliseconds, from 1 to 60000").into()),
    };
    let listener = TcpListener::bind(address).await.map_err(|error| {
        format!("cannot listen on {address:?}: {error}\nGive another address, such as 127.0.0.1:0 for any free port")
    })?;
    let url = format!("http://{}", listener.local_addr()?);
    println!("Open {url} in a browser, or read the wire:\n  curl -N {url}/events");

    let feed = Arc::new(Feed::new());
    let app = Router::new()
        .route("/", get(Html(include_str!("quickstart.html"))))
        .route("/events", get(events))
        .with_state(feed.clone())
        // The default heartbeat waits for 15 seconds of silence, which this feed never has. This one can be watched.
        .layer(SseLayer::new().retry(Duration::from_secs(1)).heartbeat(Heartbeat::every(every * 2 / 3)));
    tokio::select! {
        served = axum::serve(listener, app).into_future() => Ok(served?),
        sampled = sample(&feed, every) => sampled,
    }
}

async fn events(
    State(feed): State<Arc<Feed>>,
    last: LastEventId,
) -> Result<SseStream<impl Stream<Item = EncodedEvents>>, Rejection> {
    Ok(SseStream::new(feed.subscribe(last.parse()?)))
}

#[derive(Default, serde::Serialize)]
struct Sample {
    load: f64,
    memory_used: u64,
    memory_total: u64,
    uptime: u64,
}

/// Publishes a sample as a plain `message`, and after every fifth the highest of the five as a `peak`.
async fn sample(feed: &Feed, every: Duration) -> Result<(), BoxError> {
    let mut system = System::new();
    let mut peak = Sample::default();
    for count in 1_u64.. {
        system.refresh_memory();
        let now = Sample {
            load: System::load_average().one,
            memory_used: system.used_memory(),
            memory_total: system.total_memory(),
            uptime: System::uptime(),
        };
        feed.publish(Event::json(&now)?);
        peak = Sample { load: peak.load.max(now.load), memory_used: peak.memory_used.max(now.memory_used), ..now };
        if count % 5 == 0 {
            feed.publish(Event::json(&peak)?.event("peak"));
            peak = Sample::default();
        }
        sleep(every).await;
    }
    Ok(())
}

/// What was published, and who hears what comes next: under one lock, so that nothing falls between the two.
struct Feed(Mutex<Log>);

struct Log {
    history: VecDeque<(u64, EncodedEvents)>,
    live: broadcast::Sender<EncodedEvents>,
}

impl Feed {
    fn new() -> Self {
        Self(Mutex::new(Log { history: VecDeque::new(), live: broadcast::Sender::new(256) }))
    }

    /// Gives the event its id: the Unix time in milliseconds, so that ids go on rising when the server is restarted.
    fn publish(&self, event: Event) {
        let mut log = self.0.lock().unwrap();
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_millis() as u64);
        let id = log.history.back().map_or(now, |(newest, _)| now.max(newest + 1));
        let event = EncodedEvents::from(event.id(id));
        log.history.push_back((id, event.clone()));
        while log.history.front().is_some_and(|(oldest, _)| oldest + KEPT < id) {
            log.history.pop_front();
        }
        let _nobody_listens = log.live.send(event);
    }

    /// All that is held of what came after the last event, then what comes next.
    fn subscribe(&self, last: Option<u64>) -> impl Stream<Item = EncodedEvents> + use<> {
        let log = self.0.lock().unwrap();
        let newest = log.history.back().map_or(0, |(id, _)| *id);
        let after = last.unwrap_or(newest.saturating_sub(RECENT));
        let missed: Vec<_> = log.history.iter().filter(|(id, _)| *id > after).map(|(_, event)| event.clone()).collect();
        // A client that is too slow would miss events here. Its stream ends instead: it comes back with its last id.
        let live = BroadcastStream::new(log.live.subscribe()).map_while(Result::ok);
        tokio_stream::iter(missed).chain(live)
    }
}
