//! Handlers are tested with `tower_sse::test`.

use axum::{Router, body::Body, response::IntoResponse, routing::get};
use futures_util::{FutureExt, Stream, StreamExt, stream};
use http::{HeaderMap, Request, Response};
use http_body_util::{Full, StreamBody};
use hyper_util::rt::TokioIo;
use std::{
    convert::Infallible,
    future::pending,
    io,
    panic::AssertUnwindSafe,
    task::{Context, Poll},
    time::Duration,
};
use support::{
    script::{Script, Step},
    server::serve,
};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};
use tower::{Service, ServiceExt};
use tower_sse::{
    Event, EventName, Heartbeat, LastEventId, SseStream, StopReconnecting,
    test::{self, EventReader, ReceivedEvent},
};

fn upstream(text: &'static str) -> EventReader {
    test::events(Response::builder().header("content-type", "text/event-stream").body(Full::from(text)).unwrap())
}

fn fields(event: &ReceivedEvent) -> [&str; 3] {
    [&event.name, &event.data, &event.id]
}

#[tokio::test]
async fn events_of_a_router_are_read_one_by_one() {
    let numbers = || async {
        let events = stream::iter(1..=3_u32).map(|n| Event::json(&[n]).unwrap().event("number").id(n));
        SseStream::new(events).retry(Duration::from_secs(3)).end_with(Event::new("bye"))
    };
    let app = Router::new().route("/", get(numbers));
    let response = app.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
    let mut events = test::events(response);
    let first = events.next().await.unwrap();
    assert_eq!(fields(&first), ["number", "[1]", "1"]);
    assert_eq!(first.json::<Vec<u32>>(), [1]);
    assert_eq!(events.collect(1).await[0].json::<[u32; 1]>(), [2]);
    let rest = events.rest().await;
    assert_eq!(rest.iter().map(fields).collect::<Vec<_>>(), [["number", "[3]", "3"], ["message", "bye", "3"]]);
    assert_eq!(events.next().await, None);
    assert_eq!((events.retry(), events.last_event_id()), (Some(Duration::from_secs(3)), "3"));
}

#[tokio::test(start_paused = true)]
async fn heartbeats_are_comments_and_paused_time_advances() {
    let begun = Instant::now();
    let slow = stream::once(async {
        sleep(Duration::from_secs(40)).await;
        Event::new("late")
    });
    let stream = SseStream::new(slow).heartbeat(Heartbeat::every(Duration::from_secs(15)).comment("beat"));
    let mut events = test::events(stream.into_response()).deadline(Duration::from_secs(60));
    assert_eq!(events.next().await.unwrap().data, "late");
    assert_eq!(events.comments(), ["", " beat", " beat"]);
    assert_eq!(begun.elapsed().as_secs(), 40);
}

#[tokio::test(start_paused = true)]
#[should_panic = "no event within 5s after 1 events"]
async fn silence_fails_at_the_deadline() {
    let stream = SseStream::new(stream::iter([Event::new("only")]).chain(stream::pending()));
    let mut events = test::events(stream.into_response());
    assert_eq!(events.next().await.unwrap().data, "only");
    events.next().await;
}

#[tokio::test]
#[should_panic = "the body has failed: broken"]
async fn failing_body_fails_the_test() {
    let body = Script::new([Step::chunk("data: a\n\n"), Step::Fail("broken")]);
    let response = Response::builder().header("content-type", "text/event-stream").body(body).unwrap();
    let mut events = test::events(response);
    assert_eq!(events.next().await.unwrap().data, "a");
    events.next().await;
}

#[tokio::test]
#[should_panic = "the stream has ended after 1 of 2 events"]
async fn collect_fails_at_an_early_end() {
    upstream("data: a\n\ndata: incomplete").collect(2).await;
}

#[tokio::test]
#[should_panic = "only with status 200"]
async fn error_response_is_no_event_stream() {
    test::events(StopReconnecting.into_response());
}

#[tokio::test]
#[should_panic = "not text/event-stream"]
async fn other_content_type_is_no_event_stream() {
    test::events(Response::new(Full::<bytes::Bytes>::from("{}")));
}

#[tokio::test]
#[should_panic = "in the data \"no JSON\""]
async fn data_that_is_no_json_is_shown() {
    upstream("data: no JSON\n\n").next().await.unwrap().json::<u32>();
}

#[tokio::test]
async fn chunks_of_any_size_are_read() {
    let text = "\u{feff}: hi\r\nid: \u{e9}\r\ndata: a\r\ndata: b\r\n\r\ndata: c\r\rdata: d\n\n";
    let bytes = text.bytes().map(|byte| Ok::<_, io::Error>(http_body::Frame::data(vec![byte].into())));
    let body = StreamBody::new(stream::iter(bytes.collect::<Vec<_>>()));
    let response = Response::builder().header("content-type", "text/event-stream").body(body).unwrap();
    let mut events = test::events(response);
    let rest = events.rest().await;
    assert_eq!(
        rest.iter().map(fields).collect::<Vec<_>>(),
        [["message", "a\nb", "\u{e9}"], ["message", "c", "\u{e9}"], ["message", "d", "\u{e9}"]]
    );
    assert_eq!(events.comments(), [" hi"]);
}

#[tokio::test(start_paused = true)]
async fn deadline_is_not_extended_by_heartbeats() {
    let stream = SseStream::new(stream::pending::<Event>()).heartbeat(Heartbeat::every(Duration::from_secs(1)));
    let mut events = test::events(stream.into_response());
    let begun = Instant::now();
    let waited = AssertUnwindSafe(events.next()).catch_unwind().await;
    assert!(waited.is_err());
    assert_eq!(begun.elapsed().as_secs(), 5);
    assert!(events.comments().len() >= 5, "{events:?}");
}

#[tokio::test]
async fn panic_names_the_line_of_the_call() {
    let mut events = upstream("data: a\n\n");
    let (line, waited) = (line!(), AssertUnwindSafe(events.collect(2)).catch_unwind().await);
    let message = *waited.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains(&format!("at {}:{line}:", file!())), "{message}");
    assert!(message.contains("\"a\""), "{message}");
}

#[tokio::test]
async fn received_event_equals_event_with_same_name_data_and_id() {
    let received = upstream("id: 7\nevent: news\ndata: a\ndata: b\n\ndata: c\n\n").collect(2).await;
    let equal = [Event::new("a\r\nb").event("news").id(7), Event::new("c").id(7)];
    assert_eq!(received, equal);
    // An event without an id does not change the id of the client.
    assert_eq!(received, equal.clone().map(|event| Event::new(event.event_data().unwrap()).event(name(&event))));
    assert_eq!(received[0], equal[0].clone().retry(Duration::from_secs(1)).comment("invisible"));
    for other in [
        Event::new("a\nb").event("other").id(7),
        Event::new("a\nb").id(7),
        Event::new("a").event("news").id(7),
        Event::new("a\nb").event("news").id(8),
        Event::checkpoint(7),
    ] {
        assert_ne!(received[0], other);
    }
    assert_eq!(upstream("event: x\ndata\n\n").collect(1).await, [Event::default().event("x")]);
    assert_ne!(upstream("data\n\n").collect(1).await, [Event::default()]);
}

fn name(event: &Event) -> EventName {
    EventName::new(event.name().unwrap_or("message")).unwrap()
}

#[tokio::test]
async fn ignored_names_are_skipped_and_their_ids_count() {
    let text = "id: 1\nevent: cursor\ndata\n\ndata: a\n\nevent: other\ndata\n\nid: 2\nevent: cursor\ndata\n\n";
    let mut events = upstream(text).ignore("cursor").ignore("other");
    assert_eq!(events.next().await.unwrap(), Event::new("a").id(1));
    assert_eq!(events.next().await, None);
    assert_eq!(events.last_event_id(), "2");
}

#[tokio::test]
async fn last_event_id_does_not_precede_returned_events() {
    let frame: String = (1..=5).map(|n| format!("id: {n}\ndata: {n}\n\n")).collect();
    let mut events =
        test::events(Response::builder().header("content-type", "text/event-stream").body(Full::from(frame)).unwrap());
    assert_eq!(events.last_event_id(), "");
    assert_eq!(events.collect(2).await.len(), 2);
    assert_eq!(events.last_event_id(), "2");
    events.next().await.unwrap();
    assert_eq!(events.last_event_id(), "3");
    events.collect_until(|event| event.data == "4").await;
    assert_eq!(events.last_event_id(), "4");
    assert_eq!(events.rest().await.len(), 1);
    assert_eq!(events.last_event_id(), "5");
}

#[tokio::test]
async fn resuming_after_some_events_of_a_frame_gets_the_rest() {
    let numbers = async |last: LastEventId| {
        let next = last.parse::<u64>().unwrap().map_or(1, |seen| seen + 1);
        SseStream::new(stream::iter((next..=5).map(|n| Event::display(n).id(n))))
    };
    let app = Router::new().route("/", get(numbers));
    let mut events = test::get(app.clone(), "/").await;
    events.collect(2).await;
    let mut rest = test::resume(app, "/", events.last_event_id()).await;
    assert_eq!(rest.rest().await, [3, 4, 5].map(|n| Event::display(n).id(n)));
}

#[tokio::test]
async fn ids_without_returned_event_count_up_to_next_event() {
    let text = "id: 1\ndata: a\n\nid: 2\n\nid: 3\nevent: cursor\ndata\n\n: x\n\nid: 4\n: y\nretry: 7\ndata: b\n\n\
                id: 5\n\nid: 6\n";
    let mut events = upstream(text).ignore("cursor");
    events.next().await.unwrap();
    assert_eq!((events.last_event_id(), events.retry()), ("3", None));
    assert_eq!(events.comments(), [" x"]);
    events.next().await.unwrap();
    assert_eq!((events.last_event_id(), events.retry()), ("5", Some(Duration::from_millis(7))));
    assert_eq!(events.comments(), [" x", " y"]);
    assert_eq!(events.next().await, None);
    // The last block has no blank line.
    assert_eq!(events.last_event_id(), "5");
}

#[tokio::test]
async fn events_ignored_later_count_for_the_id() {
    let mut events = upstream("id: 1\ndata: a\n\nid: 2\nevent: x\ndata\n\nid: 3\ndata: b\n\n");
    events.next().await.unwrap();
    assert_eq!(events.last_event_id(), "1");
    let events = events.ignore("x");
    assert_eq!(events.last_event_id(), "2");
}

#[tokio::test]
async fn events_are_collected_until_the_last_one() {
    let mut events = upstream("data: a\n\nevent: done\ndata: b\n\ndata: c\n\n");
    let answer = events.collect_until(|event| event.name == "done").await;
    assert_eq!(answer, [Event::new("a"), Event::new("b").event("done")]);
    assert_eq!(events.rest().await, [Event::new("c")]);
}

#[tokio::test]
#[should_panic = "the stream has ended without the last event"]
async fn collect_until_fails_at_an_early_end() {
    upstream("data: a\n\n").collect_until(|event| event.name == "done").await;
}

#[tokio::test(start_paused = true)]
async fn silence_passes_with_heartbeats_and_without_events() {
    let late = stream::once(async {
        sleep(Duration::from_secs(60)).await;
        Event::new("late")
    });
    let begun = Instant::now();
    let mut events = test::events(SseStream::new(late).into_response()).deadline(Duration::from_secs(1));
    events.expect_silence(Duration::from_secs(59)).await;
    assert_eq!(begun.elapsed().as_secs(), 59);
    assert_eq!(events.comments().len(), 4);
    assert_eq!(events.next().await.unwrap(), Event::new("late"));
}

#[tokio::test(start_paused = true)]
#[should_panic = "expected silence for 1s, but received Ok(ReceivedEvent { name: \"message\", data: \"a\", id: \"\" })"]
async fn event_breaks_the_silence() {
    upstream("data: a\n\n").expect_silence(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
#[should_panic = "expected silence for 1s, but received Err(Clean)"]
async fn end_breaks_the_silence() {
    upstream(": comment\n\n").expect_silence(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn failure_of_a_handler_is_returned() {
    let rows = stream::iter([Ok(Event::new("1")), Err(io::Error::other("connection lost"))]);
    let mut events = test::events(SseStream::new(rows).into_response());
    assert_eq!(events.next().await.unwrap(), Event::new("1"));
    assert_eq!(events.failure().await, "connection lost");
}

#[tokio::test]
#[should_panic = "the stream has ended without an error"]
async fn clean_end_is_no_failure() {
    upstream("").failure().await;
}

#[tokio::test]
#[should_panic = "expected a failure, but received ReceivedEvent { name: \"message\", data: \"a\", id: \"\" }"]
async fn event_is_no_failure() {
    upstream("data: a\n\n").failure().await;
}

/// Responds with the headers of the request.
async fn headers_of_request(headers: HeaderMap) -> SseStream<impl Stream<Item = Event>> {
    let header = move |name| headers.get(name).map_or("-", |value| value.to_str().unwrap()).to_owned();
    SseStream::new(stream::iter(["accept", "last-event-id"].map(header).map(Event::new)))
}

#[tokio::test]
async fn service_is_called_like_by_a_browser() {
    let app = Router::new().route("/", get(headers_of_request));
    assert_eq!(test::get(app.clone(), "/").await.rest().await, ["text/event-stream", "-"].map(Event::new));
    assert_eq!(test::resume(app, "/", "41").await.rest().await, ["text/event-stream", "41"].map(Event::new));
}

#[tokio::test]
async fn resumed_client_keeps_its_id_without_new_one() {
    let app = Router::new().route("/", get(async || ([("content-type", "text/event-stream")], ": alive\n")));
    let mut events = test::resume(app, "/", "41").await;
    assert_eq!(events.last_event_id(), "41");
    assert_eq!(events.next().await, None);
    // Only a blank line replaces the id.
    assert_eq!(events.last_event_id(), "41");
}

#[tokio::test]
async fn refused_request_names_the_line_of_the_call() {
    let call = AssertUnwindSafe(test::get(Router::new(), "/absent"));
    let line = line!() - 1;
    let message = *call.catch_unwind().await.map(drop).unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("and not with 404 Not Found, at"), "{message}");
    assert!(message.contains(&format!("{}:{line}:", file!())), "{message}");
}

#[tokio::test(start_paused = true)]
async fn silent_service_fails_at_the_deadline() {
    let silent = tower::service_fn(|_: Request<String>| pending::<Result<Response<String>, Infallible>>());
    let begun = Instant::now();
    let waited = AssertUnwindSafe(test::get(silent, "/")).catch_unwind().await;
    let message = *waited.map(drop).unwrap_err().downcast::<String>().unwrap();
    assert!(message.starts_with("no response within 5s, at"), "{message}");
    assert_eq!(begun.elapsed().as_secs(), 5);
}

#[tokio::test]
#[should_panic = "the service has failed: Custom { kind: Other, error: \"no database\" }"]
async fn failing_service_fails_the_test() {
    let failing =
        tower::service_fn(|_: Request<String>| async { Err::<Response<String>, _>(io::Error::other("no database")) });
    test::get(failing, "/").await;
}

#[tokio::test]
async fn service_is_called_when_it_is_ready() {
    let app = Router::new().route("/", get(headers_of_request));
    let service = NeedsPollReady { app, is_ready: false };
    assert_eq!(test::get(service, "/").await.rest().await.len(), 2);
}

/// Panics if it is called before `poll_ready` has returned `Ready`, as a service may.
struct NeedsPollReady {
    app: Router,
    is_ready: bool,
}

impl Service<Request<String>> for NeedsPollReady {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = <Router as Service<Request<String>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if !self.is_ready {
            self.is_ready = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<String>) -> Self::Future {
        assert!(self.is_ready, "the service is not ready");
        self.app.call(request)
    }
}

/// The response of any HTTP client can be read.
#[tokio::test]
async fn events_of_a_socket_are_read() {
    let handler = tower::service_fn(|_: Request<hyper::body::Incoming>| async {
        Ok::<_, Infallible>(SseStream::new(stream::iter([Event::new("over TCP")])).into_http_response())
    });
    let server = serve(handler).await;
    let url = format!("http://{}/", server.address);
    let mut events = test::events(Response::from(reqwest::get(url).await.unwrap()));
    assert_eq!(events.rest().await, [Event::new("over TCP")]);

    let stream = TokioIo::new(TcpStream::connect(server.address).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let response = sender.send_request(Request::get("/").body(String::new()).unwrap()).await.unwrap();
    assert_eq!(test::events(response).rest().await, [Event::new("over TCP")]);
}

mod first_example_of_the_readme {
    use axum::{Router, routing::get};
    use std::time::Duration;
    use tokio::time::Instant;
    use tokio_stream::{Stream, StreamExt};
    use tower_sse::{Event, LastEventId, LastEventIdRejection, SseLayer, SseStream, test};

    /// Counts, one number per second. A client that reconnects continues after its last number.
    async fn count(last: LastEventId) -> Result<SseStream<impl Stream<Item = Event>>, LastEventIdRejection> {
        let next = last.parse::<u64>()?.map_or(0, |seen| seen.saturating_add(1));
        let events = tokio_stream::iter(next..).map(|n| Event::display(n).event("count").id(n));
        Ok(SseStream::new(events.throttle(Duration::from_secs(1))))
    }

    fn app() -> Router {
        Router::new().route("/count", get(count)).layer(SseLayer::new())
    }

    #[tokio::test(start_paused = true)]
    async fn counts_from_zero_each_second() {
        let begun = Instant::now();
        let mut events = test::get(app(), "/count").await;
        assert_eq!(events.collect(3).await, [0, 1, 2].map(|n| Event::display(n).event("count").id(n)));
        assert_eq!(begun.elapsed().as_secs(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn continues_after_last_number() {
        let mut events = test::resume(app(), "/count", "41").await;
        assert_eq!(events.next().await.unwrap(), Event::new("42").event("count").id(42));
    }

    #[tokio::test(start_paused = true)]
    #[should_panic = "and not with 400 Bad Request"]
    async fn rejects_ids_that_are_no_numbers() {
        test::resume(app(), "/count", "x").await;
    }
}
