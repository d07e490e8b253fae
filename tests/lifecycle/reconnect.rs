//! The reconnect delay of clients that are disconnected together.

use crate::common::{assert_uniform, ours, silent, upstream, upstream_response};
use http_body_util::BodyExt;
use std::time::Duration;
use support::{
    respond::through,
    script::{Script, Step},
    whatwg,
};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tower_sse::{Overload, SseItem, SseLayer, SseStream};

/// Returns the reconnection time of a stream that is shut down, in milliseconds.
fn reconnection_time<S>(stream: SseStream<S>, layer: SseLayer) -> u128
where
    S: Stream + Send + 'static,
    S::Item: SseItem,
{
    let token = CancellationToken::new();
    let layer = layer.shutdown(token.clone());
    token.cancel();
    let rest = ours(stream, &[&layer]).rest();
    whatwg::parse(rest.as_bytes()).reconnection_time.expect("a reconnection time").parse().expect("digits")
}

#[test]
fn jitter_is_uniform() {
    let layer = || SseLayer::new().retry(Duration::from_secs(2)).reconnect_jitter(Duration::from_secs(10));
    let samples: Vec<_> = (0..2_000).map(|_| reconnection_time(silent(), layer()) as f64).collect();
    assert_uniform(&samples, 2_000.0, 12_000.0);
}

#[test]
fn default_delay_is_one_to_six_seconds() {
    let samples: Vec<_> = (0..2_000).map(|_| reconnection_time(silent(), SseLayer::new()) as f64).collect();
    assert_uniform(&samples, 1_000.0, 6_000.0);
}

#[test]
fn retry_of_handler_wins_over_layer() {
    let layer = || SseLayer::new().retry(Duration::from_secs(60)).reconnect_jitter(Duration::from_secs(1));
    for _ in 0..100 {
        let time = reconnection_time(silent().retry(Duration::from_secs(7)), layer());
        assert!((7_000..=8_000).contains(&time), "{time}");
    }
}

#[tokio::test]
async fn extreme_durations_are_accepted() {
    for [retry, jitter, lifetime] in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX]
        .into_iter()
        .flat_map(|a| [Duration::ZERO, Duration::from_nanos(1), Duration::MAX].map(|b| [a, b, b]))
    {
        for when_full in [Overload::RetryLater, Overload::ServiceUnavailable] {
            let layer = || SseLayer::new().retry(retry).reconnect_jitter(jitter).when_full(when_full);
            for _ in 0..100 {
                let time = reconnection_time(silent().retry(retry), layer().max_lifetime(lifetime));
                assert!(time >= retry.as_millis());
            }
            let response = through(&layer().max_streams(0), upstream_response(Script::new([Step::Hang])));
            assert!(!response.into_body().collect().await.unwrap().to_bytes().is_empty());
            let token = CancellationToken::new();
            let layer = layer().max_lifetime(lifetime).shutdown(token.clone()).flush_time(Duration::ZERO);
            let mut body = upstream([Step::Hang], &[&layer]);
            let _first = body.poll();
            token.cancel();
            let _final_bytes = body.rest();
        }
    }
}
