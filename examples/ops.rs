//! A server as it goes into production: a live feed with limits, metrics and logs, that can be stopped while it is watched.
//!
//! ```console
//! $ cargo run --example ops --all-features                        # http://127.0.0.1:3000
//! $ cargo run --example ops --all-features 127.0.0.1:0            # any free port
//! ```
//!
//! Open it in some windows, stop it with Ctrl-C or SIGTERM, and start it again. `/metrics` is what Prometheus reads;
//! `RUST_LOG` says what is logged.

use axum::{
    Router,
    extract::{ConnectInfo, MatchedPath, Request, State},
    http::request::Parts,
    response::Html,
    routing::get,
    serve::ListenerExt,
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
    BoxError, ClientTimeout, Event, Heartbeat, LastEventId, Overload, SseLayer, SseStream, StreamSummary,
    hub::{Error, Hub, Subscription, Topic},
};
use tracing::{Span, info, info_span, warn};
use tracing_subscriber::EnvFilter;

/// Short, so that there is something to see. In production, below what the first proxy waits for: often 15 to 25 seconds.
const HEARTBEAT: Duration = Duration::from_secs(1);
const BETWEEN_EVENTS: Duration = Duration::from_secs(2);
/// How long connections have to end by themselves. Shorter than whoever has sent the SIGTERM waits before it kills.
const GRACE: Duration = Duration::from_secs(10);

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
    // Before the first stream, so that none is missed.
    let durations = Matcher::Full("tower_sse_stream_duration_seconds".into());
    let metrics = PrometheusBuilder::new().set_buckets_for_metric(durations, &[1.0, 10.0, 60.0, 600.0, 3600.0])?;
    let metrics = metrics.install_recorder()?;

    let listener = TcpListener::bind(address).await.map_err(|error| {
        format!("cannot listen on {address:?}: {error}\nGive another address, such as 127.0.0.1:0 for any free port")
    })?;
    let url = format!("http://{}", listener.local_addr()?);
    println!("Open {url} in a browser, and look at its metrics:\n  curl {url}/metrics");

    let feed = Hub::new().topic("feed");
    let stop = CancellationToken::new();
    let streams = SseLayer::new()
        // As an event, which the page can see: without one it knows that the connection is dead.
        .heartbeat(Heartbeat::every(HEARTBEAT).event(Event::default().event("heartbeat")))
        .retry(Duration::from_secs(1))
        .shutdown(stop.clone())
        .shutdown_event(Event::new("The server is being restarted.").event("shutdown"))
        .reconnect_jitter(Duration::from_secs(3))
        .max_lifetime(Duration::from_secs(60 * 60))
        .max_streams(10_000)
        .max_streams_per(20, client)
        .when_full(Overload::RetryLater)
        .on_close(log);
    let app = Router::new()
        .route("/", get(Html(include_str!("ops.html"))))
        .route("/feed", get(watch).with_state(feed.clone()))
        .route("/metrics", get(|State(metrics): State<PrometheusHandle>| async move { metrics.render() }))
        .with_state(metrics.clone())
        .layer(streams)
        .layer(TraceLayer::new_for_http().make_span_with(span))
        .into_make_service_with_connect_info::<SocketAddr>();
    let timeout = ClientTimeout::default();
    let listener = listener.tap_io(move |tcp| {
        if let Err(error) = timeout.apply(tcp) {
            warn!("a connection that is not given up: {error}");
        }
    });
    tokio::select! {
        served = axum::serve(listener, app).with_graceful_shutdown(told_to_stop(stop.clone())) => Ok(served?),
        ended = publish(&feed, &metrics) => ended,
        () = too_long(&stop) => Err(format!("some connections have not ended in {GRACE:?}").into()),
    }
}

async fn watch(State(feed): State<Topic>, last: LastEventId) -> Result<SseStream<Subscription>, Error> {
    Ok(SseStream::new(feed.subscribe(last).await?))
}

async fn publish(feed: &Topic, metrics: &PrometheusHandle) -> Result<(), BoxError> {
    for count in 1_u64.. {
        let watching = feed.subscribers();
        feed.publish(Event::json(&serde_json::json!({ "count": count, "watching": watching }))?).await?;
        // Whether or not anybody reads the metrics.
        metrics.run_upkeep();
        sleep(BETWEEN_EVENTS).await;
    }
    Ok(())
}

/// Whose streams are counted together. Behind a proxy this is the proxy: take what it says of the client instead.
fn client(parts: &Parts) -> Option<IpAddr> {
    parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip())
}

/// The span of a request, inside of which that of its stream is.
fn span(request: &Request) -> Span {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    info_span!("request", route)
}

/// In words of its own: `RUST_LOG=tower_sse=debug` is what the library says of it.
fn log(StreamSummary { reason, duration, events, .. }: StreamSummary) {
    info!("a stream has ended after {duration:.1?} and {events} events: {reason}");
}

/// Waits for Ctrl-C or SIGTERM, and then ends the streams: otherwise the server would wait for them.
async fn told_to_stop(stop: CancellationToken) {
    #[cfg(unix)]
    let terminate = async {
        let mut signals = signal::unix::signal(signal::unix::SignalKind::terminate()).expect("a handler of signals");
        signals.recv().await;
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        _ = signal::ctrl_c() => {}
        () = terminate => {}
    }
    info!("stopping");
    stop.cancel();
}

async fn too_long(stop: &CancellationToken) {
    stop.cancelled().await;
    sleep(GRACE).await;
}
