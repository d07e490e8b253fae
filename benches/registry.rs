//! The cost of a stream registry: for each event of a registered stream, and for closing streams
//! while others are open.

use criterion::{BatchSize, Throughput};
use futures_util::{FutureExt, Stream, StreamExt, stream};
use http::Request;
use http_body::Body;
use std::{
    convert::Infallible,
    future::ready,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Waker},
    thread,
    time::{Duration, Instant},
};
use support::{
    drain::{alone, drain},
    ratios::{self, Ratios},
};
use tower::{Layer, Service, service_fn};
use tower_sse::{Event, SseLayer, SseStream, StreamRegistry};

const EVENTS: usize = 10_000;
const USERS: u64 = 10_000;
const CLOSES: u64 = 5_000;
const PAUSE: Duration = Duration::from_millis(1);

/// Returns the body of a stream that has passed the layer.
fn open(layer: &SseLayer, events: impl Stream<Item = Event> + Send + 'static) -> axum::body::Body {
    let mut events = Some(events);
    let handler = service_fn(move |_: Request<()>| {
        ready(Ok::<_, Infallible>(SseStream::new(events.take().expect("one request")).into_http_response()))
    });
    let Ok(response) = layer.layer(handler).call(Request::new(())).now_or_never().expect("the handler does not wait");
    axum::body::Body::new(response.into_body())
}

/// Events that are ready one by one, so that each is a frame.
fn events() -> impl Stream<Item = Event> + Send {
    alone(stream::repeat_with(|| Event::new("0123456789")).take(EVENTS))
}

/// Closes streams of 10,000 users, 1,000 in a second. Each user opens another stream. Returns the
/// duration of each close, sorted.
fn closes() -> Vec<Duration> {
    let registry = StreamRegistry::new();
    let users = Arc::new(AtomicU64::new(0));
    let next = users.clone();
    let layer = SseLayer::new().register(&registry, move |_| Some(next.fetch_add(1, Relaxed) % USERS));
    let poll = |body: &mut axum::body::Body| {
        let _polled = std::pin::Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()));
    };
    let mut bodies: Vec<_> = (0..USERS).map(|_| open(&layer, stream::pending())).collect();
    bodies.iter_mut().for_each(&poll);
    let mut durations: Vec<_> = (0..CLOSES)
        .map(|user| {
            let begun = Instant::now();
            assert_eq!(registry.close(&user), 1);
            let duration = begun.elapsed();
            users.store(user, Relaxed);
            bodies[user as usize] = open(&layer, stream::pending());
            poll(&mut bodies[user as usize]);
            thread::sleep(PAUSE.saturating_sub(begun.elapsed()));
            duration
        })
        .collect();
    durations.sort_unstable();
    durations
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _entered = runtime.enter();
    let mut criterion = ratios::criterion();
    let mut group = criterion.benchmark_group("events of a stream");
    group.throughput(Throughput::Elements(EVENTS as u64));
    let limited = SseLayer::new().max_streams(usize::MAX);
    let registry = StreamRegistry::new();
    let registered = limited.clone().register(&registry, |_| Some(7));
    for (name, layer) in [("with a limit", &limited), ("and a registry", &registered)] {
        group.bench_function(name, |bencher| {
            bencher.iter_batched(|| open(layer, events()), drain, BatchSize::SmallInput);
        });
    }
    group.finish();
    criterion.final_summary();
    let ratios = Ratios::head();
    let (with, without) = ("events of a stream/and a registry", "events of a stream/with a limit");
    ratios.difference("a registry adds to each event", with, without, EVENTS, "0 ns");
    let durations = closes();
    let at = |percent: usize| durations[durations.len() * percent / 100];
    println!("close, with {USERS} open streams: {:?} in the median, {:?} at 99 % (target: 1 ms)", at(50), at(99));
}
