//! Guarantee: after a registry has closed the streams of a key, nothing that is published later
//! reaches them.

use crate::common::{Summaries, channel, encoded, ours, upstream, upstream_response};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http::{Request, request::Parts};
use http_body::{Body, Frame};
use http_body_util::StreamBody;
use std::{
    convert::Infallible,
    hint,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};
use support::{
    polled::Polled,
    respond::respond,
    script::{Script, Step},
};
use tokio::time::advance;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_sse::{
    CloseReason, Event, SseLayer, SseStream, StreamRegistry,
    hub::{Hub, Start},
};

type Registry = StreamRegistry<Arc<str>>;

fn user(parts: &Parts) -> Option<Arc<str>> {
    Some(parts.headers.get("user")?.to_str().ok()?.into())
}

fn registered() -> (Registry, SseLayer) {
    let registry = Registry::new();
    let layer = SseLayer::new().without_heartbeat().register(&registry, user);
    (registry, layer)
}

fn request(user: &str) -> Request<()> {
    Request::builder().header("user", user).body(()).unwrap()
}

/// A stream of this user that sends what the channel sends.
fn stream_of(user: &str, layer: &SseLayer) -> (tokio::sync::mpsc::UnboundedSender<Event>, Polled) {
    let (sender, events) = channel();
    (sender, Polled::new(respond(layer, request(user), SseStream::new(events).into_http_response())))
}

#[tokio::test]
async fn close_ends_streams_of_one_key() {
    let (registry, layer) = registered();
    let summaries = Summaries::default();
    let layer = layer.on_close(summaries.callback());
    let (_a, mut first) = stream_of("alice", &layer);
    let (_b, mut second) = stream_of("alice", &layer);
    let (bob, mut other) = stream_of("bob", &layer);
    for body in [&mut first, &mut second, &mut other] {
        body.assert_pending();
    }
    assert_eq!((registry.count(&"alice".into()), registry.count(&"bob".into()), registry.len()), (2, 1, 3));

    assert_eq!(registry.close(&"alice".into()), 2);
    assert!(first.is_woken() && second.is_woken() && !other.is_woken());
    first.assert_end();
    assert_eq!((registry.count(&"alice".into()), registry.len()), (0, 1));
    assert_eq!(registry.close(&"alice".into()), 0);
    drop(first);
    assert_eq!(summaries.only().reason, CloseReason::Ended);
    bob.send(Event::new("a")).unwrap();
    other.assert_data("data: a\n\n");
    drop(other);
    assert!(registry.is_empty());
}

#[tokio::test]
async fn closing_event_is_the_last() {
    let (registry, layer) = registered();
    let (events, mut body) = stream_of("alice", &layer);
    body.assert_pending();
    events.send(Event::new("not sent any more")).unwrap();
    registry.close_with(&"alice".into(), Event::new("").event("logout").id(7));
    assert_eq!(body.rest(), "event: logout\ndata: \n\n");
    assert!(events.is_closed());
}

/// The request is registered before the handler runs.
#[tokio::test]
async fn stream_that_is_closed_before_its_response_ends_at_once() {
    let (registry, layer) = registered();
    let handler = service_fn({
        let registry = registry.clone();
        move |_: Request<()>| {
            assert_eq!(registry.close(&"alice".into()), 0, "the request is no open stream yet");
            let events = stream::iter([Event::new("private")]).chain(stream::pending());
            async { Ok::<_, Infallible>(SseStream::new(events).into_http_response()) }
        }
    });
    let Ok(response) = layer.layer(handler).oneshot(request("alice")).now_or_never().unwrap();
    assert_eq!(Polled::new(response).rest(), "");
}

/// Requests that are in their handler, whether the response is an event stream or not.
#[tokio::test]
async fn request_in_its_handler_does_not_count_as_open() {
    let (registry, layer) = registered();
    let layer = layer.max_streams(2);
    let counts = |registry: &Registry| (registry.count(&"alice".into()), registry.len(), registry.iter().count());
    let mut open = Vec::new();
    for is_stream in [true, false, true, true] {
        let expected = (open.len(), open.len(), open.len());
        let handler = service_fn(|_: Request<()>| {
            assert_eq!(counts(&registry), expected);
            let mut response = SseStream::new(stream::pending::<Event>()).into_http_response();
            if !is_stream {
                *response.status_mut() = http::StatusCode::NO_CONTENT;
            }
            async { Ok::<_, Infallible>(response) }
        });
        let Ok(response) = layer.layer(handler).oneshot(request("alice")).now_or_never().unwrap();
        if is_stream && response.status() == http::StatusCode::OK {
            open.push(response);
        }
        assert_eq!(counts(&registry), (open.len(), open.len(), open.len()));
    }
    assert_eq!(open.len(), 2, "the last request was over the limit");
    let handler = service_fn(|_: Request<()>| {
        assert_eq!(registry.close(&"alice".into()), 1);
        assert_eq!(counts(&registry), (0, 0, 0));
        async { Ok::<_, Infallible>(SseStream::new(stream::pending::<Event>()).into_http_response()) }
    });
    open.pop();
    let Ok(response) = layer.layer(handler).oneshot(request("alice")).now_or_never().unwrap();
    assert_eq!(counts(&registry), (0, 0, 0), "the stream was closed before its response");
    assert_eq!(Polled::new(response).rest(), "");
}

/// The stream closes its own key while it is polled, and then returns an event.
#[tokio::test]
async fn item_of_a_poll_during_which_the_stream_is_closed_is_discarded() {
    let (registry, layer) = registered();
    let closing = |registry: Registry| move || registry.close_with(&"alice".into(), Event::new("bye"));

    for ends in [false, true] {
        let close = closing(registry.clone());
        let mut items = 0;
        let events = stream::poll_fn(move |_| {
            items += 1;
            match items {
                1 => Poll::Ready(Some(Event::new("before"))),
                2 => Poll::Pending,
                3 => {
                    close();
                    Poll::Ready(Some(Event::new("after")))
                }
                _ if ends => Poll::Ready(None),
                _ => Poll::Pending,
            }
        });
        let response = SseStream::new(events).end_with(Event::new("after")).into_http_response();
        let mut body = Polled::new(respond(&layer, request("alice"), response));
        body.assert_data("data: before\n\n");
        assert_eq!(body.rest(), "data: bye\n\n");
    }

    let upstream_body = |registry: Registry| {
        let close = closing(registry);
        let mut items = 0;
        StreamBody::new(stream::poll_fn(move |_| {
            items += 1;
            let chunk = match items {
                1 => "data: before\n\ndata: inco",
                2 => {
                    close();
                    "mplete\n\ndata: after\n\n"
                }
                _ => "data: after\n\n",
            };
            Poll::Ready(Some(Ok::<_, Infallible>(Frame::data(Bytes::from_static(chunk.as_bytes())))))
        }))
    };
    let mut body = Polled::new(respond(&layer, request("alice"), upstream_response(upstream_body(registry.clone()))));
    assert_eq!(body.rest(), "data: before\n\ndata: incomplete\n\ndata: bye\n\n");

    let response = encoded(&[]).map(|_| upstream_body(registry.clone()));
    let mut body = Polled::new(respond(&layer, request("alice"), response));
    assert_eq!(body.rest(), "data: before\n\ndata: inco");
}

#[tokio::test(start_paused = true)]
async fn closed_upstream_stream_completes_its_event() {
    let (registry, layer) = registered();
    let steps = [Step::chunk("data: a\n"), Step::Hang];
    let mut body = Polled::new(respond(&layer, request("alice"), upstream_response(Script::new(steps))));
    body.assert_data("data: a\n");
    body.assert_pending();
    registry.close_with(&"alice".into(), Event::new("bye"));
    body.assert_pending();
    advance(Duration::from_millis(251)).await;
    body.assert_end();
}

#[tokio::test]
async fn response_that_is_no_stream_is_not_registered() {
    let (registry, layer) = registered();
    let json = http::Response::builder().header("content-type", "application/json").body(Script::default()).unwrap();
    let response = respond(&layer, request("alice"), json);
    assert!(registry.is_empty());
    drop(response);
    // No key, no registration.
    let _body = ours(SseStream::new(stream::pending::<Event>()), &[&layer]);
    assert!(registry.is_empty());
    let _body = upstream([Step::Hang], &[&layer]);
    assert!(registry.is_empty());
}

#[tokio::test]
async fn layer_that_is_applied_twice_registers_a_stream_once() {
    let (registry, layer) = registered();
    let handler = service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(SseStream::new(stream::pending::<Event>()).into_http_response())
    });
    let mut service = layer.layer(layer.layer(handler));
    let Ok(response) = service.call(request("alice")).now_or_never().unwrap();
    assert_eq!(registry.count(&"alice".into()), 1);
    drop(response);
    assert!(registry.is_empty());
}

#[tokio::test]
async fn stream_is_in_each_of_two_registries() {
    let (users, layer) = registered();
    let tenants = StreamRegistry::<u64>::new();
    let outer = SseLayer::new().register(&tenants, |_| Some(7));
    let handler = service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(SseStream::new(stream::pending::<Event>()).without_heartbeat().into_http_response())
    });
    for close in [true, false] {
        let mut service = outer.layer(layer.layer(handler));
        let Ok(response) = service.call(request("alice")).now_or_never().unwrap();
        let mut body = Polled::new(response);
        body.assert_pending();
        let closed = if close { tenants.close(&7) } else { users.close(&"alice".into()) };
        assert_eq!(closed, 1);
        assert_eq!(body.rest(), "");
        drop(body);
        assert!(tenants.is_empty() && users.is_empty());
    }
}

#[tokio::test]
async fn snapshot_shows_age_and_counts() {
    let (registry, layer) = registered();
    let (events, mut body) = stream_of("alice", &layer);
    events.send(Event::new("a")).unwrap();
    events.send(Event::new("b")).unwrap();
    body.assert_data("data: a\n\ndata: b\n\n");
    let streams: Vec<_> = registry.iter().collect();
    assert_eq!(streams.len(), 1);
    assert_eq!((&*streams[0].key, streams[0].events, streams[0].bytes), ("alice", 2, 18));
    assert!(streams[0].age < Duration::from_secs(60));
}

/// Streams of one key leave in any order, and the rest can still be closed.
#[test]
fn streams_leave_in_any_order() {
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
        let (registry, layer) = registered();
        let mut bodies: Vec<_> = (0..4).map(|_| Some(stream_of("alice", &layer))).collect();
        for (left, index) in order.into_iter().enumerate() {
            bodies[index] = None;
            assert_eq!((registry.count(&"alice".into()), registry.iter().count()), (3 - left, 3 - left));
        }
        let (_sender, _body) = stream_of("alice", &layer);
        assert_eq!(registry.close(&"alice".into()), 1);
    }
}

/// Clients of a hub on one thread, and on another thread a logout with a publication after it.
#[test]
fn nothing_published_after_close_arrives_on_another_thread() {
    for _ in 0..300 {
        let (registry, layer) = registered();
        let topic = Hub::new().topic("news");
        let subscribe = || topic.subscribe(Start::Latest).now_or_never().unwrap().unwrap();
        let mut bodies: Vec<_> = (0..20)
            .map(|_| Polled::new(respond(&layer, request("alice"), SseStream::new(subscribe()).into_http_response())))
            .collect();
        let publish = |data: &str| drop(topic.publish(Event::new(data)).now_or_never().unwrap().unwrap());
        thread::scope(|scope| {
            scope.spawn(|| {
                publish("public");
                assert_eq!(registry.close(&"alice".into()), 20);
                publish("private");
            });
            for body in &mut bodies {
                scope.spawn(move || {
                    let mut text = Vec::new();
                    loop {
                        match body.poll() {
                            Poll::Ready(Some(Ok(frame))) => text.extend_from_slice(&frame),
                            Poll::Ready(None) => break,
                            Poll::Ready(Some(Err(error))) => panic!("{error}"),
                            Poll::Pending => thread::yield_now(),
                        }
                    }
                    let text = String::from_utf8(text).unwrap();
                    assert!(!text.contains("private"), "{text}");
                });
            }
        });
    }
}

/// A closed stream is dropped while other streams come and go. A close reaches only streams that
/// were registered with its key and are open.
#[test]
fn close_reaches_only_open_streams_of_its_key() {
    let (registry, layer) = registered();
    let users = ["alice", "bob", "carol"];
    let mut random = 1_u32;
    let mut next = |below: usize| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 8) as usize % below
    };
    // The user of each stream, and whether the stream is closed.
    let mut streams: Vec<(usize, bool, Polled)> = Vec::new();
    for _ in 0..5_000 {
        match next(8) {
            0 => {
                let user = next(3);
                let mut closed = 0;
                for (_, is_closed, body) in
                    streams.iter_mut().filter(|(owner, is_closed, _)| *owner == user && !is_closed)
                {
                    body.assert_pending();
                    *is_closed = true;
                    closed += 1;
                }
                assert_eq!(registry.close_with(&users[user].into(), Event::new(users[user])), closed);
            }
            1..4 if !streams.is_empty() => drop(streams.swap_remove(next(streams.len()))),
            _ => {
                let user = next(3);
                let stream = SseStream::new(stream::pending::<Event>()).without_heartbeat();
                streams.push((
                    user,
                    false,
                    Polled::new(respond(&layer, request(users[user]), stream.into_http_response())),
                ));
            }
        }
        let open = |user| streams.iter().filter(|(owner, is_closed, _)| *owner == user && !is_closed).count();
        for (user, name) in users.into_iter().enumerate() {
            assert_eq!(registry.count(&name.into()), open(user));
        }
        assert_eq!((registry.len(), registry.iter().count()), (open(0) + open(1) + open(2), registry.len()));
    }
    for (user, is_closed, mut body) in streams {
        match is_closed {
            true => assert_eq!(body.rest(), format!("data: {}\n\n", users[user])),
            false => body.assert_pending(),
        }
    }
    assert!(registry.is_empty());
}

/// A key that panics when it is hashed or compared, if the thread of the test has requested it.
#[derive(Clone, Debug)]
struct Fragile(u64);

thread_local! {
    static PANICS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

impl std::hash::Hash for Fragile {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        assert!(!PANICS.get(), "a key that cannot be hashed");
        self.0.hash(state);
    }
}

impl PartialEq for Fragile {
    fn eq(&self, other: &Self) -> bool {
        assert!(!PANICS.get(), "a key that cannot be compared");
        self.0 == other.0
    }
}

impl Eq for Fragile {}

#[test]
fn panic_of_a_key_loses_no_stream() {
    let registry = StreamRegistry::<Fragile>::new();
    let number = AtomicU64::new(0);
    let layer =
        SseLayer::new().register(&registry, move |_| Some(Fragile(number.fetch_add(1, Ordering::Relaxed) % 50)));
    let open = || {
        let stream = SseStream::new(stream::pending::<Event>()).without_heartbeat();
        Polled::new(respond(&layer, request("alice"), stream.into_http_response()))
    };
    let mut bodies: Vec<_> = (0..100).map(|_| open()).collect();
    bodies.iter_mut().for_each(Polled::assert_pending);
    PANICS.set(true);
    // The registration, the close, and the end of streams.
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(open)).is_err());
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| registry.close(&Fragile(7)))).is_err());
    bodies.truncate(60);
    PANICS.set(false);
    assert_eq!(registry.len(), 60);
    assert_eq!((registry.count(&Fragile(7)), registry.count(&Fragile(20))), (2, 1));
    for user in 0..50 {
        assert_eq!(registry.close(&Fragile(user)), if user < 10 { 2 } else { 1 });
    }
    for body in &mut bodies {
        assert_eq!(body.rest(), "");
    }
    assert!(registry.is_empty());
}

/// A stream moves to another task while it is closed.
#[test]
fn close_wakes_the_task_that_polled_last() {
    struct Flag(AtomicBool);

    impl std::task::Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    for round in 0..2_000 {
        let (registry, layer) = registered();
        let stream = SseStream::new(stream::pending::<Event>()).without_heartbeat();
        let mut body = Box::pin(respond(&layer, request("alice"), stream.into_http_response()).into_body());
        let flags: Vec<_> = (0..4).map(|_| Arc::new(Flag(AtomicBool::new(false)))).collect();
        let last = thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..round % 100 {
                    hint::spin_loop();
                }
                registry.close(&"alice".into());
            });
            flags.iter().find(|flag| {
                let waker = Waker::from(Arc::clone(flag));
                loop {
                    match body.as_mut().poll_frame(&mut Context::from_waker(&waker)) {
                        Poll::Ready(Some(frame)) => assert!(frame.is_ok()),
                        Poll::Ready(None) => return true,
                        Poll::Pending => return false,
                    }
                }
            })
        });
        let is_woken = flags[3].0.load(Ordering::SeqCst);
        assert!(last.is_some() || is_woken, "round {round}");
    }
}

/// A client reconnects at the moment of its logout. The server first deletes the session and then
/// closes its streams. The request is first registered, and then its session is checked.
#[test]
fn reconnecting_client_does_not_survive_its_logout() {
    let mut admitted = 0;
    for round in 0..2_000 {
        let (registry, layer) = registered();
        let is_logged_in = AtomicBool::new(true);
        let body = thread::scope(|scope| {
            scope.spawn(|| {
                // Varies which of the two is first.
                for _ in 0..round % 50 {
                    hint::spin_loop();
                }
                is_logged_in.store(false, Ordering::SeqCst);
                registry.close(&"alice".into());
            });
            let handler = service_fn(|_: Request<()>| {
                let response = match is_logged_in.load(Ordering::SeqCst) {
                    true => Some(SseStream::new(stream::pending::<Event>()).into_http_response()),
                    false => None,
                };
                async { response.ok_or("401 Unauthorized") }
            });
            // The start of a thread takes longer than a request.
            if round % 4 == 0 {
                thread::yield_now();
            }
            let response = layer.layer(handler).oneshot(request("alice")).now_or_never().unwrap();
            response.ok().map(Polled::new)
        });
        if let Some(mut body) = body {
            admitted += 1;
            assert_eq!(body.rest(), "", "round {round}");
        }
        assert!(registry.is_empty());
    }
    println!("{admitted} of 2000 requests were before the logout");
    assert!(admitted > 0, "every request was after the logout");
    assert!(admitted < 2_000, "every request was before the logout");
}
