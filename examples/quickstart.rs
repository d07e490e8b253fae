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
    env,
    process::ExitCode,
    time::{Duration, SystemTime},
};
use sysinfo::System;
use tokio::{net::TcpListener, time::sleep};
use tower_sse::{
    BoxError, Event, Heartbeat, LastEventId, SseLayer, SseStream,
    hub::{Error, Hub, Start, Subscription, Topic},
};

/// How long events are kept, for those who come back and for newcomers: as long as the page's charts go back.
const KEPT: Duration = Duration::from_secs(2 * 60);

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

    let machine = Hub::builder().max_age(KEPT).build().topic("machine");
    let app = Router::new()
        .route("/", get(Html(include_str!("quickstart.html"))))
        .route("/events", get(events))
        .with_state(machine.clone())
        // The default heartbeat waits for 15 seconds of silence, which this feed never has. This one can be watched.
        .layer(SseLayer::new().retry(Duration::from_secs(1)).heartbeat(Heartbeat::every(every * 2 / 3)));
    tokio::select! {
        served = axum::serve(listener, app).into_future() => Ok(served?),
        sampled = sample(&machine, every) => sampled,
    }
}

/// All that is held for a newcomer; what it has missed for a client that comes back; and then what comes next.
async fn events(State(machine): State<Topic>, last: LastEventId) -> Result<SseStream<Subscription>, Error> {
    Ok(SseStream::new(machine.subscribe(last.or(Start::Earliest)).await?))
}

#[derive(Default, serde::Serialize)]
struct Sample {
    /// Unix time in milliseconds.
    time: u64,
    load: f64,
    memory_used: u64,
    memory_total: u64,
    uptime: u64,
}

/// Publishes a sample as a plain `message`, and after every fifth the highest of the five as a `peak`.
async fn sample(machine: &Topic, every: Duration) -> Result<(), BoxError> {
    let mut system = System::new();
    let mut peak = Sample::default();
    for count in 1_u64.. {
        system.refresh_memory();
        let now = Sample {
            time: SystemTime::UNIX_EPOCH.elapsed()?.as_millis() as u64,
            load: System::load_average().one,
            memory_used: system.used_memory(),
            memory_total: system.total_memory(),
            uptime: System::uptime(),
        };
        machine.publish(Event::json(&now)?).await?;
        peak = Sample { load: peak.load.max(now.load), memory_used: peak.memory_used.max(now.memory_used), ..now };
        if count % 5 == 0 {
            machine.publish(Event::json(&peak)?.event("peak")).await?;
            peak = Sample::default();
        }
        sleep(every).await;
    }
    Ok(())
}
