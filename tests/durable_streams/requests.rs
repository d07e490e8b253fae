//! Which requests are answered, and how errors look.

use super::*;
use http::Method;
use http_body::Body;

#[tokio::test(start_paused = true)]
async fn no_topic_is_readable_by_default() {
    let hub = Hub::new();
    publish(&hub.topic("t"), "1").await;
    for answer in [get(&hub.durable_streams(), "/t").await, head(&hub.durable_streams(), "/t").await] {
        assert_eq!((answer.status.as_u16(), answer.header("cache-control")), (404, Some("no-store")));
    }
    let streams = hub.durable_streams().readable(|topic, request| topic == "t" && request.headers.contains_key("key"));
    assert_eq!(get(&streams, "/t").await.status, 404);
    let with_key = Request::get("/t").header("key", "1").body(()).unwrap();
    assert_eq!(request(&streams, with_key).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn unknown_topic_is_not_found_and_not_created() {
    let hub = Hub::new();
    let streams = all(&hub);
    for uri in ["/t", "/t?offset=-1", "/t?offset=now", "/t?offset=now&live=long-poll", "/t?offset=-1&live=sse", "/", ""]
    {
        let uri = if uri.is_empty() { "/%FF" } else { uri };
        assert_eq!(get(&streams, uri).await.status, 404, "{uri}");
    }
    assert_eq!(head(&streams, "/t").await.status, 404);
    assert_eq!(hub.stats().topics, 0);
}

#[tokio::test(start_paused = true)]
async fn reserved_names_are_not_found() {
    let hub = Hub::new();
    publish(&hub.topic("__ds/jwks.json"), "1").await;
    publish(&hub.topic("__dsx"), "1").await;
    let streams = all(&hub).existing(|_| true);
    for (uri, status) in [("/__ds/jwks.json", 404), ("/__ds", 404), ("/tower-sse/nodes", 404), ("/__dsx", 200)] {
        assert_eq!(get(&streams, uri).await.status, status, "{uri}");
    }
}

#[tokio::test(start_paused = true)]
async fn declared_topic_exists_before_its_first_event() {
    let hub = Hub::new();
    let streams = all(&hub).existing(|topic| topic == "t");
    assert_eq!(get(&streams, "/other").await.status, 404);
    let empty = get(&streams, "/t").await;
    assert_eq!(empty.summary(), (200, "[]", true, false));
    assert_eq!(head(&streams, "/t").await.next_offset(), empty.next_offset());
    assert_eq!(hub.stats().topics, 0, "a request leaves no topic");
    publish(&hub.topic("t"), "1").await;
    let page = get(&streams, &format!("/t?offset={}", empty.next_offset())).await;
    assert_eq!(page.text(), "[1]");
}

#[tokio::test(start_paused = true)]
async fn topic_is_the_decoded_path() {
    let hub = Hub::new();
    publish(&hub.topic("räume/1 2?"), "1").await;
    assert_eq!(get(&all(&hub), "/r%C3%A4ume/1%202%3F?offset=-1").await.text(), "[1]");
}

#[tokio::test(start_paused = true)]
async fn writes_are_not_allowed() {
    let hub = Hub::new();
    for method in [Method::PUT, Method::POST, Method::DELETE, Method::PATCH, Method::OPTIONS] {
        let write = Request::builder().method(method).uri("/t").body(()).unwrap();
        let answer = request(&all(&hub), write).await;
        assert_eq!((answer.status.as_u16(), answer.header("allow")), (405, Some("GET, HEAD")));
    }
}

#[tokio::test(start_paused = true)]
async fn head_response_has_no_content() {
    let hub = Hub::builder().max_topics(1).build();
    publish(&hub.topic("t"), "1").await;
    let (closed, streams) = (hub.durable_streams(), all(&hub).existing(|topic| topic != "missing"));
    for (streams, uri, status) in
        [(&streams, "/t", 200), (&streams, "/missing", 404), (&closed, "/t", 404), (&streams, "/other", 503)]
    {
        let response = respond(streams, Request::head(uri).body(()).unwrap()).await;
        assert_eq!((response.status().as_u16(), response.body().size_hint().exact()), (status, None), "{uri}");
        assert_eq!(head(streams, uri).await.text(), "", "{uri}");
    }
    hub.shutdown();
    assert_eq!(head(&streams, "/t").await.summary(), (503, "", false, false));
}

#[tokio::test(start_paused = true)]
async fn malformed_requests_are_rejected() {
    let hub = Hub::new();
    publish(&hub.topic("t"), "1").await;
    let valid = get(&all(&hub), "/t").await.next_offset();
    for query in [
        "offset=".to_owned(),
        "offset=0".to_owned(),
        "offset=-2".to_owned(),
        "offset=NOW".to_owned(),
        format!("offset={valid}%00"),
        format!("offset={valid}&offset={valid}"),
        format!("offset={},", &valid[..valid.len() - 1]),
        "live=long-poll".to_owned(),
        "live=sse".to_owned(),
        "offset=-1&live=true".to_owned(),
    ] {
        let answer = get(&all(&hub), &format!("/t?{query}")).await;
        assert_eq!((answer.status.as_u16(), answer.header("cache-control")), (400, Some("no-store")), "{query}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_response_has_the_security_headers() {
    let hub = Hub::new();
    publish(&hub.topic("t"), "1").await;
    hub.topic("t").finish().await.unwrap();
    for uri in ["/t", "/x", "/t?offset=x", "/t?offset=now&live=long-poll", "/t?offset=-1&live=sse"] {
        let answer = get(&all(&hub), uri).await;
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{uri}");
        assert_eq!(answer.header("cross-origin-resource-policy"), Some("same-origin"), "{uri}");
    }
}

#[tokio::test(start_paused = true)]
async fn limit_of_topics_is_unavailable() {
    let hub = Hub::builder().max_topics(1).build();
    publish(&hub.topic("t"), "1").await;
    let streams = all(&hub).existing(|_| true);
    let answer = get(&streams, "/other").await;
    assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, Some("1")));
}
