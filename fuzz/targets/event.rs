//! Builds events with any text, in any order of the setters.
//!
//! A parser from the HTML standard dispatches exactly one message with the same fields, or none if
//! the event has neither data nor a name. `EventName` and `EventId` reject CR, LF and NUL, and
//! accept all printable text.
//!
//! An input is a list of calls, separated by the byte FF, which no text contains. The first byte of
//! a call names the setter, and the rest is its text.

#![no_main]

use fuzz::whatwg::{self, Message};
use libfuzzer_sys::fuzz_target;
use std::time::Duration;
use tower_sse::{EncodedEvents, Event, EventId, EventName};

/// The values that the event must have.
#[derive(Default)]
struct Expected {
    data: Option<String>,
    name: Option<String>,
    id: Option<String>,
    retry: Option<u128>,
    comments: Vec<String>,
}

impl Expected {
    fn of(data: &str) -> Self {
        Self { data: Some(with_line_feeds(data)), ..Self::default() }
    }
}

fuzz_target!(|input: &[u8]| {
    let mut event = Event::default();
    let mut expected = Expected::default();
    for call in input.split(|byte| *byte == 0xFF) {
        let Some((setter, text)) = call.split_first() else { continue };
        let text = String::from_utf8_lossy(text);
        let text = &*text;
        match setter {
            b'd' => {
                event = event.data(text);
                expected.data = Some(with_line_feeds(text));
            }
            b'w' => (event, expected) = (Event::new(text), Expected::of(text)),
            b'D' => (event, expected) = (Event::display(text), Expected::of(text)),
            b'j' => {
                event = Event::json(text).expect("a string is JSON");
                let json = event.event_data().expect("the event has data").into_owned();
                assert_eq!(serde_json::from_str::<String>(&json).expect("the data is JSON"), text);
                expected = Expected::of(&json);
            }
            b'n' => match EventName::new(text) {
                Ok(name) => {
                    assert!(!text.is_empty() && !breaks_lines(text), "{text:?} is no name");
                    assert_eq!(name.as_str(), text);
                    event = event.event(name);
                    expected.name = Some(text.to_owned());
                }
                Err(error) => assert!(text.is_empty() || text.contains(char::is_control), "{error}"),
            },
            b'i' => match EventId::new(text) {
                Ok(id) => {
                    assert!(!breaks_lines(text), "{text:?} is no id");
                    assert_eq!(id.as_str(), text);
                    event = event.id(id);
                    expected.id = Some(text.to_owned());
                }
                Err(error) => assert!(text.contains(char::is_control), "{error}"),
            },
            b'r' => {
                let delay = match text.parse() {
                    Ok(milliseconds) => Duration::from_millis(milliseconds),
                    Err(_) => Duration::MAX,
                };
                event = event.retry(delay);
                expected.retry = Some(delay.as_millis());
            }
            b'c' => {
                event = event.comment(text);
                expected.comments.extend(with_line_feeds(text).split('\n').map(|line| format!(" {line}")));
            }
            _ => {}
        }
    }

    assert_eq!(event.name(), expected.name.as_deref());
    assert_eq!(event.event_id(), expected.id.as_deref());
    let data = expected.data.clone().or(expected.name.is_some().then(String::new));
    assert_eq!(event.event_data().as_deref(), data.as_deref());
    assert_eq!(event, event.clone());
    let _does_not_panic = format!("{event:?}");

    let bytes = event.clone().encode();
    let source = whatwg::parse_after("before", &bytes);
    let id = expected.id.unwrap_or_default();
    let message = data.map(|data| Message {
        r#type: expected.name.unwrap_or_else(|| "message".to_owned()),
        data,
        last_event_id: id.clone(),
    });
    assert_eq!(source.messages, Vec::from_iter(message));
    assert_eq!(source.last_event_id, id);
    assert_eq!(source.reconnection_time, expected.retry.map(|retry| retry.to_string()));
    assert_eq!(source.comments, expected.comments);

    // Nothing of an event changes the next one.
    let pair: EncodedEvents = [event.clone(), event].into_iter().collect();
    assert_eq!(pair.count(), 2);
    assert_eq!(pair.as_bytes(), [&bytes[..], &bytes[..]].concat());
});

/// Returns the text as the format preserves it: each CRLF, CR and LF is one LF.
fn with_line_feeds(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

fn breaks_lines(text: &str) -> bool {
    text.contains(['\r', '\n', '\0'])
}
