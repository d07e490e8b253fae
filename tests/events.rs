//! Guarantee: for every `Event` that can be built, a parser that follows the standard dispatches
//! exactly one message with the same fields. It dispatches no message for an event without data and
//! name.

use eventsource_stream::Eventsource;
use futures_util::StreamExt;
use proptest::{collection::vec, option, prelude::*, sample::select};
use std::{convert::Infallible, time::Duration};
use support::whatwg::{self, Message};
use tower_sse::{EncodedEvents, Event, EventId, EventName};

/// A call of a setter. Handlers make them in any order and number.
#[derive(Clone, Debug)]
enum Setter {
    Data(String),
    Display(String),
    Name(String),
    Id(String),
    Retry(u32),
    Comment(String),
}

/// The last value of each field of an event.
#[derive(Clone, Debug, Default, PartialEq)]
struct Told {
    data: Option<String>,
    name: Option<String>,
    id: Option<String>,
    retry: Option<u32>,
    comments: Vec<String>,
}

fn build(setters: &[Setter]) -> (Event, Told) {
    setters.iter().cloned().fold((Event::default(), Told::default()), |(event, mut told), setter| match setter {
        Setter::Data(text) => {
            told.data = Some(text.clone());
            (event.data(text), told)
        }
        // It creates a new event.
        Setter::Display(text) => (Event::display(&text), Told { data: Some(text), ..Told::default() }),
        Setter::Name(text) => {
            told.name = Some(text.clone());
            (event.event(EventName::new(text).unwrap()), told)
        }
        Setter::Id(text) => {
            told.id = Some(text.clone());
            (event.id(EventId::new(text).unwrap()), told)
        }
        Setter::Retry(milliseconds) => {
            told.retry = Some(milliseconds);
            (event.retry(Duration::from_millis(milliseconds.into())), told)
        }
        Setter::Comment(text) => {
            told.comments.extend(lines(&text).map(|line| format!(" {line}")));
            (event.comment(text), told)
        }
    })
}

/// Replaces each line end by LF: the format does not preserve the kind of a line end.
fn with_line_feeds(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

fn lines(text: &str) -> impl Iterator<Item = String> {
    with_line_feeds(text).split('\n').map(str::to_owned).collect::<Vec<_>>().into_iter()
}

const PIECES: &[&str] = &[
    "",
    "a",
    "text",
    " ",
    "  ",
    "\t",
    ":",
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    "\0",
    "\u{85}",
    "\u{2028}",
    "\u{2029}",
    "\u{b}",
    "\u{feff}",
    "é",
    "日本",
    "🦀",
    "data: ",
    "id: 7",
    "event:x",
    "retry: 1",
    ": comment",
    "{\"a\":1}",
];

/// Text that has broken encoders and parsers before.
fn nasty_text() -> impl Strategy<Value = String> {
    prop_oneof![vec(select(PIECES), 0..12).prop_map(|pieces| pieces.concat()), any::<String>()]
}

fn nasty_field() -> impl Strategy<Value = String> {
    nasty_text().prop_map(|text| text.replace(['\n', '\r', '\0'], "_"))
}

fn setter() -> impl Strategy<Value = Setter> {
    prop_oneof![
        4 => nasty_text().prop_map(Setter::Data),
        1 => nasty_text().prop_map(Setter::Display),
        2 => nasty_field().prop_filter("a name is not empty", |name| !name.is_empty()).prop_map(Setter::Name),
        2 => nasty_field().prop_map(|id| Setter::Id(id.replace(char::is_control, "_"))),
        1 => any::<u32>().prop_map(Setter::Retry),
        1 => nasty_text().prop_map(Setter::Comment),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn parser_dispatches_the_fields_of_the_event(setters in vec(setter(), 0..8)) {
        let (event, told) = build(&setters);
        let parsed = whatwg::parse(&event.encode());

        let id = told.id.unwrap_or_default();
        let expected = (told.data.is_some() || told.name.is_some()).then(|| Message {
            r#type: told.name.unwrap_or_else(|| "message".into()),
            data: with_line_feeds(&told.data.unwrap_or_default()),
            last_event_id: id.clone(),
        });
        prop_assert_eq!(parsed.messages, Vec::from_iter(expected));
        prop_assert_eq!(parsed.last_event_id, id);
        prop_assert_eq!(parsed.reconnection_time, told.retry.map(|retry| retry.to_string()));
        prop_assert_eq!(parsed.comments, told.comments);
    }

    /// The parser in `tests/support` decides. These two decoders are published crates without any
    /// relation to this one.
    #[test]
    fn published_decoders_read_the_same_events(events in vec(vec(setter(), 0..6), 1..6), cut in option::of(1..40_usize)) {
        let encoded: EncodedEvents = events.iter().map(|setters| build(setters).0).collect();
        let bytes = encoded.into_bytes();
        let chunks: Vec<_> = bytes.chunks(cut.unwrap_or(usize::MAX)).map(<[u8]>::to_vec).collect();
        let judged = whatwg::parse(&bytes);

        let decoded = futures_util::stream::iter(chunks.clone()).map(Ok::<_, Infallible>).eventsource();
        let decoded: Vec<_> = futures_executor::block_on_stream(decoded)
            .map(|event| event.map(|event| Message { r#type: event.event, data: event.data, last_event_id: event.id }))
            .collect::<Result<_, _>>()
            .unwrap();
        prop_assert_eq!(&decoded, &judged.messages, "eventsource-stream");

        // It returns raw blocks, also without data, and an id only if the block itself has one.
        let body = support::script::Script::of_chunks(&chunks);
        let mut last_event_id = String::new();
        let mut decoded = Vec::new();
        for block in futures_executor::block_on_stream(sse_stream::SseStream::new(body)) {
            let block = block.unwrap();
            last_event_id = block.id.unwrap_or(last_event_id);
            decoded.extend(block.data.map(|data| Message {
                r#type: block.event.unwrap_or_else(|| "message".into()),
                data,
                last_event_id: last_event_id.clone(),
            }));
        }
        prop_assert_eq!(&decoded, &judged.messages, "sse-stream");
    }

    #[test]
    fn json_is_one_line_with_same_value(key in nasty_text(), value in nasty_text()) {
        let value = serde_json::json!({ key: [value, 1.5, null] });
        let parsed = whatwg::parse(&Event::json(&value).unwrap().encode());
        prop_assert!(!parsed.messages[0].data.contains('\n'));
        prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&parsed.messages[0].data).unwrap(), value);
    }
}

#[test]
fn raw_json_with_line_ends_is_one_line() {
    let pretty = "{\r\n  \"text\": \"two\\nlines\",\r  \"n\": [\n1\n]\n}";
    let raw: Box<serde_json::value::RawValue> = serde_json::from_str(pretty).unwrap();
    let parsed = whatwg::parse(&Event::json(&raw).unwrap().encode());
    let data = &parsed.messages[0].data;
    assert!(!data.contains('\n'), "{data:?}");
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(data).unwrap(),
        serde_json::json!({ "text": "two\nlines", "n": [1] })
    );
}

#[test]
fn unserializable_value_is_error_with_source() {
    let map = std::collections::HashMap::from([(vec![1], 2)]);
    let error = Event::json(&map).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the data of an event does not serialize to JSON: the keys of maps have to be strings, and no part may fail"
    );
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "key must be a string");
}

#[test]
fn ten_mebibytes_of_data_arrive_whole() {
    let line = "x".repeat(1023);
    let data = vec![line.as_str(); 10 * 1024].join("\r\n");
    let event = Event::new(&data).id(u64::MAX).event("big");
    let parsed = whatwg::parse(&event.encode());
    assert_eq!(parsed.messages.len(), 1);
    assert_eq!(parsed.messages[0].data, with_line_feeds(&data));
    assert_eq!(parsed.last_event_id, u64::MAX.to_string());
}

#[test]
fn checkpoint_moves_cursor_and_dispatches_nothing() {
    let stream: EncodedEvents = [Event::new("a").id(1), Event::checkpoint(9), Event::new("b")].into_iter().collect();
    let parsed = whatwg::parse(stream.as_bytes());
    let ids: Vec<_> = parsed.messages.iter().map(|message| message.last_event_id.as_str()).collect();
    assert_eq!(ids, ["1", "9"]);
}

#[test]
fn empty_id_clears_last_event_id() {
    let stream: EncodedEvents = [Event::new("a").id(1), Event::new("b").id("")].into_iter().collect();
    assert_eq!(whatwg::parse(stream.as_bytes()).last_event_id, "");
}
