//! Guarantee: for every byte sequence of an upstream event stream, all chunk boundaries and all
//! positions of heartbeats, a parser that follows the standard dispatches exactly the same events
//! with and without the layer.

use bytes::Bytes;
use http::{Response, header::CONTENT_TYPE};
use http_body::Body;
use http_body_util::BodyExt;
use proptest::{collection::vec, prelude::*, sample::select};
use std::time::Duration;
use support::{
    respond::through,
    script::{Script, Step},
    whatwg::{self, EventSource},
};
use tower_sse::{Event, Heartbeat, ResponseBody, SseLayer};

/// Valid and invalid pieces of streams. A chunk may end anywhere in them.
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
    /// The ends of chunks, each with a silence in half seconds.
    cuts: Vec<(usize, u64)>,
}

impl Stream {
    fn steps(&self) -> Vec<Step> {
        let mut cuts = self.cuts.clone();
        cuts.sort_unstable();
        let mut steps = Vec::new();
        let mut rest = &self.bytes[..];
        let mut previous = 0;
        for (at, silence) in cuts {
            let (chunk, after) = rest.split_at(at - previous);
            (rest, previous) = (after, at);
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
        // Half of the streams begin with a silence, so that a heartbeat precedes the byte order
        // mark.
        (Just(bytes), cuts, any::<bool>()).prop_map(|(bytes, mut cuts, silent_first)| {
            if silent_first {
                cuts.push((0, 5));
            }
            Stream { bytes, cuts }
        })
    })
}

/// Passes an upstream stream through a layer.
fn pass(layer: SseLayer, steps: impl IntoIterator<Item = Step>) -> ResponseBody<Script> {
    let response = Response::builder().header(CONTENT_TYPE, "text/event-stream").body(Script::new(steps)).unwrap();
    through(&layer, response).into_body()
}

fn in_paused_time<T>(test: impl AsyncFnOnce() -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(test())
}

/// Returns the bytes of an upstream stream after a layer.
fn bytes_through(layer: SseLayer, steps: impl IntoIterator<Item = Step>) -> Vec<u8> {
    in_paused_time(async || {
        let mut body = pass(layer, steps);
        // Like a transport, which relies on `is_end_stream`.
        let mut out = Vec::new();
        while !body.is_end_stream() {
            let Some(frame) = body.frame().await else { break };
            out.extend_from_slice(frame.unwrap().data_ref().unwrap_or(&Bytes::new()));
        }
        out
    })
}

/// Sends a heartbeat after each second of silence.
fn layer() -> SseLayer {
    SseLayer::new().heartbeat(Heartbeat::every(Duration::from_secs(1)))
}

/// Interprets a stream like a page that has reconnected with an id.
fn parse(stream: &[u8]) -> EventSource {
    EventSource { comments: Vec::new(), ..whatwg::parse_after("41", stream) }
}

fn remove_all(heartbeat: &str, mut stream: &[u8]) -> Vec<u8> {
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
    fn comment_heartbeats_change_no_event(stream in stream()) {
        let out = bytes_through(layer(), stream.steps());
        prop_assert_eq!(parse(&out), parse(&stream.bytes));
    }

    /// Also compares the bytes after the last blank line, which a parser does not see.
    #[test]
    fn no_byte_is_lost_or_changed(stream in stream()) {
        let heartbeat = Heartbeat::every(Duration::from_secs(1)).comment("~alive~");
        let out = bytes_through(SseLayer::new().heartbeat(heartbeat), stream.steps());
        // A heartbeat after a CR ends in a CR.
        let rest = remove_all(": ~alive~\r", &remove_all(": ~alive~\n", &out));
        // The layer may remove the byte order mark.
        let without_mark = stream.bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&stream.bytes);
        prop_assert!(rest == stream.bytes || rest == without_mark, "{rest:?} of {:?}", stream.bytes);
    }

    #[test]
    fn heartbeats_of_any_text_change_no_event(stream in stream(), text in "[a\r\n:\u{0} é]{0,6}") {
        let heartbeat = Heartbeat::every(Duration::from_secs(1)).comment(text);
        let out = bytes_through(SseLayer::new().heartbeat(heartbeat), stream.steps());
        prop_assert_eq!(parse(&out), parse(&stream.bytes));
    }

    #[test]
    fn retry_changes_no_event_or_own_retry(stream in stream()) {
        let mut with = parse(&bytes_through(layer().retry(Duration::from_secs(3)), stream.steps()));
        let mut without = parse(&stream.bytes);
        // The reconnection time of the stream wins.
        let expected = without.reconnection_time.take().unwrap_or_else(|| "3000".into());
        prop_assert_eq!(with.reconnection_time.take(), Some(expected));
        prop_assert_eq!(with, without);
    }

    #[test]
    fn heartbeat_events_stay_between_events(stream in stream()) {
        let heartbeat = Heartbeat::every(Duration::from_secs(1)).event(Event::new("alive").event("heartbeat").id(1));
        let mut with = parse(&bytes_through(SseLayer::new().heartbeat(heartbeat), stream.steps()));
        with.messages.retain(|message| message.r#type != "heartbeat");
        let mut without = parse(&stream.bytes);
        // In the standard, each dispatch sets the last event ID, also the dispatch of a heartbeat.
        with.last_event_id.clear();
        without.last_event_id.clear();
        prop_assert_eq!(with, without);
    }
}

fn text_through_layer(steps: impl IntoIterator<Item = Step>) -> String {
    String::from_utf8(bytes_through(layer(), steps)).unwrap()
}

#[test]
fn heartbeats_go_between_lines_inside_an_event() {
    let steps =
        [Step::silence(1), Step::chunk("data: a\n"), Step::silence(2), Step::chunk("data: b\n\n"), Step::silence(1)];
    // After a silence of exactly one interval, data and heartbeat would be due together.
    let out = text_through_layer(steps.map(|step| match step {
        Step::Silence(length) => Step::Silence(length + Duration::from_millis(1)),
        step => step,
    }));
    assert_eq!(out, ":\ndata: a\n:\n:\ndata: b\n\n:\n");
}

#[test]
fn no_heartbeat_splits_a_line_or_crlf() {
    let silence = || Step::Silence(Duration::from_millis(1500));
    assert_eq!(text_through_layer([Step::chunk("data: a"), silence(), Step::chunk("b\n\n")]), "data: ab\n\n");
    // The heartbeat's CR and the stream's LF are one line end.
    assert_eq!(text_through_layer([Step::chunk("data: a\r"), silence(), Step::chunk("\n\r\n")]), "data: a\r:\r\n\r\n");
    assert_eq!(
        text_through_layer([Step::chunk("data: a\r\r"), silence(), Step::chunk("data: b\n\n")]),
        "data: a\r\r:\rdata: b\n\n"
    );
}

#[test]
fn byte_order_mark_after_heartbeat_is_removed() {
    let mark = b"\xEF\xBB\xBF";
    let first = || Step::Silence(Duration::from_millis(1500));
    assert_eq!(text_through_layer([first(), Step::chunk(mark), Step::chunk("data: a\n\n")]), ":\ndata: a\n\n");
    assert_eq!(text_through_layer([first(), Step::chunk([mark, &b"data: a\n\n"[..]].concat())]), ":\ndata: a\n\n");
    let bytewise = [Step::chunk([0xEF]), Step::chunk([0xBB]), first(), Step::chunk([0xBF]), Step::chunk("data: a\n\n")];
    assert_eq!(text_through_layer([vec![first()], bytewise.to_vec()].concat()), ":\n:\ndata: a\n\n");
    // Only the first U+FEFF is a byte order mark.
    assert_eq!(text_through_layer([first(), Step::chunk("\u{feff}\u{feff}x\n")]), ":\n\u{feff}x\n");
    // The mark stays where the layer has sent nothing before it.
    assert_eq!(text_through_layer([Step::chunk("\u{feff}data: a\n\n")]), "\u{feff}data: a\n\n");
}

#[test]
fn incomplete_byte_order_mark_is_not_lost() {
    let first = Step::Silence(Duration::from_millis(1500));
    let out = |steps: &[Step]| bytes_through(layer(), [std::slice::from_ref(&first), steps].concat());
    assert_eq!(out(&[Step::chunk([0xEF]), Step::chunk([0xBB, b'x'])]), b":\n\xEF\xBBx");
    assert_eq!(out(&[Step::chunk([0xEF, 0xBB])]), b":\n\xEF\xBB");
    assert_eq!(out(&[Step::chunk([0xEF]), Step::Trailers(http::HeaderMap::new())]), b":\n\xEF");
    assert_eq!(out(&[Step::chunk([0xEF]), Step::chunk([]), Step::chunk(b"\xAA\n")]), b":\n\xEF\xAA\n");
}

#[test]
fn comment_replaces_heartbeat_event_inside_an_event() {
    let heartbeat = Heartbeat::every(Duration::from_secs(1)).event(Event::new("alive").id(1));
    let layer = || SseLayer::new().heartbeat(heartbeat.clone());
    let silence = || Step::Silence(Duration::from_millis(1500));
    for (chunk, expected) in [
        ("data: a\n", "data: a\n:\n"),
        ("data: a\r\n", "data: a\r\n:\n"),
        ("data: a\n\n", "data: a\n\ndata: alive\n\n"),
        ("data: a\r\n\r\n", "data: a\r\n\r\ndata: alive\n\n"),
        ("data: a\n\r\n", "data: a\n\r\ndata: alive\n\n"),
        ("data: a\r\r\n", "data: a\r\r\ndata: alive\n\n"),
        ("data: a\r\r", "data: a\r\rdata: alive\n\r"),
        ("data: a\r", "data: a\r:\r"),
        ("\r", "\rdata: alive\n\r"),
        ("", "data: alive\n\n"),
        ("\n", "\ndata: alive\n\n"),
        ("\r\n", "\r\ndata: alive\n\n"),
    ] {
        let whole = bytes_through(layer(), [Step::chunk(chunk), silence()]);
        let bytewise: Vec<_> = chunk.bytes().map(|byte| Step::chunk([byte])).chain([silence()]).collect();
        assert_eq!(whole, expected.as_bytes(), "{chunk:?}");
        assert_eq!(bytes_through(layer(), bytewise), expected.as_bytes(), "{chunk:?} byte by byte");
    }
}

#[test]
fn trailers_of_event_stream_pass() {
    let trailers: http::HeaderMap = [(CONTENT_TYPE, "x".parse().unwrap())].into_iter().collect();
    let steps = [Step::silence(2), Step::chunk([0xEF]), Step::Trailers(trailers.clone())];
    let collected = in_paused_time(async || pass(layer(), steps).collect().await.unwrap());
    assert_eq!(collected.trailers(), Some(&trailers));
    assert!(collected.to_bytes().ends_with(&Bytes::from_static(b"\n\xEF")));
}
