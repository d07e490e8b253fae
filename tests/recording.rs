//! Recordings of a hub in memory: a stream is published into a topic, and the topic is finished
//! however the recording ends. Recordings on several nodes are tested in `tests/nodes`.

use futures_util::FutureExt;
use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Wake, Waker},
    thread,
    time::Duration,
};
use support::whatwg;
use tokio::{
    sync::mpsc,
    task::yield_now,
    time::{Instant, sleep, timeout},
};
use tokio_stream::{Stream, StreamExt, wrappers::UnboundedReceiverStream};
use tower_sse::{
    BoxError, EncodedEvents, Event,
    hub::{ErrorKind, Hub, Outcome, Recording, Start, Subscription, Topic},
};

const SECOND: Duration = Duration::from_secs(1);

type Item = Result<Event, BoxError>;

/// A stream that the test feeds.
fn channel() -> (mpsc::UnboundedSender<Item>, impl Stream<Item = Item> + Send + 'static) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, UnboundedReceiverStream::new(receiver))
}

/// Returns all messages of a topic, which is finished.
async fn all(topic: &Topic) -> Vec<String> {
    let mut subscription = topic.subscribe(Start::Earliest).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(events) = timeout(60 * SECOND, subscription.next()).await.expect("the topic is finished") {
        bytes.extend_from_slice(events.unwrap().as_bytes());
    }
    whatwg::parse(&bytes).messages.into_iter().map(|message| format!("{}: {}", message.r#type, message.data)).collect()
}

#[tokio::test(start_paused = true)]
async fn recording_in_memory_is_announced_at_once() {
    let hub = Hub::new();
    let recording = hub.topic("answer").record(tokio_stream::once(Event::new("1"))).start();
    assert!(recording.announced().now_or_never().expect("it does not wait").is_ok());
    assert_eq!(recording.outcome().await, Outcome::Finished);
    recording.announced().await.expect("it was announced");
    let again = hub.topic("answer").record(tokio_stream::pending::<Event>()).start();
    assert_eq!(again.announced().await.unwrap_err().kind(), ErrorKind::Finished);
    hub.shutdown();
    let late = hub.topic("late").record(tokio_stream::pending::<Event>()).start();
    assert_eq!(late.announced().await.unwrap_err().kind(), ErrorKind::Shutdown);
}

/// Records the topic again when its subscription is woken.
struct RecordsAgain {
    topic: Topic,
    subscription: Mutex<Option<Subscription>>,
    again: Mutex<Option<Recording>>,
}

impl Wake for RecordsAgain {
    fn wake(self: Arc<Self>) {
        let Some(subscription) = self.subscription.lock().unwrap().take() else { return };
        drop(subscription);
        self.topic.remove().now_or_never().expect("it does not wait").unwrap();
        *self.again.lock().unwrap() = Some(self.topic.record(tokio_stream::pending::<Event>()).start());
    }
}

#[tokio::test(start_paused = true)]
async fn finish_ends_no_recording_that_starts_after_it() {
    let topic = Hub::new().topic("a");
    let mut subscription = topic.subscribe(Start::Latest).await.unwrap();
    let records =
        Arc::new(RecordsAgain { topic: topic.clone(), subscription: Mutex::default(), again: Mutex::default() });
    let waker = Waker::from(records.clone());
    assert!(Pin::new(&mut subscription).poll_next(&mut Context::from_waker(&waker)).is_pending());
    *records.subscription.lock().unwrap() = Some(subscription);
    topic.finish().await.unwrap();
    let again = records.again.lock().unwrap().take().expect("the subscription was woken");
    assert!(timeout(60 * SECOND, again.outcome()).await.is_err(), "it runs");
    assert!(!is_finished(&topic).await);
    topic.finish().await.unwrap();
    assert_eq!(timeout(SECOND, again.outcome()).await, Ok(Outcome::Interrupted));
}

/// The task of the earlier recording runs when the topic has a newer recording.
#[tokio::test(start_paused = true)]
async fn ended_recording_does_not_end_its_successor() {
    for is_stopped in [false, true] {
        let topic = Hub::new().topic("a");
        let recorder = topic.record(tokio_stream::pending::<Event>());
        let earlier = recorder.on_stop(|_| Some(Event::new("stopped"))).start();
        sleep(SECOND).await;
        if is_stopped {
            earlier.stop();
        }
        topic.finish().await.unwrap();
        topic.remove().await.unwrap();
        let (sender, items) = channel();
        let later = topic.record(items).end_with(Event::new("end")).start();
        assert_eq!(earlier.outcome().await, Outcome::Interrupted);
        sender.send(Ok(Event::new("1"))).unwrap();
        drop(sender);
        assert_eq!(timeout(SECOND, later.outcome()).await, Ok(Outcome::Finished));
        assert_eq!(all(&topic).await, ["message: 1", "message: end"], "{is_stopped}");
    }
}

/// One thread finishes and removes topics, another publishes their recordings. A third thread makes
/// both of them wait for the hub.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn ended_recording_does_not_bring_a_removed_topic_back() {
    const ROUNDS: usize = 100;
    let hub = Hub::new();
    let is_done = Arc::new(AtomicBool::new(false));
    let busy = thread::spawn({
        let (other, is_done) = (hub.topic("other"), is_done.clone());
        move || {
            while !is_done.load(Relaxed) {
                other.publish_now(Event::new("1")).unwrap();
            }
        }
    });
    let mut returned = 0;
    for round in 0..ROUNDS {
        let topic = hub.topic(format!("topic {round}"));
        let events = tokio_stream::iter(std::iter::repeat_with(|| Event::new("1")));
        let recording = topic.record(events.then(async |event| (yield_now().await, event).1)).start();
        while !topic.exists() {
            yield_now().await;
        }
        topic.finish().await.unwrap();
        topic.remove().await.unwrap();
        assert_eq!(recording.outcome().await, Outcome::Interrupted);
        returned += usize::from(topic.exists());
    }
    is_done.store(true, Relaxed);
    busy.join().unwrap();
    assert_eq!(returned, 0, "rounds of {ROUNDS} in which the topic exists");
}

async fn is_finished(topic: &Topic) -> bool {
    topic.publish(Event::new("late")).await.is_err_and(|error| error.kind() == ErrorKind::Finished)
}

#[tokio::test(start_paused = true)]
async fn whole_stream_and_its_end_are_published_without_clients() {
    let hub = Hub::new();
    let topic = hub.topic("answer");
    let items = (0..200).map(|n| Event::display(n).id(n + 1_000_u64));
    let recording = topic.record(tokio_stream::iter(items)).end_with(Event::new("[DONE]")).start();
    assert_eq!(recording.topic(), "answer");
    assert_eq!(recording.outcome().await, Outcome::Finished);
    let mut expected: Vec<_> = (0..200).map(|n| format!("message: {n}")).collect();
    expected.push("message: [DONE]".to_owned());
    assert_eq!(all(&topic).await, expected);
    assert!(is_finished(&topic).await);
}

#[tokio::test(start_paused = true)]
async fn recorded_state_retains_its_newest_event() {
    let hub = Hub::new();
    let topic = hub.topic("progress").latest_only();
    let (sender, items) = channel();
    let recording = topic.record(items).end_with(Event::new("done")).start();
    for n in 0..3 {
        sender.send(Ok(Event::display(n))).unwrap();
        sleep(SECOND).await;
        assert_eq!(hub.stats().events, 1);
    }
    drop(sender);
    assert_eq!(recording.outcome().await, Outcome::Finished);
    assert_eq!(all(&topic).await, ["message: done"]);
}

#[tokio::test(start_paused = true)]
async fn events_of_encoded_items_are_published_one_by_one() {
    let topic = Hub::new().topic("encoded");
    let item: EncodedEvents = [
        Event::new("a\nb").id(1),
        Event::default().event("x"),
        Event::new("id: 7\n\n").event("y"),
        // The name is in front of the id, and the third event has no field.
        Event::new("c").id(2).event("z"),
        Event::default(),
        Event::new(""),
    ]
    .into_iter()
    .collect();
    topic.record(tokio_stream::once(item)).end_with(Event::new("end").id(3).event("w")).start().outcome().await;
    assert_eq!(all(&topic).await, ["message: a\nb", "x: ", "y: id: 7\n\n", "z: c", "message: ", "w: end"]);
}

#[tokio::test(start_paused = true)]
async fn error_is_the_last_event_after_everything_before_it() {
    let topic = Hub::new().topic("failing");
    let items = [Ok(Event::new("1")), Ok(Event::new("2")), Err("no more tokens"), Ok(Event::new("3"))];
    let recording = topic
        .record(tokio_stream::iter(items))
        .on_error(|error| Some(Event::display(error).event("failed")))
        .end_with(Event::new("never"))
        .start();
    assert_eq!(recording.outcome().await, Outcome::Failed);
    assert_eq!(all(&topic).await, ["message: 1", "message: 2", "failed: no more tokens"]);
}

#[tokio::test(start_paused = true)]
async fn panic_of_the_stream_or_a_callback_is_an_error() {
    let hub = Hub::new();
    let mut polls = 0;
    let panics = futures_util::stream::poll_fn(move |_| {
        polls += 1;
        assert!(polls < 2, "the model has a bug");
        std::task::Poll::Ready(Some(Event::new("1")))
    });
    let topic = hub.topic("stream");
    let recording = topic.record(panics).on_error(|error| Some(Event::display(error).event("failed"))).start();
    assert_eq!(recording.outcome().await, Outcome::Failed);
    assert_eq!(all(&topic).await, ["message: 1", "failed: the stream has panicked"]);

    let topic = hub.topic("callback");
    let failing = tokio_stream::once(Item::Err("x".into()));
    let recording = topic.record(failing).on_error(|_| panic!("the callback has a bug")).start();
    assert_eq!(recording.outcome().await, Outcome::Failed);
    assert!(is_finished(&topic).await);
}

#[tokio::test(start_paused = true)]
async fn event_with_a_reserved_name_fails_the_recording() {
    let topic = Hub::new().topic("reserved");
    let items = [Event::new("1"), Event::new("2").event("gap")];
    let recording = topic
        .record(tokio_stream::iter(items).throttle(SECOND))
        .on_error(|error| Some(Event::display(error).event("failed")))
        .start();
    assert_eq!(recording.outcome().await, Outcome::Failed);
    let messages = all(&topic).await;
    assert_eq!(messages[0], "message: 1");
    assert!(messages[1].starts_with("failed: the event name \"gap\" is reserved"), "{messages:?}");
}

#[tokio::test(start_paused = true)]
async fn stopped_recording_drops_its_stream_before_its_last_event() {
    struct Model(Arc<AtomicBool>);
    impl Drop for Model {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }
    let hub = Hub::new();
    let topic = hub.topic("stopped");
    let is_dropped = Arc::new(AtomicBool::new(false));
    let model = Model(is_dropped.clone());
    let (sender, items) = channel();
    let items = items.map(move |item| (item, &model).0);
    let recording = topic.record(items).on_stop(|outcome| Some(Event::new(format!("{outcome:?}")))).start();
    sender.send(Ok(Event::new("1"))).unwrap();
    for _ in 0..5 {
        yield_now().await;
    }
    assert!(!is_dropped.load(Relaxed));
    recording.clone().stop();
    recording.stop();
    assert_eq!(recording.outcome().await, Outcome::Stopped);
    assert!(is_dropped.load(Relaxed));
    assert_eq!(all(&topic).await, ["message: 1", "message: Stopped"]);
    assert!(sender.send(Ok(Event::new("2"))).is_err());
}

#[tokio::test(start_paused = true)]
async fn topic_stops_its_recording() {
    let hub = Hub::new();
    let (_sender, items) = channel();
    let recording = hub.topic("stopped").record(items).start();
    hub.topic("other").stop_recording().await.unwrap();
    assert!(timeout(SECOND, recording.outcome()).await.is_err());
    hub.topic("stopped").stop_recording().await.unwrap();
    assert_eq!(recording.outcome().await, Outcome::Stopped);
}

#[tokio::test(start_paused = true)]
async fn recording_continues_when_its_handle_and_hub_are_dropped() {
    let hub = Hub::new();
    let topic = hub.topic("dropped");
    let (sender, items) = channel();
    drop(topic.record(items).start());
    drop(hub);
    sleep(SECOND).await;
    sender.send(Ok(Event::new("1"))).unwrap();
    drop(sender);
    assert_eq!(all(&topic).await, ["message: 1"]);
}

#[tokio::test(start_paused = true)]
async fn time_limit_ends_a_recording() {
    let topic = Hub::new().topic("endless");
    let begun = Instant::now();
    let endless = futures_util::stream::repeat_with(|| Event::new("x")).throttle(SECOND);
    let recording =
        topic.record(endless).time_limit(10 * SECOND).on_stop(|_| Some(Event::new("too long").event("failed"))).start();
    assert_eq!(recording.outcome().await, Outcome::TimedOut);
    assert_eq!(begun.elapsed(), 10 * SECOND);
    assert_eq!(all(&topic).await.last().unwrap(), "failed: too long");
}

#[tokio::test(start_paused = true)]
async fn recording_without_subscribers_is_abandoned() {
    let hub = Hub::new();
    let topic = hub.topic("abandoned");
    let (_sender, items) = channel();
    let begun = Instant::now();
    let recording = topic.record(items).abandon_after(30 * SECOND).start();
    sleep(29 * SECOND).await;
    // A client that reconnects is away for less than the time.
    for _ in 0..4 {
        let subscription = topic.subscribe(Start::Earliest).await.unwrap();
        sleep(20 * SECOND).await;
        drop(subscription);
        sleep(28 * SECOND).await;
    }
    assert_eq!(recording.outcome().await, Outcome::Abandoned);
    let without = begun.elapsed() - (29 + 4 * 48) * SECOND;
    assert!(without >= 2 * SECOND && without < 4 * SECOND, "{without:?}");
}

#[tokio::test(start_paused = true)]
async fn topic_with_a_subscriber_is_never_abandoned() {
    let topic = Hub::new().topic("a");
    let (_sender, items) = channel();
    let _subscription = topic.subscribe(Start::Earliest).await.unwrap();
    let recording = topic.record(items).abandon_after(Duration::ZERO).start();
    assert!(timeout(10 * SECOND, recording.outcome()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn large_or_reserved_will_fails_the_recording() {
    let hub = Hub::new();
    for (number, will) in [Event::new("x".repeat(20_000)), Event::new("").event("gap")].into_iter().enumerate() {
        let topic = hub.topic(format!("{number}"));
        let recording =
            topic.record(channel().1).will(will).on_error(|error| Some(Event::display(error).event("failed"))).start();
        assert_eq!(recording.outcome().await, Outcome::Failed);
        assert!(all(&topic).await[0].starts_with("failed: the "));
    }
}

#[tokio::test(start_paused = true)]
async fn reserved_name_of_end_fails_the_recording_at_its_start() {
    let topic = Hub::new().topic("a");
    let (_sender, items) = channel();
    let recording = topic
        .record(items)
        .end_with(Event::new("").event("gap"))
        .on_error(|error| Some(Event::display(error).event("failed")))
        .start();
    assert_eq!(timeout(SECOND, recording.outcome()).await, Ok(Outcome::Failed));
    assert!(all(&topic).await[0].starts_with("failed: the event name \"gap\" is reserved"));
}

#[tokio::test(start_paused = true)]
async fn recording_of_a_finished_topic_is_interrupted() {
    let topic = Hub::new().topic("finished");
    let (sender, items) = channel();
    let recording = topic.record(items).end_with(Event::new("never")).start();
    sender.send(Ok(Event::new("1"))).unwrap();
    sleep(SECOND).await;
    topic.finish().await.unwrap();
    assert_eq!(timeout(SECOND, recording.outcome()).await, Ok(Outcome::Interrupted));
    assert_eq!(all(&topic).await, ["message: 1"]);
}

#[tokio::test(start_paused = true)]
async fn shutdown_interrupts_a_recording() {
    let hub = Hub::new();
    let (_sender, items) = channel();
    let recording = hub.topic("a").record(items).start();
    sleep(SECOND).await;
    hub.shutdown();
    assert_eq!(timeout(SECOND, recording.outcome()).await, Ok(Outcome::Interrupted));
    let (_sender, items) = channel();
    let late = hub.topic("b").record(items).start();
    assert_eq!(timeout(SECOND, late.outcome()).await, Ok(Outcome::Interrupted));
}

#[tokio::test(start_paused = true)]
async fn drained_recordings_end_by_themselves_or_with_their_will() {
    let hub = Hub::new();
    assert_eq!(hub.drain_recordings(SECOND).await, 0);
    let (sender, items) = channel();
    let finishes = hub.topic("finishes").record(items).will(Event::new("will")).start();
    let (_sender, items) = channel();
    let lasts = hub.topic("lasts").record(items).will(Event::new("will")).start();
    let begun = Instant::now();
    tokio::spawn(async move {
        sleep(5 * SECOND).await;
        sender.send(Ok(Event::new("done"))).unwrap();
    });
    assert_eq!(hub.drain_recordings(20 * SECOND).await, 1);
    assert_eq!(begun.elapsed(), 20 * SECOND);
    assert_eq!((finishes.outcome().await, lasts.outcome().await), (Outcome::Finished, Outcome::Interrupted));
    assert_eq!(all(&hub.topic("finishes")).await, ["message: done"]);
    assert_eq!(all(&hub.topic("lasts")).await, ["message: will"]);
}

#[tokio::test(start_paused = true)]
async fn drain_interrupts_recordings_that_start_meanwhile() {
    let hub = Hub::new();
    let (_sender, items) = channel();
    let first = hub.topic("first").record(items).start();
    let handler = tokio::spawn({
        let hub = hub.clone();
        async move {
            first.outcome().await;
            let (_sender, items) = channel();
            hub.topic("second").record(items).start().outcome().await
        }
    });
    timeout(10 * SECOND, hub.drain_recordings(SECOND)).await.expect("it ends");
    // The second recording may start after the drain.
    hub.drain_recordings(SECOND).await;
    assert_eq!(handler.await.unwrap(), Outcome::Interrupted);
}

#[test]
fn stream_that_is_always_ready_can_be_stopped() {
    let (sender, outcome) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let endless = futures_util::stream::repeat_with(|| Event::new("x"));
            let recording = Hub::builder().max_events(100).build().topic("endless").record(endless).start();
            sleep(SECOND / 10).await;
            recording.stop();
            sender.send(recording.outcome().await).unwrap();
        });
    });
    assert_eq!(outcome.recv_timeout(20 * SECOND), Ok(Outcome::Stopped));
}

#[tokio::test]
async fn start_outside_of_a_runtime_leaves_nothing_behind() {
    let hub = Hub::new();
    let recorder = hub.topic("a").record(tokio_stream::pending::<Event>());
    assert!(thread::spawn(move || recorder.start()).join().is_err());
    assert_eq!(timeout(SECOND, hub.drain_recordings(SECOND * 20)).await, Ok(0));
}

#[tokio::test(start_paused = true)]
async fn topic_is_finished_even_if_dropping_the_stream_panics() {
    struct Panics;
    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("the client of the model has a bug");
        }
    }
    let topic = Hub::new().topic("a");
    let guard = Panics;
    let (_sender, items) = channel();
    let recording = topic.record(items.map(move |item| (item, &guard).0)).start();
    sleep(SECOND).await;
    recording.stop();
    assert_eq!(recording.outcome().await, Outcome::Stopped);
    assert!(is_finished(&topic).await);
}

#[tokio::test(start_paused = true)]
async fn recording_that_cannot_create_its_topic_fails() {
    let hub = Hub::builder().max_topics(1).build();
    hub.topic("only").publish(Event::new("x")).await.unwrap();
    let recording = hub.topic("more").record(tokio_stream::once(Event::new("1"))).start();
    assert_eq!(recording.outcome().await, Outcome::Failed);
    // A recording without events cannot finish a topic that does not exist.
    let topic = hub.topic("more");
    let recording = topic.record(tokio_stream::empty::<Event>()).start();
    assert_eq!(recording.outcome().await, Outcome::Failed);
    hub.topic("only").remove().await.unwrap();
    topic.publish(Event::new("not finished")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn topic_with_a_huge_name_is_not_recorded() {
    let hub = Hub::new();
    for (length, outcome) in [(16 << 10, Outcome::Finished), ((16 << 10) + 1, Outcome::Interrupted)] {
        let topic = hub.topic("n".repeat(length));
        let recording = topic.record(tokio_stream::iter([Event::new("1")])).start();
        assert_eq!(recording.outcome().await, outcome, "{length}");
        let error = recording.announced().await.err().map(|error| error.kind());
        assert_eq!(error.is_some_and(|kind| kind == ErrorKind::TopicTooLong), outcome == Outcome::Interrupted);
    }
}
