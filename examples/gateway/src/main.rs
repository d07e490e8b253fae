//! A reverse proxy for a server with plain event streams. The proxy adds heartbeats, headers,
//! limits and a graceful shutdown.
//!
//! ```console
//! $ cargo run -p example-gateway                                        # http://127.0.0.1:3000, with its own upstream
//! $ cargo run -p example-gateway 127.0.0.1:0 http://127.0.0.1:8080      # any free port, and this upstream
//! ```
//!
//! The page reads the same stream directly and through the gateway. Other responses pass unchanged.
//! Upgrades, such as WebSockets, are not supported. When a client disconnects, the gateway drops
//! its request to the upstream.

use axum::{
    Router,
    body::{Body, HttpBody},
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use reqwest::{Client, Url, redirect::Policy};
use std::{convert::Infallible, env, net::IpAddr, net::SocketAddr, process::ExitCode, time::Duration};
use tokio::{net::TcpListener, signal, time::sleep};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tower_sse::{BoxError, Heartbeat, SseLayer};

/// A short interval, so that the page shows heartbeats. In production, choose an interval below the
/// shortest timeout between server and client: often 15 to 25 seconds.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// The time that open connections have to end at a shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

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
                format!("invalid upstream {url:?}\nGive an http URL without a path, such as http://127.0.0.1:8080")
            })?
        }
        None => plain_server().await?,
    };
    let listener = TcpListener::bind(address).await.map_err(|error| {
        format!("cannot listen on {address:?}: {error}\nGive another address, such as 127.0.0.1:0 for any free port")
    })?;
    println!("Open http://{} in a browser. The upstream is {upstream}", listener.local_addr()?);

    // No timeout for the response or for reads, because streams are long and often silent. The
    // client neither decodes content nor follows redirects, because the browser does both.
    let client = Client::builder().no_proxy().connect_timeout(Duration::from_secs(5)).redirect(Policy::none());
    let client = client.no_gzip().no_brotli().no_zstd().no_deflate().build()?;
    let stop = CancellationToken::new();
    let streams = SseLayer::new()
        .heartbeat(Heartbeat::every(HEARTBEAT))
        .shutdown(stop.clone())
        .max_streams(10_000)
        .max_streams_per(20, client_address);
    let app = Router::new().fallback(forward).with_state((client, upstream)).layer(streams);
    let server = tower_sse::serve(listener, app).with_graceful_shutdown(shutdown_signal(stop));
    Ok(server.shutdown_timeout(SHUTDOWN_TIMEOUT).await?)
}

/// Returns the key of the limit. Behind another proxy, this is the address of that proxy: read the
/// address of the client from the header that it sets instead.
fn client_address(parts: &Parts) -> Option<IpAddr> {
    parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip())
}

/// Forwards a request to the upstream, and streams the response back.
///
/// When the client disconnects, axum drops this future or the response body, and reqwest closes the
/// connection to the upstream. When the upstream connection breaks, the response breaks, too. The
/// client then knows that the response is incomplete, and an `EventSource` reconnects.
async fn forward(
    State((client, mut url)): State<(Client, Url)>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let (Parts { method, uri, mut headers, .. }, body) = request.into_parts();
    url.set_path(uri.path());
    url.set_query(uri.query());
    remove_hop_by_hop(&mut headers);
    headers.append(header::VIA, HeaderValue::from_static("1.1 gateway"));
    headers.append("x-forwarded-for", HeaderValue::try_from(peer.ip().to_string()).expect("an address is ASCII"));
    headers.insert("x-forwarded-proto", HeaderValue::from_static("http"));
    // reqwest sets `Host` to the upstream.
    if let Some(host) = headers.remove(header::HOST) {
        headers.insert("x-forwarded-host", host);
    }
    let mut request = client.request(method, url).headers(headers);
    if !body.is_end_stream() {
        request = request.body(reqwest::Body::wrap_stream(body.into_data_stream()));
    }
    match request.send().await {
        Ok(response) => {
            let mut response = axum::http::Response::<reqwest::Body>::from(response).map(Body::new);
            remove_hop_by_hop(response.headers_mut());
            response
        }
        Err(error) => {
            eprintln!("no response from the upstream: {error:?}");
            let what = if error.is_connect() { "cannot be reached" } else { "did not send a response" };
            (StatusCode::BAD_GATEWAY, format!("the server behind this gateway {what}; try again later\n"))
                .into_response()
        }
    }
}

/// Removes the headers of a single connection (RFC 9110, §7.6.1).
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let connection = headers.get_all(header::CONNECTION).into_iter().filter_map(|value| value.to_str().ok());
    let named: Vec<_> = connection.flat_map(|names| names.split(',')).map(|name| name.trim().to_owned()).collect();
    let always = ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];
    for name in named.iter().map(String::as_str).chain(always) {
        headers.remove(name);
    }
}

/// Starts an upstream with a plain event stream: no heartbeats, and silences of ten seconds.
async fn plain_server() -> Result<Url, BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = Url::parse(&format!("http://{}", listener.local_addr()?))?;
    let page = include_str!("../gateway.html").replace("{upstream}", url.as_str());
    let events = async || {
        let events = tokio_stream::iter(1_u64..).then(async |count| {
            sleep(Duration::from_secs(if count % 4 == 0 { 10 } else { 1 })).await;
            Ok::<_, Infallible>(format!("id: {count}\ndata: This is event {count}.\n\n"))
        });
        // The page needs the CORS headers, because it comes from another origin.
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream"),
            (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
            (header::ACCESS_CONTROL_EXPOSE_HEADERS, "*"),
        ];
        (headers, Body::from_stream(events))
    };
    let app = Router::new().route("/", get(Html(page))).route("/events", get(events));
    tokio::spawn(tower_sse::serve(listener, app).into_future());
    Ok(url)
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
    stop.cancel();
}
