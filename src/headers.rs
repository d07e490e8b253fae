//! The headers of an event stream.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{ACCEPT, CACHE_CONTROL, CONNECTION, CONTENT_TYPE},
};
use memchr::{memchr, memchr_iter};

const EVENT_STREAM: &str = "text/event-stream";

/// nginx and others buffer a response unless this says `no`.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Adds missing headers, and completes present headers.
pub(crate) fn complete(headers: &mut HeaderMap) {
    match headers.get(CONTENT_TYPE) {
        // As compressors know it: many of them compare the first bytes.
        Some(value) if value.as_bytes().starts_with(EVENT_STREAM.as_bytes()) => {}
        other => {
            let value = other.and_then(with_lower_case_essence).unwrap_or(HeaderValue::from_static(EVENT_STREAM));
            headers.insert(CONTENT_TYPE, value);
        }
    }
    // `no-cache` alone is what other responders of event streams set. Any other value is a
    // handler's decision.
    if headers.get_all(CACHE_CONTROL).into_iter().all(|value| value == "no-cache") {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    }
    headers.entry(X_ACCEL_BUFFERING).or_insert(HeaderValue::from_static("no"));
}

/// Returns whether a `Content-Type` is that of an event stream, in any case and with any
/// parameters.
#[inline]
pub(crate) fn is_event_stream(content_type: &HeaderValue) -> bool {
    parameters_of_event_stream(content_type.as_bytes().trim_ascii_start()).is_some()
}

/// Returns whether an `Accept` header has the type of event streams, with a weight above 0 (RFC
/// 9110, §12.4.2).
#[inline]
pub(crate) fn is_event_stream_accepted(headers: &HeaderMap) -> bool {
    if headers.len() == headers.keys_len() {
        // No name stands twice, and to look for one value costs half.
        return headers.get(ACCEPT).is_some_and(|value| has_event_stream(value.as_bytes()));
    }
    headers.get_all(ACCEPT).into_iter().any(|value| has_event_stream(value.as_bytes()))
}

/// Looks only at hyphens, because every request pays for this: most headers have one hyphen or
/// none.
fn has_event_stream(ranges: &[u8]) -> bool {
    let starts = memchr_iter(b'-', ranges).filter_map(|hyphen| hyphen.checked_sub("text/event".len()));
    starts.into_iter().any(|start| {
        let (before, range) = ranges.split_at(start);
        let is_start = matches!(before.trim_ascii_end(), [] | [.., b',']);
        let parameters = is_start.then(|| parameters_of_event_stream(range)).flatten();
        parameters.is_some_and(|parameters| {
            let end = memchr(b',', parameters).unwrap_or(parameters.len());
            !parameters[..end].split(|&byte| byte == b';').any(is_weight_of_zero)
        })
    })
}

/// Returns whether the client closes the connection after the response (RFC 9112, §9.6).
pub(crate) fn has_connection_close(headers: &HeaderMap) -> bool {
    let mut options =
        headers.get_all(CONNECTION).into_iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
}

/// Returns the part after the type, if that is the type of event streams.
fn parameters_of_event_stream(media_range: &[u8]) -> Option<&[u8]> {
    let (essence, rest) = media_range.split_at_checked(EVENT_STREAM.len())?;
    let is_whole = matches!(rest.trim_ascii_start(), [] | [b';' | b',', ..]);
    (is_whole && essence.eq_ignore_ascii_case(EVENT_STREAM.as_bytes())).then_some(rest)
}

fn is_weight_of_zero(parameter: &[u8]) -> bool {
    match parameter.trim_ascii() {
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
            is_event_stream_accepted(&values.iter().map(|value| (ACCEPT, HeaderValue::from_static(value))).collect())
        };
        assert!(accepts(&["text/event-stream"]));
        assert!(accepts(&["application/json, Text/Event-Stream;q=0.5"]));
        assert!(accepts(&["application/json", "text/html , text/event-stream"]));
        assert!(accepts(&["x-a/b-c,text/event-stream , d-e/f"]));
        assert!(accepts(&["text/event-stream;q=0,\ttext/event-stream;q=0.001"]));
        assert!(!accepts(&["x-text/event-stream"]));
        assert!(!accepts(&["text/event-stream-x", "text/event-streams"]));
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
