//! Helpers for the tests of how streams end.

use bytes::Bytes;
use futures_util::stream;
use http::{Response, StatusCode, header};
use http_body::Body;
use http_body_util::BodyExt;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use support::{
    polled::Polled,
    respond::through,
    script::{Script, Step},
};
use tokio::{
    sync::mpsc::{UnboundedSender, unbounded_channel},
    time::Instant,
};
use tokio_stream::{Stream, wrappers::UnboundedReceiverStream};
use tokio_util::sync::CancellationToken;
use tower_sse::{BoxError, CloseReason, Event, SseItem, SseLayer, SseStream, StreamSummary};

/// Passes an `SseStream` through layers. The first one is the innermost.
pub(crate) fn ours<S>(stream: SseStream<S>, layers: &[&SseLayer]) -> Polled
where
    S: Stream + Send + 'static,
    S::Item: SseItem,
{
    through_all(layers, stream.into_http_response())
}

pub(crate) fn upstream_response<B>(body: B) -> Response<B> {
    Response::builder().header(header::CONTENT_TYPE, "text/event-stream").body(body).unwrap()
}

/// Passes an upstream stream through layers. The first one is the innermost.
pub(crate) fn upstream(steps: impl IntoIterator<Item = Step>, layers: &[&SseLayer]) -> Polled {
    through_all(layers, upstream_response(Script::new(steps)))
}

fn through_all<B>(layers: &[&SseLayer], response: Response<B>) -> Polled
where
    B: Body<Data = Bytes, Error: Into<BoxError> + Send> + Send + 'static,
{
    // Each layer changes the type of the body.
    match layers {
        [] => Polled::new(response),
        [one] => Polled::new(through(one, response)),
        [one, two] => Polled::new(through(two, through(one, response))),
        more => panic!("{} layers", more.len()),
    }
}

pub(crate) fn channel() -> (UnboundedSender<Event>, UnboundedReceiverStream<Event>) {
    let (sender, receiver) = unbounded_channel();
    (sender, UnboundedReceiverStream::new(receiver))
}

/// Returns an endless stream that is always ready, and the count of items that it has yielded.
pub(crate) fn endless() -> (Arc<AtomicUsize>, impl Stream<Item = Event> + Send) {
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    (taken, stream::repeat_with(move || Event::display(count.fetch_add(1, Ordering::Relaxed))))
}

pub(crate) fn silent() -> SseStream<stream::Pending<Event>> {
    SseStream::new(stream::pending()).without_heartbeat()
}

/// Returns a layer without jitter and flush time, and the token that ends its streams.
pub(crate) fn shutdown_layer() -> (CancellationToken, SseLayer) {
    let token = CancellationToken::new();
    let layer = SseLayer::new().shutdown(token.clone()).flush_time(Duration::ZERO);
    (token, layer.reconnect_jitter(Duration::ZERO).without_heartbeat())
}

/// Records the summaries that a callback receives.
#[derive(Clone, Default)]
pub(crate) struct Summaries(Arc<Mutex<Vec<StreamSummary>>>);

impl Summaries {
    pub(crate) fn callback(&self) -> impl Fn(StreamSummary) + Send + Sync + 'static {
        let summaries = Arc::clone(&self.0);
        move |summary| summaries.lock().unwrap().push(summary)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().unwrap().is_empty()
    }

    /// Returns the only summary.
    #[track_caller]
    pub(crate) fn only(&self) -> StreamSummary {
        let summaries = self.0.lock().unwrap();
        assert_eq!(summaries.len(), 1, "{summaries:?}");
        summaries[0].clone()
    }

    /// Removes the only summary and returns it.
    #[track_caller]
    pub(crate) fn take_only(&self) -> StreamSummary {
        let only = self.only();
        self.0.lock().unwrap().clear();
        only
    }
}

/// Checks that samples are uniform over a range.
///
/// Each tenth of the range must have 0.5 to 1.5 times its share. For 2,000 samples, this is a
/// deviation of seven standard deviations.
pub(crate) fn assert_uniform(samples: &[f64], from: f64, to: f64) {
    let mut buckets = [0; 10];
    for &sample in samples {
        assert!((from..=to).contains(&sample), "{sample} is not within {from}..={to}");
        buckets[(((sample - from) / (to - from) * 10.0) as usize).min(9)] += 1;
    }
    let share = samples.len() / 10;
    assert!(buckets.iter().all(|&count| count > share / 2 && count < share * 3 / 2), "{buckets:?}");
}

/// Returns how long a stream is open.
pub(crate) async fn lifetime(body: Polled) -> Duration {
    let began = Instant::now();
    let mut body = body.into_body();
    while let Some(frame) = body.frame().await {
        frame.unwrap();
    }
    began.elapsed()
}

/// Returns whether the limit of a layer admits another stream.
pub(crate) fn has_permit(layer: &SseLayer) -> bool {
    through(layer, upstream_response(Script::new([Step::Hang]))).status() == StatusCode::OK
}

pub(crate) fn limited() -> SseLayer {
    SseLayer::new().without_heartbeat().max_streams(1)
}

/// Checks all fields of the only summary.
#[track_caller]
pub(crate) fn assert_summary(
    summaries: &Summaries,
    reason: CloseReason,
    [events, bytes, heartbeats]: [u64; 3],
    duration: Duration,
) {
    let summary = summaries.only();
    assert_eq!((summary.reason, summary.duration), (reason, duration));
    assert_eq!([summary.events, summary.bytes, summary.heartbeats], [events, bytes, heartbeats]);
}

pub(crate) fn encoded(steps: &[Step]) -> Response<Script> {
    let mut response = upstream_response(Script::new(steps.to_vec()));
    response.headers_mut().insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
    response.headers_mut().insert(header::CONTENT_LENGTH, 1_000.into());
    response
}
