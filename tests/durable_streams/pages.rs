//! Reads without `live`: pages of old events, and the end of a topic.

use super::*;
use http::HeaderValue;
use http_body::Body;
use proptest::prelude::*;
use std::time::Duration;
use tower_sse::hub::durable_streams::Content;

#[tokio::test(start_paused = true)]
async fn pages_continue_at_the_next_offset_until_up_to_date() {
    let hub = Hub::new();
    let topic = hub.topic("t");
    publish_all(&topic, 0..10).await;
    let streams = all(&hub).page_size(7);
    let (mut offset, mut pages) = ("-1".to_owned(), Vec::new());
    loop {
        let page = get(&streams, &format!("/t?offset={offset}")).await;
        assert_eq!(page.status, 200);
        assert!(page.next_offset() > offset || offset == "-1", "offsets increase as text");
        offset = page.next_offset();
        pages.push(page.text().to_owned());
        if page.is_up_to_date() {
            break;
        }
    }
    assert_eq!(pages, ["[0,1,2,3]", "[4,5,6,7]", "[8,9]"]);
    let end = get(&streams, &format!("/t?offset={offset}")).await;
    assert_eq!(end.summary(), (200, "[]", true, false));
    assert_eq!(end.next_offset(), offset, "the end does not move");
    assert_eq!(head(&streams, "/t").await.next_offset(), offset);
    publish(&topic, "10").await;
    assert_eq!(get(&streams, &format!("/t?offset={offset}")).await.summary(), (200, "[10]", true, false));
}

#[tokio::test(start_paused = true)]
async fn page_that_ends_with_the_last_event_is_up_to_date() {
    let hub = Hub::new();
    publish_all(&hub.topic("t"), ["1", "2"]).await;
    let streams = all(&hub).page_size(4);
    let page = get(&streams, "/t").await;
    assert_eq!(page.summary(), (200, "[1,2]", true, false));
    hub.topic("t").finish().await.unwrap();
    assert_eq!(get(&streams, "/t").await.summary(), (200, "[1,2]", true, true));
    let streams = streams.page_size(1);
    let first = get(&streams, "/t").await;
    assert_eq!(first.summary(), (200, "[1]", false, false), "the end does not follow the first page");
}

#[tokio::test(start_paused = true)]
async fn finished_topic_is_closed_at_its_end_only() {
    let hub = Hub::new();
    let streams = all(&hub);
    publish_all(&hub.topic("t"), ["1"]).await;
    assert!(!head(&streams, "/t").await.is_closed());
    let end = get(&streams, "/t").await.next_offset();
    hub.topic("t").finish().await.unwrap();
    for uri in ["/t?offset=now".to_owned(), format!("/t?offset={end}")] {
        let answer = get(&streams, &uri).await;
        assert_eq!((answer.summary(), answer.next_offset()), ((200, "[]", true, true), end.clone()), "{uri}");
    }
    let head = head(&streams, "/t").await;
    assert!(head.is_closed());
    assert_eq!((head.next_offset(), head.header("cache-control")), (end, Some("no-store")));

    hub.topic("empty").finish().await.unwrap();
    assert_eq!(get(&streams, "/empty").await.summary(), (200, "[]", true, true));
}

#[tokio::test(start_paused = true)]
async fn head_states_no_length() {
    let hub = Hub::new();
    publish(&hub.topic("t"), "1").await;
    let response = respond(&all(&hub), Request::head("/t").body(()).unwrap()).await;
    assert_eq!(response.body().size_hint().exact(), None, "it would have to be the length for GET");
    let response = respond(&all(&hub), Request::get("/t").body(()).unwrap()).await;
    assert_eq!(response.body().size_hint().exact(), Some(3));
}

#[tokio::test(start_paused = true)]
async fn now_is_the_end_whatever_the_page_size() {
    let hub = Hub::new();
    publish_all(&hub.topic("t"), 0..100).await;
    publish_all(&hub.topic("other"), 0..10).await;
    let streams = all(&hub).page_size(1);
    let now = get(&streams, "/t?offset=now").await;
    assert_eq!(now.summary(), (200, "[]", true, false));
    assert_eq!((now.header("cache-control"), now.header("etag")), (Some("no-store"), None));
    assert_eq!(now.next_offset(), head(&streams, "/t").await.next_offset(), "events of other topics do not move it");
    publish(&hub.topic("t"), "new").await;
    let page = get(&streams, &format!("/t?offset={}", now.next_offset())).await;
    assert_eq!(page.text(), "[\"new\"]");
}

#[tokio::test(start_paused = true)]
async fn content_of_a_topic_has_its_format_and_type() {
    let hub = Hub::new();
    for topic in ["json", "text", "lines", "base64"] {
        publish_all(&hub.topic(topic), ["AQID", "BAUG"]).await;
    }
    let streams = all(&hub).content(|topic| match topic {
        "text" => Content::text(),
        "lines" => Content::lines().content_type(HeaderValue::from_static("text/csv")),
        "base64" => Content::base64(),
        _ => Content::json(),
    });
    for (topic, content_type, body) in [
        ("json", "application/json", &b"[\"AQID\",\"BAUG\"]"[..]),
        ("text", "text/plain; charset=utf-8", b"AQIDBAUG"),
        ("lines", "text/csv", b"AQID\nBAUG\n"),
        ("base64", "application/octet-stream", &[1, 2, 3, 4, 5, 6]),
    ] {
        let page = get(&streams, &format!("/{topic}")).await;
        assert_eq!((page.header("content-type"), &page.body[..]), (Some(content_type), body));
        assert_eq!(head(&streams, &format!("/{topic}")).await.header("content-type"), Some(content_type));
    }
}

#[tokio::test(start_paused = true)]
async fn event_that_is_not_base64_ends_the_page_before_it() {
    let hub = Hub::new();
    publish_all(&hub.topic("t"), ["AQID", "not base64!", "BAUG"]).await;
    let streams = all(&hub).content(|_| Content::base64());
    let page = get(&streams, "/t").await;
    assert_eq!((page.status.as_u16(), &page.body[..], page.is_up_to_date()), (200, &[1, 2, 3][..], false));
    let error = get(&streams, &format!("/t?offset={}", page.next_offset())).await;
    assert_eq!(error.status, 500);
    assert_eq!(error.header("cache-control"), Some("no-store"));
}

#[tokio::test(start_paused = true)]
async fn events_without_data_move_the_offset_only() {
    let hub = Hub::new();
    let topic = hub.topic("t");
    topic.publish(Event::default().comment("no data")).await.unwrap();
    let page = get(&all(&hub), "/t").await;
    assert_eq!(page.summary(), (200, "[]", true, false));
    publish(&topic, "1").await;
    let page = get(&all(&hub), &format!("/t?offset={}", page.next_offset())).await;
    assert_eq!(page.summary(), (200, "[1]", true, false));
}

#[tokio::test(start_paused = true)]
async fn state_is_the_newest_event() {
    let hub = Hub::new();
    let state = hub.topic("t").latest_only();
    publish(&state, "1").await;
    let first = get(&all(&hub), "/t").await;
    publish(&state, "2").await;
    publish(&state, "3").await;
    assert_eq!(get(&all(&hub), "/t").await.summary(), (200, "[3]", true, false));
    let later = get(&all(&hub), &format!("/t?offset={}", first.next_offset())).await;
    assert_eq!(later.summary(), (200, "[3]", true, false), "replaced events are not a loss");
}

#[tokio::test(start_paused = true)]
async fn offset_of_an_id_continues_after_its_event() {
    let hub = Hub::new();
    let topic = hub.topic("t");
    let id = topic.publish(Event::new("1")).await.unwrap();
    publish(&topic, "2").await;
    let offset = all(&hub).offset(&id).unwrap();
    assert_eq!(get(&all(&hub), &format!("/t?offset={offset}")).await.text(), "[2]");
    assert_eq!(all(&Hub::new()).offset(&id), None, "the id is of another hub");
}

#[tokio::test(start_paused = true)]
async fn event_larger_than_a_page_is_delivered() {
    let hub = Hub::new();
    let large = "x".repeat(1_000_000);
    publish_all(&hub.topic("t"), [&*large, "y"]).await;
    let streams = all(&hub).content(|_| Content::text()).page_size(0);
    let page = get(&streams, "/t").await;
    assert_eq!(page.body.len(), large.len());
    assert_eq!(get(&streams, &format!("/t?offset={}", page.next_offset())).await.text(), "y");
}

proptest! {
    /// Pages of any size, read between publications, are the published text. A reader that an
    /// eviction has overtaken gets 410, and only such a reader.
    #[test]
    fn pages_join_to_what_was_published_or_are_gone(
        steps in prop::collection::vec((0_usize..6, 0_usize..4), 1..40),
        page_size in 1_usize..40,
        max_events in 1_usize..30,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let hub = Hub::builder().max_events(max_events).max_age(Duration::MAX).build();
            let topic = hub.topic("t");
            publish(&topic, "<0>").await;
            let streams = all(&hub).content(|_| Content::text()).page_size(page_size);
            // The numbers of the next published and of the next read event.
            let (mut published, mut next) = (1, 0);
            let mut offset = "-1".to_owned();
            for (events, reads) in steps {
                for _ in 0..events {
                    publish(&topic, format!("<{published}>")).await;
                    publish(&hub.topic("other"), "x").await;
                    published += 1;
                }
                for _ in 0..reads {
                    let oldest = published - published.min(max_events);
                    let page = get(&streams, &format!("/t?offset={offset}")).await;
                    if offset == "-1" {
                        next = oldest;
                    }
                    if next < oldest {
                        assert_eq!(page.status, 410);
                        offset = "-1".into();
                        continue;
                    }
                    assert_eq!(page.status, 200);
                    let mut expected = String::new();
                    while next < published && expected.len() < page_size {
                        expected.push_str(&format!("<{next}>"));
                        next += 1;
                    }
                    assert_eq!(page.text(), expected);
                    assert_eq!(page.is_up_to_date(), next == published);
                    offset = page.next_offset();
                }
            }
        });
    }
}
