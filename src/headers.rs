//! The headers of an event stream.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE},
};

const EVENT_STREAM: &str = "text/event-stream";

/// nginx and others buffer a response unless this says `no`.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Adds what is missing, and completes what is there.
pub(crate) fn complete(headers: &mut HeaderMap) {
    match headers.get(CONTENT_TYPE) {
        // As compressors know it: many of them compare the first bytes.
        Some(value) if value.as_bytes().starts_with(EVENT_STREAM.as_bytes()) => {}
        other => {
            let value = other.and_then(with_lower_case_essence).unwrap_or(HeaderValue::from_static(EVENT_STREAM));
            headers.insert(CONTENT_TYPE, value);
        }
    }
    // `no-cache` alone is what other responders of event streams set. Any other value is a handler's decision.
    if headers.get(CACHE_CONTROL).is_none_or(|value| value == "no-cache") {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    }
    headers.entry(X_ACCEL_BUFFERING).or_insert(HeaderValue::from_static("no"));
}

/// Whether a `Content-Type` is that of an event stream: in any case, with any parameters.
pub(crate) fn is_event_stream(content_type: &HeaderValue) -> bool {
    essence(content_type.as_bytes()).eq_ignore_ascii_case(EVENT_STREAM.as_bytes())
}

/// Whether an `Accept` header names the event stream, and does not refuse it by a weight of 0 (RFC 9110, §12.4.2).
pub(crate) fn accepts_event_stream(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT).into_iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b',')).any(|range| {
        essence(range).eq_ignore_ascii_case(EVENT_STREAM.as_bytes()) && !parameters(range).any(is_weight_of_zero)
    })
}

/// The type without its parameters.
fn essence(media_type: &[u8]) -> &[u8] {
    let end = media_type.iter().position(|&byte| byte == b';').unwrap_or(media_type.len());
    media_type[..end].trim_ascii()
}

fn parameters(media_type: &[u8]) -> impl Iterator<Item = &[u8]> {
    media_type.split(|&byte| byte == b';').skip(1).map(<[u8]>::trim_ascii)
}

fn is_weight_of_zero(parameter: &[u8]) -> bool {
    match parameter {
        [b'q' | b'Q', b'=', b'0', fraction @ ..] => fraction.iter().all(|&digit| digit == b'.' || digit == b'0'),
        _ => false,
    }
}

fn with_lower_case_essence(content_type: &HeaderValue) -> Option<HeaderValue> {
    let text = content_type.as_bytes();
    let parameters = text.iter().position(|&byte| byte == b';').map_or(&[][..], |at| &text[at..]);
    HeaderValue::from_bytes(&[EVENT_STREAM.as_bytes(), parameters].concat()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_type_is_recognised_in_any_case_and_with_parameters() {
        for yes in
            ["text/event-stream", "TEXT/Event-Stream", "text/event-stream;charset=utf-8", "text/event-stream ; x=1"]
        {
            assert!(is_event_stream(&HeaderValue::from_static(yes)), "{yes}");
        }
        for no in ["text/event-streams", "text/plain", "", "text/plain; text/event-stream", "application/grpc"] {
            assert!(!is_event_stream(&HeaderValue::from_static(no)), "{no}");
        }
        assert!(!is_event_stream(&HeaderValue::from_bytes(b"\xff\xfe").unwrap()));
    }

    #[test]
    fn an_accept_header_names_the_event_stream_unless_its_weight_is_zero() {
        let accepts = |values: &[&'static str]| {
            accepts_event_stream(&values.iter().map(|value| (ACCEPT, HeaderValue::from_static(value))).collect())
        };
        assert!(accepts(&["text/event-stream"]));
        assert!(accepts(&["application/json, Text/Event-Stream;q=0.5"]));
        assert!(accepts(&["application/json", "text/html , text/event-stream"]));
        assert!(!accepts(&["text/event-stream;q=0"]));
        assert!(!accepts(&["text/event-stream; q=0.000"]));
        assert!(!accepts(&["*/*"]));
        assert!(!accepts(&["text/*"]));
        assert!(!accepts(&[]));
    }

    #[test]
    fn the_type_is_normalised_and_its_parameters_are_kept() {
        for (given, expected) in [
            ("Text/EVENT-stream", "text/event-stream"),
            ("Text/EVENT-stream ; charset=UTF-8", "text/event-stream; charset=UTF-8"),
            ("text/event-stream;charset=UTF-8", "text/event-stream;charset=UTF-8"),
        ] {
            let mut headers: HeaderMap = [(CONTENT_TYPE, HeaderValue::from_static(given))].into_iter().collect();
            complete(&mut headers);
            assert_eq!(headers[CONTENT_TYPE], expected);
        }
    }

    #[test]
    fn what_a_handler_decided_stays() {
        let mut headers = HeaderMap::new();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, max-age=1"));
        headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("yes"));
        complete(&mut headers);
        assert_eq!(headers[CACHE_CONTROL], "private, max-age=1");
        assert_eq!(headers[X_ACCEL_BUFFERING], "yes");
    }
}
