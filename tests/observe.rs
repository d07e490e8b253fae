//! What the features `metrics` and `tracing` tell of streams: each row of the tables in the documentation of the crate.

use bytes::Bytes;
use futures_util::stream::{self, poll_fn};
use http::{Method, Request, Response, header::CONTENT_TYPE};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use metrics_util::{
    MetricKind,
    debugging::{DebugValue, DebuggingRecorder, Snapshotter},
};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt, io,
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};
use support::{
    client::Protocol,
    script::{Script, Step},
    server::serve,
    whatwg,
};
use tokio::{
    runtime,
    sync::{Notify, watch},
};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_sse::{
    BoxError, CloseReason, EncodedEvents, Event, Heartbeat, LastEventId, Overload, ResponseBody, SseLayer, SseStream,
    hub::{
        ErrorKind, Hub, LagPolicy,
        backend::{self, Backend, Bounds, MemoryBackend, Page, Position},
    },
};
use tracing::{
    Level, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    Layer,
    filter::LevelFilter,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
    util::SubscriberInitExt,
};

const ALL: [CloseReason; 6] = [
    CloseReason::Finished,
    CloseReason::Error,
    CloseReason::ClientGone,
    CloseReason::Shutdown,
    CloseReason::MaxLifetime,
    CloseReason::Lagged,
];

#[test]
fn however_a_stream_ends_it_is_counted_by_its_reason_and_is_no_longer_active() {
    for (reason, is_upstream) in ALL.into_iter().flat_map(|reason| [(reason, false), (reason, true)]) {
        if is_upstream && reason == CloseReason::Lagged {
            continue;
        }
        observed(async |seen: Seen| {
            let received = play(reason, is_upstream, &seen).await;
            let what = format!("{reason}, upstream: {is_upstream}");
            let numbers = seen.numbers();
            assert_eq!(numbers["tower_sse_streams_active"], 0.0, "{what}");
            let closed: Vec<_> = numbers.iter().filter(|(name, _)| name.contains("closed")).collect();
            assert_eq!(closed, [(&format!("tower_sse_streams_closed_total{{reason={reason}}}"), &1.0)], "{what}");
            assert_eq!(seen.durations(), [received.seconds], "{what}");
            assert_eq!(numbers["tower_sse_events_sent_total"], received.events(), "{what}");
            assert_eq!(numbers["tower_sse_bytes_sent_total"], received.bytes.len() as f64, "{what}");
            let heartbeats = numbers.get("tower_sse_heartbeats_sent_total").copied().unwrap_or_default();
            assert_eq!(heartbeats, received.heartbeats(), "{what}");
        });
    }
}

#[test]
fn the_span_of_a_stream_says_at_its_end_how_it_was() {
    for (reason, is_upstream) in ALL.into_iter().flat_map(|reason| [(reason, false), (reason, true)]) {
        if is_upstream && reason == CloseReason::Lagged {
            continue;
        }
        observed(async |seen: Seen| {
            let received = play(reason, is_upstream, &seen).await;
            let [span] = &seen.spans("event_stream")[..] else { panic!("one span: {:?}", seen.events()) };
            let expected = [
                ("bytes", received.bytes.len().to_string()),
                ("duration", received.seconds.to_string()),
                ("events", received.events().to_string()),
                ("heartbeats", received.heartbeats().to_string()),
                ("method", "GET".into()),
                ("path", "/feed".into()),
                ("reason", reason.to_string()),
            ];
            assert_eq!(span.fields, BTreeMap::from(expected), "upstream: {is_upstream}");
            assert!(span.is_closed);

            let events = seen.events();
            let failure = match (reason, is_upstream) {
                (CloseReason::Error, false) => vec![(Level::WARN, "stream failed", Some("the source is dry"))],
                (CloseReason::Error, true) => vec![(Level::WARN, "stream failed", None)],
                _ => vec![],
            };
            let expected = failure.into_iter().chain([(Level::DEBUG, "stream ended", None)]);
            let expected = expected.map(|(level, message, error)| {
                let fields = [("message", Some(message)), ("error", error)];
                let fields = fields.into_iter().filter_map(|(name, value)| Some((name, value?.to_owned())));
                Told { level, in_span: Some("event_stream"), fields: fields.collect() }
            });
            assert_eq!(events, expected.collect::<Vec<_>>(), "{reason}, upstream: {is_upstream}");
        });
    }
}

#[test]
fn what_is_counted_is_what_a_client_received_over_the_wire() {
    for (protocol, is_upstream) in Protocol::ALL.into_iter().flat_map(|protocol| [(protocol, false), (protocol, true)])
    {
        on_a_clock_that_runs(async |seen: Seen| {
            let layer =
                SseLayer::new().retry(Duration::from_secs(3)).heartbeat(Heartbeat::every(Duration::from_millis(5)));
            // The last event waits for the client to have had a heartbeat.
            let gate = Arc::new(Notify::new());
            let opened = Arc::clone(&gate);
            let service = service_fn(move |_| {
                let opened = Arc::clone(&opened);
                let last = stream::once(async move {
                    opened.notified().await;
                    Event::new("last")
                });
                let events = (0..300).map(|n| Event::new("x".repeat(n)).id(n as u64));
                let events = futures_util::StreamExt::chain(stream::iter(events), last);
                let response = if is_upstream {
                    let frame = |event: Event| Ok::<_, Infallible>(Frame::data(event.encode()));
                    upstream(StreamBody::new(futures_util::StreamExt::map(events, frame)))
                } else {
                    ours(SseStream::new(events))
                };
                std::future::ready(Ok::<_, Infallible>(response))
            });
            let server = serve(ServiceBuilder::new().layer(layer).service(service)).await;
            let mut answer = protocol.get(server.address, "/", &[]).await;
            answer.read_until("\n\n:\n").await;
            gate.notify_one();
            let answer = answer.complete().await;
            let received = Received { bytes: answer.body, seconds: 0.0 };
            assert_eq!(received.events(), 301.0);
            assert!(received.heartbeats() > 0.0);
            let numbers = settled(&seen).await;
            assert_eq!(numbers["tower_sse_events_sent_total"], received.events());
            assert_eq!(numbers["tower_sse_bytes_sent_total"], received.bytes.len() as f64);
            assert_eq!(numbers["tower_sse_heartbeats_sent_total"], received.heartbeats());
            assert_eq!(numbers["tower_sse_streams_closed_total{reason=finished}"], 1.0);
        });
    }
}

#[test]
fn without_a_layer_a_stream_is_counted_and_has_a_span_too() {
    observed(async |seen: Seen| {
        let mut body = ours(SseStream::new(stream::iter([Event::new("a")]))).into_body();
        assert!(body.frame().await.is_some());
        assert_eq!(seen.numbers()["tower_sse_streams_active"], 1.0);
        assert!(body.frame().await.is_none());
        drop(body);
        let numbers = seen.numbers();
        assert_eq!(numbers["tower_sse_streams_active"], 0.0);
        assert_eq!(numbers["tower_sse_streams_closed_total{reason=finished}"], 1.0);
        let span = &seen.spans("event_stream")[0];
        assert_eq!(span.fields["reason"], "finished");
        assert!(!span.fields.contains_key("method") && !span.fields.contains_key("path"), "{span:?}");
    });
}

#[test]
fn a_stream_under_several_layers_is_one_stream_with_the_path_that_the_outermost_sees() {
    for is_upstream in [false, true] {
        observed(async |seen: Seen| {
            let strip = |mut request: Request<()>| {
                *request.uri_mut() = "/inner".parse().expect("a path");
                request
            };
            let inner = service_fn(move |_| async move {
                Ok::<_, Infallible>(if is_upstream {
                    upstream(Script::of_chunks(["data: a\n\n"]))
                } else {
                    ours(SseStream::new(stream::iter([Event::new("a")])))
                })
            });
            let inner = ServiceBuilder::new().map_request(strip).layer(SseLayer::new()).service(inner);
            let response = SseLayer::new().layer_and_call(inner).await;
            receive(response.into_body()).await;
            assert_eq!(seen.numbers()["tower_sse_streams_closed_total{reason=finished}"], 1.0);
            let [span] = &seen.spans("event_stream")[..] else { panic!("one span: {:?}", seen.events()) };
            assert_eq!(span.fields["path"], "/feed");
        });
    }
}

#[test]
fn a_response_whose_body_is_never_asked_for_is_no_stream() {
    observed(async |seen: Seen| {
        drop(ours(SseStream::new(stream::pending::<Event>())));
        let layer = SseLayer::new().max_lifetime(Duration::from_secs(1)).on_close(|_| {});
        let service = service_fn(async |_| Ok::<_, Infallible>(upstream(Script::new([Step::Hang]))));
        drop(layer.layer_and_call(service).await);
        assert_eq!(seen.numbers(), BTreeMap::new());
        assert_eq!(seen.events(), []);
    });
}

#[test]
fn who_is_turned_away_is_counted_as_refused_and_as_no_stream() {
    for answer in [Overload::ServiceUnavailable, Overload::RetryLater] {
        observed(async |seen: Seen| {
            let layer = SseLayer::new().max_streams(0).when_full(answer);
            let service = service_fn(async |_| Ok::<_, Infallible>(ours(SseStream::new(stream::pending::<Event>()))));
            receive(layer.layer_and_call(service).await.into_body()).await;
            assert_eq!(seen.numbers(), BTreeMap::from([("tower_sse_streams_refused_total".into(), 1.0)]));
            let fields = [("message", "stream refused"), ("method", "GET"), ("path", "/feed")];
            let fields = fields.into_iter().map(|(name, value)| (name, value.to_owned())).collect();
            assert_eq!(seen.events(), [Told { level: Level::DEBUG, in_span: None, fields }]);
        });
    }
}

#[test]
fn a_gap_is_counted_by_its_reason() {
    observed(async |seen: Seen| {
        let hub = Hub::builder().max_events(1).build();
        let topic = hub.topic("news");
        let first = topic.publish(Event::new("first")).await.expect("there is room");
        let slow = topic.subscribe(LastEventId::default()).await.expect("there is room");
        let strict = topic.subscribe(LastEventId::default()).await.expect("there is room");
        for _ in 0..2 {
            topic.publish(Event::new("next")).await.expect("there is room");
        }
        let id = |id: &str| tower_sse::hub::Start::After(id.parse().expect("an id"));
        let (epoch, _) = first.as_str().split_once('-').expect("an epoch and a number");
        for (requested, reason) in [
            (first.as_str(), "evicted"),
            (&*format!("{epoch}-99"), "ahead"),
            ("aaaaaaaa-1", "other_epoch"),
            ("what?", "malformed"),
        ] {
            let subscription = topic.subscribe(id(requested)).await.expect("there is room");
            assert_eq!(subscription.gap().expect("a gap").reason().as_str(), reason);
        }
        for subscription in [slow, strict.lag_policy(LagPolicy::Disconnect)] {
            assert!(std::pin::pin!(subscription).next().await.is_some());
        }
        let names = ["evicted", "ahead", "malformed", "other_epoch"].map(|reason| (reason, 1.0));
        let expected = names.into_iter().chain([("lagged", 2.0)]);
        let expected = expected.map(|(reason, n)| (format!("tower_sse_hub_gaps_total{{reason={reason}}}"), n));
        assert_eq!(seen.numbers(), expected.collect());
    });
}

/// A log in memory, as long as there is a connection to it.
struct Fragile {
    log: MemoryBackend,
    is_down: watch::Receiver<bool>,
}

impl Fragile {
    async fn answered<T>(&self, answer: impl Future<Output = Result<T, BoxError>>) -> Result<T, BoxError> {
        let mut is_down = self.is_down.clone();
        tokio::select! {
            biased;
            _ = is_down.wait_for(|is_down| *is_down) => Err("the cable is cut".into()),
            answer = answer => answer,
        }
    }
}

impl Backend for Fragile {
    async fn bounds(&self) -> Result<Bounds, BoxError> {
        self.answered(self.log.bounds()).await
    }

    async fn append(&self, records: Vec<backend::Record>) -> Result<backend::Appended, BoxError> {
        self.answered(self.log.append(records)).await
    }

    async fn read(&self, topics: &[Arc<str>], after: Position) -> Result<Page, BoxError> {
        self.answered(self.log.read(topics, after)).await
    }

    async fn follow(&self, after: Position) -> Result<Page, BoxError> {
        self.answered(self.log.follow(after)).await
    }
}

/// The level, the message, and the fields `operation` and `error` of each event.
fn outages(seen: &Seen) -> Vec<(Level, String, Option<String>, Option<String>)> {
    let field = |event: &Told, name: &str| event.fields.get(name).cloned();
    let events = seen.events().into_iter();
    events.map(|event| (event.level, event.message(), field(&event, "operation"), field(&event, "error"))).collect()
}

fn failed(operation: &str) -> (Level, String, Option<String>, Option<String>) {
    (Level::WARN, "backend failed".into(), Some(operation.into()), Some("the cable is cut".into()))
}

fn recovered(operation: &str) -> (Level, String, Option<String>, Option<String>) {
    (Level::INFO, "backend recovered".into(), Some(operation.into()), None)
}

#[test]
fn each_operation_logs_an_outage_once_and_counts_each_failure() {
    observed(async |seen: Seen| {
        let (cut, is_down) = watch::channel(false);
        let log = Fragile { log: MemoryBackend::new(100), is_down };
        let hub = Hub::builder().max_events(1).backend(log).connect().await.expect("it is there");
        let topic = hub.topic("news");
        let first = topic.publish(Event::new("first")).await.expect("it is there");
        topic.publish(Event::new("second")).await.expect("it is there");
        topic.publish(Event::new("third")).await.expect("it is there");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let cursor = topic.subscribe(LastEventId::default()).await.expect("a place").cursor();
        let epoch = cursor.as_str().split_once('-').expect("an epoch").0;
        let unknown = || tower_sse::hub::Start::After(format!("{epoch}-99").parse().expect("an id"));
        for _ in 0..2 {
            let before = outages(&seen).len();
            cut.send_replace(true);
            tokio::time::sleep(Duration::from_millis(1)).await;
            topic.publish(Event::new("lost")).await.expect_err("it is cut");
            let mut history = topic.subscribe(first.clone()).await.expect("an outage is no error");
            let _ahead = topic.subscribe(unknown()).await.expect("an outage is no error");
            let _no_event = tokio::time::timeout(Duration::from_secs(60), history.next()).await;
            cut.send_replace(false);
            history.next().await.expect("the history continues").expect("no error");
            topic.subscribe(unknown()).await.expect("a gap");
            tokio::time::sleep(Duration::from_secs(60)).await;
            let mut events = outages(&seen).split_off(before);
            assert_eq!(events[..3], [failed("follow"), failed("read"), failed("bounds")]);
            events[3..].sort_by(|one, other| one.2.cmp(&other.2));
            assert_eq!(events[3..], [recovered("bounds"), recovered("follow"), recovered("read")]);
        }

        let name = |operation: &str| format!("tower_sse_hub_backend_failures_total{{operation={operation}}}");
        let numbers = seen.numbers();
        assert_eq!((numbers[&name("publish")], numbers[&name("bounds")]), (2.0, 2.0));
        // Every 200 to 400 ms, and faster at first.
        for operation in ["follow", "read"] {
            assert!((300.0..640.0).contains(&numbers[&name(operation)]), "{operation}: {numbers:?}");
        }
    });
}

#[test]
fn rejected_history_reads_are_counted_and_logged_once() {
    observed(async |seen: Seen| {
        let (cut, is_down) = watch::channel(false);
        let log = Fragile { log: MemoryBackend::new(10_000), is_down };
        let hub = Hub::builder().max_events(1).backend(log).connect().await.expect("it is there");
        let topic = hub.topic("news");
        let mut ids = Vec::new();
        for n in 0..1100 {
            ids.push(topic.publish(Event::display(n)).await.expect("it is there"));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        for round in 1..3_u32 {
            let mut waiting = Vec::new();
            for id in &ids[..1024] {
                let mut subscribes = Box::pin(topic.subscribe(id.clone()));
                assert!(futures_util::poll!(&mut subscribes).is_pending());
                waiting.push(subscribes);
            }
            for id in &ids[1024..1030] {
                let error = topic.subscribe(id.clone()).await.expect_err("1,024 reads wait");
                assert_eq!(error.kind(), ErrorKind::Overloaded);
            }
            drop(waiting);
            topic.subscribe(ids[0].clone()).await.expect("no read waits");
            let rejected = seen.numbers()["tower_sse_hub_reads_rejected_total"];
            assert_eq!(rejected, f64::from(6 * round));
            let messages: Vec<_> = seen.events().iter().map(Told::message).collect();
            assert_eq!(messages, ["history reads rejected", "history reads accepted"].repeat(round as usize));
        }
        drop(cut);
    });
}

#[test]
fn the_span_is_a_child_of_the_one_in_which_the_response_is_made_and_current_while_the_stream_is_polled() {
    observed(async |seen: Seen| {
        let response = tracing::info_span!("request").in_scope(|| {
            let stream = poll_fn(|_| {
                tracing::info!("polled");
                Poll::Ready(None::<Event>)
            });
            ours(SseStream::new(stream).on_close(|_| tracing::info!("closed")))
        });
        let mut body = response.into_body();
        let other = tracing::info_span!("elsewhere").entered();
        assert!(body.frame().await.is_none());
        tracing::info!("outside");
        drop(other);
        drop(body);

        assert_eq!(seen.spans("event_stream")[0].parent, Some("request"));
        let events: Vec<_> = seen.events().into_iter().map(|event| (event.message(), event.in_span)).collect();
        let expected = [
            ("polled", Some("event_stream")),
            ("outside", Some("elsewhere")),
            ("stream ended", Some("event_stream")),
            ("closed", Some("event_stream")),
        ];
        assert_eq!(events, expected.map(|(message, span)| (message.to_owned(), span)));
    });
}

#[test]
fn a_failure_is_told_where_spans_are_not_even_if_the_client_is_told_of_it_in_another_way() {
    observed(async |seen: Seen| {
        let quiet = tracing_subscriber::registry().with(seen.trace.clone().with_filter(LevelFilter::WARN));
        let _subscriber = quiet.set_default();
        for has_last_event in [false, true] {
            let stream = SseStream::new(stream::iter([Err::<Event, _>(io::Error::other("the source is dry"))]));
            receive(ours(stream.on_error(move |_| has_last_event.then(|| Event::new("sorry")))).into_body()).await;
        }
        let fields = [("message", "stream failed"), ("error", "the source is dry")];
        let fields = fields.into_iter().map(|(name, value)| (name, value.to_owned())).collect();
        let failure = Told { level: Level::WARN, in_span: None, fields };
        assert_eq!(seen.events(), [failure.clone(), failure]);
        assert!(seen.spans("event_stream").is_empty());
    });
}

/// What a client got of one stream.
struct Received {
    bytes: Vec<u8>,
    seconds: f64,
}

impl Received {
    fn events(&self) -> f64 {
        let messages = whatwg::parse(&self.bytes).messages;
        // The place with which a hub's stream begins is not counted.
        messages.iter().filter(|message| message.r#type != "hub-cursor").count() as f64
    }

    fn heartbeats(&self) -> f64 {
        self.bytes.split(|byte| *byte == b'\n').filter(|line| *line == b":").count() as f64
    }
}

type AnyBody = UnsyncBoxBody<Bytes, BoxError>;

fn ours<S>(stream: SseStream<S>) -> Response<Box<dyn Body<Data = Bytes, Error = BoxError> + Send + Unpin>>
where
    S: Stream + Send + 'static,
    S::Item: tower_sse::SseItem,
{
    stream.into_http_response().map(|body| Box::new(Box::pin(body)) as _)
}

fn upstream<B>(body: B) -> Response<Box<dyn Body<Data = Bytes, Error = BoxError> + Send + Unpin>>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let body: AnyBody = body.map_err(Into::into).boxed_unsync();
    Response::builder().header(CONTENT_TYPE, "text/event-stream").body(Box::new(body) as _).expect("a response")
}

/// A service of one request.
trait LayerAndCall {
    async fn layer_and_call<S, B>(self, service: S) -> Response<ResponseBody<B>>
    where
        S: tower::Service<Request<()>, Response = Response<B>>,
        S::Error: fmt::Debug,
        B: Body<Data = Bytes>;
}

impl LayerAndCall for SseLayer {
    async fn layer_and_call<S, B>(self, service: S) -> Response<ResponseBody<B>>
    where
        S: tower::Service<Request<()>, Response = Response<B>>,
        S::Error: fmt::Debug,
        B: Body<Data = Bytes>,
    {
        let request = Request::builder().method(Method::GET).uri("/feed?token=secret").body(()).expect("a request");
        tower::Layer::layer(&self, service).oneshot(request).await.expect("a response")
    }
}

/// Reads to the end, whatever it is.
async fn receive<B: Body<Data = Bytes>>(body: B) -> Vec<u8> {
    let mut body = Box::pin(body);
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        bytes.extend_from_slice(frame.data_ref().expect("there are no trailers"));
    }
    bytes
}

/// A stream that ends in this way, a minute of silence after its second event.
async fn play(reason: CloseReason, is_upstream: bool, seen: &Seen) -> Received {
    const SILENCE: Duration = Duration::from_secs(60);
    let token = CancellationToken::new();
    let layer = SseLayer::new().shutdown(token.clone()).shutdown_event(Event::new("bye").event("shutdown"));
    let layer = if reason == CloseReason::MaxLifetime { layer.max_lifetime(SILENCE) } else { layer };
    let (response, hub) = if is_upstream {
        let end = match reason {
            CloseReason::Finished => vec![],
            CloseReason::Error => vec![Step::Fail("the source is dry")],
            _ => vec![Step::Hang],
        };
        let begin = ["data: a\n\n", "data: b\n\n"].map(Step::chunk).into_iter().chain([Step::Silence(SILENCE)]);
        (upstream(Script::new(begin.chain(end))), None)
    } else if reason == CloseReason::Lagged {
        let hub = Hub::builder().max_events(2).build();
        let lagged = hub.topic("news").subscribe(LastEventId::default()).await.expect("there is room");
        hub.topic("news").publish_all([Event::new("a"), Event::new("b")]).await.expect("there is room");
        (ours(SseStream::new(lagged.lag_policy(LagPolicy::Disconnect))), Some(hub))
    } else {
        let begin = stream::iter([Event::new("a"), Event::new("b")].map(|event| Ok(EncodedEvents::from(event))));
        let end = stream::once(async move {
            tokio::time::sleep(SILENCE).await;
            match reason {
                CloseReason::Finished => None,
                CloseReason::Error => Some(Err(io::Error::other("the source is dry"))),
                _ => std::future::pending().await,
            }
        });
        let end = futures_util::StreamExt::filter_map(end, std::future::ready);
        (ours(SseStream::new(futures_util::StreamExt::chain(begin, end))), None)
    };
    let response = Mutex::new(Some(response));
    let service = service_fn(async |_| Ok::<_, Infallible>(response.lock().expect("no panic").take().expect("once")));
    let mut body = layer.layer_and_call(service).await.into_body();

    let begin = tokio::time::Instant::now();
    let mut bytes = Vec::new();
    while whatwg::parse(&bytes).messages.len() < 2 {
        let frame = body.frame().await.expect("two events").expect("two events");
        bytes.extend_from_slice(frame.data_ref().expect("there are no trailers"));
    }
    assert_eq!(seen.numbers()["tower_sse_streams_active"], 1.0);
    match (reason, hub) {
        (CloseReason::Shutdown, _) => token.cancel(),
        (CloseReason::Lagged, Some(hub)) => {
            for _ in 0..3 {
                hub.topic("news").publish(Event::new("too much")).await.expect("there is room");
            }
        }
        _ => {}
    }
    if reason != CloseReason::ClientGone {
        bytes.extend(receive(&mut body).await);
    }
    drop(body);
    Received { bytes, seconds: begin.elapsed().as_secs_f64() }
}

/// Runs a test of which all is told to it alone, on a clock that jumps to the next timer.
fn observed(test: impl AsyncFnOnce(Seen)) {
    run(true, test);
}

fn on_a_clock_that_runs(test: impl AsyncFnOnce(Seen)) {
    run(false, test);
}

fn run(paused: bool, test: impl AsyncFnOnce(Seen)) {
    let recorder = DebuggingRecorder::new();
    let seen = Seen { snapshotter: recorder.snapshotter(), totals: Arc::default(), trace: Trace::default() };
    let _subscriber = tracing_subscriber::registry().with(seen.trace.clone()).set_default();
    let runtime = runtime::Builder::new_current_thread().enable_all().start_paused(paused).build().expect("a runtime");
    metrics::with_local_recorder(&recorder, || runtime.block_on(test(seen)));
}

/// The numbers, when no stream is open any more.
async fn settled(seen: &Seen) -> BTreeMap<String, f64> {
    loop {
        let numbers = seen.numbers();
        if numbers["tower_sse_streams_active"] == 0.0 {
            return numbers;
        }
        tokio::task::yield_now().await;
    }
}

/// Kept apart, as each snapshot begins to count anew.
#[derive(Default)]
struct Totals {
    numbers: BTreeMap<String, f64>,
    durations: Vec<f64>,
}

#[derive(Clone)]
struct Seen {
    snapshotter: Snapshotter,
    totals: Arc<Mutex<Totals>>,
    trace: Trace,
}

impl Seen {
    /// The gauges and counters, with their labels.
    fn numbers(&self) -> BTreeMap<String, f64> {
        let mut totals = self.totals.lock().expect("no panic");
        for (key, _, _, value) in self.snapshotter.snapshot().into_vec() {
            let labels: Vec<_> = key.key().labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            let name = key.key().name();
            let id = if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) };
            let (value, kind) = match value {
                DebugValue::Counter(value) => (value as f64, MetricKind::Counter),
                DebugValue::Gauge(value) => (value.into_inner(), MetricKind::Gauge),
                DebugValue::Histogram(values) => {
                    assert_eq!(name, "tower_sse_stream_duration_seconds");
                    totals.durations.extend(values.into_iter().map(|value| value.into_inner()));
                    continue;
                }
            };
            assert_eq!(kind == MetricKind::Counter, name.ends_with("_total"), "{name}");
            *totals.numbers.entry(id).or_default() += value;
        }
        totals.numbers.clone()
    }

    fn durations(&self) -> Vec<f64> {
        self.numbers();
        self.totals.lock().expect("no panic").durations.clone()
    }

    fn events(&self) -> Vec<Told> {
        self.trace.0.lock().expect("no panic").events.clone()
    }

    fn spans(&self, name: &str) -> Vec<SeenSpan> {
        let trace = self.trace.0.lock().expect("no panic");
        trace.spans.values().filter(|span| span.name == name).cloned().collect()
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Told {
    level: Level,
    in_span: Option<&'static str>,
    fields: BTreeMap<&'static str, String>,
}

impl Told {
    fn message(&self) -> String {
        self.fields["message"].clone()
    }
}

#[derive(Clone, Debug)]
struct SeenSpan {
    name: &'static str,
    parent: Option<&'static str>,
    fields: BTreeMap<&'static str, String>,
    is_closed: bool,
}

/// Keeps what comes from the library and from the tests.
#[derive(Clone, Default)]
struct Trace(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    spans: BTreeMap<u64, SeenSpan>,
    events: Vec<Told>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Trace {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        ["tower_sse", "observe"].contains(&metadata.target())
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let parent = context.span(id).and_then(|span| span.parent()).map(|parent| parent.name());
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let span = SeenSpan { name: attributes.metadata().name(), parent, fields: fields.0, is_closed: false };
        self.0.lock().expect("no panic").spans.insert(id.into_u64(), span);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        let mut kept = self.0.lock().expect("no panic");
        kept.spans.get_mut(&id.into_u64()).expect("it is known").fields.extend(fields.0);
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let in_span = context.event_span(event).map(|span| span.name());
        let told = Told { level: *event.metadata().level(), in_span, fields: fields.0 };
        self.0.lock().expect("no panic").events.push(told);
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        self.0.lock().expect("no panic").spans.get_mut(&id.into_u64()).expect("it is known").is_closed = true;
    }
}

#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // As the text that it is in JSON: 60.0 seconds are 60.
        let text = format!("{value:?}");
        self.0.insert(field.name(), text.strip_suffix(".0").map(str::to_owned).unwrap_or(text));
    }
}
