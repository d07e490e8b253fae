//! A parser of event streams, written only from the HTML standard, independently of the other code
//! of this crate:
//! <https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation>.
//!
//! The parser has the steps of the standard in the same order and with the same terms, and is not
//! fast. The tests of this crate use it to check the event streams that other code writes or
//! forwards.

/// The result of interpreting an event stream: the events that a web page receives, and the state
/// of its `EventSource`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventSource {
    /// The events that were dispatched, in order.
    pub messages: Vec<Message>,
    /// The last event id: the id that the client would send as `Last-Event-ID` if it reconnected.
    pub last_event_id: String,
    /// The reconnection time in milliseconds, as the digits in the last valid `retry` field of the
    /// stream. `None` if the stream has no such field.
    pub reconnection_time: Option<String>,
    /// The comment lines without their leading colon. A web page does not receive them.
    pub comments: Vec<String>,
}

/// An event that a web page receives, with the fields of a `MessageEvent` in JavaScript.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub r#type: String,
    pub data: String,
    pub last_event_id: String,
}

/// Interprets `stream`, the whole stream of a client that has no last event id. An incomplete event
/// at the end is discarded.
pub fn parse(stream: &[u8]) -> EventSource {
    parse_after("", stream)
}

/// Interprets `stream`, the whole stream of a client that has reconnected with the id
/// `last_event_id_string`.
///
/// Until the first blank line of the stream, the client keeps this id. At the blank line, the last
/// id in the lines before it becomes the id of the client. If these lines contain no id, the id of
/// the client becomes empty, because the standard begins each stream with an empty last event ID
/// buffer.
pub fn parse_after(last_event_id_string: &str, stream: &[u8]) -> EventSource {
    let mut interpreter = Interpreter::default();
    last_event_id_string.clone_into(&mut interpreter.source.last_event_id);
    interpreter.feed(stream);
    // "Once the end of the file is reached, any pending data must be discarded."
    interpreter.source
}

/// An interpreter of an event stream that arrives in parts. [`feed`](Self::feed) interprets each
/// part, and `source` contains the result so far.
#[derive(Clone, Debug, Default)]
pub struct Interpreter {
    /// The result of interpreting all parts that [`feed`](Self::feed) has received.
    pub source: EventSource,
    /// The number of blank lines that were interpreted so far. A blank line ends a block of lines,
    /// which may be an event.
    pub blank_lines: usize,
    line: Vec<u8>,
    /// Set if the last interpreted byte of the stream was a CR. An LF immediately after this CR
    /// belongs to the same line end.
    is_after_cr: bool,
    /// Set once the first line of the stream was interpreted. A byte order mark is removed only at
    /// the beginning of the first line.
    is_after_first_line: bool,
    data: String,
    event_type: String,
    last_event_id: String,
}

impl Interpreter {
    /// Interprets `part`, the next part of the stream. A part may end anywhere, even in the middle
    /// of a line.
    pub fn feed(&mut self, part: &[u8]) {
        for &byte in part {
            let is_second_half = byte == b'\n' && self.is_after_cr;
            self.is_after_cr = byte == b'\r';
            match byte {
                b'\n' if is_second_half => {}
                b'\n' | b'\r' => self.end_line(),
                _ => self.line.push(byte),
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        // "Streams must be decoded using the UTF-8 decode algorithm", which strips one byte order
        // mark.
        let is_first = !std::mem::replace(&mut self.is_after_first_line, true);
        let line = line.strip_prefix(b"\xEF\xBB\xBF").filter(|_| is_first).unwrap_or(&line);
        let line = String::from_utf8_lossy(line);
        if line.is_empty() {
            return self.dispatch();
        }
        if let Some(comment) = line.strip_prefix(':') {
            return self.source.comments.push(comment.to_owned());
        }
        let (field, value) = match line.split_once(':') {
            Some((field, value)) => (field, value.strip_prefix(' ').unwrap_or(value)),
            None => (&*line, ""),
        };
        match field {
            "event" => value.clone_into(&mut self.event_type),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => value.clone_into(&mut self.last_event_id),
            "retry" if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => {
                self.source.reconnection_time = Some(value.to_owned());
            }
            _ => {}
        }
    }

    fn dispatch(&mut self) {
        self.blank_lines += 1;
        self.last_event_id.clone_into(&mut self.source.last_event_id);
        let data = std::mem::take(&mut self.data);
        let event_type = std::mem::take(&mut self.event_type);
        if data.is_empty() {
            return;
        }
        self.source.messages.push(Message {
            r#type: if event_type.is_empty() { "message".to_owned() } else { event_type },
            data: data.strip_suffix('\n').unwrap_or(&data).to_owned(),
            last_event_id: self.last_event_id.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(stream: &str) -> Vec<(String, String, String)> {
        parse(stream.as_bytes()).messages.into_iter().map(|m| (m.r#type, m.data, m.last_event_id)).collect()
    }

    fn data(stream: &str) -> Vec<String> {
        messages(stream).into_iter().map(|(_, data, _)| data).collect()
    }

    // The examples of HTML, section 9.2.6, in their order, with the result in the standard.

    #[test]
    fn standard_example_with_three_data_lines() {
        assert_eq!(data("data: YHOO\ndata: +2\ndata: 10\n\n"), ["YHOO\n+2\n10"]);
    }

    #[test]
    fn standard_example_with_four_blocks() {
        let stream = ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n";
        // The third event is not dispatched, because its blank line is missing.
        assert_eq!(
            messages(stream),
            [
                ("message".into(), "first event".into(), "1".into()),
                ("message".into(), "second event".into(), String::new()),
            ]
        );
        let ended = format!("{stream}\n");
        assert_eq!(data(&ended)[2], " third event");
    }

    #[test]
    fn standard_example_with_empty_data() {
        assert_eq!(data("data\n\ndata\ndata\n\ndata:"), ["", "\n"]);
    }

    #[test]
    fn standard_example_with_space_after_colon() {
        assert_eq!(data("data:test\n\ndata: test\n\n"), ["test", "test"]);
    }

    #[test]
    fn line_ends_and_byte_order_mark_are_recognized() {
        assert_eq!(data("\u{feff}data: a\r\ndata: b\rdata: c\n\r\n"), ["a\nb\nc"]);
        assert_eq!(data("\u{feff}\u{feff}data: a\n\n"), Vec::<String>::new());
    }

    #[test]
    fn id_with_nul_and_invalid_retry_are_ignored() {
        let source = parse(b"id: 1\nretry: 10\n\nid: 2\0\nretry: 1x\nretry:\nretry: -1\n\n");
        assert_eq!(source.last_event_id, "1");
        assert_eq!(source.reconnection_time.as_deref(), Some("10"));
    }

    #[test]
    fn id_of_reconnect_lasts_until_first_blank_line() {
        assert_eq!(parse_after("7", b": comment\nretry: 1\n").last_event_id, "7");
        assert_eq!(parse_after("7", b"\n").last_event_id, "");
    }

    #[test]
    fn parts_are_interpreted_like_the_whole() {
        let stream = "\u{feff}id: 1\r\ndata: \u{e9}\r\ndata\r\rretry: 7\n:c\nevent: x\ndata: b\n\ndata: c";
        let whole = parse(stream.as_bytes());
        for at in 0..stream.len() {
            let mut interpreter = Interpreter::default();
            interpreter.feed(&stream.as_bytes()[..at]);
            interpreter.feed(&stream.as_bytes()[at..]);
            assert_eq!(interpreter.source, whole, "{at}");
        }
    }

    #[test]
    fn id_takes_effect_at_blank_line() {
        assert_eq!(parse(b"id: 1\n\nid: 2\n").last_event_id, "1");
    }
}
