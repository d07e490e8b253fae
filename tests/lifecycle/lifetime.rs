//! Streams end after their maximum lifetime.

use crate::common::{Summaries, assert_uniform, channel, lifetime, ours, silent, upstream};
use std::time::Duration;
use support::script::Step;
use tokio::time::advance;
use tower_sse::{CloseReason, Event, SseLayer, SseStream};

#[tokio::test(start_paused = true)]
async fn lifetime_varies_by_ten_percent() {
    let layer = SseLayer::new().without_heartbeat().max_lifetime(Duration::from_secs(1_000));
    for kind in ["ours", "upstream"] {
        let mut samples = Vec::new();
        for _ in 0..2_000 {
            let body = if kind == "ours" { ours(silent(), &[&layer]) } else { upstream([Step::Hang], &[&layer]) };
            samples.push(lifetime(body).await.as_secs_f64());
        }
        // tokio's timers fire at the next full millisecond.
        assert_uniform(&samples, 900.0, 1_100.002);
    }
}

#[tokio::test(start_paused = true)]
async fn expired_stream_ends_without_shutdown_event() {
    let layer =
        SseLayer::new().without_heartbeat().shutdown_event(Event::new("bye")).max_lifetime(Duration::from_secs(10));
    let summaries = Summaries::default();
    let (sender, events) = channel();
    let mut body =
        ours(SseStream::new(events).end_with(Event::new("no more")).on_close(summaries.callback()), &[&layer]);
    body.assert_pending();
    sender.send(Event::new("a")).unwrap();
    body.assert_data("data: a\n\n");
    body.assert_pending();
    advance(Duration::from_millis(8_999)).await;
    assert!(!body.is_woken());
    advance(Duration::from_millis(2_003)).await;
    assert!(body.is_woken());
    body.assert_end();
    assert!(sender.is_closed());
    drop(body);
    assert_eq!(summaries.only().reason, CloseReason::MaxLifetime);
}

#[tokio::test(start_paused = true)]
async fn expired_upstream_stream_completes_its_event() {
    let layer = SseLayer::new().without_heartbeat().max_lifetime(Duration::from_secs(10));
    let summaries = Summaries::default();
    let layer = layer.on_close(summaries.callback());
    let steps = [
        Step::chunk("data: a\n"),
        Step::Silence(Duration::from_millis(11_100)),
        Step::chunk("\ndata: b\n"),
        Step::Hang,
    ];
    let mut body = upstream(steps, &[&layer]);
    body.assert_data("data: a\n");
    body.assert_pending();
    advance(Duration::from_millis(11_002)).await;
    body.assert_pending();
    advance(Duration::from_millis(99)).await;
    body.assert_data("\n");
    body.assert_end();
    drop(body);
    assert_eq!(summaries.only().reason, CloseReason::MaxLifetime);
    assert_eq!(summaries.only().events, 1);
}

#[tokio::test(start_paused = true)]
async fn shorter_lifetime_of_two_layers_wins() {
    for [inner, outer] in [[10, 1_000], [1_000, 10]] {
        let layers = [inner, outer].map(|s| SseLayer::new().without_heartbeat().max_lifetime(Duration::from_secs(s)));
        let layers = [&layers[0], &layers[1]];
        for body in [ours(silent(), &layers), upstream([Step::Hang], &layers)] {
            let open = lifetime(body).await;
            assert!((9_000..=11_002).contains(&open.as_millis()), "{open:?}");
        }
    }
}
