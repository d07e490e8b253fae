//! The cost of metrics and spans per event, with and without a recorder and a subscriber.
//!
//! The comparison is a build without the features, so run two builds, one after the other. The
//! second run prints the differences:
//!
//! ```console
//! $ cargo bench -p benches --bench observe
//! $ cargo bench -p benches --bench observe --features metrics,tracing
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

fn measure(criterion: &mut Criterion, setup: &str) {
    let mut group = criterion.benchmark_group("observe");
    group.throughput(Throughput::Elements(EVENTS as u64));
    group.bench_function(format!("ready, {setup}"), |bencher| {
        bencher.iter_batched(
            || SseStream::new(events()).into_http_response().into_body(),
            drain,
            BatchSize::LargeInput,
        );
    });
    group.bench_function(format!("alone, {setup}"), |bencher| {
        let body = || SseStream::new(alone(events())).into_http_response().into_body();
        bencher.iter_batched(body, drain, BatchSize::LargeInput);
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function(format!("stream, {setup}"), |bencher| {
        let stream = || SseStream::new(stream::iter([Event::new("x")]));
        bencher.iter(|| drain(black_box(stream().into_http_response().into_body())));
    });
    group.finish();
}

fn main() {
    let mut criterion = ratios::criterion();
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _context = runtime.enter();

    const OFF: &str = "features off";
    const NOT_RECORDED: &str = "not recorded";
    const RECORDED: &str = "recorded";
    if !cfg!(any(feature = "metrics", feature = "tracing")) {
        measure(&mut criterion, OFF);
        return criterion.final_summary();
    }
    // A recorder cannot be removed, so the measurement without a recorder is first.
    measure(&mut criterion, NOT_RECORDED);
    let _metrics = PrometheusBuilder::new().install_recorder().unwrap();
    tracing_subscriber::fmt().with_writer(io::sink).init();
    measure(&mut criterion, RECORDED);

    criterion.final_summary();
    let ratios = Ratios::head();
    for (kind, per, target) in [("ready", EVENTS, "≤ 10 ns"), ("alone", EVENTS, "≤ 10 ns"), ("stream", 1, "")] {
        for setup in [NOT_RECORDED, RECORDED] {
            let name = match kind {
                "ready" => "a ready event",
                "alone" => "an event in its own frame",
                _ => "a stream",
            };
            let [with, without] = [setup, OFF].map(|setup| format!("observe/{kind}, {setup}"));
            ratios.difference(&format!("{setup}: adds to {name}"), &with, &without, per, target);
        }
    }
}
