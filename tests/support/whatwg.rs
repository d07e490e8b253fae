//! A parser of event streams, written from the HTML standard and from nothing else:
//! <https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation>.
//!
//! It is slow. It follows the standard in the same order and with the same terms.

/// The result of interpreting a stream, as an `EventSource` does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventSource {
    /// The events that were dispatched, in order.
    pub messages: Vec<Message>,
    /// The value of `Last-Event-ID` on a reconnect.
    pub last_event_id: String,
    /// The reconnection time in milliseconds, as the digits in the stream.
    pub reconnection_time: Option<String>,
    /// The comment lines without their colon. A page does not see them.
    pub comments: Vec<String>,
}

/// A `MessageEvent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub r#type: String,
    pub data: String,
    pub last_event_id: String,
}

/// Interprets a whole stream, up to its end.
pub fn parse(stream: &[u8]) -> EventSource {
    parse_after("", stream)
}

/// Interprets a whole stream that a client reads after it has reconnected with an id.
///
/// The first blank line replaces that id with the last event ID buffer of this stream.
pub fn parse_after(last_event_id_string: &str, stream: &[u8]) -> EventSource {
    // "Streams must be decoded using the UTF-8 decode algorithm", which strips one byte order mark.
    let stream = stream.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(stream);
    let text = String::from_utf8_lossy(stream);

    let mut source = EventSource { last_event_id: last_event_id_string.to_owned(), ..EventSource::default() };
    let mut data = String::new();
    let mut event_type = String::new();
    let mut last_event_id = String::new();
    for line in lines(&text) {
        if line.is_empty() {
            dispatch(&mut source, &mut data, &mut event_type, &last_event_id);
        } else if let Some(comment) = line.strip_prefix(':') {
            source.comments.push(comment.to_owned());
        } else {
            let (field, value) = match line.split_once(':') {
                Some((field, value)) => (field, value.strip_prefix(' ').unwrap_or(value)),
                None => (line, ""),
            };
            match field {
                "event" => event_type = value.to_owned(),
                "data" => {
                    data.push_str(value);
                    data.push('\n');
                }
                "id" if !value.contains('\0') => last_event_id = value.to_owned(),
                "retry" if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => {
                    source.reconnection_time = Some(value.to_owned());
                }
                _ => {}
            }
        }
    }
    // "Once the end of the file is reached, any pending data must be discarded."
    source
}

fn dispatch(source: &mut EventSource, data: &mut String, event_type: &mut String, last_event_id: &str) {
    source.last_event_id = last_event_id.to_owned();
    let data = std::mem::take(data);
    let event_type = std::mem::take(event_type);
    if data.is_empty() {
        return;
    }
    source.messages.push(Message {
        r#type: if event_type.is_empty() { "message".to_owned() } else { event_type },
        data: data.strip_suffix('\n').unwrap_or(&data).to_owned(),
        last_event_id: last_event_id.to_owned(),
    });
}

/// Returns the complete lines. A line ends with CRLF, LF or CR, also at the end of the stream.
fn lines(text: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(['\r', '\n']) {
        lines.push(&rest[..end]);
        rest = if rest[end..].starts_with("\r\n") { &rest[end + 2..] } else { &rest[end + 1..] };
    }
    lines
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
    fn id_takes_effect_at_blank_line() {
        assert_eq!(parse(b"id: 1\n\nid: 2\n").last_event_id, "1");
    }
}
