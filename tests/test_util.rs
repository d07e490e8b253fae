//! Handlers are tested with `tower_sse::test`.

use axum::{Router, body::Body, response::IntoResponse, routing::get};
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use std::{convert::Infallible, io, time::Duration};
use support::{
    script::{Script, Step},
    server::serve,
};
use tokio::time::{Instant, sleep};
use tower::ServiceExt;
use tower_sse::{
    Event, Heartbeat, SseStream,
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
    test::events(SseStream::stop_reconnecting().into_response());
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

/// The response of any HTTP client can be read.
#[tokio::test]
async fn events_of_a_socket_are_read() {
    let handler = tower::service_fn(|_: Request<hyper::body::Incoming>| async {
        Ok::<_, Infallible>(SseStream::new(stream::iter([Event::new("over TCP")])).into_http_response())
    });
    let server = serve(handler).await;
    let url = format!("http://{}/", server.address);
    let response = Response::from(reqwest::get(url).await.unwrap());
    let mut events = test::events(response.map(|body| body.map_err(|error| error.to_string())));
    assert_eq!(events.rest().await.iter().map(fields).collect::<Vec<_>>(), [["message", "over TCP", ""]]);
}
