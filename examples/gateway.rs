//! A reverse proxy: heartbeats, headers, limits and an orderly end for the event streams of a server that has none of these.
//!
//! ```console
//! $ cargo run --example gateway                                        # http://127.0.0.1:3000, and a server behind it
//! $ cargo run --example gateway 127.0.0.1:0 http://127.0.0.1:8080      # any free port, and that server behind it
//! ```
//!
//! The page reads one and the same stream directly and through the gateway. Everything that is no event stream passes as it
//! is, but for upgrades (WebSockets), which do not. When a client goes, its request to the server behind is dropped.

use axum::{
    Router,
    body::{Body, HttpBody},
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::{Html, IntoResponse, Response},
    routing::get,
    serve::ListenerExt,
};
use reqwest::{Client, Url, redirect::Policy};
use std::{convert::Infallible, env, net::IpAddr, net::SocketAddr, process::ExitCode, time::Duration};
use tokio::{net::TcpListener, signal, time::sleep};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tower_sse::{BoxError, Heartbeat, SseLayer};

/// Short, so that there is something to see. In production, below what the first proxy waits for: often 15 to 25 seconds.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long connections have to end by themselves, when the gateway is stopped.
const GRACE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let address = args.next().unwrap_or_else(|| "127.0.0.1:3000".into());
    if let Err(error) = run(&address, args.next()).await {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

async fn run(address: &str, upstream: Option<String>) -> Result<(), BoxError> {
    let upstream = match upstream {
        Some(url) => {
            Url::parse(&url).ok().filter(|url| url.scheme() == "http" && url.path() == "/").ok_or_else(|| {
                format!("cannot pass on to {url:?}\nGive an http URL without a path, such as http://127.0.0.1:8080")
            })?
        }
        None => naive_server().await?,
    };
    let listener = TcpListener::bind(address).await.map_err(|error| {
        format!("cannot listen on {address:?}: {error}\nGive another address, such as 127.0.0.1:0 for any free port")
    })?;
    println!("Open http://{} in a browser: it is {upstream} through the gateway", listener.local_addr()?);

    // No timeout for the whole, or for its silences: streams last. What is encoded stays so, and a redirection is an answer.
    let client = Client::builder().no_proxy().connect_timeout(Duration::from_secs(5)).redirect(Policy::none());
    let client = client.no_gzip().no_brotli().no_zstd().no_deflate().build()?;
    // Without it, an event that follows closely on another one waits for the client's acknowledgement: some 40 milliseconds.
    let listener = listener.tap_io(|tcp| drop(tcp.set_nodelay(true)));
    let stop = CancellationToken::new();
    let streams = SseLayer::new()
        .heartbeat(Heartbeat::every(HEARTBEAT))
        .shutdown(stop.clone())
        .max_streams(10_000)
        .max_streams_per(20, address_of);
    let app = Router::new()
        .fallback(pass_on)
        .with_state((client, upstream))
        .layer(streams)
        .into_make_service_with_connect_info::<SocketAddr>();
    tokio::select! {
        served = axum::serve(listener, app).with_graceful_shutdown(told_to_stop(stop.clone())) => Ok(served?),
        () = too_long(&stop) => Err(format!("some connections have not ended in {GRACE:?}").into()),
    }
}

/// Whose streams are counted together. Behind another proxy this is the proxy: take what it says of the client instead.
fn address_of(parts: &Parts) -> Option<IpAddr> {
    parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip())
}

/// Asks the server behind the same thing, and hands on what it answers as it comes.
///
/// When the client goes, all of this is dropped, and with it the connection to the server behind. When that one breaks off,
/// so does the answer: a client must not take it for complete, and an `EventSource` comes back.
async fn pass_on(
    State((client, mut url)): State<(Client, Url)>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let (Parts { method, uri, mut headers, .. }, body) = request.into_parts();
    url.set_path(uri.path());
    url.set_query(uri.query());
    keep_end_to_end(&mut headers);
    headers.append(header::VIA, HeaderValue::from_static("1.1 gateway"));
    headers.append("x-forwarded-for", HeaderValue::try_from(from.ip().to_string()).expect("digits, dots and colons"));
    headers.insert("x-forwarded-proto", HeaderValue::from_static("http"));
    // reqwest sets the one that the server behind goes by.
    if let Some(host) = headers.remove(header::HOST) {
        headers.insert("x-forwarded-host", host);
    }
    let mut request = client.request(method, url).headers(headers);
    if !body.is_end_stream() {
        request = request.body(reqwest::Body::wrap_stream(body.into_data_stream()));
    }
    match request.send().await {
        Ok(answer) => {
            let mut response = axum::http::Response::<reqwest::Body>::from(answer).map(Body::new);
            keep_end_to_end(response.headers_mut());
            response
        }
        Err(error) => {
            eprintln!("no answer: {error:?}");
            let what = if error.is_connect() { "cannot be reached" } else { "has broken off before it answered" };
            (StatusCode::BAD_GATEWAY, format!("the server behind this gateway {what}; try again later\n"))
                .into_response()
        }
    }
}

/// Takes away what is meant for one connection, and not for the next one (RFC 9110, §7.6.1).
fn keep_end_to_end(headers: &mut HeaderMap) {
    let connection = headers.get_all(header::CONNECTION).into_iter().filter_map(|value| value.to_str().ok());
    let named: Vec<_> = connection.flat_map(|names| names.split(',')).map(|name| name.trim().to_owned()).collect();
    let always = ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];
    for name in named.iter().map(String::as_str).chain(always) {
        headers.remove(name);
    }
}

/// A server that knows no better: it streams events, falls silent for a while, and leaves it at that.
async fn naive_server() -> Result<Url, BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = Url::parse(&format!("http://{}", listener.local_addr()?))?;
    let page = include_str!("gateway.html").replace("{upstream}", url.as_str());
    let events = async || {
        let events = tokio_stream::iter(1_u64..).then(async |count| {
            sleep(Duration::from_secs(if count % 4 == 0 { 10 } else { 1 })).await;
            Ok::<_, Infallible>(format!("id: {count}\ndata: This is event {count}.\n\n"))
        });
        // Only the page needs the latter two, as it comes from another origin.
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream"),
            (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
            (header::ACCESS_CONTROL_EXPOSE_HEADERS, "*"),
        ];
        (headers, Body::from_stream(events))
    };
    let app = Router::new().route("/", get(Html(page))).route("/events", get(events));
    tokio::spawn(axum::serve(listener, app).into_future());
    Ok(url)
}

/// Waits for Ctrl-C or SIGTERM, and then ends the streams: otherwise the gateway would wait for them.
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
    stop.cancel();
}

async fn too_long(stop: &CancellationToken) {
    stop.cancelled().await;
    sleep(GRACE).await;
}
