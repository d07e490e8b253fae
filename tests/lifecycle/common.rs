//! Helpers for the tests of the life of streams.

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::{Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use std::{
    convert::Infallible,
    future::{self, ready},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};
use support::script::{Script, Step};
use tokio::{
    sync::mpsc::{UnboundedSender, unbounded_channel},
    time::{Instant, advance},
};
use tokio_stream::{Stream, wrappers::UnboundedReceiverStream};
use tokio_test::task;
use tokio_util::sync::CancellationToken;
use tower::{Layer, ServiceExt, service_fn};
use tower_sse::{BoxError, CloseReason, Event, SseItem, SseLayer, SseStream, StreamSummary};

/// A body that is polled by hand.
pub(crate) struct Polled(pub(crate) task::Spawn<UnsyncBoxBody<Bytes, BoxError>>);

impl Polled {
    pub(crate) fn new<B>(response: Response<B>) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self(task::spawn(response.into_body().map_err(Into::into).boxed_unsync()))
    }

    pub(crate) fn poll(&mut self) -> Poll<Option<Result<Bytes, String>>> {
        self.0.enter(|cx, body| body.poll_frame(cx)).map(|frame| {
            let data = |frame: http_body::Frame<Bytes>| frame.into_data().expect("data");
            frame.map(|frame| frame.map(data).map_err(|error| error.to_string()))
        })
    }

    #[track_caller]
    pub(crate) fn assert_data(&mut self, expected: impl AsRef<[u8]>) {
        assert_eq!(self.poll(), Poll::Ready(Some(Ok(Bytes::copy_from_slice(expected.as_ref())))));
    }

    #[track_caller]
    pub(crate) fn assert_pending(&mut self) {
        assert_eq!(self.poll(), Poll::Pending);
    }

    #[track_caller]
    pub(crate) fn assert_end(&mut self) {
        assert_eq!(self.poll(), Poll::Ready(None));
    }

    /// Reads the rest of the body, and expects it to be ready. Stops as hyper does, at `None` or at
    /// `is_end_stream`.
    #[track_caller]
    pub(crate) fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        while !self.0.is_end_stream() {
            match self.poll() {
                Poll::Ready(Some(Ok(data))) => rest.extend_from_slice(&data),
                Poll::Ready(None) => break,
                other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&rest)),
            }
        }
        String::from_utf8(rest).unwrap()
    }

    /// Reads the next frame, while paused time advances.
    pub(crate) async fn poll_in_time(&mut self) -> Poll<Option<Result<Bytes, String>>> {
        for _ in 0..300 {
            match self.poll() {
                Poll::Pending => advance(Duration::from_millis(1)).await,
                ready => return ready,
            }
        }
        Poll::Pending
    }
}

/// Passes an `SseStream` through these layers, the innermost first.
pub(crate) fn ours<S>(stream: SseStream<S>, layers: &[&SseLayer]) -> Polled
where
    S: Stream + Send + 'static,
    S::Item: SseItem,
{
    let response = stream.into_http_response();
    // A layer changes the type of the body, so there are as many cases as layers.
    match layers {
        [] => Polled::new(response),
        [one] => Polled::new(through(one, response)),
        [one, two] => Polled::new(through(two, through(one, response))),
        more => panic!("{} layers", more.len()),
    }
}

pub(crate) fn upstream_response<B>(body: B) -> Response<B> {
    Response::builder().header(header::CONTENT_TYPE, "text/event-stream").body(body).unwrap()
}

/// Passes an upstream stream through these layers, the innermost first.
pub(crate) fn upstream(steps: impl IntoIterator<Item = Step>, layers: &[&SseLayer]) -> Polled {
    let response = upstream_response(Script::new(steps));
    match layers {
        [] => Polled::new(response),
        [one] => Polled::new(through(one, response)),
        [one, two] => Polled::new(through(two, through(one, response))),
        more => panic!("{} layers", more.len()),
    }
}

pub(crate) fn through<B>(layer: &SseLayer, response: Response<B>) -> Response<tower_sse::ResponseBody<B>>
where
    B: Body<Data = Bytes>,
{
    respond(layer, Request::new(()), response)
}

pub(crate) fn respond<B>(
    layer: &SseLayer,
    request: Request<()>,
    response: Response<B>,
) -> Response<tower_sse::ResponseBody<B>>
where
    B: Body<Data = Bytes>,
{
    let mut response = Some(response);
    let handler = service_fn(|_| ready(Ok::<_, Infallible>(response.take().expect("one request"))));
    layer.layer(handler).oneshot(request).now_or_never().expect("a handler that does not wait").unwrap()
}

pub(crate) fn channel() -> (UnboundedSender<Event>, UnboundedReceiverStream<Event>) {
    let (sender, receiver) = unbounded_channel();
    (sender, UnboundedReceiverStream::new(receiver))
}

/// An endless stream that is always ready, and the number of items that were taken from it.
pub(crate) fn endless() -> (Arc<AtomicUsize>, impl Stream<Item = Event> + Send) {
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    (taken, stream::repeat_with(move || Event::display(count.fetch_add(1, Ordering::Relaxed))))
}

pub(crate) fn silent() -> SseStream<stream::Pending<Event>> {
    SseStream::new(stream::pending()).without_heartbeat()
}

/// A layer whose streams a token ends, with a reconnect delay without jitter.
pub(crate) fn shutdown_layer() -> (CancellationToken, SseLayer) {
    let token = CancellationToken::new();
    let layer = SseLayer::new().shutdown(token.clone()).reconnect_jitter(Duration::ZERO);
    (token, layer.without_heartbeat())
}

/// The summaries that a callback has received.
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
}

/// Checks that samples are uniform over a range: each tenth of the range has between half and one
/// and a half times its share. For 2,000 samples these are seven standard deviations.
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
pub(crate) async fn lifetime(mut body: Polled) -> Duration {
    let began = Instant::now();
    while let Some(frame) = future::poll_fn(|cx| body.0.enter(|_, body| body.poll_frame(cx))).await {
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
