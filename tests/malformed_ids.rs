//! Ids with control characters, and `Last-Event-ID` values that are not valid ids.

use http::{HeaderValue, Request};
use tower_sse::{EventId, LastEventId};

#[test]
fn id_has_no_control_characters() {
    for control in ('\0'..='\u{9f}').filter(|c| c.is_control()) {
        let error = EventId::new(format!("a{control}b")).unwrap_err();
        assert_eq!(error.position(), 1, "{control:?}");
        assert!(error.to_string().starts_with("an event id cannot hold "), "{error}");
    }
    for fine in [" ", "a b", "é", "\u{a0}", "\u{2028}", "日本", "~"] {
        assert!(EventId::new(fine).is_ok(), "{fine:?}");
    }
}

/// hyper accepts every valid id in a header.
#[test]
fn every_valid_id_is_a_valid_header() {
    for c in ('\0'..='\u{2fff}').filter(|c| !c.is_whitespace()) {
        let Ok(id) = EventId::new(c.to_string()) else { continue };
        let value = HeaderValue::from_bytes(id.as_bytes()).unwrap();
        let request = Request::builder().header("Last-Event-ID", value).body(()).unwrap();
        assert_eq!(LastEventId::from_request(&request).id(), Some(&id));
    }
}

fn from_header(bytes: &[u8]) -> LastEventId {
    let value = HeaderValue::from_bytes(bytes).unwrap();
    LastEventId::from_request(&Request::builder().header("Last-Event-ID", value).body(()).unwrap())
}

#[test]
fn malformed_id_is_present_and_does_not_parse() {
    for bytes in [&b"caf\xe9"[..], b"\xff", b"a\tb", b"7\xc2\x85"] {
        let last = from_header(bytes);
        assert!(last.id().is_some_and(|id| id.as_str().contains('\u{fffd}')), "{last:?}");
        assert_eq!(last.parse::<u64>().unwrap_err().status(), 400);
    }
    for query in ["lastEventId=%FF", "lastEventId=a%0Ab", "lastEventId=%00"] {
        let request = Request::builder().uri(format!("/?{query}")).body(()).unwrap();
        let last = LastEventId::from_request(&request);
        assert!(last.id().is_some_and(|id| id.as_str().contains('\u{fffd}')), "{query} {last:?}");
    }
    // An empty value is not malformed.
    assert_eq!(from_header(b"").id(), None);
    assert_eq!(LastEventId::from_request(&Request::builder().uri("/?lastEventId=").body(()).unwrap()).id(), None);
}

#[test]
fn valid_id_is_preferred_to_a_malformed_one() {
    let request = Request::builder().uri("/?lastEventId=7").header("Last-Event-ID", &b"\xff"[..]);
    assert_eq!(LastEventId::from_request(&request.body(()).unwrap()).as_str(), Some("7"));
    let request = Request::builder().header("Last-Event-ID", &b"\xff"[..]).header("Last-Event-ID", "8");
    assert_eq!(LastEventId::from_request(&request.body(()).unwrap()).as_str(), Some("8"));
}

#[test]
fn error_of_a_long_id_is_short() {
    let long = "x".repeat(500_000);
    let last = from_header(long.as_bytes());
    assert_eq!(last.as_str().map(str::len), Some(500_000), "an application may have long ids");
    let error = last.parse::<u64>().unwrap_err();
    assert!(format!("{error} {error:?}").len() < 1_000);
    let error = EventId::new(format!("{long}\n")).unwrap_err();
    assert_eq!(error.position(), 500_000);
    assert!(format!("{error} {error:?}").len() < 1_000);
    let malformed = from_header(&[&[0xff; 1][..], long.as_bytes()].concat());
    assert!(malformed.as_str().unwrap().len() < 1_000);
}

mod hub {
    use super::from_header;
    use futures_util::{FutureExt, StreamExt};
    use tower_sse::hub::{GapReason, Hub};

    #[tokio::test]
    async fn malformed_last_id_gets_a_gap() {
        let topic = Hub::new().topic("news");
        for bytes in [&b"caf\xe9"[..], b"\xff", b"a\tb"] {
            let subscription = topic.subscribe(from_header(bytes)).await.unwrap();
            assert_eq!(subscription.gap().map(|gap| gap.reason()), Some(GapReason::Malformed));
        }
    }

    #[tokio::test]
    async fn long_last_id_is_truncated() {
        let hub = Hub::new();
        let topic = hub.topic("news");
        let own = topic.publish(tower_sse::Event::new("a")).await.unwrap();
        let (own_epoch, _) = own.as_str().split_once('-').unwrap();
        let digits = "9".repeat(200_000);
        for (text, reason) in [
            ("\u{1f980}".repeat(100_000), GapReason::Malformed),
            (format!("zzzzzzzz-{digits}"), GapReason::OtherEpoch),
            (format!("{own_epoch}-{digits}"), GapReason::Ahead),
        ] {
            let mut subscription = topic.subscribe(from_header(text.as_bytes())).await.unwrap();
            let gap = subscription.gap().unwrap().clone();
            assert_eq!(gap.reason(), reason);
            assert!(gap.requested().as_str().len() <= 128, "{} bytes", gap.requested().as_str().len());
            assert!(text.starts_with(gap.requested().as_str().trim_end_matches('…')));
            let first = subscription.next().now_or_never().unwrap().unwrap().unwrap();
            assert!(first.as_bytes().len() < 1_000);
        }
    }
}
