//! A live page of this machine: its load, memory and uptime, sampled every second.
//!
//! ```console
//! $ cargo run -p tower-sse --features serve --example quickstart                        # http://127.0.0.1:3000
//! $ cargo run -p tower-sse --features serve --example quickstart 127.0.0.1:0 100        # any free port, a sample every 100 milliseconds
//! ```
//!
//! Restart the server, or cut the network, while the page is open. The page reconnects, and catches
//! up by itself.

use axum::{Router, extract::State, http::header::CONTENT_TYPE, response::Html, routing::get};
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

/// The retention of the hub: as long as the charts of the page go back.
const RETENTION: Duration = Duration::from_secs(2 * 60);

#[tokio::main]
async fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let address = args.next().unwrap_or_else(|| "127.0.0.1:3000".into());
    let interval = args.next().unwrap_or_else(|| "1000".into());
    if let Err(error) = run(&address, &interval).await {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

async fn run(address: &str, interval: &str) -> Result<(), BoxError> {
    let interval = match interval.parse() {
        Ok(milliseconds @ 1..=60_000) => Duration::from_millis(milliseconds),
        _ => return Err(format!("invalid interval {interval:?}: give milliseconds from 1 to 60000").into()),
    };
    let listener = TcpListener::bind(address).await.map_err(|error| {
        format!("cannot listen on {address:?}: {error}\nGive another address, such as 127.0.0.1:0 for any free port")
    })?;
    let url = format!("http://{}", listener.local_addr()?);
    println!("Open {url} in a browser, or read the wire:\n  curl -N {url}/events");

    let machine = Hub::builder().max_age(RETENTION).build().topic("machine");
    let app = Router::new()
        .route("/", get(Html(include_str!("quickstart.html"))))
        .route("/reconnect.js", get(([(CONTENT_TYPE, "text/javascript")], include_str!("reconnect.js"))))
        .route("/events", get(events))
        .with_state(machine.clone())
        // The default heartbeat comes after 15 seconds of silence, and this feed is never silent
        // for so long. A short interval makes heartbeats visible on the page.
        .layer(SseLayer::new().retry(Duration::from_secs(1)).heartbeat(Heartbeat::every(interval * 2 / 3)));
    tokio::select! {
        served = tower_sse::serve(listener, app) => Ok(served?),
        sampled = sample(&machine, interval) => sampled,
    }
}

/// Streams the samples. A new client first gets all retained events, and a client that reconnects
/// gets the events that it missed.
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

/// Publishes each sample as a plain `message`, and the maximum of every five samples as a `peak`.
async fn sample(machine: &Topic, interval: Duration) -> Result<(), BoxError> {
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
        sleep(interval).await;
    }
    Ok(())
}
