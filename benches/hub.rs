//! The cost of a hub: deliveries to many subscribers, publishing without subscribers, and replay.
//!
//! The comparison is the usual code without a hub: a tokio `broadcast` channel, and axum's `Sse`,
//! which encodes each event for each subscriber. Both run on one thread, so the time is CPU time.

use axum::response::{
    IntoResponse, Sse,
    sse::{self, KeepAlive},
};
use bytes::Bytes;
use criterion::{BatchSize, Throughput};
use futures_util::StreamExt;
use http_body::Body;
use http_body_util::BodyExt;
use std::{
    convert::Infallible,
    hint::black_box,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};
use support::ratios::{self, Ratios};
use tokio::{
    runtime::{self, Runtime},
    sync::broadcast,
    task::{JoinSet, yield_now},
};
use tokio_stream::{Stream, wrappers::BroadcastStream};
use tower_sse::{
    Event, SseStream,
    hub::{Hub, Start, Subscription, Topic},
};

const SUBSCRIBERS: usize = 1000;
const BURST: usize = 25;
const IDLE: usize = 10_000;
const HISTORY: usize = 100_000;
const AUDIENCES: [usize; 4] = [30, 1_000, 10_000, 100_000];
const TOPICS: [usize; 4] = [2, 100, 1_000, 10_000];
/// The number of events per round, so that starting the threads does not count.
const PUBLISHED: usize = 100_000;
const PUBLISHER_ROUNDS: usize = 21;

fn data() -> &'static str {
    "x".repeat(128).leak()
}

fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("a hub in memory never waits"),
    }
}

/// Tasks that read one body each, and count the bytes.
struct Readers {
    count: usize,
    received: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Readers {
    fn spawn<B>(runtime: &Runtime, bodies: impl Iterator<Item = B>) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Debug + Send,
    {
        let received = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let mut count = 0;
        for body in bodies {
            count += 1;
            let received = received.clone();
            let read = async move {
                let mut body = Box::pin(body);
                while let Some(frame) = body.frame().await {
                    received.fetch_add(frame.unwrap().data_ref().map_or(0, Bytes::len), Ordering::Relaxed);
                }
            };
            tasks.spawn_on(read, runtime.handle());
        }
        // Lets each task read its first byte and then wait. The runtime polls about 60 tasks
        // between two polls of this future.
        runtime.block_on(async {
            for _ in 0..100 + count / 20 {
                yield_now().await;
            }
        });
        received.store(0, Ordering::Relaxed);
        Self { count, received, _tasks: tasks }
    }

    /// Waits until each task has received this number of bytes, which is all that was published.
    ///
    /// A task that is left behind would read two bursts at the cost of one.
    async fn wait_for(&self, bytes: usize) {
        while self.received.load(Ordering::Relaxed) < bytes * self.count {
            yield_now().await;
        }
        assert_eq!(self.received.swap(0, Ordering::Relaxed), bytes * self.count);
    }
}

fn digits(number: usize) -> usize {
    number.ilog10() as usize + 1
}

fn fan_out(criterion: &mut criterion::Criterion, runtime: &Runtime, burst: usize) {
    let mut group = criterion.benchmark_group(format!("fan-out of {burst}"));
    group.throughput(Throughput::Elements((SUBSCRIBERS * burst) as u64));
    let data = data();
    // Only the length of the ids varies.
    let without_ids = burst * (Event::new(data).encode().len() + "id: \n".len());

    let topic = Hub::new().topic("ticks");
    let subscriptions =
        || SseStream::new(now(topic.subscribe(Start::Latest)).unwrap()).into_http_response().into_body();
    let readers = Readers::spawn(runtime, (0..SUBSCRIBERS).map(|_| subscriptions()));
    group.bench_function("tower-sse, published one by one", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let mut bytes = without_ids;
                for _ in 0..burst {
                    bytes += topic.publish(Event::new(black_box(data))).await.unwrap().as_bytes().len();
                }
                readers.wait_for(bytes).await;
            });
        });
    });
    group.bench_function("tower-sse, published together", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let events = (0..burst).map(|_| Event::new(black_box(data)));
                let last = topic.publish_all(events).await.unwrap().expect("there are events");
                let (epoch, last) = last.as_str().split_once('-').expect("an id of a hub");
                let last: usize = last.parse().expect("a number");
                let ids = (last - burst..last).map(|before| epoch.len() + 1 + digits(before + 1));
                readers.wait_for(without_ids + ids.sum::<usize>()).await;
            });
        });
    });
    drop(readers);

    let (sender, _) = broadcast::channel::<(u64, Arc<str>)>(1024);
    let bodies = || {
        let events = BroadcastStream::new(sender.subscribe()).map(|message| {
            let (id, data) = message.unwrap();
            Ok::<_, Infallible>(sse::Event::default().id(id.to_string()).data(data))
        });
        Sse::new(events).keep_alive(KeepAlive::default()).into_response().into_body()
    };
    let readers = Readers::spawn(runtime, (0..SUBSCRIBERS).map(|_| bodies()));
    let mut id = 0;
    group.bench_function("broadcast and axum", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let mut bytes = without_ids;
                for _ in 0..burst {
                    id += 1;
                    bytes += digits(id as usize);
                    sender.send((id, black_box(data).into())).unwrap();
                }
                readers.wait_for(bytes).await;
            });
        });
    });
    group.finish();
}

/// The time of the caller in `publish`, and the time until the last task has its event, by the
/// number of subscribers.
fn audiences(criterion: &mut criterion::Criterion, runtime: &Runtime) {
    let mut group = criterion.benchmark_group("audience");
    group.sample_size(10);
    let data = data();
    for subscribers in AUDIENCES {
        let topic = Hub::new().topic("ticks");
        let body = || SseStream::new(now(topic.subscribe(Start::Latest)).unwrap()).into_http_response().into_body();
        let readers = Readers::spawn(runtime, (0..subscribers).map(|_| body()));
        for what in ["publish", "last delivery"] {
            group.bench_function(format!("{subscribers}, {what}"), |bencher| {
                bencher.iter_custom(|iterations| {
                    let mut time = Duration::ZERO;
                    for _ in 0..iterations {
                        runtime.block_on(async {
                            let without_id = Event::new(data).encode().len() + "id: \n".len();
                            // Publish from a task, as a handler does.
                            let topic = topic.clone();
                            let publish = tokio::spawn(async move {
                                let begin = Instant::now();
                                let id = topic.publish(Event::new(data)).await.unwrap();
                                (begin, begin.elapsed(), id)
                            });
                            let (begin, in_publish, id) = publish.await.unwrap();
                            readers.wait_for(without_id + id.as_bytes().len()).await;
                            time += if what == "publish" { in_publish } else { begin.elapsed() };
                        });
                    }
                    time
                });
            });
        }
    }
    group.finish();
}

/// One event to a subscription, by the number of its topics.
fn merged(criterion: &mut criterion::Criterion) {
    let mut group = criterion.benchmark_group("topics");
    let data = data();
    for topics in TOPICS {
        let hub = Hub::builder().max_topics_per_subscription(topics).build();
        let names: Vec<_> = (0..topics).map(|n| n.to_string()).collect();
        let mut subscription = now(hub.subscribe(&names, Start::Latest)).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        // A subscription looks at many topics in several polls.
        for _ in 0..1 + topics / 100 {
            while poll(&mut subscription, &mut cx).is_ready() {}
        }
        let topic = hub.topic(&names[topics / 2]);
        group.bench_function(topics.to_string(), |bencher| {
            bencher.iter(|| {
                now(topic.publish(Event::new(black_box(data)))).unwrap();
                assert!(poll(&mut subscription, &mut cx).is_ready());
                assert!(poll(&mut subscription, &mut cx).is_pending());
            });
        });
    }
    group.finish();
}

/// The time of the same number of events from one thread that publishes, and from two threads:
/// each to its own topic, or both to one topic.
///
/// The three take turns, so that the load of the machine affects all of them. Each ratio is the
/// median of the ratios of the rounds, with the smallest and the largest. CPU time is that of all
/// rounds together.
fn publishers() {
    let cases = [("one publisher", 1, 1), ("two, each to a topic of its own", 2, 2), ("two to the same topic", 2, 1)];
    let data = data();
    let hub = Hub::builder().max_events(1000).build();
    let mut times = [const { Vec::new() }; 3];
    let mut cpu_times = [Duration::ZERO; 3];
    for _ in 0..PUBLISHER_ROUNDS {
        for (case, (_, threads, topics)) in cases.into_iter().enumerate() {
            let (begin, cpu_begin) = (Instant::now(), cpu_time());
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let topic = hub.topic((thread % topics).to_string());
                    scope.spawn(move || {
                        for _ in 0..PUBLISHED / threads {
                            now(topic.publish(Event::new(black_box(data)))).unwrap();
                        }
                    });
                }
            });
            times[case].push(begin.elapsed());
            cpu_times[case] += cpu_time() - cpu_begin;
        }
    }
    let per_event = |time: Duration| time.as_secs_f64() * 1e9 / PUBLISHED as f64;
    println!("\n{:<34} {:>9} {:>22} {:>9}", "publishers, time of the same events", "ns", "ratio", "CPU");
    for (case, (what, ..)) in cases.into_iter().enumerate() {
        let mut ratios: Vec<_> =
            times[case].iter().zip(&times[0]).map(|(time, one)| time.as_secs_f64() / one.as_secs_f64()).collect();
        ratios.sort_by(f64::total_cmp);
        let mut sorted = times[case].clone();
        sorted.sort_unstable();
        let middle = PUBLISHER_ROUNDS / 2;
        let [least, median, most] = [0, middle, PUBLISHER_ROUNDS - 1].map(|index| ratios[index]);
        let ratio = format!("{median:.2} ({least:.2}–{most:.2})");
        let cpu = cpu_times[case].as_secs_f64() / cpu_times[0].as_secs_f64();
        println!("{what:<34} {:>9.0} {ratio:>22} {cpu:>9.2}", per_event(sorted[middle]));
    }
}

/// Returns the CPU time of this process in user space and in the kernel. Zero except on Linux.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|ticks| ticks.parse::<u64>().ok()).unwrap_or_default();
    // The kernel counts in hundredths of a second.
    Duration::from_millis(10 * (ticks(11) + ticks(12)))
}

fn poll(subscription: &mut Subscription, cx: &mut Context<'_>) -> Poll<Option<usize>> {
    std::pin::Pin::new(subscription).poll_next(cx).map(|events| events?.ok().map(|events| events.as_bytes().len()))
}

fn publish(criterion: &mut criterion::Criterion) {
    let mut group = criterion.benchmark_group("publish");
    let data = data();
    group.bench_function("without subscribers", |bencher| {
        let topic = Hub::new().topic("unread");
        bencher.iter_batched(|| Event::new(data), |event| now(topic.publish(event)).unwrap(), BatchSize::SmallInput);
    });
    group.bench_function("without subscribers, with a new event and handle", |bencher| {
        let hub = Hub::new();
        bencher.iter(|| now(hub.topic("unread").publish(Event::new(black_box(data)))).unwrap());
    });
    group.bench_function("to idle subscribers", |bencher| {
        let topic: Topic = Hub::new().topic("idle");
        let mut idle: Vec<_> = (0..IDLE).map(|_| now(topic.subscribe(Start::Latest)).unwrap()).collect();
        let waker = Waker::from(Arc::new(Count::default()));
        bencher.iter_custom(|iterations| {
            let mut time = Duration::ZERO;
            for _ in 0..iterations {
                for subscription in &mut idle {
                    while poll(subscription, &mut Context::from_waker(&waker)).is_ready() {}
                }
                let begin = Instant::now();
                now(topic.publish(Event::new(data))).unwrap();
                time += begin.elapsed();
            }
            time
        });
    });
    group.bench_function("as many wakers", |bencher| {
        let waker = Waker::from(Arc::new(Count::default()));
        bencher.iter_batched(
            || vec![waker.clone(); IDLE],
            |wakers| wakers.into_iter().for_each(Waker::wake),
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

#[derive(Default)]
struct Count(AtomicUsize);

impl std::task::Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn replay(criterion: &mut criterion::Criterion) {
    let hub = Hub::builder().max_events(HISTORY).max_bytes(usize::MAX).build();
    let (whole, mixed) = (hub.topic("whole"), hub.topic("mixed"));
    let event = || Event::new(data());
    now(whole.publish_all((0..HISTORY).map(|_| event()))).unwrap();
    let bytes = hub.stats().bytes;
    for _ in 0..HISTORY / 2 {
        now(mixed.publish(event())).unwrap();
        now(hub.topic("other").publish(event())).unwrap();
    }
    let mut group = criterion.benchmark_group("replay");
    group.throughput(Throughput::Bytes(bytes as u64));
    let subscribe = || now(whole.subscribe(Start::Earliest)).unwrap();
    let read = |mut subscription: Subscription| {
        let mut read = 0;
        while let Poll::Ready(Some(bytes)) = poll(&mut subscription, &mut Context::from_waker(Waker::noop())) {
            read += bytes;
        }
        assert_eq!(read, bytes);
    };
    group.bench_function("out of the log", |bencher| bencher.iter_batched(subscribe, read, BatchSize::LargeInput));
    group.bench_function("out of the log, two topics in turn", |bencher| {
        bencher.iter_batched(
            || now(hub.subscribe(["mixed", "other"], Start::Earliest)).unwrap(),
            |mut subscription| {
                while poll(&mut subscription, &mut Context::from_waker(Waker::noop())).is_ready() {}
            },
            BatchSize::LargeInput,
        );
    });
    group.bench_function("as frames", |bencher| {
        bencher.iter_batched(
            || SseStream::new(subscribe()).without_heartbeat().into_http_response().into_body(),
            |body| {
                let mut body = pin!(body);
                while let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(&mut Context::from_waker(Waker::noop())) {
                    black_box(frame).unwrap();
                }
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
    println!("\nreplay: {bytes} bytes; GB/s is bytes per ns");
}

fn main() {
    // `cargo bench --bench hub -- publishers` skips the rest.
    if std::env::args().any(|argument| argument == "publishers") {
        return publishers();
    }
    let mut criterion = ratios::criterion();
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let context = runtime.enter();
    fan_out(&mut criterion, &runtime, BURST);
    fan_out(&mut criterion, &runtime, 1);
    audiences(&mut criterion, &runtime);
    // Outside of a runtime, `publish` wakes all subscribers.
    drop(context);
    merged(&mut criterion);
    publish(&mut criterion);
    replay(&mut criterion);

    criterion.final_summary();
    let ratios = Ratios::head();
    let of_many = |name: &str| format!("fan-out of {BURST}/{name}");
    let per = SUBSCRIBERS * BURST;
    let peer = of_many("broadcast and axum");
    ratios.ratio("a delivery, bursts of 25", &of_many("tower-sse, published one by one"), &peer, per, "≤ 0.15");
    ratios.ratio("the same, with publish_all", &of_many("tower-sse, published together"), &peer, per, "≤ 0.15");
    let (alone, peer) = ("fan-out of 1/tower-sse, published one by one", "fan-out of 1/broadcast and axum");
    ratios.ratio("a delivery, single events", alone, peer, SUBSCRIBERS, "≤ 0.5");
    ratios.ratio(
        "publish to 10,000, per subscriber",
        "publish/to idle subscribers",
        "publish/as many wakers",
        IDLE,
        "",
    );
    let with_new = "publish/without subscribers, with a new event and handle";
    ratios.ratio("publish without subscribers", "publish/without subscribers", with_new, 1, "≤ 300 ns");
    ratios.ratio("replay, per event", "replay/out of the log", "replay/as frames", HISTORY, "≤ 77: 2 GB/s");
    ratios.ratio(
        "replay of two topics, per event",
        "replay/out of the log, two topics in turn",
        "replay/as frames",
        HISTORY,
        "",
    );
    for subscribers in AUDIENCES {
        let [publish, last] = ["publish", "last delivery"].map(|what| format!("audience/{subscribers}, {what}"));
        let what = format!("publish to {subscribers} tasks, in the caller");
        ratios.ratio(&what, &publish, &last, 1, if subscribers == 100_000 { "≤ 20,000 ns" } else { "" });
    }
    for topics in TOPICS {
        let what = format!("an event to a subscription of {topics} topics");
        ratios.ratio(&what, &format!("topics/{topics}"), "topics/2", 1, "≤ 2,000 ns");
    }
    publishers();
}
