//! Reads `LastEventId` from the heads of requests.
//!
//! An input is a request target, and after it one `Last-Event-ID` header per line. As documented,
//! the first valid id in the headers counts, or else the first valid id in the query, or else the
//! beginning of the first malformed id.

#![no_main]

use fuzz::split_line;
use http::{HeaderValue, Request, Uri};
use libfuzzer_sys::{Corpus, fuzz_target};
use tower_sse::{LastEventId, hub::Start};

const QUERY_NAMES: [&[u8]; 6] =
    [b"lastEventId", b"last-event-id", b"Last-Event-ID", b"lastEventID", b"last_event_id", b"evs_last_event_id"];

fuzz_target!(|input: &[u8]| -> Corpus {
    let (uri, headers) = split_line(input);
    let Ok(uri) = Uri::try_from(uri) else { return Corpus::Reject };
    let headers: Vec<_> =
        headers.split(|byte| *byte == b'\n').filter_map(|value| HeaderValue::from_bytes(value).ok()).collect();

    let query = uri.query().unwrap_or_default().as_bytes();
    let in_query = query.split(|byte| *byte == b'&').filter_map(value_of_pair);
    let values: Vec<_> = headers.iter().map(|value| value.as_bytes().to_vec()).chain(in_query).collect();
    let present = || values.iter().filter(|value| !value.is_empty());
    let expected = present().find_map(|value| id(value)).or_else(|| present().next().map(|value| malformed(value)));

    let mut request = Request::new(());
    *request.uri_mut() = uri;
    for value in headers {
        request.headers_mut().append("last-event-id", value);
    }
    let last = LastEventId::from_request(&request);
    assert_eq!(LastEventId::from_parts(&request.into_parts().0), last);
    assert_eq!(last.as_str(), expected.as_deref());

    if let Err(rejection) = last.parse::<u64>() {
        assert!(rejection.to_string().len() < 1000);
    }
    let start = last.clone().or(Start::Earliest);
    assert_eq!(start, last.into_id().map_or(Start::Earliest, Start::After));
    Corpus::Keep
});

fn id(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok().filter(|id| !id.contains(char::is_control))
}

fn malformed(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(64)]).replace(char::is_control, "\u{fffd}")
}

fn value_of_pair(pair: &[u8]) -> Option<Vec<u8>> {
    let equals = pair.iter().position(|byte| *byte == b'=')?;
    let name = form_decoded(&pair[..equals]);
    QUERY_NAMES.contains(&&*name).then(|| form_decoded(&pair[equals + 1..]))
}

/// Decodes as the URL standard, §5.1, does, except for the decoding of UTF-8.
fn form_decoded(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        let digit = |at: usize| after.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        rest = after;
        decoded.push(match (byte, digit(0), digit(1)) {
            (b'+', ..) => b' ',
            (b'%', Some(high), Some(low)) => {
                rest = &after[2..];
                (high * 16 + low) as u8
            }
            _ => *byte,
        });
    }
    decoded
}
