//! The memory cost of events, streams and topics.

use allocation_counter::{AllocationInfo, measure};
use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use http::{HeaderValue, Request, Response, header::ACCEPT, header::CONTENT_TYPE, request::Parts};
use http_body::Body;
use http_body_util::Full;
use std::{
    convert::Infallible,
    hint::black_box,
    pin::{Pin, pin},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Waker},
    time::Duration,
};
use support::respond::through;
use tokio_test::{assert_pending, task};
use tokio_util::sync::CancellationToken;
use tower::{Layer, Service, service_fn};
use tower_sse::{
    BoxError, Event, EventId, EventName, Heartbeat, SseBody, SseItem, SseLayer, SseStream, StreamRegistry,
    hub::{Hub, Start, Subscription},
};

fn allocations(run: impl FnMut()) -> u64 {
    count(run).count_total
}

/// Measures a second run, because the first one may allocate what a thread keeps.
fn count(mut run: impl FnMut()) -> AllocationInfo {
    run();
    measure(run)
}

#[test]
fn usual_event_costs_one_allocation() {
    let text = "x".repeat(100);
    let lines = "some line\n".repeat(400);
    let name = EventName::new("run-time-name").unwrap();
    let id = EventId::new("run-time-id").unwrap();
    for (what, build) in [
        ("a token", Box::new(|| Event::new("hello world!").encode()) as Box<dyn Fn() -> Bytes>),
        ("data first", Box::new(|| Event::new(&text).event("update").id(1_234_567).encode())),
        ("fields first", Box::new(|| Event::default().event("update").id(1_234_567).data(&text).encode())),
        ("run-time fields", Box::new(|| Event::new(&text).event(name.clone()).id(id.clone()).encode())),
        ("many lines", Box::new(|| Event::new(&lines).id(7).encode())),
        ("display", Box::new(|| Event::display(format_args!("{lines}{}", 7)).id(7).encode())),
        ("a name alone", Box::new(|| Event::default().event("close").encode())),
    ] {
        assert_eq!(allocations(|| drop(black_box(build()))), 1, "{what}");
    }
    assert_eq!(allocations(|| drop(black_box(Event::default().encode()))), 0);
}

#[test]
fn event_of_a_variant_costs_one_allocation() {
    #[derive(serde::Serialize)]
    #[serde(tag = "type", rename_all = "snake_case")]
    enum Internal {
        PointMoved { x: u32, label: &'static str },
    }
    #[derive(serde::Serialize)]
    enum External {
        Moved(u32, u32),
    }
    let internal = Internal::PointMoved { x: 1, label: "a" };
    let external = External::Moved(1, 2);
    assert_eq!(allocations(|| drop(black_box(Event::tagged(&internal).unwrap().id(7).encode()))), 1);
    assert_eq!(allocations(|| drop(black_box(Event::tagged(&external).unwrap().id(7).encode()))), 1);
}

#[test]
fn an_event_of_json_costs_one_allocation() {
    let numbers: Vec<u32> = (0..1000).collect();
    assert_eq!(allocations(|| drop(black_box(Event::json(&numbers).unwrap().event("n").id(7).encode()))), 1);
}

type Plain = Response<Full<Bytes>>;

fn responses(layer: SseLayer, response: impl Fn() -> Plain, request: impl Fn() -> Request<()>) -> u64 {
    let mut service = layer.layer(service_fn(|_: Request<()>| std::future::ready(Ok::<_, Infallible>(response()))));
    let bare = allocations(|| drop(black_box((response(), request()))));
    allocations(|| drop(black_box(service.call(request()).now_or_never().unwrap()))) - bare
}

#[test]
fn other_response_passes_without_allocation() {
    let plain = || {
        let mut response = Plain::new(Full::from("hello"));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        response
    };
    assert_eq!(responses(SseLayer::new(), plain, || Request::new(())), 0);

    let browser = || {
        let mut request = Request::new(());
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("text/html,application/xml;q=0.9,*/*;q=0.8"));
        request
    };
    assert_eq!(responses(SseLayer::new(), plain, browser), 0);

    // The limits of streams cost nothing either, because the response is no stream.
    let limited = SseLayer::new().max_streams(1).max_streams_per(1, |parts| Some(parts.version));
    assert_eq!(responses(limited, plain, || Request::new(())), 0);
}

/// The whole memory of an idle stream: its body, the heap of the body, and its timer.
#[tokio::test(start_paused = true)]
async fn idle_body_takes_at_most_256_bytes() {
    type Idle = stream::Pending<Event>;
    // The thread and the timer of the runtime keep this memory, not a stream.
    let warm_up = idle(SseStream::new(stream::pending::<Event>()));
    let mut streams = Vec::with_capacity(100);
    let heap = measure(|| {
        for _ in 0..100 {
            streams.push(idle(SseStream::new(stream::pending::<Event>())));
        }
    });
    // `task::Spawn` boxes the body and its waker. A transport does so, too.
    let frame = measure(|| drop(black_box(task::spawn(std::future::pending::<()>())))).bytes_max;
    let body = heap.bytes_current as usize / 100 - frame as usize;
    drop((warm_up, streams));
    println!("an idle body: {body} bytes, {} of them inline", size_of::<SseBody<Idle>>());
    // With everything that it records.
    let watched = if cfg!(any(feature = "metrics", feature = "tracing")) { 256 } else { 0 };
    assert!(body <= 256 + watched + size_of::<Idle>(), "{body} bytes, {} of them inline", size_of::<SseBody<Idle>>());
}

/// Polls a body until it has sent its first byte and waits for its heartbeat.
fn idle<S>(stream: SseStream<S>) -> task::Spawn<SseBody<S>>
where
    S: Stream<Item: SseItem>,
{
    let (parts, body) = stream.into_http_response().into_parts();
    drop(parts);
    let mut body = task::spawn(body);
    assert!(body.enter(|cx, body| body.poll_frame(cx)).is_ready());
    assert_pending!(body.enter(|cx, body| body.poll_frame(cx)));
    body
}

#[tokio::test]
async fn events_of_a_frame_cost_no_allocation() {
    fn event() -> Event {
        Event::new("hello world!")
    }
    let bare = allocations(|| drop(black_box((0..100).map(|_| event().encode()).collect::<Vec<_>>())));
    let mut polled = 0;
    let whole = allocations(|| {
        let mut body = pin!(SseStream::new(stream::iter((0..100).map(|_| event()))).into_http_response().into_body());
        let mut cx = std::task::Context::from_waker(futures_util::task::noop_waker_ref());
        while let std::task::Poll::Ready(Some(frame)) = body.as_mut().poll_frame(&mut cx) {
            drop(black_box(frame));
            polled += 1;
        }
    });
    assert_eq!(polled, 2, "one frame in each of the two runs");
    assert!(whole <= bare + 16, "{whole} allocations, of which the events alone are {bare}");
}

fn published<T>(future: impl Future<Output = Result<T, tower_sse::hub::Error>>) -> T {
    future.now_or_never().expect("a hub in memory waits for nothing").unwrap()
}

#[test]
fn idle_topic_takes_at_most_512_bytes() {
    const TOPICS: usize = 100_000;
    let hub = Hub::builder().max_topics(usize::MAX).build();
    let names: Vec<_> = (0..TOPICS).map(|n| format!("notices/{n}")).collect();
    published(hub.topic("warm up").finish());
    let heap = measure(|| {
        for name in &names {
            published(hub.topic(name).finish());
        }
    });
    let topic = heap.bytes_current as usize / TOPICS;
    println!(
        "an idle topic: {topic} bytes, its name of {} and its place in two maps included",
        names[TOPICS - 1].len()
    );
    assert!(topic <= 512, "{topic} bytes");
}

/// The whole memory of a stream that waits for a topic, compared with a stream that waits for
/// nothing.
#[tokio::test(start_paused = true)]
async fn idle_subscription_takes_at_most_192_bytes() {
    const SUBSCRIPTIONS: usize = 1000;
    let topic = Hub::new().topic("news");
    let bare = |n| (0..n).map(|_| idle(SseStream::new(stream::pending::<Event>()))).collect::<Vec<_>>();
    let subscribed =
        |n| (0..n).map(|_| idle(SseStream::new(published(topic.subscribe(Start::Latest))))).collect::<Vec<_>>();
    // The thread, the timer of the runtime and the topic keep this memory.
    drop((bare(1), subscribed(1)));
    let mut kept = (Vec::new(), Vec::new());
    let without = measure(|| kept.0 = bare(SUBSCRIPTIONS)).bytes_current;
    let with = measure(|| kept.1 = subscribed(SUBSCRIPTIONS)).bytes_current;
    let subscription = (with - without) as usize / SUBSCRIPTIONS;
    println!("an idle subscription: {subscription} bytes, {} of them inline", size_of::<Subscription>());
    assert!(subscription <= 192, "{subscription} bytes, {} of them inline", size_of::<Subscription>());
}

/// The whole memory of a client of a hub, without its connection.
#[tokio::test(start_paused = true)]
async fn idle_hub_stream_takes_little_memory() {
    type AnyBody = Pin<Box<dyn Body<Data = Bytes, Error = BoxError>>>;
    const STREAMS: usize = 1000;

    let topic = Hub::new().topic("news");
    let open = |heartbeat: Option<Heartbeat>, layer: Option<&SseLayer>| {
        let stream = SseStream::new(published(topic.subscribe(Start::Latest)));
        let response = match heartbeat {
            Some(heartbeat) => stream.heartbeat(heartbeat).into_http_response(),
            None => stream.into_http_response(),
        };
        let mut body: AnyBody = match layer {
            Some(layer) => Box::pin(through(layer, response).into_body()),
            None => Box::pin(response.into_body()),
        };
        let mut cx = Context::from_waker(Waker::noop());
        assert!(body.as_mut().poll_frame(&mut cx).is_ready());
        assert_pending!(body.as_mut().poll_frame(&mut cx));
        body
    };
    // Metrics and spans need a recorder for each stream.
    let observed = if cfg!(any(feature = "metrics", feature = "tracing")) { 288 } else { 0 };
    let plain = SseLayer::new();
    let usual = SseLayer::new().shutdown(CancellationToken::new()).max_streams(usize::MAX).on_close(drop);
    let accounts = SseLayer::new().on_close_with(|_| 7_u64, |_, _| {});
    for (what, heartbeat, layer, expected) in [
        ("without settings", None, None, 384),
        ("with a heartbeat of its handler", Some(Duration::from_secs(20)), None, 416),
        ("under a layer", None, Some(&plain), 392),
        ("under a layer with a shutdown, a limit and a callback", None, Some(&usual), 872),
        ("under a layer with a callback that gets a number of the request", None, Some(&accounts), 640),
    ] {
        let open = || open(heartbeat.map(Heartbeat::every), layer);
        // The thread, the timer of the runtime and the topic keep this memory.
        drop(open());
        let mut streams = Vec::with_capacity(STREAMS);
        let heap = measure(|| streams.extend((0..STREAMS).map(|_| open()))).bytes_current;
        let stream = heap as usize / STREAMS;
        println!("a hub stream {what}: {stream} bytes");
        assert!(stream <= expected + observed, "a hub stream {what}: {stream} bytes");
    }
}

/// Publishing allocates for the event, whatever the number of subscribers.
#[test]
fn to_publish_allocates_nothing_for_a_subscriber() {
    let allocations_with = |subscribers: usize| {
        let topic = Hub::builder().max_events(10).build().topic("news");
        let mut waiting: Vec<_> = (0..subscribers).map(|_| published(topic.subscribe(Start::Latest))).collect();
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let mut total = 0;
        for round in 0..40 {
            for subscription in &mut waiting {
                while subscription.poll_next_unpin(&mut cx).is_ready() {}
            }
            let one = measure(|| drop(black_box(published(topic.publish(Event::new("hello world!"))))));
            // The first events allocate memory that the topic keeps.
            total += if round < 20 { 0 } else { one.count_total };
        }
        total
    };
    assert_eq!(allocations_with(1000), allocations_with(1));
}

/// Measures from `publish` to the frames of all clients. A frame needs the bytes, and a counter to
/// share them.
#[tokio::test(start_paused = true)]
async fn single_event_allocates_nothing_for_a_client() {
    const EVENTS: u64 = 100;
    let allocations_with = |clients: usize| {
        let topic = Hub::builder().max_events(10).build().topic("news");
        let mut bodies: Vec<_> =
            (0..clients).map(|_| idle(SseStream::new(published(topic.subscribe(Start::Latest))))).collect();
        let mut round = || {
            published(topic.publish(Event::new("hello world!")));
            for body in &mut bodies {
                assert!(body.is_woken());
                assert!(body.enter(|cx, body| body.poll_frame(cx)).is_ready());
                assert_pending!(body.enter(|cx, body| body.poll_frame(cx)));
            }
        };
        // The first events allocate memory that the topic keeps.
        (0..EVENTS).for_each(|_| round());
        let total = measure(|| (0..EVENTS).for_each(|_| round())).count_total;
        println!("{clients} clients: {total} allocations for {EVENTS} events");
        total
    };
    let one = allocations_with(1);
    // The event, its copy for the clients, and the counter.
    assert!(one <= 3 * EVENTS + EVENTS / 10, "{one}");
    assert_eq!(allocations_with(30), one);
}

#[test]
fn removed_topic_takes_at_most_64_bytes() {
    const TOPICS: usize = 1000;
    let hub = Hub::new();
    let heap = measure(|| {
        for n in 0..TOPICS {
            let topic = hub.topic(format!("topic-{n}"));
            published(topic.publish(Event::new("hello world!")));
            published(topic.remove());
        }
    });
    let topic = heap.bytes_current as usize / TOPICS;
    assert!((1..=64).contains(&topic), "a removed topic takes {topic} bytes");
}

#[test]
fn small_event_after_large_one_takes_little_memory() {
    const TOPICS: usize = 1000;
    let hub = Hub::builder().max_events(1).build();
    let topics: Vec<_> = (0..TOPICS).map(|n| hub.topic(n.to_string())).collect();
    let heap = measure(|| {
        for topic in &topics {
            published(topic.publish(Event::new("x".repeat(5000))));
            published(topic.publish(Event::new("x")));
        }
    });
    let topic = heap.bytes_current as usize / TOPICS;
    assert!(topic <= 1024, "{topic} bytes for one event");
}

/// The topic retains unread events once for all clients, and no longer than for other clients.
#[test]
fn stalled_client_costs_no_memory_of_its_own() {
    let held = |stalled: usize| {
        let topic = Hub::builder().max_events(100).build().topic("news");
        let mut reads = published(topic.subscribe(Start::Latest));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let mut stalled: Vec<_> = (0..stalled).map(|_| published(topic.subscribe(Start::Latest))).collect();
        for subscription in &mut stalled {
            assert_pending!(subscription.poll_next_unpin(&mut cx));
        }
        let mut publish = |events: usize| {
            for _ in 0..events {
                published(topic.publish(Event::new("x".repeat(128))));
                while reads.poll_next_unpin(&mut cx).is_ready() {}
            }
        };
        publish(1000);
        measure(|| publish(10_000)).bytes_current
    };
    let (with, without) = (held(100), held(0));
    println!("10,000 events that 100 clients do not read: {} bytes more than without these", with - without);
    assert!(with - without <= 1024, "{with} bytes with, {without} without");
}

/// The memory that a registry adds to a stream with a layer, by the number of streams of a key.
#[tokio::test(start_paused = true)]
async fn registered_stream_takes_at_most_64_bytes() {
    const STREAMS: u64 = 10_000;

    let bytes_per_stream = |layer: &SseLayer| {
        let mut bodies = Vec::with_capacity(STREAMS as usize);
        let heap = measure(|| {
            for _ in 0..STREAMS {
                let handler = service_fn(|_: Request<()>| {
                    let stream = SseStream::new(stream::pending::<Event>()).without_heartbeat();
                    std::future::ready(Ok::<_, Infallible>(stream.into_http_response()))
                });
                let response = layer.layer(handler).call(Request::new(())).now_or_never().unwrap();
                let mut body = Box::pin(response.unwrap().into_body());
                while body.as_mut().poll_frame(&mut Context::from_waker(Waker::noop())).is_ready() {}
                bodies.push(body);
            }
        });
        heap.bytes_current as f64 / STREAMS as f64
    };
    let limited = SseLayer::new().max_streams(usize::MAX);
    let plain = bytes_per_stream(&limited);
    for per_user in [1, 10] {
        let registry = StreamRegistry::<u64>::new();
        let count = AtomicU64::new(0);
        let key = move |_: &Parts| Some(count.fetch_add(1, Relaxed) / per_user);
        let bytes = bytes_per_stream(&limited.clone().register(&registry, key)) - plain;
        println!("a registered stream, {per_user} per user: {bytes:.1} bytes");
        assert!(bytes <= 64.0, "{bytes} bytes with {per_user} streams per user");
        assert!(registry.is_empty());
    }
}

#[test]
fn registry_frees_memory_of_ended_streams() {
    let registry = StreamRegistry::<u64>::new();
    let count = AtomicU64::new(0);
    let layer = SseLayer::new().register(&registry, move |_| Some(count.fetch_add(1, Relaxed)));
    let open = || through(&layer, SseStream::new(stream::pending::<Event>()).into_http_response());
    let held = measure(|| {
        let streams: Vec<_> = (0..10_000).map(|_| open()).collect();
        assert_eq!(registry.len(), streams.len());
    });
    assert!(registry.is_empty());
    assert!(held.bytes_current < 1_000, "{} bytes", held.bytes_current);
}
