//! The resume point of a client: each row of the table in the documentation of `tower_sse::hub`.

use futures_util::{
    FutureExt, StreamExt,
    future::{self, BoxFuture},
    stream::{self, BoxStream},
};
use http_body::Body;
use serde_json::{Value, json};
use std::{task::Poll, time::Duration};
use support::{
    polled::Polled,
    whatwg::{self, Message},
};
use tokio_stream::Stream;
use tokio_test::task;
use tower_sse::{
    BoxError, EncodedEvents, Event, EventId, LastEventId, SseItem, SseStream,
    hub::{Gap, GapReason, Hub, Start, Subscription, SubscriptionError},
};

/// Creates a hub that retains the last three events of each topic, for a minute.
fn hub() -> Hub {
    Hub::builder().max_events(3).max_age(Duration::from_secs(60)).build()
}

fn publish(hub: &Hub, topic: &str, data: &str) -> EventId {
    hub.topic(topic).publish(Event::new(data)).now_or_never().unwrap().unwrap()
}

fn finish(hub: &Hub, topic: &str) {
    hub.topic(topic).finish().now_or_never().unwrap().unwrap();
}

fn subscribe(hub: &Hub, topic: &str, start: impl Into<Start>) -> Subscription {
    hub.topic(topic).subscribe(start).now_or_never().unwrap().unwrap()
}

fn subscribe_to<const N: usize>(hub: &Hub, topics: [&str; N], start: impl Into<Start>) -> Subscription {
    hub.subscribe(topics, start).now_or_never().unwrap().unwrap()
}

/// Returns the messages that are ready, and whether the subscription ended after them.
fn ready(subscription: Subscription) -> (Vec<Message>, bool) {
    let mut subscription = task::spawn(subscription);
    let mut messages = Vec::new();
    loop {
        match subscription.poll_next() {
            Poll::Ready(Some(Ok(events))) => messages.extend(whatwg::parse(events.as_bytes()).messages),
            Poll::Ready(None | Some(Err(_))) => return (messages, true),
            Poll::Pending => return (messages, false),
        }
    }
}

#[track_caller]
fn assert_gets(subscription: Subscription, data: &[&str]) {
    assert_eq!(subscription.gap(), None);
    let (messages, has_ended) = ready(subscription);
    assert_eq!(messages.iter().map(|message| &*message.data).collect::<Vec<_>>(), data);
    assert!(!has_ended);
}

/// Expects a gap, for the handler and for the client, and then these events. A client that
/// reconnects with the id of the gap gets these events, too.
#[track_caller]
fn assert_gets_after_a_gap(hub: &Hub, topics: &[&str], requested: EventId, reason: GapReason, data: &[&str]) {
    let subscription = hub.subscribe(topics, requested.clone()).now_or_never().unwrap().unwrap();
    let gap = subscription.gap().expect("the handler is told").clone();
    assert!(!subscription.is_resumed());
    assert_eq!((gap.reason(), gap.requested()), (reason, &requested));

    let (messages, _) = ready(subscription);
    let [told, rest @ ..] = &*messages else { panic!("the client is told") };
    assert_eq!(told.r#type, "gap");
    assert_eq!(rest.iter().map(|message| &*message.data).collect::<Vec<_>>(), data);
    assert_eq!(gap.resumed().map(EventId::as_str), rest.first().map(|first| &*first.last_event_id));
    let said: Value = serde_json::from_str(&told.data).unwrap();
    let resumed = gap.resumed().map(EventId::as_str);
    assert_eq!(said, json!({ "reason": reason.as_str(), "requested": requested.as_str(), "resumed": resumed }));

    let back = EventId::new(&told.last_event_id).unwrap();
    let (again, _) = ready(hub.subscribe(topics, back).now_or_never().unwrap().unwrap());
    // With many topics the gap may be repeated: no cursor is after the evicted events of one topic
    // and before the retained events of another.
    let is_retold = topics.len() > 1 && again[0].r#type == "gap";
    assert_eq!(&again[usize::from(is_retold)..], rest, "the id of a gap is a place to come back to");
}

#[test]
fn no_id_gets_live_events_or_handler_start() {
    let hub = hub();
    publish(&hub, "a", "1");
    let none = LastEventId::default();
    assert_gets(subscribe(&hub, "a", none.clone()), &[]);
    assert_gets(subscribe(&hub, "a", Some(none.clone())), &[]);
    assert_gets(subscribe(&hub, "a", None::<LastEventId>), &[]);
    assert_gets(subscribe(&hub, "a", none.or(Start::Earliest)), &["1"]);

    let subscription = subscribe(&hub, "a", Start::Latest);
    publish(&hub, "a", "2");
    assert!(!subscription.is_resumed());
    assert_gets(subscription, &["2"]);
}

#[test]
fn empty_id_counts_as_absent() {
    let hub = hub();
    publish(&hub, "a", "1");
    let subscription = subscribe(&hub, "a", Start::After(EventId::from_static("")));
    publish(&hub, "a", "2");
    assert_gets(subscription, &["2"]);
}

#[test]
fn start_earliest_is_no_gap() {
    let hub = hub();
    for data in ["1", "2", "3", "4", "5"] {
        publish(&hub, "a", data);
    }
    assert_gets(subscribe(&hub, "a", Start::Earliest), &["3", "4", "5"]);
    publish(&hub, "b", "6");
    assert_gets(subscribe_to(&hub, ["b", "a"], Start::Earliest), &["3", "4", "5", "6"]);
}

#[test]
fn the_newest_id_replays_nothing() {
    let hub = hub();
    publish(&hub, "a", "1");
    let newest = publish(&hub, "a", "2");
    let subscription = subscribe(&hub, "a", newest);
    assert!(subscription.is_resumed());
    publish(&hub, "a", "3");
    assert_gets(subscription, &["3"]);
}

#[test]
fn retained_id_gets_events_after_it() {
    let hub = hub();
    let ids = ["1", "2", "3"].map(|data| publish(&hub, "a", data));
    assert_gets(subscribe(&hub, "a", ids[1].clone()), &["3"]);
}

#[test]
fn oldest_id_gets_events_after_it() {
    let hub = hub();
    let ids = ["1", "2", "3", "4"].map(|data| publish(&hub, "a", data));
    assert_gets(subscribe(&hub, "a", ids[1].clone()), &["3", "4"]);
}

#[test]
fn the_one_before_the_oldest_has_missed_nothing() {
    let hub = hub();
    let ids = ["1", "2", "3", "4"].map(|data| publish(&hub, "a", data));
    assert_gets(subscribe(&hub, "a", ids[0].clone()), &["2", "3", "4"]);
    // The cursor before the first event, which a client has if it connected before that event.
    let before = self::hub();
    let start = subscribe(&before, "a", Start::Latest).cursor();
    let _ids = ["1", "2"].map(|data| publish(&before, "a", data));
    assert_gets(subscribe(&before, "a", start), &["1", "2"]);
}

#[test]
fn evicted_id_gets_gap_and_retained_events() {
    let hub = hub();
    let ids = ["1", "2", "3", "4", "5"].map(|data| publish(&hub, "a", data));
    assert_gets_after_a_gap(&hub, &["a"], ids[0].clone(), GapReason::Evicted, &["3", "4", "5"]);
}

#[test]
fn id_of_another_topic_is_valid_cursor() {
    let hub = hub();
    publish(&hub, "a", "1");
    let other = publish(&hub, "b", "2");
    publish(&hub, "b", "3");
    publish(&hub, "a", "4");
    assert_gets(subscribe(&hub, "a", other.clone()), &["4"]);
    for data in ["5", "6", "7"] {
        publish(&hub, "a", data);
    }
    assert_gets_after_a_gap(&hub, &["a"], other.clone(), GapReason::Evicted, &["5", "6", "7"]);
    // A client gets nothing of a topic that the handler does not name.
    assert_gets(subscribe(&hub, "c", other), &[]);
}

#[test]
fn eviction_in_one_topic_is_gap_before_rest() {
    let hub = hub();
    let start = publish(&hub, "a", "1");
    publish(&hub, "b", "2");
    for data in ["3", "4", "5", "6"] {
        publish(&hub, "a", data);
    }
    publish(&hub, "b", "7");
    assert_gets_after_a_gap(&hub, &["a", "b"], start, GapReason::Evicted, &["2", "4", "5", "6", "7"]);
}

#[test]
fn future_id_gets_gap_without_waiting() {
    let hub = hub();
    publish(&hub, "a", "1");
    let newest = publish(&hub, "a", "2");
    let (epoch, _) = newest.as_str().split_once('-').unwrap();
    for future in ["3", "18446744073709551615", "18446744073709551616", "99999999999999999999999999"] {
        let future = EventId::new(format!("{epoch}-{future}")).unwrap();
        assert_gets_after_a_gap(&hub, &["a"], future, GapReason::Ahead, &["1", "2"]);
    }
}

#[test]
fn id_of_other_epoch_gets_gap_and_retained_events() {
    let (before, after) = (hub(), hub());
    let old = ["1", "2", "3"].map(|data| publish(&before, "a", data));
    assert_gets_after_a_gap(&after, &["a"], old[1].clone(), GapReason::OtherEpoch, &[]);
    publish(&after, "a", "4");
    assert_gets_after_a_gap(&after, &["a"], old[1].clone(), GapReason::OtherEpoch, &["4"]);
}

#[test]
fn an_id_that_was_never_issued_is_malformed() {
    let hub = hub();
    let issued = publish(&hub, "a", "1");
    let (epoch, _) = issued.as_str().split_once('-').unwrap();
    for id in ["7", "yesterday", "-", "\"}{", "a\u{fffd}\u{2028}é", &format!("{epoch}-01"), &format!("{epoch}-"), epoch]
    {
        let id = EventId::new(id).unwrap();
        assert_gets_after_a_gap(&hub, &["a"], id, GapReason::Malformed, &["1"]);
    }
}

#[test]
fn finished_topic_ends_and_complete_client_gets_204() {
    let hub = hub();
    let ids = ["1", "2", "3", "4"].map(|data| publish(&hub, "a", data));
    let listening = subscribe(&hub, "a", Start::Latest);
    finish(&hub, "a");
    assert_eq!(ready(listening), (Vec::new(), true));

    let data = |start: Start| {
        let (messages, has_ended) = ready(subscribe(&hub, "a", start));
        assert!(has_ended);
        messages.into_iter().map(|message| message.data).collect::<Vec<_>>()
    };
    assert_eq!(data(Start::Earliest), ["2", "3", "4"]);
    assert_eq!(data(Start::After(ids[2].clone())), ["4"]);

    let response = |start: Start| SseStream::new(subscribe(&hub, "a", start)).into_http_response();
    for start in [Start::After(ids[3].clone()), Start::Latest] {
        let response = response(start);
        assert_eq!(response.status(), 204);
        // A cache would otherwise return it to clients that have received nothing.
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert!(response.headers().len() == 1 && response.body().is_end_stream());
    }
    assert_eq!(response(Start::After(ids[2].clone())).status(), 200);
    let gap = response(Start::After(EventId::from_static("nonsense")));
    assert_eq!(gap.status(), 200, "it has a gap to be told of");
    // Other subscribers continue.
    publish(&hub, "b", "5");
    let both = subscribe_to(&hub, ["a", "b"], ids[3].clone());
    assert!(!both.is_finished());
    assert_gets(both, &["5"]);
}

#[tokio::test(start_paused = true)]
async fn recreated_topic_reports_events_evicted_before() {
    let hub = hub();
    let ids = ["1", "2"].map(|data| publish(&hub, "a", data));
    publish(&hub, "b", "3");
    tokio::time::sleep(Duration::from_secs(70)).await;
    assert_eq!(hub.stats().topics, 0);

    assert_gets_after_a_gap(&hub, &["a"], ids[0].clone(), GapReason::Evicted, &[]);
    publish(&hub, "a", "4");
    assert_gets_after_a_gap(&hub, &["a"], ids[0].clone(), GapReason::Evicted, &["4"]);
    // A client that had all events has missed nothing.
    assert_gets(subscribe(&hub, "a", ids[1].clone()), &["4"]);
}

#[tokio::test(start_paused = true)]
async fn expired_finished_topic_is_forgotten() {
    let hub = hub();
    let last = publish(&hub, "a", "1");
    finish(&hub, "a");
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(SseStream::new(subscribe(&hub, "a", last.clone())).into_http_response().status(), 204);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(hub.stats().topics, 0);
    let anew = subscribe(&hub, "a", last);
    publish(&hub, "a", "2");
    assert_gets(anew, &["2"]);
}

/// A client that loses its connection before the first event resumes at the same cursor.
#[tokio::test]
async fn response_begins_with_cursor() {
    let hub = hub();
    publish(&hub, "a", "1");
    let mut body = task::spawn(SseStream::new(subscribe(&hub, "a", Start::Latest)).into_http_response().into_body());
    let Poll::Ready(Some(Ok(frame))) = body.enter(|cx, body| body.poll_frame(cx)) else { panic!("a first byte") };
    let source = whatwg::parse(frame.data_ref().unwrap());
    // For the browser: no page listens to it.
    let types: Vec<_> = source.messages.iter().map(|message| &*message.r#type).collect();
    assert_eq!(types, ["hub-cursor"]);
    drop(body);

    publish(&hub, "a", "2");
    assert_gets(subscribe(&hub, "a", EventId::new(source.last_event_id).unwrap()), &["2"]);
}

#[test]
fn reported_gap_is_not_repeated_after_reconnect() {
    let hub = Hub::builder().max_age(Duration::ZERO).build();
    publish(&hub, "a", "1");
    publish(&hub, "c", "2");
    let mut last = EventId::from_static("other_epoch");
    let mut gaps = 0;
    for _ in 0..5 {
        let subscription = subscribe_to(&hub, ["a", "b"], last);
        gaps += u32::from(subscription.gap().is_some());
        last = subscription.cursor();
    }
    assert_eq!(gaps, 1);
}

#[test]
fn earliest_client_resumes_before_first_event_without_gap() {
    let hub = Hub::builder().max_events(2).build();
    for n in 0..5 {
        publish(&hub, "a", &n.to_string());
    }
    let cursor = subscribe_to(&hub, ["a", "new"], Start::Earliest).cursor();
    assert_gets(subscribe_to(&hub, ["a", "new"], cursor), &["3", "4"]);
}

type Item = Result<EncodedEvents, SubscriptionError>;
type Adapt = fn(Subscription) -> BoxStream<'static, Item>;

/// Adapters that change nothing. Each of them hides the subscription from the response.
const ADAPTERS: [Adapt; 6] = [
    |events| events.boxed(),
    |events| events.map(|events| events).boxed(),
    |events| tokio_stream::StreamExt::merge(events, stream::empty()).boxed(),
    |events| events.filter(|_| future::ready(true)).inspect(|_| ()).boxed(),
    |events| events.take_until(future::pending::<()>()).fuse().boxed(),
    // This adapter does not forward `size_hint`.
    |events| stream::select(events, stream::empty()).boxed(),
];

fn first_bytes<S>(stream: S) -> String
where
    S: Stream + Send + 'static,
    S::Item: SseItem,
{
    let body = SseStream::new(stream).without_heartbeat().into_http_response().into_body();
    match task::spawn(body).enter(|cx, body| body.poll_frame(cx)) {
        Poll::Ready(Some(Ok(frame))) => String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap(),
        _ => String::new(),
    }
}

#[test]
fn cursor_survives_adapters() {
    let hub = hub();
    let last = publish(&hub, "a", "1");
    let cursor = format!("event: hub-cursor\nid: {last}\ndata: \n\n");
    for adapt in ADAPTERS {
        assert_eq!(first_bytes(adapt(subscribe(&hub, "a", Start::Latest))), cursor);
        assert_eq!(first_bytes(adapt(subscribe(&hub, "a", Start::Latest).without_control_events())), "");
        let snapshot = subscribe(&hub, "a", Start::Latest).begin_with(Event::new("state"));
        assert_eq!(first_bytes(adapt(snapshot)), format!("id: {last}\ndata: state\n\n"));
    }
    // Items of another type.
    let events = subscribe(&hub, "a", Start::Latest).map(|events| events.map_err(BoxError::from));
    assert_eq!(first_bytes(events), cursor);
    let others = stream::iter([Ok(Event::new("weather").into())]);
    let mixed = stream::select(subscribe(&hub, "a", Start::Latest), others);
    assert_eq!(first_bytes(mixed), format!("{cursor}data: weather\n\n"));
}

/// A stream that contains a signal, and that ends at the signal.
type WithSignal = fn(Subscription, BoxFuture<'static, ()>) -> SseStream<BoxStream<'static, Item>>;

#[test]
fn signal_of_hub_ends_stream_only_with_event() {
    let streams: [WithSignal; 3] = [
        |news, signal| SseStream::new(news).map_stream(|news| news.take_until(signal).boxed()),
        |news, signal| SseStream::new(news.take_until(signal).boxed()),
        // The signal is the only subscription in the stream.
        |_, signal| SseStream::new(stream::pending().take_until(signal).boxed()),
    ];
    for stream in streams {
        let hub = hub();
        let last = publish(&hub, "news", "1");
        let mut logout = subscribe(&hub, "logout", Start::Latest);
        let signal = async move { drop(logout.next().await) };
        let stream = stream(subscribe(&hub, "news", Start::Latest), signal.boxed()).without_heartbeat();
        let mut body = Polled::new(stream.into_http_response());
        body.assert_data(format!("event: hub-cursor\nid: {last}\ndata: \n\n"));
        body.assert_pending();
        publish(&hub, "logout", "now");
        body.assert_end();
    }
}

#[test]
fn generator_gets_only_published_events() {
    let hub = hub();
    let last = publish(&hub, "a", "1");
    let generated = stream::unfold(subscribe(&hub, "a", Start::Earliest), async |mut events| {
        let item = events.next().await?.unwrap();
        Some((Event::display(item.count()), events))
    });
    let start = subscribe(&hub, "a", Start::Earliest).cursor();
    assert_ne!(start, last);
    assert_eq!(first_bytes(generated), format!("event: hub-cursor\nid: {start}\ndata: \n\ndata: 1\n\n"));
}

#[test]
fn first_cursor_follows_retry_line() {
    let hub = hub();
    let last = publish(&hub, "a", "1");
    for adapt in ADAPTERS {
        let stream = SseStream::new(adapt(subscribe(&hub, "a", Start::Latest))).retry(Duration::from_secs(3));
        let mut body = Polled::new(stream.without_heartbeat().into_http_response());
        body.assert_data(format!("retry: 3000\nevent: hub-cursor\nid: {last}\ndata: \n\n"));
        body.assert_pending();
    }
}

#[test]
fn setting_without_control_events_wins_over_cursor_in_any_order() {
    let hub = hub();
    let id = publish(&hub, "a", "1");
    for subscription in [
        subscribe(&hub, "a", Start::Earliest).begin_with_cursor().without_control_events(),
        subscribe(&hub, "a", Start::Earliest).without_control_events().begin_with_cursor(),
    ] {
        assert_eq!(first_bytes(subscription), format!("id: {id}\ndata: 1\n\n"));
    }
}

#[test]
fn client_without_control_events_gets_only_published_events() {
    let hub = Hub::builder().max_events(2).build();
    let topic = hub.topic("a");
    let published = || publish(&hub, "a", "1");
    published();
    for start in [Start::Latest, Start::Earliest, Start::After(EventId::from_static("lost"))] {
        let is_lost = matches!(start, Start::After(_));
        let subscription = topic.subscribe(start).now_or_never().unwrap().unwrap().without_control_events();
        assert_eq!(subscription.gap().is_some(), is_lost, "the handler can see the gap");
        let mut subscription = task::spawn(subscription);
        while let Poll::Ready(Some(events)) = subscription.poll_next() {
            let events = String::from_utf8(events.unwrap().as_bytes().to_vec()).unwrap();
            assert!(!events.contains("event: "), "{events}");
        }
        for _ in 0..3 {
            published();
        }
        // The events after the cursor are evicted.
        let ended = subscription.poll_next();
        assert_eq!(ended.map(|item| item.map(Result::err)), Poll::Ready(Some(Some(SubscriptionError::Lagged))));
        assert_eq!(subscription.poll_next().map(|item| item.is_none()), Poll::Ready(true));
        assert_eq!(subscription.gap().map(Gap::requested), is_lost.then_some(&EventId::from_static("lost")));
    }
    // A snapshot is an event of the application.
    let lost = topic.subscribe(EventId::from_static("lost")).now_or_never().unwrap().unwrap();
    let snapshot = lost.begin_with(Event::new("state")).without_control_events();
    assert!(first_bytes(snapshot).ends_with("\ndata: state\n\n"));
}

#[test]
fn merged_subscriptions_have_no_common_cursor() {
    let hub = hub();
    let first = publish(&hub, "a", "1");
    let merge =
        |start| tokio_stream::StreamExt::merge(subscribe(&hub, "a", start), subscribe(&hub, "a", Start::Latest));
    assert_eq!(first_bytes(merge(Start::Latest)), format!("event: hub-cursor\nid: {first}\ndata: \n\n"));
    assert_eq!(first_bytes(merge(Start::Earliest)), format!("id: {first}\ndata: 1\n\n"));
    // This adapter does not forward `size_hint`.
    let selected = stream::select(subscribe(&hub, "a", Start::Earliest), subscribe(&hub, "a", Start::Latest));
    assert_eq!(first_bytes(selected), format!("id: {first}\ndata: 1\n\n"));
}

#[test]
fn finished_topic_is_no_content_through_adapters() {
    let hub = hub();
    let last = publish(&hub, "a", "1");
    finish(&hub, "a");
    let end = || subscribe(&hub, "a", last.clone());
    for adapt in ADAPTERS {
        let response = |events| SseStream::new(events).map_stream(adapt).into_http_response();
        assert_eq!(response(end()).status(), 204);
        assert_eq!(response(subscribe(&hub, "a", Start::Earliest)).status(), 200);
    }
    for adapt in &ADAPTERS[..4] {
        assert_eq!(SseStream::new(adapt(end())).into_http_response().status(), 204);
    }
    let goodbye = || stream::iter([Ok(EncodedEvents::from(Event::new("goodbye")))]);
    assert_eq!(SseStream::new(end().chain(goodbye())).into_http_response().status(), 200, "there is an event to send");
    let merge = |one, other| SseStream::new(tokio_stream::StreamExt::merge(one, other)).into_http_response().status();
    assert_eq!(merge(end(), end()), 204);
    assert_eq!(merge(end(), subscribe(&hub, "b", Start::Latest)), 200);
    assert_eq!(SseStream::new(stream::empty::<Event>()).into_http_response().status(), 200, "no subscription is in it");
    // Only a response asks for a preamble.
    assert_eq!(end().size_hint(), (0, Some(0)));
}

#[test]
fn subscription_is_an_axum_response() {
    use axum::response::IntoResponse;

    let hub = hub();
    let last = publish(&hub, "a", "1");
    let live = subscribe(&hub, "a", last.clone()).into_response();
    assert_eq!((live.status().as_u16(), &live.headers()["content-type"]), (200, &"text/event-stream".parse().unwrap()));
    let mut body = task::spawn(live.into_body());
    let Poll::Ready(Some(Ok(frame))) = body.enter(|cx, body| body.poll_frame(cx)) else { panic!("a first frame") };
    assert_eq!(frame.data_ref().unwrap(), format!("event: hub-cursor\nid: {last}\ndata: \n\n").as_bytes());
    finish(&hub, "a");
    assert_eq!(subscribe(&hub, "a", last).into_response().status(), 204);
}
