//! Heartbeats that are events, heartbeats after a CR, and frames without bytes.

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{
    HeaderMap, Response,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use std::{convert::Infallible, task::Poll, time::Duration};
use support::{
    polled::Polled,
    respond::through,
    script::{Script, Step},
    whatwg::{self, Message},
};
use tokio::time::{Instant, advance, interval};
use tokio_stream::wrappers::IntervalStream;
use tower_sse::{Event, Heartbeat, SseLayer, SseStream};

/// A heartbeat event after ten seconds.
const BEAT: &str = "event: beat\ndata: \n\n";

fn beating() -> SseLayer {
    SseLayer::new().heartbeat(Heartbeat::every(Duration::from_secs(10)).event(Event::new("").event("beat")))
}

fn upstream(steps: impl IntoIterator<Item = Step>) -> Response<Script> {
    Response::builder().header(CONTENT_TYPE, "text/event-stream").body(Script::new(steps)).unwrap()
}

/// Returns all bytes of an upstream stream behind the layer.
async fn bytes(layer: &SseLayer, steps: impl IntoIterator<Item = Step>) -> Bytes {
    through(layer, upstream(steps)).into_body().collect().await.unwrap().to_bytes()
}

fn messages(bytes: &[u8]) -> Vec<Message> {
    whatwg::parse(bytes).messages
}

/// Returns the times of the heartbeats, in seconds. The upstream stream sends one of these chunks
/// every three seconds, in turn, for a minute.
async fn beats(chunks: &[&str]) -> Vec<u64> {
    let steps = chunks.iter().cycle().take(20).flat_map(|chunk| [Step::chunk(chunk), Step::silence(3)]);
    let mut body = through(&beating(), upstream(steps)).into_body();
    let begin = Instant::now();
    let mut times = Vec::new();
    while let Some(frame) = body.frame().await {
        if frame.unwrap().data_ref().is_some_and(|data| data == BEAT) {
            times.push(begin.elapsed().as_secs());
        }
    }
    times
}

#[tokio::test(start_paused = true)]
async fn invisible_upstream_bytes_do_not_postpone_heartbeat_event() {
    for chunks in [
        &[":\n"][..],
        &[": comment\n\n"],
        &["id: 7\n\n"],
        &["event: x\n\n"],
        &["retry: 10\n"],
        &["datum: x\n\n"],
        &[":\r\n"],
    ] {
        assert_eq!(beats(chunks).await[..5], [10, 20, 30, 40, 50], "{chunks:?}");
    }
    // These heartbeats wait for the end of a line or of an event.
    for chunks in [&["id", ": 7\n\n"][..], &["id: 7\n", "\n"]] {
        let beats = beats(chunks).await;
        assert!(beats.len() >= 4, "{chunks:?} {beats:?}");
    }
    for chunks in [&["data: a\n\n"][..], &["dat", "a\n", "\n"], &["data:a\r\n\r\n"], &["id: 1\nda", "ta: x\r\r"]] {
        assert!(beats(chunks).await.is_empty(), "{chunks:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn heartbeat_event_waits_for_the_end_of_an_event() {
    let silences = [9, 13, 11].map(Step::silence);
    let [one, two, three] = silences;
    let steps = [Step::chunk(":\n"), one, Step::chunk("data: a\n"), two, Step::chunk("\n"), three];
    assert_eq!(bytes(&beating(), steps).await, format!(":\ndata: a\n:\n\n{BEAT}"));
}

#[tokio::test(start_paused = true)]
async fn invisible_items_do_not_postpone_heartbeat_event() {
    for (item, expected) in [
        (Event::checkpoint(7), 5),
        (Event::default().comment("data: no"), 5),
        (Event::default().retry(Duration::from_secs(1)), 5),
        (Event::new("visible"), 0),
        (Event::new("visible").id(7).event("name").comment("x"), 0),
        (Event::default().event("name"), 0),
    ] {
        let name = format!("{item:?}");
        let events = IntervalStream::new(interval(Duration::from_secs(1))).map(move |_| item.clone()).take(55);
        let response = through(&beating(), SseStream::new(events).into_http_response());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let beats = messages(&body).iter().filter(|message| message.r#type == "beat").count();
        assert_eq!(beats, expected, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn endless_comments_do_not_postpone_heartbeat_event() {
    let comments = stream::repeat_with(|| Event::default().comment("x"));
    let own = through(&beating(), SseStream::new(comments).into_http_response());
    let frames = stream::repeat_with(|| Ok::<_, Infallible>(Frame::data(Bytes::from_static(b":\n"))));
    let upstream = Response::builder().header(CONTENT_TYPE, "text/event-stream").body(StreamBody::new(frames)).unwrap();
    for mut body in [Polled::new(own), Polled::new(through(&beating(), upstream))] {
        let mut beats = 0;
        for _ in 0..100 {
            // The body is pending after a number of items.
            let data = match body.poll() {
                Poll::Ready(Some(data)) => data.unwrap(),
                Poll::Ready(None) => panic!("the stream does not end"),
                Poll::Pending => Bytes::new(),
            };
            beats += usize::from(data.windows(BEAT.len()).any(|part| part == BEAT.as_bytes()));
            advance(Duration::from_secs(1)).await;
        }
        assert!((8..=10).contains(&beats), "{beats}");
    }
}

#[tokio::test(start_paused = true)]
async fn stream_with_lone_cr_gets_heartbeats() {
    let layer = SseLayer::new().heartbeat(Heartbeat::every(Duration::from_secs(10)).comment("here"));
    for (first, second) in [
        ("data: a\r", "\r"),
        ("data: a\r\r", "data: b\r\r"),
        // The LF belongs to the line end before the heartbeats.
        ("data: a\r", "\n\r\n"),
        ("data: a\r", "\ndata: b\r\n\r\n"),
        ("data: a\r\n\r", "\ndata: b\n\n"),
        ("\r", "\ndata: a\r\r"),
    ] {
        let body = bytes(&layer, [Step::chunk(first), Step::silence(21), Step::chunk(second)]).await;
        assert_eq!(messages(&body), messages(format!("{first}{second}").as_bytes()), "{body:?}");
        let comments = whatwg::parse(&body).comments;
        assert_eq!(comments.iter().filter(|comment| **comment == " here").count(), 2, "{body:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn heartbeat_event_may_follow_a_lone_cr() {
    for (first, second) in [("data: a\r\r", "data: b\r\r"), ("data: a\r\n\r", "\ndata: b\n\n"), ("data: a\n\r", "\n\n")]
    {
        let body = bytes(&beating(), [Step::chunk(first), Step::silence(11), Step::chunk(second)]).await;
        let mut messages = messages(&body);
        assert_eq!(messages.remove(1).r#type, "beat", "{body:?}");
        assert_eq!(messages, self::messages(format!("{first}{second}").as_bytes()), "{body:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn event_streams_have_no_empty_frames() {
    let event = || Step::chunk("data: a\n\n");
    let mark = [Step::silence(20), Step::chunk("\u{feff}"), event()];
    let [one, two, three] = [0xEF, 0xBB, 0xBF].map(|byte| Step::chunk([byte]));
    let mark_in_parts = [Step::silence(20), one, two, three, event()];
    let empty = [Step::chunk(""), event(), Step::chunk(""), Step::chunk("")];
    let trailers = [Step::chunk(""), event(), Step::chunk(""), Step::Trailers(HeaderMap::new())];
    for steps in [mark.to_vec(), mark_in_parts.to_vec(), empty.to_vec(), trailers.to_vec()] {
        for encoding in ["identity", "gzip"] {
            for layer in [SseLayer::new(), SseLayer::new().max_lifetime(Duration::from_secs(1000))] {
                let mut response = upstream(steps.clone());
                response.headers_mut().insert(CONTENT_ENCODING, encoding.parse().unwrap());
                let mut body = through(&layer, response).into_body();
                let mut all = Vec::new();
                while let Some(frame) = body.frame().await {
                    if let Ok(data) = frame.unwrap().into_data() {
                        assert!(!data.is_empty(), "{steps:?}");
                        all.extend_from_slice(&data);
                    }
                }
                assert!(all.ends_with(b"data: a\n\n"), "{all:?}");
            }
        }
    }
}

#[tokio::test]
async fn endless_empty_frames_yield() {
    let frames = stream::repeat_with(|| Ok::<_, Infallible>(Frame::data(Bytes::new())));
    let response = Response::builder().header(CONTENT_TYPE, "text/event-stream").body(StreamBody::new(frames)).unwrap();
    let mut body = Polled::new(through(&SseLayer::new(), response));
    body.assert_pending();
    assert!(body.is_woken());
}
