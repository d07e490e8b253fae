//! `Cache-Control`, entity tags, and cursors.

use super::*;

async fn get_if_none_match(streams: &DurableStreams, uri: &str, etag: &str) -> Answer {
    request(streams, Request::get(uri).header("if-none-match", etag).body(()).unwrap()).await
}

#[tokio::test(start_paused = true)]
async fn pages_are_cached_by_clients_and_on_request_by_all() {
    let hub = Hub::new();
    publish(&hub.topic("t"), "1").await;
    let streams = all(&hub);
    let page = get(&streams, "/t").await;
    assert_eq!(page.header("cache-control"), Some("private, max-age=60, stale-while-revalidate=300"));
    let end = format!("/t?offset={}", page.next_offset());
    assert_eq!(get(&streams, &end).await.header("cache-control"), Some("private, no-cache"));
    let streams = streams.shared_caches();
    for uri in ["/t", "/t?offset=-1&live=long-poll"] {
        let page = get(&streams, uri).await;
        assert_eq!(page.header("cache-control"), Some("public, max-age=60, stale-while-revalidate=300"), "{uri}");
    }
    assert_eq!(get(&streams, &end).await.header("cache-control"), Some("public, no-cache"));
    for uri in [format!("{end}&live=long-poll"), "/t?offset=now".into(), "/x".into()] {
        assert_eq!(get(&streams, &uri).await.header("cache-control"), Some("no-store"), "{uri}");
    }
}

#[tokio::test(start_paused = true)]
async fn unchanged_page_is_not_sent_again() {
    let hub = Hub::new();
    let topic = hub.topic("t");
    publish(&topic, "1").await;
    let streams = all(&hub);
    let page = get(&streams, "/t").await;
    let etag = page.header("etag").unwrap();
    let again = get_if_none_match(&streams, "/t", etag).await;
    assert_eq!((again.status.as_u16(), again.text(), again.header("etag")), (304, "", Some(etag)));
    assert_eq!((again.next_offset(), again.is_up_to_date()), (page.next_offset(), true));
    assert_eq!(get_if_none_match(&streams, "/t", "\"other\"").await.status, 200);

    publish(&topic, "2").await;
    assert_eq!(get_if_none_match(&streams, "/t", etag).await.text(), "[1,2]");
}

#[tokio::test(start_paused = true)]
async fn entity_tag_changes_with_the_end_and_with_evictions() {
    let hub = Hub::builder().max_events(2).build();
    let topic = hub.topic("t");
    publish_all(&topic, ["1", "2"]).await;
    let streams = all(&hub).page_size(6);
    let open = get(&streams, "/t").await;
    let end = format!("/t?offset={}", open.next_offset());
    let empty = get(&streams, &end).await;
    topic.finish().await.unwrap();
    for (uri, before) in [("/t", &open), (&*end, &empty)] {
        let closed = get_if_none_match(&streams, uri, before.header("etag").unwrap()).await;
        assert_eq!((closed.status.as_u16(), closed.is_closed()), (200, true), "the client learns of the end");
    }

    // The page from the beginning ends with the same event, and has lost its first event.
    let topic = hub.topic("u");
    publish_all(&topic, ["1", "2"]).await;
    let before = get(&streams, "/u").await;
    let topic = topic.retention(tower_sse::hub::Retention::new().max_events(1));
    let _subscribed = topic.subscribe(tower_sse::hub::Start::Latest).await.unwrap();
    let after = get_if_none_match(&streams, "/u", before.header("etag").unwrap()).await;
    assert_eq!((after.status.as_u16(), after.text(), after.next_offset()), (200, "[2]", before.next_offset()));
}

#[tokio::test(start_paused = true)]
async fn entity_tag_changes_when_more_events_follow() {
    let hub = Hub::new();
    let topic = hub.topic("t");
    publish(&topic, "1").await;
    let streams = all(&hub).page_size(1);
    let last = get(&streams, "/t").await;
    assert_eq!(last.summary(), (200, "[1]", true, false));
    publish(&topic, "2").await;
    // A 304 does not remove a header from the stored response (RFC 9111, §3.2).
    let full = get_if_none_match(&streams, "/t", last.header("etag").unwrap()).await;
    assert_eq!(full.summary(), (200, "[1]", false, false));
    assert_eq!(get_if_none_match(&streams, "/t", full.header("etag").unwrap()).await.status, 304);
}

#[tokio::test(start_paused = true)]
async fn cursor_exceeds_that_of_the_client() {
    let hub = Hub::new();
    publish(&hub.topic("t"), "1").await;
    let streams = all(&hub);
    let cursor = |answer: &Answer| answer.header("stream-cursor").map(|cursor| cursor.parse::<u64>().unwrap());
    let first = cursor(&get(&streams, "/t?offset=-1&live=long-poll").await).unwrap();
    let second = cursor(&get(&streams, &format!("/t?offset=-1&live=long-poll&cursor={first}")).await).unwrap();
    assert!(second > first);
    let third = get(&streams, &format!("/t?offset=now&live=long-poll&cursor={second}")).await;
    assert!(third.status == 204 && cursor(&third).unwrap() > second);
    assert_eq!(cursor(&get(&streams, "/t?offset=-1").await), None);
}
