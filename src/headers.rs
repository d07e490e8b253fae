//! The headers of event streams and of requests for them, and plain-text error responses.

use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{ACCEPT, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, VARY},
};
use memchr::{memchr, memchr_iter};

const EVENT_STREAM: &str = "text/event-stream";

/// The header that disables the buffering of a response in nginx and some other proxies.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Completes the headers of a response with an event stream. Adds `Content-Type`, `Cache-Control`
/// and `X-Accel-Buffering` if they are missing. Adds `no-transform` to an existing `Cache-Control`,
/// and writes an existing content type in lower case.
pub(crate) fn complete(headers: &mut HeaderMap) {
    match headers.get(CONTENT_TYPE) {
        // Written in lower case, because many compressors compare only the first bytes of the
        // content type.
        Some(value) if value.as_bytes().starts_with(EVENT_STREAM.as_bytes()) => {}
        other => {
            let value = other.and_then(with_lower_case_essence).unwrap_or(HeaderValue::from_static(EVENT_STREAM));
            headers.insert(CONTENT_TYPE, value);
        }
    }
    if !has_directive(headers, CACHE_CONTROL, "no-transform") {
        let value = with_no_transform(headers).unwrap_or(HeaderValue::from_static("no-cache, no-transform"));
        headers.insert(CACHE_CONTROL, value);
    }
    headers.entry(X_ACCEL_BUFFERING).or_insert(HeaderValue::from_static("no"));
}

/// Creates an error response: the status, and the message as plain text.
pub(crate) fn error_response(status: StatusCode, error: &impl ToString) -> Response<String> {
    let mut response = Response::new(error.to_string());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Returns whether a `Content-Type` is `text/event-stream`, in upper or lower case and with any
/// parameters.
#[inline]
pub(crate) fn is_event_stream(content_type: &HeaderValue) -> bool {
    parameters_of_event_stream(content_type.as_bytes().trim_ascii_start()).is_some()
}

/// Returns whether an `Accept` header contains `text/event-stream` with a weight above 0 (RFC 9110,
/// §12.4.2).
#[inline]
pub(crate) fn is_event_stream_accepted(headers: &HeaderMap) -> bool {
    if headers.len() == headers.keys_len() {
        // No header has two values, and a lookup of a single value costs half as much.
        return headers.get(ACCEPT).is_some_and(|value| has_event_stream(value.as_bytes()));
    }
    headers.get_all(ACCEPT).into_iter().any(|value| has_event_stream(value.as_bytes()))
}

/// Returns whether `ranges`, the value of an `Accept` header, contains `text/event-stream` with a
/// weight above 0. The function runs for every request, so it must be fast. It searches for
/// hyphens, and compares only the text around each hyphen with `text/event-stream`. Most `Accept`
/// headers have at most one hyphen.
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

/// Returns whether the `Accept` header contains no concrete media type except `text/event-stream`.
/// Ranges such as `*/*` and types with a weight of 0 are ignored. The function does not check that
/// `text/event-stream` is present, so call [`is_event_stream_accepted`] first.
pub(crate) fn is_only_event_stream_accepted(headers: &HeaderMap) -> bool {
    items(headers, ACCEPT).all(|range| {
        let mut parts = range.split(|&byte| byte == b';');
        let media_type = parts.next().unwrap_or_default().trim_ascii();
        media_type.is_empty()
            || memchr(b'*', media_type).is_some()
            || media_type.eq_ignore_ascii_case(EVENT_STREAM.as_bytes())
            || parts.any(is_weight_of_zero)
    })
}

/// Adds `Accept` to the `Vary` header, because the response depends on the `Accept` header of the
/// request (RFC 9110, §12.5.5). Has no effect if `Vary` already contains `Accept` or `*`.
pub(crate) fn vary_by_accept(headers: &mut HeaderMap) {
    if !has_directive(headers, VARY, "accept") && !has_directive(headers, VARY, "*") {
        headers.append(VARY, HeaderValue::from_static("Accept"));
    }
}

/// Returns whether the headers contain `Connection: close`, so that the connection closes after the
/// response (RFC 9112, §9.6).
///
/// Splits the value at every comma, as hyper does, because a `Connection` header contains only
/// tokens (RFC 9110, §7.6.1). The results must agree: if hyper sends `Connection: close` to the
/// client, the server has to close the connection.
pub(crate) fn has_connection_close(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(CONNECTION).into_iter();
    values.any(|value| {
        let mut options = value.as_bytes().split(|&byte| byte == b',');
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
    })
}

/// Returns whether the body of the response has a `Content-Encoding`, so that additional bytes
/// would corrupt the body. The values `identity` and `none` do not count as encodings. `none` is
/// not registered, but is widely used to disable compressors.
pub(crate) fn is_encoded(headers: &HeaderMap) -> bool {
    items(headers, CONTENT_ENCODING).any(|coding| {
        let is_identity = |name: &str| coding.eq_ignore_ascii_case(name.as_bytes());
        !coding.is_empty() && !is_identity("identity") && !is_identity("none")
    })
}

/// Returns the items of a header whose value is a comma-separated list, without surrounding white
/// space. A comma within quotes does not separate items (RFC 9110, §5.6.4).
fn items(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    headers.get_all(name).into_iter().flat_map(|value| {
        let (mut is_quoted, mut is_escaped) = (false, false);
        let separates = move |&byte: &u8| {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' if is_quoted => is_escaped = true,
                b'"' => is_quoted = !is_quoted,
                _ => {}
            }
            byte == b',' && !is_quoted
        };
        value.as_bytes().split(separates).map(<[u8]>::trim_ascii)
    })
}

/// Returns whether `list`, a header whose value is a comma-separated list, contains the item
/// `name`, with or without an argument such as `=60`.
fn has_directive(headers: &HeaderMap, list: HeaderName, name: &str) -> bool {
    items(headers, list).any(|item| {
        let end = memchr(b'=', item).unwrap_or(item.len());
        item[..end].trim_ascii_end().eq_ignore_ascii_case(name.as_bytes())
    })
}

/// Returns a `Cache-Control` value with the directives of all `Cache-Control` values in `headers`,
/// followed by `no-transform`. All directives are in one value, because some middleware reads only
/// the first value of a header. Returns `None` if `headers` contain no such directive.
fn with_no_transform(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut value = Vec::new();
    for directive in items(headers, CACHE_CONTROL).filter(|directive| !directive.is_empty()) {
        value.extend_from_slice(directive);
        value.extend_from_slice(b", ");
    }
    if value.is_empty() {
        return None;
    }
    value.extend_from_slice(b"no-transform");
    HeaderValue::from_bytes(&value).ok()
}

/// Returns the rest of `media_range` after the media type, such as `;q=0.5`, if the type is
/// `text/event-stream`. Returns `None` for other types.
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
    fn headers_of_the_handler_stay() {
        let mut headers = HeaderMap::new();
        headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("yes"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, No-Transform"));
        complete(&mut headers);
        assert_eq!(headers[CACHE_CONTROL], "private, No-Transform");
        assert_eq!(headers[X_ACCEL_BUFFERING], "yes");
    }

    #[test]
    fn no_transform_is_added_to_other_directives() {
        for (given, expected) in [
            (&[][..], "no-cache, no-transform"),
            (&[""], "no-cache, no-transform"),
            (&["no-cache"], "no-cache, no-transform"),
            (&["no-store"], "no-store, no-transform"),
            (&["private, max-age=1,"], "private, max-age=1, no-transform"),
            (&["no-cache", "no-store"], "no-cache, no-store, no-transform"),
            (&["private=\"a, no-transform\""], "private=\"a, no-transform\", no-transform"),
            (&["private=\"\\\", no-transform\""], "private=\"\\\", no-transform\", no-transform"),
        ] {
            let given = given.iter().map(|value| (CACHE_CONTROL, HeaderValue::from_static(value)));
            let mut headers: HeaderMap = given.collect();
            complete(&mut headers);
            assert_eq!(headers.get_all(CACHE_CONTROL).iter().collect::<Vec<_>>(), [expected]);
        }
    }

    #[test]
    fn only_event_streams_are_accepted_without_other_concrete_types() {
        for (accept, is_only) in [
            ("text/event-stream", true),
            ("text/event-stream, */*;q=0.1", true),
            ("text/*, Text/Event-Stream;q=0.5", true),
            ("text/event-stream, application/json;q=0", true),
            ("application/json, text/event-stream", false),
            ("text/event-stream, application/json;q=0.1", false),
        ] {
            let headers = [(ACCEPT, HeaderValue::from_static(accept))].into_iter().collect();
            assert_eq!(is_only_event_stream_accepted(&headers), is_only, "{accept}");
        }
    }

    #[test]
    fn connection_header_is_split_at_every_comma() {
        for (connection, closes) in [
            ("close", true),
            ("keep-alive,\tClose ", true),
            ("x\", close", true),
            ("\"x, close, y\"", true),
            ("keep-alive", false),
            ("\"close\"", false),
            ("close=1", false),
            ("closed", false),
        ] {
            let headers = [(CONNECTION, HeaderValue::from_static(connection))].into_iter().collect();
            assert_eq!(has_connection_close(&headers), closes, "{connection}");
        }
    }

    #[test]
    fn none_and_identity_are_no_encodings() {
        for (encoding, expected) in [
            ("identity", false),
            ("None", false),
            ("", false),
            ("identity, none,", false),
            ("gzip", true),
            ("identity, br", true),
        ] {
            let headers = [(CONTENT_ENCODING, HeaderValue::from_static(encoding))].into_iter().collect();
            assert_eq!(is_encoded(&headers), expected, "{encoding}");
        }
    }
}
