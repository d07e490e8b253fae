//! The cost of an event from the stream to a frame, and through hyper's HTTP/1 server to the bytes
//! of a client.

use axum::response::{
    IntoResponse, Sse,
    sse::{self, KeepAlive},
};
use bytes::Bytes;
use criterion::{BatchSize, Throughput};
use futures_util::{Stream, StreamExt, stream};
use http::{Request, Response};
use http_body::Body;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::{cell::Cell, convert::Infallible, hint::black_box};
use support::{
    drain::{alone, drain},
    ratios::{self, Ratios},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime,
};
use tower_sse::{EncodedEvents, Event, SseStream};

const EVENTS: usize = 10_000;

fn data() -> &'static str {
    "x".repeat(100).leak()
}

fn events() -> impl Stream<Item = Event> + Send + 'static {
    let data = data();
    stream::repeat_with(move || Event::new(black_box(data))).take(EVENTS)
}

fn axum_events() -> impl Stream<Item = Result<sse::Event, Infallible>> + Send + 'static {
    let data = data();
    stream::repeat_with(move || Ok(sse::Event::default().data(black_box(data)))).take(EVENTS)
}

fn encoded_events() -> impl Stream<Item = EncodedEvents> + Send + 'static {
    stream::repeat(EncodedEvents::from(Event::new(data()))).take(EVENTS)
}

/// Serves a request on an in-memory pipe, reads its response, and returns its length.
async fn serve<B>(response: Response<B>) -> usize
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<tower_sse::BoxError>,
{
    let (mut client, server) = tokio::io::duplex(256 * 1024);
    let response = Cell::new(Some(response));
    let service = service_fn(|_: Request<hyper::body::Incoming>| {
        std::future::ready(Ok::<_, Infallible>(response.take().expect("one request")))
    });
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service);
    let read = async {
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut buffer = vec![0; 64 * 1024];
        let mut bytes = 0;
        loop {
            match client.read(&mut buffer).await.unwrap() {
                0 => return bytes,
                n => bytes += n,
            }
        }
    };
    let (served, bytes) = tokio::join!(connection, read);
    served.unwrap();
    bytes
}

fn main() {
    let mut criterion = ratios::criterion();
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _context = runtime.enter();

    let mut group = criterion.benchmark_group("body");
    group.throughput(Throughput::Elements(EVENTS as u64));
    macro_rules! body {
        ($name:literal, $response:expr) => {
            group.bench_function($name, |bencher| {
                bencher.iter_batched(|| $response.into_body(), drain, BatchSize::LargeInput);
            });
        };
    }
    body!("tower-sse", SseStream::new(events()).into_http_response());
    body!("tower-sse, no heartbeat", SseStream::new(events()).without_heartbeat().into_http_response());
    body!("tower-sse, encoded", SseStream::new(encoded_events()).into_http_response());
    body!("axum", Sse::new(axum_events()).keep_alive(KeepAlive::default()).into_response());
    body!("axum, no keep-alive", Sse::new(axum_events()).into_response());
    body!("tower-sse, alone", SseStream::new(alone(events())).into_http_response());
    body!("tower-sse, alone, no heartbeat", SseStream::new(alone(events())).without_heartbeat().into_http_response());
    body!("axum, alone", Sse::new(alone(axum_events())).keep_alive(KeepAlive::default()).into_response());
    body!("axum, alone, no keep-alive", Sse::new(alone(axum_events())).into_response());
    group.finish();

    let mut group = criterion.benchmark_group("hyper");
    group.throughput(Throughput::Elements(EVENTS as u64));
    macro_rules! hyper {
        ($name:literal, $response:expr) => {
            group.bench_function($name, |bencher| {
                bencher.iter_batched(|| $response, |response| runtime.block_on(serve(response)), BatchSize::LargeInput);
            });
        };
    }
    hyper!("tower-sse", SseStream::new(events()).into_http_response());
    hyper!("tower-sse in axum", IntoResponse::into_response(SseStream::new(events())));
    hyper!("tower-sse, encoded", SseStream::new(encoded_events()).into_http_response());
    hyper!("axum", Sse::new(axum_events()).keep_alive(KeepAlive::default()).into_response());
    hyper!("axum, no keep-alive", Sse::new(axum_events()).into_response());
    group.finish();

    criterion.final_summary();
    let ratios = Ratios::head();
    let ratio = |what, ours, theirs, target| ratios.ratio(what, ours, theirs, EVENTS, target);
    ratio("body, per ready event", "body/tower-sse", "body/axum", "");
    ratio("body, per ready event, without heartbeats", "body/tower-sse, no heartbeat", "body/axum, no keep-alive", "");
    ratio("body, per event alone", "body/tower-sse, alone", "body/axum, alone", "");
    ratio("hyper, per ready event", "hyper/tower-sse", "hyper/axum", "≤ 0.25");
    ratio("hyper, per ready event, axum without keep-alive", "hyper/tower-sse", "hyper/axum, no keep-alive", "≤ 0.25");
    ratio("hyper, per ready event, returned from axum", "hyper/tower-sse in axum", "hyper/axum", "≤ 0.25");
    ratio("hyper, per ready event, encoded before", "hyper/tower-sse, encoded", "hyper/axum", "");
    let adds = |what, with, without, target| ratios.difference(what, with, without, EVENTS, target);
    adds("the heartbeat adds to a ready event", "body/tower-sse", "body/tower-sse, no heartbeat", "≤ 3 ns");
    adds("axum's keep-alive adds to a ready event", "body/axum", "body/axum, no keep-alive", "");
    adds("the heartbeat adds to an event alone", "body/tower-sse, alone", "body/tower-sse, alone, no heartbeat", "");
    adds("axum's keep-alive adds to an event alone", "body/axum, alone", "body/axum, alone, no keep-alive", "");
}
