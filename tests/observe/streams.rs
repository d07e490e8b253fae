//! Metrics, spans and events of streams.

use crate::recording::{Emitted, Seen, observed, observed_in_real_time, settled};
use bytes::Bytes;
use futures_util::{
    FutureExt,
    stream::{self, poll_fn},
};
use http::{
    Request, Response, StatusCode,
    header::{ACCEPT, CONTENT_TYPE},
};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use std::{collections::BTreeMap, convert::Infallible, io, sync::Arc, task::Poll, time::Duration};
use support::{
    client::Protocol,
    respond::respond,
    script::{Script, Step},
    server::serve,
    whatwg,
};
use tokio::sync::Notify;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tower::{ServiceBuilder, service_fn};
use tower_sse::{
    BoxError, CloseReason, EncodedEvents, Event, Heartbeat, LastEventId, Overload, SseLayer, SseStream,
    hub::{Hub, LagPolicy, Start},
};
use tracing::Level;
use tracing_subscriber::{Layer, filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt};

const ALL: [CloseReason; 6] = [
    CloseReason::Finished,
    CloseReason::Error,
    CloseReason::ClientGone,
    CloseReason::Shutdown,
    CloseReason::MaxLifetime,
    CloseReason::Lagged,
];

#[test]
fn closed_stream_is_counted_by_reason() {
    for (reason, is_upstream) in ALL.into_iter().flat_map(|reason| [(reason, false), (reason, true)]) {
        if is_upstream && reason == CloseReason::Lagged {
            continue;
        }
        observed(async |seen: Seen| {
            let received = play(reason, is_upstream, &seen).await;
            let case = format!("{reason}, upstream: {is_upstream}");
            let numbers = seen.numbers();
            assert_eq!(numbers["tower_sse_streams_active"], 0.0, "{case}");
            let closed: Vec<_> = numbers.iter().filter(|(name, _)| name.contains("closed")).collect();
            assert_eq!(closed, [(&format!("tower_sse_streams_closed_total{{reason={reason}}}"), &1.0)], "{case}");
            assert_eq!(seen.durations(), [received.seconds], "{case}");
            assert_eq!(numbers["tower_sse_events_sent_total"], received.events(), "{case}");
            assert_eq!(numbers["tower_sse_bytes_sent_total"], received.bytes.len() as f64, "{case}");
            let heartbeats = numbers.get("tower_sse_heartbeats_sent_total").copied().unwrap_or_default();
            assert_eq!(heartbeats, received.heartbeats(), "{case}");
        });
    }
}

#[test]
fn span_records_summary_when_stream_ends() {
    for (reason, is_upstream) in ALL.into_iter().flat_map(|reason| [(reason, false), (reason, true)]) {
        if is_upstream && reason == CloseReason::Lagged {
            continue;
        }
        observed(async |seen: Seen| {
            let received = play(reason, is_upstream, &seen).await;
            let [span] = &seen.spans("event_stream")[..] else { panic!("not one span: {:?}", seen.events()) };
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

            let mut events = seen.events();
            if reason == CloseReason::Lagged {
                let gap = events.remove(0);
                assert_eq!((gap.message(), gap.in_span), ("gap reported".to_owned(), Some("event_stream")));
            }
            let failure = match (reason, is_upstream) {
                (CloseReason::Error, false) => vec![(Level::WARN, "stream failed", Some("the source failed"))],
                (CloseReason::Error, true) => vec![(Level::WARN, "stream failed", None)],
                _ => vec![],
            };
            let expected = failure.into_iter().chain([(Level::DEBUG, "stream ended", None)]);
            let expected = expected.map(|(level, message, error)| {
                let fields = [("message", Some(message)), ("error", error)];
                let fields = fields.into_iter().filter_map(|(name, value)| Some((name, value?.to_owned())));
                Emitted { level, in_span: Some("event_stream"), fields: fields.collect() }
            });
            assert_eq!(events, expected.collect::<Vec<_>>(), "{reason}, upstream: {is_upstream}");
        });
    }
}

#[test]
fn counters_match_bytes_that_client_received() {
    for (protocol, is_upstream) in Protocol::ALL.into_iter().flat_map(|protocol| [(protocol, false), (protocol, true)])
    {
        observed_in_real_time(async |seen: Seen| {
            let layer =
                SseLayer::new().retry(Duration::from_secs(3)).heartbeat(Heartbeat::every(Duration::from_millis(5)));
            // The last event is sent after the client has received a heartbeat.
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
fn stream_without_layer_has_metrics_and_span() {
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
fn stream_in_two_layers_has_outermost_path() {
    for is_upstream in [false, true] {
        observed(async |seen: Seen| {
            let strip = |mut request: Request<()>| {
                *request.uri_mut() = "/inner".parse().expect("a path");
                request
            };
            let response = if is_upstream {
                upstream(Script::of_chunks(["data: a\n\n"]))
            } else {
                ours(SseStream::new(stream::iter([Event::new("a")])))
            };
            let layers = ServiceBuilder::new().layer(SseLayer::new()).map_request(strip).layer(SseLayer::new());
            receive(respond(&layers, feed(), response).into_body()).await;
            assert_eq!(seen.numbers()["tower_sse_streams_closed_total{reason=finished}"], 1.0);
            let [span] = &seen.spans("event_stream")[..] else { panic!("not one span: {:?}", seen.events()) };
            assert_eq!(span.fields["path"], "/feed");
        });
    }
}

#[test]
fn unpolled_body_is_not_counted() {
    observed(async |seen: Seen| {
        drop(ours(SseStream::new(stream::pending::<Event>())));
        let layer = SseLayer::new().max_lifetime(Duration::from_secs(1)).on_close(|_| {});
        drop(respond(&layer, feed(), upstream(Script::new([Step::Hang]))));
        assert_eq!(seen.numbers(), BTreeMap::new());
        assert_eq!(seen.events(), []);
    });
}

#[test]
fn rejected_stream_is_counted_as_refused_only() {
    let event_source = || Request::get("/feed?token=secret").header(ACCEPT, "text/event-stream").body(()).unwrap();
    for (when_full, request) in [
        (Overload::ServiceUnavailable, feed()),
        (Overload::RetryLater, feed()),
        (Overload::Auto, feed()),
        (Overload::Auto, event_source()),
    ] {
        observed(async |seen: Seen| {
            let layer = SseLayer::new().max_streams(0).when_full(when_full);
            let response = ours(SseStream::new(stream::pending::<Event>()));
            receive(respond(&layer, request, response).into_body()).await;
            assert_eq!(seen.numbers(), BTreeMap::from([("tower_sse_streams_refused_total".into(), 1.0)]));
            let fields = [("message", "stream refused"), ("method", "GET"), ("path", "/feed")];
            let fields = fields.into_iter().map(|(name, value)| (name, value.to_owned())).collect();
            assert_eq!(seen.events(), [Emitted { level: Level::DEBUG, in_span: None, fields }]);
        });
    }
}

#[test]
fn rejected_hub_error_is_counted_and_logged() {
    observed(async |seen: Seen| {
        let error = Hub::builder().max_topics(0).build().topic("news").subscribe(Start::Latest).await.unwrap_err();
        let message = error.to_string();
        let request = Request::get("/feed?token=secret").header(ACCEPT, "text/event-stream").body(()).unwrap();
        let summaries = Arc::new(Notify::new());
        let closed = Arc::clone(&summaries);
        let layer = SseLayer::new().on_close(move |_| closed.notify_one());
        let response = respond(&layer, request, error.into_http_response());
        assert_eq!(response.status(), StatusCode::OK);
        drop(response);
        assert!(summaries.notified().now_or_never().is_none(), "a rejection is no stream");
        assert_eq!(seen.numbers(), BTreeMap::from([("tower_sse_streams_refused_total".into(), 1.0)]));
        let fields = [("message", "stream refused"), ("method", "GET"), ("path", "/feed"), ("error", message.as_str())];
        let fields = fields.into_iter().map(|(name, value)| (name, value.to_owned())).collect();
        assert_eq!(seen.events(), [Emitted { level: Level::DEBUG, in_span: None, fields }]);
    });
}

#[test]
fn span_of_stream_is_current_in_polls() {
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
fn failure_is_logged_without_span() {
    observed(async |seen: Seen| {
        let quiet = tracing_subscriber::registry().with(seen.trace.clone().with_filter(LevelFilter::WARN));
        let _subscriber = quiet.set_default();
        for has_last_event in [false, true] {
            let stream = SseStream::new(stream::iter([Err::<Event, _>(io::Error::other("the source failed"))]));
            receive(ours(stream.on_error(move |_| has_last_event.then(|| Event::new("sorry")))).into_body()).await;
        }
        let fields = [("message", "stream failed"), ("error", "the source failed")];
        let fields = fields.into_iter().map(|(name, value)| (name, value.to_owned())).collect();
        let failure = Emitted { level: Level::WARN, in_span: None, fields };
        assert_eq!(seen.events(), [failure.clone(), failure]);
        assert!(seen.spans("event_stream").is_empty());
    });
}

/// The bytes that a client received in a stream, and their duration.
struct Received {
    bytes: Vec<u8>,
    seconds: f64,
}

impl Received {
    fn events(&self) -> f64 {
        let messages = whatwg::parse(&self.bytes).messages;
        // The cursor at the start of a hub's stream is not counted as an event.
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

fn feed() -> Request<()> {
    Request::get("/feed?token=secret").body(()).expect("a request")
}

/// Reads a body to its end or its error.
async fn receive<B: Body<Data = Bytes>>(body: B) -> Vec<u8> {
    let mut body = Box::pin(body);
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        bytes.extend_from_slice(frame.data_ref().expect("there are no trailers"));
    }
    bytes
}

/// Plays a stream of two events and a minute of silence, which ends for this reason.
async fn play(reason: CloseReason, is_upstream: bool, seen: &Seen) -> Received {
    const SILENCE: Duration = Duration::from_secs(60);
    let token = CancellationToken::new();
    let layer = SseLayer::new().shutdown(token.clone()).shutdown_event(Event::new("bye").event("shutdown"));
    let layer = if reason == CloseReason::MaxLifetime { layer.max_lifetime(SILENCE) } else { layer };
    let (response, hub) = if is_upstream {
        let end = match reason {
            CloseReason::Finished => vec![],
            CloseReason::Error => vec![Step::Fail("the source failed")],
            _ => vec![Step::Hang],
        };
        let begin = ["data: a\n\n", "data: b\n\n"].map(Step::chunk).into_iter().chain([Step::Silence(SILENCE)]);
        (upstream(Script::new(begin.chain(end))), None)
    } else if reason == CloseReason::Lagged {
        let hub = Hub::builder().max_events(2).build();
        let lagged = hub.topic("news").subscribe(LastEventId::default()).await.expect("a hub in memory does not fail");
        hub.topic("news").publish_all([Event::new("a"), Event::new("b")]).await.expect("a hub in memory does not fail");
        (ours(SseStream::new(lagged.lag_policy(LagPolicy::Disconnect))), Some(hub))
    } else {
        let begin = stream::iter([Event::new("a"), Event::new("b")].map(|event| Ok(EncodedEvents::from(event))));
        let end = stream::once(async move {
            tokio::time::sleep(SILENCE).await;
            match reason {
                CloseReason::Finished => None,
                CloseReason::Error => Some(Err(io::Error::other("the source failed"))),
                _ => std::future::pending().await,
            }
        });
        let end = futures_util::StreamExt::filter_map(end, std::future::ready);
        (ours(SseStream::new(futures_util::StreamExt::chain(begin, end))), None)
    };
    let mut body = respond(&layer, feed(), response).into_body();

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
                hub.topic("news").publish(Event::new("too much")).await.expect("a hub in memory does not fail");
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
