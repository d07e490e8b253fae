//! A live feed with production settings: limits, metrics, logs and a graceful shutdown.
//!
//! ```console
//! $ cargo run -p example-ops                        # http://127.0.0.1:3000
//! $ cargo run -p example-ops 127.0.0.1:0            # any free port
//! ```
//!
//! Open the page in several windows, stop the server with Ctrl-C or SIGTERM, and start it again.
//! `/metrics` serves the metrics for Prometheus, and `RUST_LOG` filters the log.

use axum::{
    Router,
    extract::{ConnectInfo, MatchedPath, Request, State},
    http::{header::CONTENT_TYPE, request::Parts},
    response::Html,
    routing::get,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::{
    env, io,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    time::Duration,
};
use tokio::{net::TcpListener, signal, time::sleep};
use tokio_util::sync::CancellationToken;
use tower_http::trace::TraceLayer;
use tower_sse::{
    BoxError, Event, Heartbeat, LastEventId, SseLayer, SseStream, StreamSummary,
    hub::{Error, Hub, Subscription, Topic},
};
use tracing::{Span, info, info_span};
use tracing_subscriber::EnvFilter;

/// A short interval, so that the page shows heartbeats. In production, choose an interval below the
/// shortest timeout between server and client: often 15 to 25 seconds.
const HEARTBEAT: Duration = Duration::from_secs(1);
const EVENT_INTERVAL: Duration = Duration::from_secs(2);
/// The time that open connections have to end at a shutdown. An init system must not send SIGKILL
/// earlier.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).init();
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".into());
    if let Err(error) = run(&address).await {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

async fn run(address: &str) -> Result<(), BoxError> {
    // Install the recorder before the first stream, so that it counts all streams.
    let durations = Matcher::Full("tower_sse_stream_duration_seconds".into());
    let metrics = PrometheusBuilder::new().set_buckets_for_metric(durations, &[1.0, 10.0, 60.0, 600.0, 3600.0])?;
    let metrics = metrics.install_recorder()?;

    let listener = TcpListener::bind(address).await.map_err(|error| {
        format!("cannot listen on {address:?}: {error}\nGive another address, such as 127.0.0.1:0 for any free port")
    })?;
    let url = format!("http://{}", listener.local_addr()?);
    println!("Open {url} in a browser, and read the metrics:\n  curl {url}/metrics");

    let feed = Hub::new().topic("feed");
    let stop = CancellationToken::new();
    let streams = SseLayer::new()
        // An event and not a comment, so that the page can detect a dead connection.
        .heartbeat(Heartbeat::every(HEARTBEAT).event(Event::default().event("heartbeat")))
        .retry(Duration::from_secs(1))
        .shutdown(stop.clone())
        .shutdown_event(Event::new("The server is being restarted.").event("shutdown"))
        .reconnect_jitter(Duration::from_secs(3))
        .max_lifetime(Duration::from_secs(60 * 60))
        .max_streams(10_000)
        .max_streams_per(20, client_address)
        .on_close(log_stream);
    let app = Router::new()
        .route("/", get(Html(include_str!("../ops.html"))))
        .route("/reconnect.js", get(([(CONTENT_TYPE, "text/javascript")], include_str!("../../reconnect.js"))))
        .route("/feed", get(events).with_state(feed.clone()))
        .route("/metrics", get(|State(metrics): State<PrometheusHandle>| async move { metrics.render() }))
        .with_state(metrics.clone())
        .layer(streams)
        .layer(TraceLayer::new_for_http().make_span_with(request_span));
    let server = tower_sse::serve(listener, app).with_graceful_shutdown(shutdown_signal(stop));
    tokio::select! {
        served = server.shutdown_timeout(SHUTDOWN_TIMEOUT) => Ok(served?),
        ended = publish(&feed, &metrics) => ended,
    }
}

async fn events(State(feed): State<Topic>, last: LastEventId) -> Result<SseStream<Subscription>, Error> {
    Ok(SseStream::new(feed.subscribe(last).await?))
}

async fn publish(feed: &Topic, metrics: &PrometheusHandle) -> Result<(), BoxError> {
    for count in 1_u64.. {
        let watching = feed.subscribers();
        feed.publish(Event::json(&serde_json::json!({ "count": count, "watching": watching }))?).await?;
        // The recorder needs this even if Prometheus never reads the metrics.
        metrics.run_upkeep();
        sleep(EVENT_INTERVAL).await;
    }
    Ok(())
}

/// Returns the key of the limit. Behind a proxy, this is the address of the proxy: read the address
/// of the client from the header that the proxy sets instead.
fn client_address(parts: &Parts) -> Option<IpAddr> {
    parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip())
}

/// Creates the span of a request. The span of its stream is a child.
fn request_span(request: &Request) -> Span {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    info_span!("request", route)
}

/// Logs the end of a stream. `RUST_LOG=tower_sse=debug` shows what the library itself logs.
fn log_stream(StreamSummary { reason, duration, events, .. }: StreamSummary) {
    info!("stream ended after {duration:.1?} and {events} events: {reason}");
}

/// Waits for Ctrl-C or SIGTERM, and ends the streams. Otherwise the graceful shutdown would wait
/// for them.
async fn shutdown_signal(stop: CancellationToken) {
    #[cfg(unix)]
    let terminate = async {
        let mut signals =
            signal::unix::signal(signal::unix::SignalKind::terminate()).expect("the signal handler can be installed");
        signals.recv().await;
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        _ = signal::ctrl_c() => {}
        () = terminate => {}
    }
    info!("shutting down");
    stop.cancel();
}
