//! Reads the messages of a stream of NATS, which any other software can write to.
//!
//! Reading never panics, and returns the events of the payload with consecutive positions up to
//! that of the message. Records that the hub has written are read as the same records.
//!
//! An input is four parts, separated by LF: the sequence of the message and the position to read
//! after; the subject; headers `name: value` with TABs between them; and the payload. The byte FF
//! splits the payload into texts. A hub publishes these texts together, as one message.

#![no_main]

use bytes::Bytes;
use fuzz::{split_line, whatwg};
use libfuzzer_sys::fuzz_target;
use tower_sse::{
    Event,
    hub::backend::{
        Page, Position, Record, RecordKind,
        fuzzing::{
            event,
            nats::{HeaderMap, headers, read, subject, write},
        },
    },
};

const STREAM: &str = "shop";

/// The positions of a message.
const EVENTS: u64 = 1 << 16;

fuzz_target!(|input: &[u8]| {
    let (numbers, rest) = split_line(input);
    let (topic, rest) = split_line(rest);
    let (fields, payload) = split_line(rest);
    let numbers = String::from_utf8_lossy(numbers);
    let mut numbers = numbers.split(' ').map(|number| number.parse().unwrap_or(u64::MAX));
    let (sequence, after) = (numbers.next().unwrap_or(7), Position::new(numbers.next().unwrap_or(0)));
    let topic = String::from_utf8_lossy(topic);
    let fields = String::from_utf8_lossy(fields);
    let headers = headers(fields.split('\t').filter_map(|field| field.split_once(": ")));

    check_foreign(sequence, after, &topic, headers.clone(), payload);
    let texts = payload.split(|byte| *byte == 0xFF).map(String::from_utf8_lossy);
    let events: Vec<_> = texts.map(|text| build(&text)).collect();
    let kind = match fields.bytes().next() {
        Some(b's') => RecordKind::State,
        Some(b'f') => RecordKind::Finish,
        Some(b'r') => RecordKind::Remove,
        _ => RecordKind::Event,
    };
    check_ours(sequence, after, &topic, kind, events);
});

/// Builds one of the events that a hub stores: without an id.
fn build(text: &str) -> Event {
    match text.as_bytes().first() {
        Some(b'c') => Event::default().comment(&text[1..]),
        Some(b'n') => Event::default().event("name").comment(&text[1..]),
        Some(b'-') => Event::default(),
        _ => Event::new(text),
    }
}

fn check_foreign(sequence: u64, after: Position, topic: &str, headers: HeaderMap, payload: &[u8]) {
    let read = |subject: &str, headers, after| {
        read(STREAM, subject, sequence, headers, Bytes::copy_from_slice(payload), after)
    };
    for subject in [topic, &format!("{STREAM}.{topic}="), &format!("{STREAM}.{topic}")] {
        let page = read(subject, Some(headers.clone()), after);
        check_positions(&page, sequence, after);
        for (_, record) in &page.records {
            check_topic(&record.topic);
            // A client dispatches at most one message of a record that the hub passes on.
            if let Some(event) = event(record) {
                assert!(whatwg::parse(&event.encode()).messages.len() <= 1, "{record:?}");
            }
        }
        // Nothing of the payload is lost.
        let whole = read(subject, None, Position::START);
        if !whole.records.is_empty() && sequence < 1 << 40 && (payload.len() as u64) < EVENTS {
            let events: Vec<_> = whole.records.iter().flat_map(|(_, record)| record.event.to_vec()).collect();
            assert_eq!(events, payload);
        }
    }
}

fn check_ours(sequence: u64, after: Position, topic: &str, kind: RecordKind, events: Vec<Event>) {
    let Some(subject) = subject(STREAM, topic) else { return };
    check_topic(topic);
    // The end and the removal of a topic are one record without an event.
    let is_event = matches!(kind, RecordKind::Event | RecordKind::State);
    let events = match is_event {
        false => vec![Bytes::new()],
        true => events.into_iter().map(Event::encode).collect(),
    };
    let records: Vec<_> = events.into_iter().map(|event| Record::new(topic, kind, event)).collect();
    let (headers, payload) = write(&records);
    let page = read(STREAM, &subject, sequence, Some(headers), payload, after);
    check_positions(&page, sequence, after);
    let read: Vec<_> = page.records.into_iter().map(|(_, record)| record).collect();
    assert!(records.ends_with(&read));
    if after.get() <= sequence.saturating_sub(1).saturating_mul(EVENTS) && sequence > 0 && sequence < 1 << 48 {
        assert_eq!(read, records);
    }
    if is_event {
        assert!(read.iter().all(|record| event(record).is_some_and(|event| event.encode() == record.event)));
    }
}

/// The positions of the records are consecutive, after `after`, and end with that of the message.
fn check_positions(page: &Page, sequence: u64, after: Position) {
    assert_eq!(page.through, Position::new(sequence.saturating_mul(EVENTS)));
    assert_eq!(page.evicted_through, Position::START);
    assert!(page.records.windows(2).all(|pair| pair[0].0.next() == pair[1].0));
    assert!(page.records.iter().all(|(position, _)| *position > after && *position <= page.through));
    if let Some((last, _)) = page.records.last() {
        assert_eq!(*last, page.through);
    }
}

fn check_topic(topic: &str) {
    let Some(subject) = subject(STREAM, topic) else { return };
    assert!(subject.bytes().all(|byte| byte.is_ascii_graphic() && !b"*>".contains(&byte)), "{subject}");
    let page = read(STREAM, &subject, 1, None, Bytes::new(), Position::START);
    assert_eq!(&*page.records[0].1.topic, topic);
}
