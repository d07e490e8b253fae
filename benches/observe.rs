//! What metrics and spans add to an event, with a recorder and a subscriber, and with nobody to watch.
//!
//! Without the features there is nothing of them, so it takes two builds, one right after the other. The second one prints the
//! differences:
//!
//! ```console
//! $ cargo bench --bench observe
//! $ cargo bench --bench observe --features metrics,tracing
//! ```

use criterion::{BatchSize, Criterion, Throughput};
use futures_util::{Stream, StreamExt, stream};
use metrics_exporter_prometheus::PrometheusBuilder;
use std::{hint::black_box, io};
use support::{
    drain::{alone, drain},
    ratios::{self, Ratios},
};
use tokio::runtime;
use tower_sse::{Event, SseStream};

const EVENTS: usize = 10_000;

fn events() -> impl Stream<Item = Event> + Send + 'static {
    let data = "x".repeat(100).leak();
    stream::repeat_with(move || Event::new(black_box(&*data))).take(EVENTS)
}

fn measure(criterion: &mut Criterion, who: &str) {
    let mut group = criterion.benchmark_group("observe");
    group.throughput(Throughput::Elements(EVENTS as u64));
    group.bench_function(format!("ready, {who}"), |bencher| {
        bencher.iter_batched(
            || SseStream::new(events()).into_http_response().into_body(),
            drain,
            BatchSize::LargeInput,
        );
    });
    group.bench_function(format!("alone, {who}"), |bencher| {
        let body = || SseStream::new(alone(events())).into_http_response().into_body();
        bencher.iter_batched(body, drain, BatchSize::LargeInput);
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function(format!("stream, {who}"), |bencher| {
        let one = || SseStream::new(stream::iter([Event::new("x")]));
        bencher.iter(|| drain(black_box(one().into_http_response().into_body())));
    });
    group.finish();
}

fn main() {
    let mut criterion = ratios::criterion();
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _context = runtime.enter();

    const OFF: &str = "features off";
    if !cfg!(any(feature = "metrics", feature = "tracing")) {
        measure(&mut criterion, OFF);
        return criterion.final_summary();
    }
    // Who watches cannot be sent away again, so this goes first.
    measure(&mut criterion, "nobody watches");
    let _metrics = PrometheusBuilder::new().install_recorder().unwrap();
    tracing_subscriber::fmt().with_writer(io::sink).init();
    measure(&mut criterion, "watched");

    criterion.final_summary();
    let ratios = Ratios::head();
    for (what, per, target) in [("ready", EVENTS, "≤ 10 ns"), ("alone", EVENTS, "≤ 10 ns"), ("stream", 1, "")] {
        for who in ["nobody watches", "watched"] {
            let what_it_adds_to = match what {
                "ready" => "a ready event",
                "alone" => "an event in a frame of its own",
                _ => "a stream",
            };
            let [with, without] = [who, OFF].map(|who| format!("observe/{what}, {who}"));
            ratios.difference(&format!("{who}, adds to {what_it_adds_to}"), &with, &without, per, target);
        }
    }
}
