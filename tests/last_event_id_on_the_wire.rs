//! The ids of reconnecting clients, on real connections.

use axum::{Router, routing::get};
use http::{StatusCode, header};
use std::fmt::Write;
use support::{
    client::{Answer, Http1, Protocol},
    server,
};
// In `over_serve`, this is the server of the crate.
use crate::server::{Server, serve};
use tower_sse::{LastEventId, LastEventIdRejection, SseLayer};

/// Serves `/id` and `/option`, which return the id, and `/number`, which returns it as a number.
async fn server() -> Server {
    let id = async |last: LastEventId| format!("{:?}", last.as_str());
    let option = async |last: Option<LastEventId>| format!("{:?}", last.as_ref().and_then(LastEventId::as_str));
    let number = async |last: LastEventId| Ok::<_, LastEventIdRejection>(format!("{:?}", last.parse::<u64>()?));
    let app = Router::new().route("/id", get(id)).route("/option", get(option)).route("/number", get(number));
    serve(app.layer(SseLayer::new())).await
}

/// Sends an HTTP/1.1 request of this target and these raw header lines.
async fn get_raw(server: &Server, target: &str, fields: &[&[u8]]) -> Answer {
    let mut request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n").into_bytes();
    for field in fields {
        request.extend([field, &b"\r\n"[..]].concat());
    }
    request.extend(b"\r\n");
    Http1::connect(server.address).await.request(request).await.complete().await
}

#[tokio::test]
async fn utf_8_ids_of_browsers_reach_the_handler() {
    let server = server().await;
    for id in ["41", "né 日本 🦀", "\u{feff}", "a:b, c;d=\"e\"", "1700000000-0"] {
        for (protocol, path) in Protocol::ALL.into_iter().flat_map(|p| ["/id", "/option"].map(|path| (p, path))) {
            let answer = protocol.get(server.address, path, &[("last-event-id", id)]).await.complete().await;
            assert_eq!(
                (answer.status, answer.text()),
                (StatusCode::OK, format!("{:?}", Some(id))),
                "{protocol:?} {path}"
            );
        }
    }
}

#[tokio::test]
async fn header_bytes_are_read_as_utf_8() {
    let server = server().await;
    for (field, expected) in [
        (&b"Last-Event-ID: n\xC3\xA9"[..], Some("né")),
        (b"LAST-EVENT-ID:\xF0\x9F\xA6\x80", Some("🦀")),
        // White space around a value is not part of it (RFC 9110, section 5.5).
        (b"Last-Event-ID:  \t 41 \t ", Some("41")),
        // ISO 8859-1 is not UTF-8. The client still has an id.
        (b"Last-Event-ID: n\xE9", Some("n\u{fffd}")),
        (b"Last-Event-ID: \xF0\x9F\xA6", Some("\u{fffd}")),
        (b"Last-Event-ID:", None),
        (b"X-Last-Event-ID: 41", None),
    ] {
        for path in ["/id", "/option"] {
            let answer = get_raw(&server, path, &[field]).await;
            assert_eq!(answer.text(), format!("{expected:?}"), "{path} {:?}", String::from_utf8_lossy(field));
        }
    }
}

#[tokio::test]
async fn id_of_8_kib_is_accepted() {
    let server = server().await;
    let long = "0123456789abcdef".repeat(512);
    for protocol in Protocol::ALL {
        let answer = protocol.get(server.address, "/id", &[("last-event-id", &long)]).await.complete().await;
        assert_eq!(answer.text(), format!("{:?}", Some(&long)), "{protocol:?}");
        let answer = protocol.get(server.address, &format!("/id?lastEventId={long}"), &[]).await.complete().await;
        assert_eq!(answer.text(), format!("{:?}", Some(&long)), "{protocol:?}");
    }
}

#[tokio::test]
async fn first_valid_header_wins() {
    let server = server().await;
    for (fields, expected) in [
        ([&b"Last-Event-ID: 1"[..], b"Last-Event-ID: 2"], "1"),
        ([b"Last-Event-ID:", b"Last-Event-ID: 2"], "2"),
        ([b"Last-Event-ID: \xFF", b"Last-Event-ID: 2"], "2"),
    ] {
        assert_eq!(get_raw(&server, "/id", &fields).await.text(), format!("{:?}", Some(expected)));
    }
    for protocol in Protocol::ALL {
        let headers = [("last-event-id", "1"), ("last-event-id", "2")];
        assert_eq!(protocol.get(server.address, "/id", &headers).await.complete().await.text(), r#"Some("1")"#);
    }
}

#[tokio::test]
async fn query_id_is_percent_decoded() {
    let server = server().await;
    for id in ["41", "né 日本 🦀", "a&b=c#d?e/f+g%h", " "] {
        let encoded = id.bytes().fold(String::new(), |mut encoded, byte| {
            write!(encoded, "%{byte:02X}").unwrap();
            encoded
        });
        for name in
            ["lastEventId", "last-event-id", "Last-Event-ID", "lastEventID", "last_event_id", "evs_last_event_id"]
        {
            for protocol in Protocol::ALL {
                let target = format!("/option?topic=a&{name}={encoded}&x=y");
                let answer = protocol.get(server.address, &target, &[]).await.complete().await;
                assert_eq!(answer.text(), format!("{:?}", Some(id)), "{protocol:?} {target}");
            }
        }
    }
    for (query, expected) in [
        ("lastEventId=a+b", Some("a b")),
        ("lastEventId=%FF", Some("\u{fffd}")),
        ("lastEventId=1%0A2", Some("1\u{fffd}2")),
        ("lastEventId=", None),
        ("lastEventId", None),
    ] {
        let answer = get_raw(&server, &format!("/id?{query}"), &[]).await;
        assert_eq!(answer.text(), format!("{expected:?}"), "{query}");
    }
    // The header wins over the query.
    let answer = get_raw(&server, "/id?lastEventId=1", &[b"Last-Event-ID: 2"]).await;
    assert_eq!(answer.text(), r#"Some("2")"#);
}

#[tokio::test]
async fn unparsable_id_gets_400_that_names_it() {
    let server = server().await;
    for protocol in Protocol::ALL {
        let answer = protocol.get(server.address, "/number", &[]).await.complete().await;
        assert_eq!((answer.status, answer.text()), (StatusCode::OK, "None".to_owned()));
        let answer = protocol.get(server.address, "/number", &[("last-event-id", "41")]).await.complete().await;
        assert_eq!((answer.status, answer.text()), (StatusCode::OK, "Some(41)".to_owned()));

        let headers = [("last-event-id", "gestern né"), ("accept", "text/event-stream")];
        let answer = protocol.get(server.address, "/number", &headers).await.complete().await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert_eq!(answer.headers[header::CONTENT_TYPE], "text/plain; charset=utf-8");
        let sentence = "the last event id \"gestern né\" is not one of this stream's; connect without it";
        assert_eq!(answer.text(), sentence);
    }
}
