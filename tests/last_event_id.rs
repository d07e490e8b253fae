//! `LastEventId`: ids from the header and the query, and invalid values.

use http::{HeaderValue, Request, StatusCode};
use tower_sse::{EventId, LastEventId};

fn from_header(value: &[u8]) -> LastEventId {
    let value = HeaderValue::from_bytes(value).unwrap();
    LastEventId::from_request(&Request::builder().header("Last-Event-ID", value).body(()).unwrap())
}

fn from_query(query: &str) -> LastEventId {
    LastEventId::from_request(&Request::builder().uri(format!("/feed?{query}")).body(()).unwrap())
}

fn none() -> LastEventId {
    LastEventId::default()
}

#[test]
fn header_value_is_utf_8() {
    assert_eq!(from_header(b"41").as_str(), Some("41"));
    assert_eq!(from_header("né 日本 🦀".as_bytes()).as_str(), Some("né 日本 🦀"));
    // A header value is not percent-encoded, so it is not decoded.
    assert_eq!(from_header(b"a%20b+c%").as_str(), Some("a%20b+c%"));
    let long = "x".repeat(8192);
    assert_eq!(from_header(long.as_bytes()).as_str(), Some(&*long));
}

#[test]
fn empty_header_is_none() {
    assert_eq!(from_header(b""), none());
    assert_eq!(LastEventId::from_request(&Request::new(())), none());
    assert_eq!(LastEventId::from(EventId::from_static("")), none());
    assert_eq!(none().id(), None);
    assert_eq!(none().into_id(), None);
}

#[test]
fn first_valid_header_wins() {
    let request = |values: &[&str]| {
        let request = values.iter().fold(Request::builder(), |request, value| request.header("last-event-id", *value));
        LastEventId::from_request(&request.body(()).unwrap())
    };
    assert_eq!(request(&["1", "2"]).as_str(), Some("1"));
    assert_eq!(request(&["", "2"]).as_str(), Some("2"));
}

#[test]
fn query_names_of_polyfills_are_read() {
    for name in ["lastEventId", "last-event-id", "Last-Event-ID", "lastEventID", "last_event_id", "evs_last_event_id"] {
        assert_eq!(from_query(&format!("a=b&{name}=41&c")).as_str(), Some("41"), "{name}");
    }
    assert_eq!(from_query("lasteventid=41"), none());
    assert_eq!(from_query("id=41"), none());
    assert_eq!(from_query("last%45ventId=41").as_str(), Some("41"));
}

#[test]
fn query_ids_are_form_decoded() {
    assert_eq!(from_query("lastEventId=a%2Fb%20c+d%2B%26").as_str(), Some("a/b c d+&"));
    assert_eq!(from_query("lastEventId=n%C3%A9%F0%9F%A6%80").as_str(), Some("né🦀"));
    assert_eq!(from_query("lastEventId=100%").as_str(), Some("100%"));
    assert_eq!(from_query("lastEventId=a=b").as_str(), Some("a=b"));
}

#[test]
fn empty_query_id_is_none() {
    for query in ["lastEventId=", "lastEventId"] {
        assert_eq!(from_query(query), none(), "{query}");
    }
    assert_eq!(from_query("lastEventId=&last-event-id=7").as_str(), Some("7"));
}

#[test]
fn valid_header_wins_over_query() {
    let request = |header: &[u8]| {
        let header = HeaderValue::from_bytes(header).unwrap();
        let request = Request::builder().uri("/?lastEventId=query").header("Last-Event-ID", header).body(()).unwrap();
        LastEventId::from_parts(&request.into_parts().0)
    };
    assert_eq!(request(b"header").as_str(), Some("header"));
    assert_eq!(request(b"").as_str(), Some("query"));
    assert_eq!(request(b"\xFF").as_str(), Some("query"));
}

#[test]
fn parse_error_is_short_400_with_source() {
    assert_eq!(from_header(b"41").parse::<u64>().unwrap(), Some(41));
    assert_eq!(none().parse::<u64>().unwrap(), None);
    let rejection = from_header("9".repeat(8192).as_bytes()).parse::<u64>().unwrap_err();
    assert_eq!(rejection.status(), StatusCode::BAD_REQUEST);
    assert!(rejection.to_string().len() < 200, "{rejection}");
    assert!(std::error::Error::source(&rejection).unwrap().is::<std::num::ParseIntError>());
}

mod in_axum {
    use axum::{Router, body::Body, response::Response, routing::get};
    use http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;
    use tower_sse::{LastEventId, LastEventIdRejection};

    async fn get_text(path: &str, id: Option<&str>) -> (u16, String) {
        let app = Router::new()
            .route("/id", get(async |last: LastEventId| format!("{:?}", last.as_str())))
            .route(
                "/option",
                get(async |last: Option<LastEventId>| format!("{:?}", last.and_then(LastEventId::into_id))),
            )
            .route(
                "/number",
                get(async |last: LastEventId| Ok::<_, LastEventIdRejection>(format!("{:?}", last.parse::<u64>()?))),
            );
        let request =
            id.into_iter().fold(Request::builder().uri(path), |request, id| request.header("last-event-id", id));
        let response: Response = app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        (status, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn extractor_accepts_requests_without_id() {
        assert_eq!(get_text("/id", Some("7")).await, (200, "Some(\"7\")".into()));
        assert_eq!(get_text("/id", None).await, (200, "None".into()));
        assert_eq!(get_text("/option", Some("7")).await, (200, "Some(\"7\")".into()));
        assert_eq!(get_text("/option", Some("")).await, (200, "None".into()));
    }

    #[tokio::test]
    async fn handler_returns_400_for_unparsable_id() {
        assert_eq!(get_text("/number", Some("7")).await, (200, "Some(7)".into()));
        assert_eq!(get_text("/number", None).await, (200, "None".into()));
        let sentence = r#"the last event id "seven" is not one of this stream's; connect without it"#;
        assert_eq!(get_text("/number", Some("seven")).await, (400, sentence.into()));
    }
}
