//! Guarantee: for every byte sequence of an upstream event stream, however it is cut into chunks
//! and wherever heartbeats fall, a parser that follows the standard dispatches exactly the same
//! events with and without the layer.

use bytes::Bytes;
use http::{Request, Response, header::CONTENT_TYPE};
use http_body::Body;
use http_body_util::BodyExt;
use proptest::{collection::vec, prelude::*, sample::select};
use std::{convert::Infallible, time::Duration};
use support::{
    script::{Script, Step},
    whatwg::{self, EventSource},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_sse::{Event, Heartbeat, SseLayer};

/// Pieces of streams, right and wrong ones. The cut between two chunks may fall anywhere in them.
const PIECES: &[&[u8]] = &[
    b"",
    b"\xEF\xBB\xBF",
    b"\xEF\xBB",
    b"data: text\n\n",
    b"data: a\r\ndata: b\r\n\r\n",
    b"data: a\rdata: b\r\r",
    b"event: name\nid: 7\nretry: 10\ndata\n\n",
    b"id: \xC3\xA9\n",
    b"data: \xE6\x97\xA5\xE6\x9C\xAC\n",
    b"data: not utf-8 \xFF\xFE\n\n",
    b": comment\n",
    b":\n",
    b":",
    b"data",
    b"\n",
    b"\r",
    b"\r\n",
    b" ",
    b"\0",
];

#[derive(Clone, Debug)]
struct Stream {
    bytes: Vec<u8>,
    /// Where it is cut, and for how many half seconds it is silent there.
    cuts: Vec<(usize, u64)>,
}

impl Stream {
    fn steps(&self) -> Vec<Step> {
        let mut cuts = self.cuts.clone();
        cuts.sort_unstable();
        let mut steps = Vec::new();
        let mut rest = &self.bytes[..];
        let mut cut_off = 0;
        for (at, silence) in cuts {
            let (chunk, after) = rest.split_at(at - cut_off);
            (rest, cut_off) = (after, at);
            steps.push(Step::chunk(chunk));
            if silence > 0 {
                steps.push(Step::Silence(Duration::from_millis(500 * silence)));
            }
        }
        steps.push(Step::chunk(rest));
        steps
    }
}

fn stream() -> impl Strategy<Value = Stream> {
    vec(select(PIECES), 0..14).prop_map(|pieces| pieces.concat()).prop_flat_map(|bytes| {
        let cuts = vec((0..=bytes.len(), 0..6_u64), 0..8);
        // Half of them begin with a silence, where what is put first meets the byte order mark.
        (Just(bytes), cuts, any::<bool>()).prop_map(|(bytes, mut cuts, silent_first)| {
            if silent_first {
                cuts.push((0, 5));
            }
            Stream { bytes, cuts }
        })
    })
}

/// What comes out of the layer, while time passes.
fn through(layer: SseLayer, steps: Vec<Step>) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let service = layer.layer(service_fn(async |_: Request<()>| {
            let body = Script::new(steps.clone());
            Ok::<_, Infallible>(Response::builder().header(CONTENT_TYPE, "text/event-stream").body(body).unwrap())
        }));
        let response = service.oneshot(Request::new(())).await.unwrap();
        // As a transport reads it, which believes what a body says of its end.
        let mut body = response.into_body();
        let mut out = Vec::new();
        while !body.is_end_stream() {
            let Some(frame) = body.frame().await else { break };
            out.extend_from_slice(frame.unwrap().data_ref().unwrap_or(&Bytes::new()));
        }
        out
    })
}

/// One heartbeat after each second of silence.
fn layer() -> SseLayer {
    SseLayer::new().heartbeat(Heartbeat::every(Duration::from_secs(1)))
}

/// What is seen by a page that has come back with an id.
fn seen_by_a_page(stream: &[u8]) -> EventSource {
    EventSource { comments: Vec::new(), ..whatwg::parse_after("41", stream) }
}

fn taken_out(heartbeat: &str, mut stream: &[u8]) -> Vec<u8> {
    let mut rest = Vec::new();
    while let Some(at) = stream.windows(heartbeat.len()).position(|window| window == heartbeat.as_bytes()) {
        rest.extend_from_slice(&stream[..at]);
        stream = &stream[at + heartbeat.len()..];
    }
    rest.extend_from_slice(stream);
    rest
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn with_comments_as_heartbeats(stream in stream()) {
        let out = through(layer(), stream.steps());
        prop_assert_eq!(seen_by_a_page(&out), seen_by_a_page(&stream.bytes));
    }

    /// A parser does not see what comes after the last blank line; this does.
    #[test]
    fn and_no_byte_is_lost_or_changed(stream in stream()) {
        let heartbeat = Heartbeat::every(Duration::from_secs(1)).comment("~beat~");
        let out = through(SseLayer::new().heartbeat(heartbeat), stream.steps());
        let rest = taken_out(": ~beat~\n", &out);
        // The byte order mark may go.
        let without_mark = stream.bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&stream.bytes);
        prop_assert!(rest == stream.bytes || rest == without_mark, "{rest:?} of {:?}", stream.bytes);
    }

    #[test]
    fn with_comments_of_any_text_as_heartbeats(stream in stream(), text in "[a\r\n:\u{0} é]{0,6}") {
        let heartbeat = Heartbeat::every(Duration::from_secs(1)).comment(text);
        let out = through(SseLayer::new().heartbeat(heartbeat), stream.steps());
        prop_assert_eq!(seen_by_a_page(&out), seen_by_a_page(&stream.bytes));
    }

    #[test]
    fn with_a_reconnection_time_put_first(stream in stream()) {
        let mut with = seen_by_a_page(&through(layer().retry(Duration::from_secs(3)), stream.steps()));
        let mut without = seen_by_a_page(&stream.bytes);
        // It is the stream's own, if it has one.
        let expected = without.reconnection_time.take().unwrap_or_else(|| "3000".into());
        prop_assert_eq!(with.reconnection_time.take(), Some(expected));
        prop_assert_eq!(with, without);
    }

    #[test]
    fn with_events_as_heartbeats_which_come_between_the_others(stream in stream()) {
        let heartbeat = Heartbeat::every(Duration::from_secs(1)).event(Event::new("beat").event("heartbeat").id(1));
        let mut with = seen_by_a_page(&through(SseLayer::new().heartbeat(heartbeat), stream.steps()));
        with.messages.retain(|message| message.r#type != "heartbeat");
        let mut without = seen_by_a_page(&stream.bytes);
        // By the letter of the standard each event sets it, and so does a heartbeat that is one.
        with.last_event_id.clear();
        without.last_event_id.clear();
        prop_assert_eq!(with, without);
    }
}

fn out(steps: impl Into<Vec<Step>>) -> String {
    String::from_utf8(through(layer(), steps.into())).unwrap()
}

#[test]
fn heartbeats_fall_between_lines_also_in_the_middle_of_an_event() {
    let steps =
        [Step::silence(1), Step::chunk("data: a\n"), Step::silence(2), Step::chunk("data: b\n\n"), Step::silence(1)];
    // The silence of exactly one interval ends as the heartbeat falls due, and either may come first.
    let out = out(steps.map(|step| match step {
        Step::Silence(length) => Step::Silence(length + Duration::from_millis(1)),
        step => step,
    }));
    assert_eq!(out, ":\ndata: a\n:\n:\ndata: b\n\n:\n");
}

#[test]
fn no_heartbeat_falls_into_a_line_or_between_the_halves_of_a_line_end() {
    let silence = || Step::silence(10);
    assert_eq!(out([Step::chunk("data: a"), silence(), Step::chunk("b\n\n")]), "data: ab\n\n");
    assert_eq!(out([Step::chunk("data: a\r"), silence(), Step::chunk("\n\r\n")]), "data: a\r\n\r\n");
    assert_eq!(out([Step::chunk("data: a\r\r"), silence(), Step::chunk("data: b\n\n")]), "data: a\r\rdata: b\n\n");
}

#[test]
fn a_byte_order_mark_behind_a_heartbeat_goes_however_it_is_cut() {
    let mark = b"\xEF\xBB\xBF";
    let first = || Step::Silence(Duration::from_millis(1500));
    assert_eq!(out([first(), Step::chunk(mark), Step::chunk("data: a\n\n")]), ":\ndata: a\n\n");
    assert_eq!(out([first(), Step::chunk([mark, &b"data: a\n\n"[..]].concat())]), ":\ndata: a\n\n");
    let bytewise = [Step::chunk([0xEF]), Step::chunk([0xBB]), first(), Step::chunk([0xBF]), Step::chunk("data: a\n\n")];
    assert_eq!(out([vec![first()], bytewise.to_vec()].concat()), ":\n:\ndata: a\n\n");
    // Only the first one is a mark.
    assert_eq!(out([first(), Step::chunk("\u{feff}\u{feff}x\n")]), ":\n\u{feff}x\n");
    // Nothing was put first, so it may stay.
    assert_eq!(out([Step::chunk("\u{feff}data: a\n\n")]), "\u{feff}data: a\n\n");
}

#[test]
fn what_looked_like_a_byte_order_mark_is_not_lost() {
    let first = Step::Silence(Duration::from_millis(1500));
    let through = |steps: &[Step]| through(layer(), [std::slice::from_ref(&first), steps].concat());
    assert_eq!(through(&[Step::chunk([0xEF]), Step::chunk([0xBB, b'x'])]), b":\n\xEF\xBBx");
    assert_eq!(through(&[Step::chunk([0xEF, 0xBB])]), b":\n\xEF\xBB");
    assert_eq!(through(&[Step::chunk([0xEF]), Step::Trailers(http::HeaderMap::new())]), b":\n\xEF");
    assert_eq!(through(&[Step::chunk([0xEF]), Step::chunk([]), Step::chunk(b"\xAA\n")]), b":\n\xEF\xAA\n");
}

#[test]
fn an_event_as_heartbeat_waits_for_the_end_of_an_event_and_a_comment_stands_in() {
    let heartbeat = Heartbeat::every(Duration::from_secs(1)).event(Event::new("beat").id(1));
    let layer = || SseLayer::new().heartbeat(heartbeat.clone());
    let silence = || Step::Silence(Duration::from_millis(1500));
    for (chunk, expected) in [
        ("data: a\n", "data: a\n:\n"),
        ("data: a\r\n", "data: a\r\n:\n"),
        ("data: a\n\n", "data: a\n\ndata: beat\n\n"),
        ("data: a\r\n\r\n", "data: a\r\n\r\ndata: beat\n\n"),
        ("data: a\n\r\n", "data: a\n\r\ndata: beat\n\n"),
        ("data: a\r\r\n", "data: a\r\r\ndata: beat\n\n"),
        ("", "data: beat\n\n"),
        ("\n", "\ndata: beat\n\n"),
        ("\r\n", "\r\ndata: beat\n\n"),
    ] {
        let whole = through(layer(), vec![Step::chunk(chunk), silence()]);
        let bytewise: Vec<_> = chunk.bytes().map(|byte| Step::chunk([byte])).chain([silence()]).collect();
        assert_eq!(whole, expected.as_bytes(), "{chunk:?}");
        assert_eq!(through(layer(), bytewise), expected.as_bytes(), "{chunk:?} byte by byte");
    }
}

#[test]
fn trailers_pass_through_an_event_stream() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let trailers: http::HeaderMap = [(CONTENT_TYPE, "x".parse().unwrap())].into_iter().collect();
    runtime.block_on(async {
        let sent = trailers.clone();
        let service = layer().layer(service_fn(async |_: Request<()>| {
            let steps = [Step::silence(2), Step::chunk([0xEF]), Step::Trailers(sent.clone())];
            let response = Response::builder().header(CONTENT_TYPE, "text/event-stream").body(Script::new(steps));
            Ok::<_, Infallible>(response.unwrap())
        }));
        let body = service.oneshot(Request::new(())).await.unwrap().into_body();
        let collected = body.collect().await.unwrap();
        assert_eq!(collected.trailers(), Some(&trailers));
        assert!(collected.to_bytes().ends_with(&Bytes::from_static(b"\n\xEF")));
    });
}
