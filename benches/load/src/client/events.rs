//! A parser of event streams that is fast for the events of a load test: all of one form.

use crate::payload;
use memchr::memchr;

/// Receives the content of a stream.
pub trait Sink {
    fn event(&mut self, sequence: u64, sent: u64);
    fn id(&mut self, id: &[u8]);
    fn gap(&mut self);
    fn heartbeat(&mut self);
}

/// The form of the last event. The next event usually has the same.
#[derive(Clone, Copy, Debug)]
struct Form {
    length: usize,
    /// The offset of the line with the data, and of the data.
    line: usize,
    data: usize,
}

/// The parser of one stream.
#[derive(Debug, Default)]
pub struct Events {
    /// The beginning of an event whose end has not arrived yet.
    rest: Vec<u8>,
    form: Option<Form>,
    /// Reports ids. Without ids, events of the same form are skipped in one step.
    with_ids: bool,
}

impl Events {
    pub fn new(with_ids: bool) -> Self {
        Self { with_ids, ..Self::default() }
    }

    /// Returns whether the last event is complete.
    pub fn is_complete(&self) -> bool {
        self.rest.is_empty()
    }

    /// Parses the next bytes of the stream.
    pub fn feed(&mut self, mut bytes: &[u8], sink: &mut impl Sink) {
        while !self.rest.is_empty() {
            let before = self.rest.len();
            let added = bytes.len().min(4096);
            self.rest.extend_from_slice(&bytes[..added]);
            let rest = std::mem::take(&mut self.rest);
            let parsed = self.parse(&rest, sink);
            if parsed > before {
                // The rest is in `bytes` as well.
                bytes = &bytes[parsed - before..];
                self.rest = rest;
                self.rest.clear();
                break;
            }
            self.rest = rest;
            self.rest.drain(..parsed);
            bytes = &bytes[added..];
            if bytes.is_empty() {
                return;
            }
        }
        let parsed = self.parse(bytes, sink);
        self.rest.extend_from_slice(&bytes[parsed..]);
    }

    /// Parses whole events, and returns their length.
    fn parse(&mut self, bytes: &[u8], sink: &mut impl Sink) -> usize {
        let mut at = 0;
        loop {
            if let (Some(form), false) = (self.form, self.with_ids) {
                while let Some(payload) = form.payload(&bytes[at..]) {
                    let (sequence, sent) = payload::read(payload);
                    sink.event(sequence, sent);
                    at += form.length;
                }
            }
            match self.parse_one(&bytes[at..], sink) {
                Some(length) => at += length,
                None => return at,
            }
        }
    }

    /// Parses an event, or a comment before it, and returns its length.
    fn parse_one(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Option<usize> {
        let mut at = 0;
        let (mut data, mut id, mut name) = (None, None, None);
        loop {
            let line = &bytes[at..at + memchr(b'\n', &bytes[at..])?];
            let begin = at;
            at += line.len() + 1;
            let value = |field: &str| {
                let value = line.strip_prefix(field.as_bytes())?;
                Some(value.strip_prefix(b" ").unwrap_or(value))
            };
            if line.is_empty() {
                break;
            } else if line[0] == b':' && begin == 0 {
                sink.heartbeat();
                return Some(at);
            } else if let Some(value) = value("data:") {
                data = Some((begin, begin + line.len() - value.len(), value));
            } else if let Some(value) = value("id:") {
                id = Some(value);
            } else if let Some(value) = value("event:") {
                name = Some(value);
            }
        }
        if let (Some(id), true) = (id, self.with_ids) {
            sink.id(id);
        }
        match (name, data) {
            (Some(b"gap"), _) => sink.gap(),
            (None, Some((line, data, value))) if value.len() >= payload::MIN => {
                let (sequence, sent) = payload::read(value.first_chunk().expect("it is long enough"));
                sink.event(sequence, sent);
                self.form = Some(Form { length: at, line, data });
            }
            _ => (),
        }
        Some(at)
    }
}

impl Form {
    /// Returns the payload of the next event if it has this form.
    fn payload<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8; payload::MIN]> {
        let event = bytes.get(..self.length)?;
        let is_first = self.line == 0 || event.starts_with(b"id:") && event[self.line - 1] == b'\n';
        let is_data = is_first && event[self.line..].starts_with(b"data:");
        if is_data && event.ends_with(b"\n\n") { event[self.data..].first_chunk() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::Payload;
    use std::fmt::Write;

    #[derive(Debug, Default, PartialEq)]
    struct Seen {
        events: Vec<(u64, u64)>,
        ids: Vec<String>,
        gaps: usize,
        heartbeats: usize,
    }

    impl Sink for Seen {
        fn event(&mut self, sequence: u64, sent: u64) {
            self.events.push((sequence, sent));
        }
        fn id(&mut self, id: &[u8]) {
            self.ids.push(String::from_utf8(id.to_vec()).unwrap());
        }
        fn gap(&mut self) {
            self.gaps += 1;
        }
        fn heartbeat(&mut self) {
            self.heartbeats += 1;
        }
    }

    #[test]
    fn events_are_parsed_however_they_are_split() {
        let mut payload = Payload::new(30);
        let mut wire = String::from(":\n\nid: e-0\nevent: hub-cursor\ndata\n\n");
        for id in 8..120 {
            write!(wire, "id: e-{id}\ndata: {}\n\n", payload.of(id, id + 1)).unwrap();
        }
        write!(wire, "event: gap\nid: e-300\ndata: {}\n\n:\n", payload.of(3, 3)).unwrap();
        for id in 400..500 {
            write!(wire, "data:{}\nid:e-{id}\n\n", payload.of(id, id + 1)).unwrap();
        }
        let numbers = || (8..120).chain(400..500);
        for size in (1..300).chain([5000, wire.len()]) {
            for with_ids in [false, true] {
                let mut seen = Seen::default();
                let mut events = Events::new(with_ids);
                wire.as_bytes().chunks(size).for_each(|piece| events.feed(piece, &mut seen));
                assert_eq!(seen.events, numbers().map(|id| (id, id + 1)).collect::<Vec<_>>(), "{size}");
                assert_eq!((seen.gaps, seen.heartbeats), (1, 2));
                assert_eq!(seen.ids.len(), if with_ids { 2 + numbers().count() } else { 0 });
                assert!(events.rest.is_empty());
            }
        }
    }

    #[test]
    fn events_of_other_forms_are_not_skipped() {
        let mut payload = Payload::new(12);
        let mut wire = String::new();
        for number in 0..50 {
            let data = payload.of(number, 1);
            let heartbeat = if number % 3 == 0 { ":\n" } else { "" };
            let name = if number % 5 == 0 { "event: other\n" } else { "" };
            write!(wire, "{heartbeat}{name}data: {data}\n\n").unwrap();
        }
        let mut seen = Seen::default();
        Events::default().feed(wire.as_bytes(), &mut seen);
        assert_eq!(seen.events.len(), 40);
    }
}
