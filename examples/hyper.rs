//! A clock with hyper and tower only. A client resumes after the last tick that it has received.
//!
//! ```console
//! $ cargo run -p tower-sse --example hyper                        # http://127.0.0.1:3000
//! $ cargo run -p tower-sse --example hyper 127.0.0.1:0 100        # any free port, a tick every 100 milliseconds
//! ```
//!
//! Read the stream with `curl -N http://127.0.0.1:3000`. Stop curl, and resume with
//! `-H 'Last-Event-ID: …'`: the missed ticks arrive immediately. Stop the server with Ctrl-C or
//! SIGTERM while curl reads. The example also works with `--no-default-features`.

use http::{Request, Response};
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

/// The maximum number of missed ticks that a client receives.
const MAX_REPLAY: u64 = 600;
/// The time that open connections have to end at a shutdown. An init system must not send SIGKILL
/// earlier.
const GRACE_PERIOD: Duration = Duration::from_secs(10);

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
    println!("Read the wire:\n  curl -N http://{}", listener.local_addr()?);

    let stop = CancellationToken::new();
    let streams = SseLayer::new()
        .retry(Duration::from_secs(1))
        .heartbeat(Heartbeat::every(Duration::from_secs(5)))
        .shutdown(stop.clone())
        .shutdown_event(Event::new("The server is being restarted").event("shutdown"));
    let service = ServiceBuilder::new().layer(streams).service(service_fn(move |request| handle(request, interval)));
    let service = TowerToHyperService::new(service);

    let connections = GracefulShutdown::new();
    let shutdown_signal = shutdown_signal();
    pin!(shutdown_signal);
    loop {
        let tcp = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    // A temporary error, such as too many open files.
                    eprintln!("cannot accept a connection: {error}");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = &mut shutdown_signal => break,
        };
        // HTTP/1.1, and HTTP/2 with prior knowledge.
        let server = auto::Builder::new(TokioExecutor::new());
        let connection = server.serve_connection(TokioIo::new(tcp), service.clone()).into_owned();
        // A connection returns an error when its client disconnects. That is not worth a log line.
        tokio::spawn(connections.watch(connection));
    }

    // End the streams first, because the connections wait for them.
    stop.cancel();
    drop(listener);
    tokio::select! {
        () = connections.shutdown() => Ok(()),
        () = sleep(GRACE_PERIOD) => Err(format!("some connections did not end within {GRACE_PERIOD:?}").into()),
    }
}

type Body = UnsyncBoxBody<bytes::Bytes, BoxError>;

/// Streams the ticks, for every path.
async fn handle<B>(request: Request<B>, interval: Duration) -> Result<Response<Body>, Infallible> {
    Ok(match LastEventId::from_request(&request).parse() {
        Ok(last) => SseStream::new(ticks(last, interval)).into_http_response().map(BodyExt::boxed_unsync),
        Err(rejection) => {
            rejection.into_http_response().map(|text| Full::from(text).map_err(|never| match never {}).boxed_unsync())
        }
    })
}

/// Returns the ticks after the last tick of the client, but at most [`MAX_REPLAY`] missed ones.
///
/// The id of a tick is its number since 1970. So the server stores nothing for a replay, and ids
/// stay valid after a restart.
fn ticks(last: Option<u64>, interval: Duration) -> impl Stream<Item = Event> + Send + use<> {
    let interval = interval.as_millis() as u64;
    let now = unix_time().as_millis() as u64 / interval;
    // A client can send any id, also one of the future.
    let next = last.map_or(now, |last| last.saturating_add(1).clamp(now.saturating_sub(MAX_REPLAY), now + 1));
    tokio_stream::iter(next..=u64::MAX).then(move |tick| async move {
        let time = Duration::from_millis(tick * interval);
        sleep(time.saturating_sub(unix_time())).await;
        Event::new(clock(time)).event("tick").id(tick)
    })
}

fn unix_time() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
}

/// Formats the time of day, in UTC.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let [hours, minutes, seconds] = [seconds / 3600 % 24, seconds / 60 % 60, seconds % 60];
    format!("{hours:02}:{minutes:02}:{seconds:02}.{:03}", time.subsec_millis())
}

/// Waits for Ctrl-C or SIGTERM.
async fn shutdown_signal() {
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
}
