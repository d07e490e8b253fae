//! The cursors of clients with quiet topics follow the log, so that the log does not evict them.

use super::{Mode, PLENTY, Shared, hub, publish, reason, settle, two};
use futures_util::{Stream, StreamExt};
use http::Request;
use std::{
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::{Context, Poll, Wake},
    time::Duration,
};
use support::{
    polled::Polled,
    respond::{respond, through},
    whatwg,
};
use tokio::{sync::mpsc, time::sleep};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tower_sse::{
    EncodedEvents, Event, EventId, Heartbeat, SseItem, SseLayer, SseStream, StreamRegistry,
    hub::{Hub, Start, Subscription, SubscriptionError},
};

/// Longer than the interval of the default heartbeat.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(16);
const RETAINED: usize = 10;

/// A client of a response.
pub(crate) struct Client {
    body: Polled,
    pub(crate) last_event_id: String,
    pub(crate) has_ended: bool,
}

impl Client {
    pub(crate) fn of<S>(stream: S) -> Self
    where
        S: Stream<Item: SseItem> + Send + 'static,
    {
        Self::new(Polled::new(SseStream::new(stream).into_http_response()))
    }

    pub(crate) fn new(body: Polled) -> Self {
        Self { body, last_event_id: String::new(), has_ended: false }
    }

    /// Returns the bytes that the client receives now, in at most this number of frames.
    fn take(&mut self, frames: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..frames {
            match self.body.poll() {
                Poll::Ready(Some(Ok(data))) => bytes.extend_from_slice(&data),
                Poll::Pending => break,
                Poll::Ready(end) => {
                    assert_eq!(end, None);
                    self.has_ended = true;
                    break;
                }
            }
        }
        bytes
    }

    /// Returns the bytes that the client receives now.
    pub(crate) fn bytes(&mut self) -> String {
        let bytes = self.take(usize::MAX);
        let received = whatwg::parse(&bytes);
        if !received.last_event_id.is_empty() {
            self.last_event_id = received.last_event_id;
        }
        String::from_utf8(bytes).unwrap()
    }

    /// Returns the messages that the client receives now, in at most this number of frames.
    pub(crate) fn messages(&mut self, frames: usize) -> Vec<whatwg::Message> {
        whatwg::parse(&self.take(frames)).messages
    }

    /// Returns the data or the type of each message that the client receives now.
    pub(crate) fn read(&mut self) -> Vec<String> {
        let messages = whatwg::parse(self.bytes().as_bytes()).messages;
        let name = |message: whatwg::Message| match &*message.r#type {
            "gap" => reason(&message.data),
            "message" => message.data,
            _ => message.r#type,
        };
        messages.into_iter().map(name).collect()
    }

    pub(crate) fn id(&self) -> EventId {
        EventId::new(&self.last_event_id).unwrap()
    }
}

/// Waits until a heartbeat is due.
async fn heartbeat() {
    sleep(HEARTBEAT).await;
    settle().await;
}

async fn quiet(hub: &Hub) -> Client {
    let mut client = Client::of(hub.topic("quiet").subscribe(Start::Latest).await.unwrap());
    assert_eq!(client.read(), ["hub-cursor"]);
    client
}

/// Publishes events of other topics.
async fn fill(hub: &Hub, count: usize) {
    for n in 0..count {
        publish(hub, "other", n).await;
    }
    settle().await;
}

/// Asserts that the client gets no gap on a node that has just started, and the next event.
async fn assert_resumes(shared: &Shared, id: EventId) {
    let fresh = hub(shared.connect()).await;
    let subscription = fresh.topic("quiet").subscribe(id).await.unwrap();
    assert_eq!(subscription.gap(), None);
    let mut client = Client::of(subscription);
    publish(&fresh, "quiet", "next").await;
    settle().await;
    assert_eq!(client.read(), ["hub-cursor", "next"]);
}

async fn assert_gets_gap(shared: &Shared, id: EventId) {
    let fresh = hub(shared.connect()).await;
    assert!(fresh.topic("quiet").subscribe(id).await.unwrap().gap().is_some());
}

#[tokio::test(start_paused = true)]
async fn heartbeat_moves_cursor_of_quiet_client() {
    let shared = Shared::new(RETAINED);
    let hub = hub(shared.connect()).await;
    let mut client = quiet(&hub).await;
    let first = client.id();
    fill(&hub, RETAINED).await;
    assert_eq!(client.read(), [""; 0], "the cursor does not cause a frame of its own");
    heartbeat().await;
    assert_eq!(client.bytes(), format!("event: hub-cursor\nid: {}\ndata: \n\n", client.id()));
    fill(&hub, RETAINED - 1).await;
    assert_gets_gap(&shared, first).await;
    assert_resumes(&shared, client.id()).await;
}

#[tokio::test(start_paused = true)]
async fn heartbeat_stays_a_comment_if_nothing_moved() {
    let hub = hub(Shared::new(RETAINED).connect()).await;
    let mut client = quiet(&hub).await;
    for _ in 0..3 {
        heartbeat().await;
        assert_eq!(client.bytes(), ":\n");
    }
    publish(&hub, "quiet", "own").await;
    settle().await;
    assert_eq!(client.read(), ["own"]);
    heartbeat().await;
    assert_eq!(client.bytes(), ":\n", "the client has the id of the newest event");
    fill(&hub, 1).await;
    heartbeat().await;
    assert_eq!(client.read(), ["hub-cursor"]);
    heartbeat().await;
    assert_eq!(client.bytes(), ":\n");
}

#[tokio::test(start_paused = true)]
async fn hub_in_memory_keeps_cursors_without_heartbeats() {
    let hub = Hub::builder().max_events(2).build();
    let mut client = quiet(&hub).await;
    fill(&hub, 100).await;
    heartbeat().await;
    assert_eq!(client.bytes(), ":\n");
    assert!(hub.topic("quiet").subscribe(client.id()).await.unwrap().is_resumed());
}

/// Beyond 10,000 dropped topics, the hub has one eviction watermark for all topics.
#[tokio::test(start_paused = true)]
async fn hub_in_memory_moves_cursor_past_dropped_topics() {
    let hub = Hub::builder().max_age(Duration::from_secs(1)).build();
    let mut client = quiet(&hub).await;
    let first = client.id();
    for n in 0..10_100 {
        publish(&hub, &n.to_string(), "").await;
    }
    heartbeat().await;
    heartbeat().await;
    assert_eq!(client.read(), ["hub-cursor"]);
    let newer = client.id();
    // Now the hub also drops the topic of the client.
    drop(client);
    assert!(hub.topic("quiet").subscribe(newer).await.unwrap().is_resumed());
    assert!(hub.topic("quiet").subscribe(first).await.unwrap().gap().is_some());
}

#[tokio::test(start_paused = true)]
async fn client_without_control_events_gets_comments() {
    let hub = hub(Shared::new(RETAINED).connect()).await;
    let subscription = hub.topic("quiet").subscribe(Start::Latest).await.unwrap().without_control_events();
    let stop = CancellationToken::new();
    let layer = SseLayer::new().shutdown(stop.clone()).flush_time(Duration::ZERO);
    let mut client = Client::new(Polled::new(through(&layer, SseStream::new(subscription).into_http_response())));
    assert_eq!(client.bytes(), ":\n");
    fill(&hub, 5).await;
    heartbeat().await;
    assert_eq!(client.bytes(), ":\n");
    stop.cancel();
    assert_eq!(client.read(), [""; 0]);
    assert_eq!(client.last_event_id, "");
}

#[tokio::test(start_paused = true)]
async fn heartbeat_event_follows_cursor_in_one_frame() {
    let hub = hub(Shared::new(RETAINED).connect()).await;
    let subscription = hub.topic("quiet").subscribe(Start::Latest).await.unwrap();
    let beat = Heartbeat::default().event(Event::new("").event("beat"));
    let mut client = Client::new(Polled::new(SseStream::new(subscription).heartbeat(beat).into_http_response()));
    client.read();
    heartbeat().await;
    assert_eq!(client.read(), ["beat"]);
    fill(&hub, 1).await;
    heartbeat().await;
    let Poll::Ready(Some(Ok(frame))) = client.body.poll() else { panic!("a frame is due") };
    let types: Vec<_> = whatwg::parse(&frame).messages.into_iter().map(|message| message.r#type).collect();
    assert_eq!(types, ["hub-cursor", "beat"]);
    assert_eq!(client.body.poll(), Poll::Pending);
}

#[tokio::test(start_paused = true)]
async fn cursor_counts_as_heartbeat_and_not_as_event() {
    let hub = hub(Shared::new(RETAINED).connect()).await;
    let subscription = hub.topic("quiet").subscribe(Start::Latest).await.unwrap();
    let (sender, mut summaries) = mpsc::unbounded_channel();
    let stream = SseStream::new(subscription).on_close(move |summary| sender.send(summary).unwrap());
    let mut client = Client::new(Polled::new(stream.into_http_response()));
    client.read();
    fill(&hub, 1).await;
    heartbeat().await;
    client.read();
    heartbeat().await;
    client.read();
    drop(client);
    let summary = summaries.recv().await.unwrap();
    assert_eq!((summary.events, summary.heartbeats), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn shutdown_of_hub_sends_newest_cursor() {
    let shared = Shared::new(RETAINED);
    let ([one, other], _) = two(&shared, Hub::builder).await;
    for topics in [&["quiet"][..], &["quiet", "third"]] {
        let mut client = Client::of(one.subscribe(topics, Start::Latest).await.unwrap());
        client.read();
        let first = client.id();
        fill(&other, RETAINED).await;
        let ending = hub(shared.connect()).await;
        let mut moved = Client::of(ending.subscribe(topics, first.clone()).await.unwrap());
        assert_eq!(moved.read(), ["hub-cursor"]);
        fill(&other, RETAINED).await;
        ending.shutdown();
        assert_eq!(moved.read(), ["hub-cursor"]);
        assert_eq!(moved.body.poll(), Poll::Ready(None));
        fill(&other, RETAINED - 1).await;
        assert_gets_gap(&shared, first).await;
        assert_resumes(&shared, moved.id()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_of_hub_sends_unread_event_before_newest_cursor() {
    let shared = Shared::new(PLENTY);
    for topics in [&["quiet"][..], &["quiet", "third"]] {
        let ending = hub(shared.connect()).await;
        let mut client = Client::of(ending.subscribe(topics, Start::Latest).await.unwrap());
        client.read();
        publish(&ending, "quiet", "unread").await;
        fill(&ending, 1).await;
        ending.shutdown();
        assert_eq!(client.read(), ["unread", "hub-cursor"]);
    }
}

/// A client that lingers reads its events through a merge, also from a single topic.
#[tokio::test(start_paused = true)]
async fn shutdown_of_hub_sends_rest_of_backlog() {
    let ending = hub(Shared::new(PLENTY).connect()).await;
    let subscription = ending.topic("quiet").subscribe(Start::Latest).await.unwrap();
    let mut client = Client::of(subscription.linger(Duration::from_millis(1)));
    assert_eq!(client.read(), ["hub-cursor"]);
    for _ in 0..2 {
        publish(&ending, "quiet", "x".repeat(5_000)).await;
    }
    settle().await;
    assert_eq!(client.messages(1).len(), 1, "the second event needs a frame of its own");
    ending.shutdown();
    assert_eq!(client.read(), ["x".repeat(5_000)]);
}

/// The hub shuts down its topics in the order of their names. The client is polled after the first
/// of its topics, and before the second.
#[tokio::test(start_paused = true)]
async fn shutdown_between_topics_sends_unread_event() {
    let ending = hub(Shared::new(PLENTY).connect()).await;
    let mut client = Client::of(ending.subscribe(["a", "z"], Start::Latest).await.unwrap());
    client.read();
    for _ in 0..2 {
        publish(&ending, "a", "x".repeat(5_000)).await;
    }
    settle().await;
    assert_eq!(client.messages(1).len(), 1, "the second event needs a frame of its own");
    let mut between = ending.topic("m").subscribe(Start::Latest).await.unwrap();
    let (client, (sender, mut received)) = (Mutex::new(client), mpsc::unbounded_channel());
    let waker = Arc::new(AtWake(move || sender.send(client.lock().unwrap().read()).unwrap())).into();
    assert!(Pin::new(&mut between).poll_next(&mut Context::from_waker(&waker)).is_pending());
    ending.shutdown();
    assert_eq!(received.try_recv().unwrap(), ["x".repeat(5_000)]);
}

/// Calls a function when it is woken.
struct AtWake<F>(F);

impl<F: Fn() + Send + Sync + 'static> Wake for AtWake<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

/// The follower delivers the events of one page. The hub is shut down after the first of them.
#[tokio::test(start_paused = true)]
async fn shutdown_within_a_page_sends_no_cursor_past_its_rest() {
    let shared = Shared::new(PLENTY);
    let ([ending, other], [connection, _]) = two(&shared, Hub::builder).await;
    let mut client = quiet(&ending).await;
    let mut trigger = ending.topic("trigger").subscribe(Start::Latest).await.unwrap();
    let waker = {
        let hub = ending.clone();
        Arc::new(AtWake(move || hub.shutdown())).into()
    };
    assert!(Pin::new(&mut trigger).poll_next(&mut Context::from_waker(&waker)).is_pending());
    connection.set(Mode::Lags);
    publish(&other, "trigger", "").await;
    publish(&other, "quiet", "next").await;
    sleep(Duration::from_secs(60)).await;
    connection.set(Mode::Works);
    settle().await;
    client.read();
    let mut back = Client::of(other.topic("quiet").subscribe(client.id()).await.unwrap());
    assert_eq!(back.read(), ["hub-cursor", "next"]);
}

/// Ends the stream of a quiet client, and returns what it receives.
async fn at_end(
    layer: &SseLayer,
    adapt: impl FnOnce(SseStream<Subscription>) -> SseStream<Subscription>,
    end: impl AsyncFnOnce(),
) {
    let shared = Shared::new(RETAINED);
    let hub = hub(shared.connect()).await;
    let subscription = hub.topic("quiet").subscribe(Start::Latest).await.unwrap();
    let response = adapt(SseStream::new(subscription).without_heartbeat()).into_http_response();
    let mut client = Client::new(Polled::new(respond(layer, Request::new(()), response)));
    client.read();
    let first = client.id();
    fill(&hub, RETAINED).await;
    end().await;
    assert_eq!(client.read(), ["hub-cursor", "bye"]);
    assert_eq!(client.body.poll(), Poll::Ready(None));
    fill(&hub, RETAINED - 1).await;
    assert_gets_gap(&shared, first).await;
    assert_resumes(&shared, client.id()).await;
}

fn bye() -> Event {
    Event::new("bye")
}

#[tokio::test(start_paused = true)]
async fn end_by_layer_or_handler_sends_newest_cursor_first() {
    let stop = CancellationToken::new();
    let layer = SseLayer::new().shutdown(stop.clone()).flush_time(Duration::ZERO).shutdown_event(bye());
    at_end(&layer, |stream| stream, async || stop.cancel()).await;

    let registry = StreamRegistry::<u8>::new();
    let layer = SseLayer::new().register(&registry, |_| Some(1));
    at_end(&layer, |stream| stream, async || assert_eq!(registry.close_with(&1, bye()), 1)).await;

    let (sender, ended) = tokio::sync::oneshot::channel::<()>();
    let end_when = |stream: SseStream<Subscription>| {
        stream.end_when(async {
            let _ = ended.await;
            Some(bye())
        })
    };
    at_end(&SseLayer::new(), end_when, async || sender.send(()).unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn end_of_lifetime_sends_newest_cursor() {
    let shared = Shared::new(RETAINED);
    let hub = hub(shared.connect()).await;
    let subscription = hub.topic("quiet").subscribe(Start::Latest).await.unwrap();
    let stream = SseStream::new(subscription).max_lifetime(Duration::from_secs(5));
    let mut client = Client::new(Polled::new(stream.into_http_response()));
    client.read();
    fill(&hub, RETAINED).await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(client.read(), ["hub-cursor"]);
    assert_eq!(client.body.poll(), Poll::Ready(None));
    fill(&hub, RETAINED - 1).await;
    assert_resumes(&shared, client.id()).await;
}

#[tokio::test(start_paused = true)]
async fn end_sends_no_cursor_past_unread_event() {
    let hub = hub(Shared::new(PLENTY).connect()).await;
    for topics in [&["quiet"][..], &["quiet", "third"]] {
        let registry = StreamRegistry::<u8>::new();
        let layer = SseLayer::new().register(&registry, |_| Some(1));
        let subscription = hub.subscribe(topics, Start::Latest).await.unwrap();
        let response = SseStream::new(subscription).into_http_response();
        let mut client = Client::new(Polled::new(respond(&layer, Request::new(()), response)));
        client.read();
        let first = client.id();
        fill(&hub, 1).await;
        publish(&hub, "quiet", "unread").await;
        fill(&hub, 1).await;
        registry.close(&1);
        assert_eq!(client.read(), [""; 0], "the stream has ended before the event");
        assert_eq!(client.id(), first);
    }
}

/// A registry closes the stream while its body is polled, so the body discards the event.
#[tokio::test(start_paused = true)]
async fn close_during_poll_sends_no_cursor_past_discarded_event() {
    let hub = hub(Shared::new(PLENTY).connect()).await;
    let registry = StreamRegistry::<u8>::new();
    let layer = SseLayer::new().register(&registry, |_| Some(1));
    let subscription = hub.topic("quiet").subscribe(Start::Latest).await.unwrap();
    let closing = subscription.inspect(move |events| {
        if events.as_ref().is_ok_and(|events| events.count() > 0) {
            registry.close(&1);
        }
    });
    let response = SseStream::new(closing).into_http_response();
    let mut client = Client::new(Polled::new(respond(&layer, Request::new(()), response)));
    assert_eq!(client.read(), ["hub-cursor"]);
    let first = client.id();
    publish(&hub, "quiet", "discarded").await;
    fill(&hub, 1).await;
    assert_eq!(client.read(), [""; 0]);
    assert_eq!(client.id(), first);
}

/// An adapter that holds back each event of a subscription until it is let go.
struct HoldsBack<S: Stream> {
    inner: S,
    held: std::collections::VecDeque<S::Item>,
    let_go: UnboundedReceiverStream<()>,
}

impl<S: Stream<Item = Result<EncodedEvents, SubscriptionError>> + Unpin> Stream for HoldsBack<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        while let Poll::Ready(Some(item)) = Pin::new(&mut self.inner).poll_next(cx) {
            self.held.push_back(item);
        }
        let is_event = self.held.front().is_some_and(|item| item.as_ref().is_ok_and(|events| events.count() > 0));
        if is_event && pin!(self.let_go.next()).poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.held.pop_front().map_or(Poll::Pending, |item| Poll::Ready(Some(item)))
    }
}

#[tokio::test(start_paused = true)]
async fn cursor_does_not_pass_event_in_an_adapter() {
    let hub = hub(Shared::new(PLENTY).connect()).await;
    let (sender, receiver) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let layer = SseLayer::new().shutdown(stop.clone()).flush_time(Duration::ZERO);
    let inner = hub.topic("quiet").subscribe(Start::Latest).await.unwrap();
    let adapter = HoldsBack { inner, held: [].into(), let_go: UnboundedReceiverStream::new(receiver) };
    let response = SseStream::new(adapter).into_http_response();
    let mut client = Client::new(Polled::new(through(&layer, response)));
    assert_eq!(client.read(), ["hub-cursor"]);
    for data in ["1", "2"] {
        publish(&hub, "quiet", data).await;
        fill(&hub, 1).await;
        assert_eq!(client.read(), [""; 0]);
    }
    heartbeat().await;
    assert_eq!(client.bytes(), ":\n");
    sender.send(()).unwrap();
    assert_eq!(client.read(), ["1"]);
    let first = client.id();
    stop.cancel();
    assert_eq!(client.read(), [""; 0]);
    assert_eq!(client.id(), first, "the second event did not reach the client");
}

/// The body polls the stream once more at its end, for the cursor alone.
#[tokio::test(start_paused = true)]
async fn end_sends_no_item_of_another_stream() {
    let hub = hub(Shared::new(PLENTY).connect()).await;
    let (sender, receiver) = mpsc::unbounded_channel();
    let registry = StreamRegistry::<u8>::new();
    let layer = SseLayer::new().register(&registry, |_| Some(1));
    let subscription = hub.topic("quiet").subscribe(Start::Latest).await.unwrap();
    let others = UnboundedReceiverStream::new(receiver).map(|event: Event| Ok(event.into()));
    let merged = SseStream::new(tokio_stream::StreamExt::merge(subscription, others)).into_http_response();
    let mut client = Client::new(Polled::new(respond(&layer, Request::new(()), merged)));
    assert_eq!(client.read(), ["hub-cursor"]);
    sender.send(Event::new("late")).unwrap();
    registry.close(&1);
    assert_eq!(client.read(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn merged_subscriptions_get_no_common_cursor() {
    let hub = hub(Shared::new(PLENTY).connect()).await;
    let subscribe = async |topic| hub.topic(topic).subscribe(Start::Latest).await.unwrap();
    let merged = tokio_stream::StreamExt::merge(subscribe("a").await, subscribe("b").await);
    let mut client = Client::of(merged);
    client.read();
    fill(&hub, 1).await;
    heartbeat().await;
    assert_eq!(client.bytes(), ":\n");
}

type Events = futures_util::stream::BoxStream<'static, Result<EncodedEvents, SubscriptionError>>;

async fn source(hub: &Hub, topic: &str, is_listener: bool) -> Events {
    if is_listener {
        let listener = hub.listen([topic], Start::Latest).await.unwrap();
        listener.map(|event| event.map(|event| EncodedEvents::from(event.event.id(event.id)))).boxed()
    } else {
        hub.topic(topic).subscribe(Start::Latest).await.unwrap().boxed()
    }
}

/// A source with a snapshot that fills the first frame, so that the body polls no other source.
async fn large(hub: &Hub) -> Events {
    let large = hub.topic("a").subscribe(Start::Latest).await.unwrap();
    large.begin_with([Event::new("x".repeat(5_000))]).boxed()
}

#[tokio::test(start_paused = true)]
async fn early_end_skips_no_event_of_another_source() {
    let hub = hub(Shared::new(PLENTY).connect()).await;
    for is_listener in [false, true] {
        let (large, other) = (large(&hub).await, source(&hub, "b", is_listener).await);
        let stop = CancellationToken::new();
        let response = SseStream::new(tokio_stream::StreamExt::merge(large, other)).into_http_response();
        let layer = SseLayer::new().shutdown(stop.clone()).flush_time(Duration::ZERO);
        let mut client = Client::new(Polled::new(through(&layer, response)));
        assert_eq!(client.messages(1).len(), 1, "the snapshot");
        publish(&hub, "b", "undelivered").await;
        settle().await;
        stop.cancel();
        let rest = client.read();
        assert!(!rest.contains(&"hub-cursor".to_owned()), "listener: {is_listener}: {rest:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_of_hub_sends_events_of_all_sources_without_cursor() {
    for (is_listener, is_first) in [(false, false), (false, true), (true, false), (true, true)] {
        let hub = hub(Shared::new(PLENTY).connect()).await;
        let quiet = source(&hub, "a", false).await;
        let other = source(&hub, "b", is_listener).await;
        let (one, two) = if is_first { (other, quiet) } else { (quiet, other) };
        let mut client = Client::of(tokio_stream::StreamExt::merge(one, two));
        client.read();
        publish(&hub, "b", "undelivered").await;
        settle().await;
        hub.shutdown();
        assert_eq!(client.read(), ["undelivered"], "listener: {is_listener}, first: {is_first}");
        assert!(client.has_ended);
    }
}

/// Polls one source after the other, each at the same address.
struct Rotating(Vec<Subscription>);

impl Stream for Rotating {
    type Item = Result<EncodedEvents, SubscriptionError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        for _ in 0..self.0.len() {
            let polled = Pin::new(&mut self.0[0]).poll_next(cx);
            self.0.rotate_left(1);
            if polled.is_ready() {
                return polled;
            }
        }
        Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_of_hub_skips_no_event_of_source_at_same_address() {
    let hub = hub(Shared::new(PLENTY).connect()).await;
    let subscribe = async |topic| hub.topic(topic).subscribe(Start::Latest).await.unwrap();
    let mut client = Client::of(Rotating(vec![subscribe("a").await, subscribe("b").await]));
    client.read();
    publish(&hub, "b", "undelivered").await;
    settle().await;
    hub.shutdown();
    assert_eq!(client.read(), ["undelivered"]);
    assert!(client.has_ended);
}

/// The adapter polls the second source only if the first one is pending.
#[tokio::test(start_paused = true)]
async fn shutdown_of_hub_skips_no_event_of_unpolled_source() {
    for is_listener in [false, true] {
        let hub = hub(Shared::new(PLENTY).connect()).await;
        let (large, other) = (large(&hub).await, source(&hub, "b", is_listener).await);
        let first_only = |_: &mut ()| futures_util::stream::PollNext::Left;
        let mut client = Client::of(futures_util::stream::select_with_strategy(large, other, first_only));
        assert!(client.messages(1).iter().any(|message| message.data.len() == 5_000), "the snapshot");
        publish(&hub, "b", "undelivered").await;
        settle().await;
        hub.shutdown();
        assert_eq!(client.read(), ["undelivered"], "listener: {is_listener}");
        assert!(client.has_ended);
    }
}

/// A task can forward the events of several subscriptions to one client.
#[tokio::test(start_paused = true)]
async fn subscription_outside_a_response_ends_without_cursor() {
    let hub = hub(Shared::new(PLENTY).connect()).await;
    let mut quiet = hub.topic("quiet").subscribe(Start::Latest).await.unwrap();
    fill(&hub, 1).await;
    hub.shutdown();
    assert!(matches!(quiet.next().await, Some(Err(SubscriptionError::Shutdown))));
}

/// The body polls both sources before the first heartbeat.
#[tokio::test(start_paused = true)]
async fn heartbeat_is_no_cursor_beside_a_listener() {
    let hub = hub(Shared::new(PLENTY).connect()).await;
    let (events, listener) = (source(&hub, "a", false).await, source(&hub, "b", true).await);
    let mut client = Client::of(tokio_stream::StreamExt::merge(events, listener));
    client.read();
    fill(&hub, 1).await;
    heartbeat().await;
    assert_eq!(client.bytes(), ":\n");
}

#[tokio::test(start_paused = true)]
async fn cursor_passes_through_adapters() {
    type Adapt = fn(Subscription) -> Events;
    let adapters: [Adapt; 5] = [
        |events| events.boxed(),
        |events| tokio_stream::StreamExt::merge(events, futures_util::stream::pending()).boxed(),
        |events| events.filter(|_| std::future::ready(true)).boxed(),
        |events| futures_util::stream::select(futures_util::stream::pending(), events).boxed(),
        // Moves the subscription before each poll.
        |events| {
            let mut places = [Some(events), None];
            let poll = move |cx: &mut Context<'_>| {
                places.swap(0, 1);
                places.iter_mut().flatten().next().unwrap().poll_next_unpin(cx)
            };
            futures_util::stream::poll_fn(poll).boxed()
        },
    ];
    let hub = hub(Shared::new(PLENTY).connect()).await;
    for adapt in adapters {
        let stop = CancellationToken::new();
        let layer = SseLayer::new().shutdown(stop.clone()).flush_time(Duration::ZERO);
        let subscription = hub.topic("quiet").subscribe(Start::Latest).await.unwrap();
        let response = SseStream::new(adapt(subscription)).into_http_response();
        let mut client = Client::new(Polled::new(through(&layer, response)));
        client.read();
        fill(&hub, 1).await;
        heartbeat().await;
        assert_eq!(client.read(), ["hub-cursor"]);
        fill(&hub, 1).await;
        stop.cancel();
        assert_eq!(client.read(), ["hub-cursor"]);
    }
}

#[tokio::test(start_paused = true)]
async fn cursor_of_many_topics_moves() {
    let shared = Shared::new(RETAINED);
    let hub = hub(shared.connect()).await;
    let topics = || (0..300).map(|n| n.to_string()).chain(["quiet".to_owned()]);
    let linger = Duration::from_millis(100);
    let lingering = hub.subscribe(topics(), Start::Latest).await.unwrap().linger(linger);
    let mut clients = [
        Client::of(hub.subscribe(topics(), Start::Latest).await.unwrap()),
        Client::of(lingering),
        Client::of(hub.topic("quiet").subscribe(Start::Latest).await.unwrap().linger(linger)),
    ];
    // The first look at the topics takes several polls.
    clients.iter_mut().for_each(|client| drop((client.read(), client.read())));
    fill(&hub, RETAINED).await;
    heartbeat().await;
    for client in &mut clients {
        assert_eq!(client.read(), ["hub-cursor"]);
    }
    publish(&hub, "quiet", "own").await;
    settle().await;
    for client in &mut clients {
        assert_eq!(client.read(), ["own"], "the cursor begins no pause");
    }
    heartbeat().await;
    for client in &mut clients {
        assert_eq!(client.bytes(), ":\n");
    }
}

#[tokio::test(start_paused = true)]
async fn finished_topic_of_several_does_not_stop_the_cursor() {
    let hub = hub(Shared::new(PLENTY).connect()).await;
    let mut client = Client::of(hub.subscribe(["quiet", "done"], Start::Latest).await.unwrap());
    client.read();
    hub.topic("done").finish().await.unwrap();
    settle().await;
    assert_eq!(client.read(), [""; 0]);
    heartbeat().await;
    assert_eq!(client.read(), ["hub-cursor"]);
}

#[tokio::test(start_paused = true)]
async fn cursor_does_not_move_during_a_replay() {
    let shared = Shared::new(PLENTY);
    let ([one, other], [_, connection]) = two(&shared, || Hub::builder().max_events(1)).await;
    let early = publish(&one, "quiet", 0).await;
    publish(&one, "quiet", 1).await;
    publish(&one, "quiet", 2).await;
    settle().await;
    connection.set(Mode::Hangs);
    let stop = CancellationToken::new();
    let layer = SseLayer::new().shutdown(stop.clone()).flush_time(Duration::ZERO);
    let subscribe = || async { other.topic("quiet").subscribe(early.clone()).await.unwrap() };
    let response = SseStream::new(subscribe().await).into_http_response();
    let mut ended = Client::new(Polled::new(through(&layer, response)));
    let mut client = Client::of(subscribe().await);
    for client in [&mut client, &mut ended] {
        client.read();
        assert_eq!(client.id(), early);
    }
    heartbeat().await;
    stop.cancel();
    assert_eq!((client.bytes(), ended.read().len()), (":\n".to_owned(), 0));
    assert_eq!((client.id(), ended.id()), (early.clone(), early));
    connection.set(Mode::Works);
    let mut received = Vec::new();
    for _ in 0..4 {
        heartbeat().await;
        received.extend(client.read());
    }
    assert_eq!(received, ["1", "2"]);
}

/// A replay moves the cursor to the end of a page, which is after the events in it.
#[tokio::test(start_paused = true)]
async fn client_gets_end_of_replayed_page_as_cursor() {
    let shared = Shared::new(PLENTY);
    let ([one, other], [_, connection]) = two(&shared, || Hub::builder().max_events(1)).await;
    let early = publish(&one, "quiet", 0).await;
    publish(&one, "quiet", 1).await;
    publish(&one, "quiet", 2).await;
    fill(&one, 3).await;
    let newest = publish(&one, "other", "").await;
    settle().await;
    connection.set(Mode::Hangs);
    let mut client = Client::of(other.topic("quiet").subscribe(early).await.unwrap());
    assert_eq!(client.read(), ["hub-cursor"]);
    connection.set(Mode::Works);
    let mut received = Vec::new();
    for _ in 0..4 {
        heartbeat().await;
        received.extend(client.read());
    }
    assert_eq!(received, ["1", "2", "hub-cursor"]);
    assert_eq!(client.id(), newest);
}

#[tokio::test(start_paused = true)]
async fn cursor_of_node_behind_does_not_move_back() {
    let ([one, other], [_, connection]) = two(&Shared::new(PLENTY), Hub::builder).await;
    connection.set(Mode::Lags);
    let newest = publish(&one, "other", 0).await;
    publish(&one, "other", 1).await;
    let mut client = Client::of(other.topic("quiet").subscribe(newest.clone()).await.unwrap());
    client.read();
    assert_eq!(client.id(), newest);
    heartbeat().await;
    assert_eq!(client.bytes(), ":\n");
    connection.set(Mode::Works);
    heartbeat().await;
    heartbeat().await;
    assert_eq!(client.read(), ["hub-cursor"]);
}

#[tokio::test(start_paused = true)]
async fn snapshot_comes_before_a_newer_cursor() {
    let hub = hub(Shared::new(PLENTY).connect()).await;
    let subscription = hub.topic("quiet").subscribe(Start::Latest).await.unwrap().begin_with(Event::new("state"));
    let mut client = Client::of(subscription);
    fill(&hub, 3).await;
    heartbeat().await;
    assert_eq!(client.read(), ["state"]);
    heartbeat().await;
    assert_eq!(client.read(), ["hub-cursor"]);
}

#[tokio::test(start_paused = true)]
async fn replaced_log_gives_no_cursor_of_the_other_log() {
    let shared = Shared::new(PLENTY);
    let ([one, other], connections) = two(&shared, Hub::builder).await;
    let mut client = quiet(&one).await;
    let first = client.id();
    shared.replace(PLENTY, Vec::new());
    connections.iter().for_each(|connection| connection.set(Mode::Fails));
    settle().await;
    connections.iter().for_each(|connection| connection.set(Mode::Works));
    sleep(Duration::from_secs(3)).await;
    fill(&other, 5).await;
    assert_eq!(client.read(), [""; 0]);
    assert_eq!(client.id(), first);
    assert_eq!(client.body.poll(), Poll::Ready(None));
}
