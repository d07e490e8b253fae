//! A clock without any framework: hyper, tower, and an event stream that goes on where a client was.
//!
//! ```console
//! $ cargo run --example hyper                        # http://127.0.0.1:3000
//! $ cargo run --example hyper 127.0.0.1:0 100        # any free port, a tick every 100 milliseconds
//! ```
//!
//! Read it with `curl -N http://127.0.0.1:3000`. Stop that, and go on with `-H 'Last-Event-ID: …'`: what was missed comes
//! at once. Stop the server with Ctrl-C or SIGTERM while somebody reads. It needs no feature: `--no-default-features`.

use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use std::{
    convert::Infallible,
    env,
    process::ExitCode,
    time::{Duration, SystemTime},
};
use tokio::{net::TcpListener, pin, signal, time::sleep};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tower::{ServiceBuilder, service_fn};
use tower_sse::{BoxError, Event, Heartbeat, LastEventId, SseLayer, SseStream};

/// How many ticks a client gets that it has missed.
const REPLAYED: u64 = 600;
/// How long connections have to end by themselves. Shorter than whoever has sent the SIGTERM waits before it kills.
const GRACE: Duration = Duration::from_secs(10);

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
        _ => return Err(format!("a tick every {every:?}? Give milliseconds, from 1 to 60000").into()),
    };
    let listener = TcpListener::bind(address).await.map_err(|error| {
        format!("cannot listen on {address:?}: {error}\nGive another address, such as 127.0.0.1:0 for any free port")
    })?;
    println!("Read the wire:\n  curl -N http://{}", listener.local_addr()?);

    let stop = CancellationToken::new();
    let streams = SseLayer::new()
        .retry(Duration::from_secs(1))
        .heartbeat(Heartbeat::every(Duration::from_secs(5)))
        .shutdown(stop.clone())
        .shutdown_event(Event::new("The server is being restarted").event("shutdown"));
    let service = ServiceBuilder::new().layer(streams).service(service_fn(move |request| answer(request, every)));
    let service = TowerToHyperService::new(service);

    let connections = GracefulShutdown::new();
    let told_to_stop = told_to_stop();
    pin!(told_to_stop);
    loop {
        let tcp = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    // Too many files are open, for one: that passes.
                    eprintln!("a connection that was not accepted: {error}");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = &mut told_to_stop => break,
        };
        // HTTP/1.1, and HTTP/2 for those who begin with it.
        let server = auto::Builder::new(TokioExecutor::new());
        let connection = server.serve_connection(TokioIo::new(tcp), service.clone()).into_owned();
        // It fails when its client goes, which is no news.
        tokio::spawn(connections.watch(connection));
    }

    // The streams first: the connections wait for them.
    stop.cancel();
    drop(listener);
    tokio::select! {
        () = connections.shutdown() => Ok(()),
        () = sleep(GRACE) => Err(format!("some connections have not ended in {GRACE:?}").into()),
    }
}

type Body = UnsyncBoxBody<bytes::Bytes, BoxError>;

/// The ticks for everybody, whatever the path.
async fn answer<B>(request: Request<B>, every: Duration) -> Result<Response<Body>, Infallible> {
    Ok(match LastEventId::from_request(&request).parse() {
        Ok(last) => SseStream::new(ticks(last, every)).into_http_response().map(BodyExt::boxed_unsync),
        Err(rejection) => text(rejection.status(), format!("{rejection}\n")),
    })
}

fn text(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Full::from(text).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Every tick after the last one that a client has got, if that is not too long ago. The id of a tick is its number since
/// 1970: nothing is kept for it, and the next server knows it, too.
fn ticks(last: Option<u64>, every: Duration) -> impl Stream<Item = Event> + Send + use<> {
    let every = every.as_millis() as u64;
    let now = since_1970().as_millis() as u64 / every;
    // An id that somebody has made up may be one of the future.
    let next = last.map_or(now, |last| last.saturating_add(1).clamp(now.saturating_sub(REPLAYED), now + 1));
    tokio_stream::iter(next..).then(move |tick| async move {
        let time = Duration::from_millis(tick * every);
        sleep(time.saturating_sub(since_1970())).await;
        Event::new(clock(time)).event("tick").id(tick)
    })
}

fn since_1970() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
}

/// The time of day, in UTC.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let [hours, minutes, seconds] = [seconds / 3600 % 24, seconds / 60 % 60, seconds % 60];
    format!("{hours:02}:{minutes:02}:{seconds:02}.{:03}", time.subsec_millis())
}

/// Waits for Ctrl-C or SIGTERM.
async fn told_to_stop() {
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
}
