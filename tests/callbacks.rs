//! Guarantee: a panic in a callback of the user never aborts the process, never keeps another
//! callback from running, and never leaks a permit.

use axum::{Router, routing::get};
use futures_util::{Stream, StreamExt, stream};
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt, Empty};
use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
};
use support::{
    client::{Protocol, within},
    server,
};
// In `over_serve`, this is the server of the crate.
use crate::server::serve;
use tokio::sync::{Notify, mpsc::unbounded_channel};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_sse::{CloseReason, Event, SseLayer, SseStream, StreamSummary};

type Log = Arc<Mutex<Vec<(&'static str, CloseReason)>>>;

/// Records its call, and panics.
fn panics(name: &'static str, log: &Log) -> impl Fn(StreamSummary) + Send + Sync + 'static {
    let log = Arc::clone(log);
    move |summary| {
        log.lock().unwrap().push((name, summary.reason));
        panic!("{name} panics");
    }
}

/// Sends one event, and panics at the next poll.
fn panicking() -> impl Stream<Item = Event> + Send {
    stream::iter([Event::new("first")]).chain(stream::once(async { panic!("the stream panics") }))
}

/// Passes a stream through two layers. All callbacks panic.
async fn respond<S>(events: S, log: &Log, layers: &[SseLayer; 2]) -> Response<impl http_body::Body<Data = bytes::Bytes>>
where
    S: Stream<Item = Event> + Send + 'static,
{
    let own = panics("handler", log);
    let events = Mutex::new(Some(SseStream::new(events).on_close(own)));
    let handler = service_fn(move |_: Request<Empty<bytes::Bytes>>| {
        let response = events.lock().unwrap().take().expect("one request").into_http_response();
        async { Ok::<_, Infallible>(response) }
    });
    let service = ServiceBuilder::new().layer(layers[1].clone()).layer(layers[0].clone()).service(handler);
    service.oneshot(Request::new(Empty::new())).await.unwrap()
}

fn layers(log: &Log) -> [SseLayer; 2] {
    [
        SseLayer::new().max_streams(1).on_close(panics("inner layer", log)),
        SseLayer::new().on_close(panics("outer layer", log)).on_close_with(|_| (), {
            let panics = panics("outer layer with request", log);
            move |(), summary| panics(summary)
        }),
    ]
}

const ALL: [&str; 4] = ["handler", "inner layer", "outer layer", "outer layer with request"];

#[tokio::test]
async fn all_callbacks_run_although_each_panics() {
    let log = Log::default();
    let layers = layers(&log);
    // The permit is free again after each stream.
    for _ in 0..3 {
        let response = respond(stream::iter([Event::new("only")]), &log, &layers).await;
        assert_eq!(response.status(), StatusCode::OK);
        let body = response.into_body().collect().await.map(drop).map_err(drop);
        assert_eq!(body, Ok(()));
        let calls = std::mem::take(&mut *log.lock().unwrap());
        assert_eq!(calls, ALL.map(|name| (name, CloseReason::Finished)));
    }
}

#[tokio::test]
async fn all_callbacks_run_while_the_thread_unwinds() {
    let log = Log::default();
    let layers = layers(&log);
    for _ in 0..3 {
        let response = respond(panicking(), &log, &layers).await;
        assert_eq!(response.status(), StatusCode::OK);
        // The body is dropped by the panic of its stream.
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            let mut body = Box::pin(response.into_body());
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            let mut poll = || body.as_mut().poll_frame(&mut cx).is_ready();
            assert!(poll());
            let _panics = poll();
        }));
        assert!(unwound.is_err());
        let calls = std::mem::take(&mut *log.lock().unwrap());
        assert_eq!(calls, ALL.map(|name| (name, CloseReason::Error)));
    }
}

#[tokio::test]
async fn unpolled_body_runs_all_callbacks_while_the_thread_unwinds() {
    let log = Log::default();
    let layers = layers(&log);
    let response = respond(stream::empty(), &log, &layers).await;
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let _dropped_while_unwinding = response;
        panic!("unrelated");
    }));
    assert!(unwound.is_err());
    assert_eq!(*log.lock().unwrap(), ALL.map(|name| (name, CloseReason::ClientGone)));
}

#[tokio::test]
async fn server_keeps_running_after_callbacks_panic() {
    for protocol in Protocol::ALL {
        // A callback that panics with the lock held poisons it: from then on, every call panics.
        let poisoned = Arc::new(Mutex::new(()));
        let (calls, mut called) = unbounded_channel();
        let layer = SseLayer::new().max_streams(1).on_close(move |summary| {
            calls.send(summary.reason).unwrap();
            let _guard = poisoned.lock().unwrap();
            panic!("the callback panics");
        });
        let panics = Arc::new(Notify::new());
        let signal = Arc::clone(&panics);
        let panicking = async move || {
            let panic = async move {
                signal.notified().await;
                panic!("the stream panics")
            };
            SseStream::new(stream::iter([Event::new("first")]).chain(stream::once(panic)))
        };
        let app = Router::new()
            .route("/panics", get(panicking))
            .route("/works", get(async || SseStream::new(stream::iter([Event::new("works")]))));
        let server = serve(app.layer(layer)).await;
        for _ in 0..3 {
            let mut answer = protocol.get(server.address, "/panics", &[]).await;
            answer.read_until("data: first\n").await;
            panics.notify_one();
            assert!(answer.end().await.is_err(), "the transfer is aborted");
            assert_eq!(within("a call", called.recv()).await, Some(CloseReason::Error));
            let answer = protocol.get(server.address, "/works", &[]).await.complete().await;
            assert_eq!((answer.status, answer.data()), (StatusCode::OK, vec!["works".to_owned()]));
            assert_eq!(within("a call", called.recv()).await, Some(CloseReason::Finished));
        }
    }
}
