//! What it costs an event that somebody watches: a recorder of metrics and a subscriber of spans, against nobody.
//!
//! Without the features there is nothing to be watched, so two builds are to be compared:
//!
//! ```console
//! $ cargo bench --bench observe
//! $ cargo bench --bench observe --features metrics,tracing
//! ```

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput};
use futures_util::{Stream, StreamExt, stream};
use http_body::Body;
use metrics_exporter_prometheus::PrometheusBuilder;
use std::{
    hint::black_box,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};
use support::ratios::{self, Ratios};
use tokio::runtime;
use tower_sse::{Event, SseStream};

const EVENTS: usize = 10_000;

fn events() -> impl Stream<Item = Event> + Send + 'static {
    let data = "x".repeat(100).leak();
    stream::repeat_with(move || Event::new(black_box(&*data))).take(EVENTS)
}

/// Each item is a frame of its own.
struct Alone<S> {
    stream: Pin<Box<S>>,
    is_ready: bool,
}

impl<S: Stream> Stream for Alone<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.is_ready = !self.is_ready;
        if self.is_ready { self.stream.as_mut().poll_next(cx) } else { Poll::Pending }
    }
}

/// Polls a body until it is dry.
fn drain<B: Body<Data = Bytes>>(body: B) -> usize {
    let mut body = pin!(body);
    let mut cx = Context::from_waker(Waker::noop());
    let mut bytes = 0;
    loop {
        match body.as_mut().poll_frame(&mut cx) {
            Poll::Ready(Some(Ok(frame))) => bytes += black_box(frame).data_ref().map_or(0, Bytes::len),
            Poll::Ready(Some(Err(_))) => unreachable!("these streams do not fail"),
            Poll::Ready(None) => return bytes,
            Poll::Pending => {}
        }
    }
}

fn measure(criterion: &mut Criterion, who: &str) {
    let mut group = criterion.benchmark_group("observe");
    group.throughput(Throughput::Elements(EVENTS as u64));
    group.bench_function(format!("ready, {who}"), |bencher| {
        bencher.iter_batched(|| SseStream::new(events()).into_response().into_body(), drain, BatchSize::LargeInput);
    });
    group.bench_function(format!("alone, {who}"), |bencher| {
        let alone = || Alone { stream: Box::pin(events()), is_ready: true };
        bencher.iter_batched(|| SseStream::new(alone()).into_response().into_body(), drain, BatchSize::LargeInput);
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function(format!("stream, {who}"), |bencher| {
        let one = || SseStream::new(stream::iter([Event::new("x")]));
        bencher.iter(|| drain(black_box(one().into_response().into_body())));
    });
    group.finish();
}

fn main() {
    let mut criterion = ratios::criterion();
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _context = runtime.enter();

    // Who watches cannot be sent away again, so this goes first.
    measure(&mut criterion, "nobody watches");
    let _metrics = PrometheusBuilder::new().install_recorder().unwrap();
    tracing_subscriber::fmt().with_writer(io::sink).init();
    measure(&mut criterion, "watched");

    criterion.final_summary();
    println!("\nmetrics: {}, tracing: {}", cfg!(feature = "metrics"), cfg!(feature = "tracing"));
    let ratios = Ratios::head();
    for (what, per, target) in [("ready", EVENTS, "≤ 10 ns"), ("alone", EVENTS, ""), ("stream", 1, "")] {
        let [with, without] = ["watched", "nobody watches"].map(|who| format!("observe/{what}, {who}"));
        let what = match what {
            "ready" => "who watches adds to a ready event",
            "alone" => "who watches adds to an event in a frame of its own",
            _ => "who watches adds to a stream",
        };
        ratios.difference(what, &with, &without, per, target);
    }
}
