//! What is paid for in memory.

use allocation_counter::{AllocationInfo, measure};
use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::{HeaderValue, Request, Response, header::ACCEPT, header::CONTENT_TYPE};
use http_body::Body;
use http_body_util::Full;
use std::{convert::Infallible, hint::black_box, pin::pin};
use tokio_test::{assert_pending, task};
use tower::{Layer, Service, service_fn};
use tower_sse::{Event, EventId, EventName, SseBody, SseLayer, SseStream};

fn allocations(run: impl FnMut()) -> u64 {
    count(run).count_total
}

/// Of a second run: the first one may make what a thread keeps.
fn count(mut run: impl FnMut()) -> AllocationInfo {
    run();
    measure(run)
}

#[test]
fn an_event_with_fields_of_usual_length_costs_one_allocation_until_it_is_bytes() {
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
fn a_response_that_is_no_event_stream_passes_without_an_allocation() {
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
}

/// The whole of a stream that waits: its body, what the body has on the heap, and its timer.
#[tokio::test(start_paused = true)]
async fn an_idle_body_holds_no_more_than_256_bytes_beyond_its_stream() {
    type Idle = stream::Pending<Event>;
    // Kept by the thread and the runtime's timer, not by a stream.
    let warm_up = idle(SseStream::new(stream::pending()));
    let mut streams = Vec::with_capacity(100);
    let heap = measure(|| {
        for _ in 0..100 {
            streams.push(idle(SseStream::new(stream::pending())));
        }
    });
    // `task::Spawn` boxes what it polls, and its waker; a transport does so, too.
    let frame = measure(|| drop(black_box(task::spawn(std::future::pending::<()>())))).bytes_max;
    let body = heap.bytes_current as usize / 100 - frame as usize;
    drop((warm_up, streams));
    println!("an idle body: {body} bytes, {} of them inline", size_of::<SseBody<Idle>>());
    assert!(body <= 256 + size_of::<Idle>(), "{body} bytes, {} of them inline", size_of::<SseBody<Idle>>());
}

/// Polled until it has sent its first byte and waits for its heartbeat.
fn idle(stream: SseStream<stream::Pending<Event>>) -> task::Spawn<SseBody<stream::Pending<Event>>> {
    let (parts, body) = stream.into_response().into_parts();
    drop(parts);
    let mut body = task::spawn(body);
    assert!(body.enter(|cx, body| body.poll_frame(cx)).is_ready());
    assert_pending!(body.enter(|cx, body| body.poll_frame(cx)));
    body
}

#[tokio::test]
async fn a_frame_costs_no_allocation_for_each_of_its_events() {
    fn event() -> Event {
        Event::new("hello world!")
    }
    let bare = allocations(|| drop(black_box((0..100).map(|_| event().encode()).collect::<Vec<_>>())));
    let mut polled = 0;
    let whole = allocations(|| {
        let mut body = pin!(SseStream::new(stream::iter((0..100).map(|_| event()))).into_response().into_body());
        let mut cx = std::task::Context::from_waker(futures_util::task::noop_waker_ref());
        while let std::task::Poll::Ready(Some(frame)) = body.as_mut().poll_frame(&mut cx) {
            drop(black_box(frame));
            polled += 1;
        }
    });
    assert_eq!(polled, 2, "one frame in each of the two runs");
    assert!(whole <= bare + 16, "{whole} allocations, of which the events alone are {bare}");
}
