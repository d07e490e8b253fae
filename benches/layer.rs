//! The cost of the layer for other responses, and for each frame of an upstream event stream.
//!
//! Bodies and futures are boxed, as they are in axum and tonic.

use bytes::Bytes;
use criterion::{BatchSize, Throughput};
use futures_util::{FutureExt, future::BoxFuture};
use http::{HeaderValue, Request, Response, header};
use http_body::{Body, Frame};
use http_body_util::Full;
use std::{
    convert::Infallible,
    future::ready,
    pin::Pin,
    task::{Context, Poll},
};
use support::{
    drain::drain,
    ratios::{self, Ratios},
};
use tower::{Layer, Service, service_fn, util::MapResponse};
use tower_sse::SseLayer;

/// Returns the request of a browser that loads a page.
fn request() -> Request<()> {
    let mut request = Request::new(());
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_static("example.com"));
    headers.insert(header::ACCEPT, HeaderValue::from_static("text/html,application/xhtml+xml,*/*;q=0.8"));
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, deflate, br"));
    request
}

fn response<B>(content_type: &'static str, body: B) -> Response<B> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A body that repeats a chunk.
#[derive(Clone)]
struct Chunks {
    chunk: Bytes,
    left: usize,
}

impl Chunks {
    fn new(content: &str, size: usize, left: usize) -> Self {
        let chunk: Bytes = content.repeat(size / content.len() + 1).into();
        Self { chunk: chunk.slice(chunk.len() - size..), left }
    }
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.left.checked_sub(1).map(|left| {
            self.left = left;
            Ok(Frame::data(self.chunk.clone()))
        }))
    }
}

fn call<S, B>(service: &mut S, request: Request<()>) -> Response<B>
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
{
    let Ok(response) = service.call(request).now_or_never().expect("the service does not wait");
    response
}

const FRAMES: usize = 10_000;

fn main() {
    let mut criterion = ratios::criterion();

    let mut group = criterion.benchmark_group("plain response");
    let bare = || {
        service_fn(|_: Request<()>| -> BoxFuture<'static, Result<_, Infallible>> {
            Box::pin(ready(Ok(response("text/html", Full::new(Bytes::from_static(b"<!doctype html>"))))))
        })
    };
    let mut service = bare();
    group.bench_function("bare", |bencher| {
        bencher.iter(|| call(&mut service, request()));
    });
    // The minimal cost of a middleware with its own body type.
    let mut service =
        MapResponse::new(bare(), |response: Response<Full<Bytes>>| response.map(|body| (body, None::<Box<u8>>)));
    group.bench_function("another body", |bencher| {
        bencher.iter(|| call(&mut service, request()));
    });
    let mut service = SseLayer::new().layer(bare());
    group.bench_function("layer", |bencher| {
        bencher.iter(|| call(&mut service, request()));
    });
    group.finish();

    // A body of 1 MiB in frames of 1 KiB, and event streams in chunks of two sizes.
    let kinds = [
        ("1 MiB of text", "text/plain", Chunks::new("x", 1024, 1024)),
        ("events of 100 B", "text/event-stream", Chunks::new("data: 0123456789\n\n", 100, FRAMES)),
        ("events of 4 KiB", "text/event-stream", Chunks::new("data: 0123456789\n\n", 4096, FRAMES)),
    ];
    for (name, content_type, chunks) in &kinds {
        let mut group = criterion.benchmark_group(*name);
        group.throughput(Throughput::Elements(chunks.left as u64));
        let bare = || {
            service_fn(|_: Request<()>| {
                ready(Ok::<_, Infallible>(response(content_type, axum::body::Body::new(chunks.clone()))))
            })
        };
        let mut service = bare();
        group.bench_function("bare", |bencher| {
            bencher.iter_batched(|| call(&mut service, request()).into_body(), drain, BatchSize::SmallInput);
        });
        let mut service = SseLayer::new().layer(bare());
        group.bench_function("layer", |bencher| {
            bencher.iter_batched(|| call(&mut service, request()).into_body(), drain, BatchSize::SmallInput);
        });
        group.finish();
    }

    criterion.final_summary();
    let ratios = Ratios::head();
    let adds = |what, group, per, target| {
        ratios.difference(what, &format!("{group}/layer"), &format!("{group}/bare"), per, target);
    };
    adds("the layer adds to a response that is not a stream", "plain response", 1, "≤ 30 ns");
    let (minimal, bare) = ("plain response/another body", "plain response/bare");
    ratios.difference("a middleware with only its own body type adds", minimal, bare, 1, "");
    adds("… to each frame of its body", "1 MiB of text", 1024, "0 ns");
    adds("… to each frame of 100 B of an event stream", "events of 100 B", FRAMES, "≤ 20 ns");
    adds("… to each frame of 4 KiB of an event stream", "events of 4 KiB", FRAMES, "≤ 20 ns");
}
