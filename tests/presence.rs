//! Presence in a hub in memory: the members of topics, the grace time after the last subscription
//! of a member, and the events of joins and leaves. `tests/nodes` has the tests with several nodes.

use futures_util::FutureExt;
use std::{
    collections::BTreeSet,
    pin::{Pin, pin},
    sync::{
        Arc, Barrier, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Wake, Waker},
    thread,
    time::Duration,
};
use support::whatwg;
use tokio::time::{Instant, sleep};
use tokio_stream::{Stream, StreamExt};
use tower_sse::{
    Event, SseStream,
    hub::{Builder, ErrorKind, Hub, Presence, PresenceStream, Start, Subscription, Topic},
    test,
};

const SECOND: Duration = Duration::from_secs(1);
/// The maximum age of events, after which a topic without subscribers is dropped.
const HOUR: Duration = Duration::from_secs(3600);

async fn join(topic: &Topic, member: &str) -> Subscription {
    topic.join(member, topic.subscribe(Start::Latest).await.unwrap()).unwrap()
}

async fn members(topic: &Topic) -> Vec<String> {
    topic.members().await.unwrap().iter().map(ToString::to_string).collect()
}

/// Returns the joins (`+`) and leaves (`-`) that the stream yields without waiting.
fn changes(stream: &mut PresenceStream) -> Vec<String> {
    let mut changes = Vec::new();
    while let Some(Some(change)) = stream.next().now_or_never() {
        changes.push(text(&change));
    }
    changes
}

fn text(change: &Presence) -> String {
    match change {
        Presence::Joined { member, .. } => format!("+{member}"),
        Presence::Left { member, .. } => format!("-{member}"),
        _ => panic!("{change:?}"),
    }
}

fn with_events() -> Builder {
    Hub::builder().presence_events(|topic, change| Some(Event::new(format!("{topic} {}", text(change)))))
}

/// Returns the data of all events that a topic retains.
async fn events(topic: &Topic) -> Vec<String> {
    read(&mut topic.subscribe(Start::Earliest).await.unwrap())
}

/// Returns the data of the events that the subscription yields without waiting.
fn read(subscription: &mut Subscription) -> Vec<String> {
    let mut bytes = Vec::new();
    while let Some(Some(Ok(events))) = subscription.next().now_or_never() {
        bytes.extend_from_slice(events.as_bytes());
    }
    whatwg::parse(&bytes).messages.into_iter().map(|message| message.data).collect()
}

#[tokio::test(start_paused = true)]
async fn members_are_sorted_and_distinct() {
    let hub = Hub::new();
    let lobby = hub.topic("lobby");
    let _tabs = [join(&lobby, "b").await, join(&lobby, "a").await, join(&lobby, "b").await];
    let other = hub.topic("other");
    let _other = join(&other, "c").await;
    assert_eq!(members(&lobby).await, ["a", "b"]);
    assert_eq!(members(&other).await, ["c"]);
    assert!(members(&hub.topic("none")).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn member_leaves_after_grace_time_of_last_subscription() {
    let lobby = Hub::new().topic("lobby");
    let mut stream = lobby.presence();
    let first = join(&lobby, "a").await;
    let second = join(&lobby, "a").await;
    assert_eq!(changes(&mut stream), ["+a"]);
    drop(first);
    sleep(60 * SECOND).await;
    assert_eq!(members(&lobby).await, ["a"]);
    drop(second);
    let begin = Instant::now();
    assert_eq!(stream.next().await, Some(Presence::left("a")));
    assert_eq!(begin.elapsed().as_secs(), 5);
    assert!(members(&lobby).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn reconnect_within_grace_time_is_no_change() {
    let lobby = with_events().presence_grace(3 * SECOND).build().topic("lobby");
    let mut stream = lobby.presence();
    let mut subscription = join(&lobby, "a").await;
    for _ in 0..10 {
        drop(subscription);
        sleep(2 * SECOND).await;
        assert_eq!(members(&lobby).await, ["a"]);
        subscription = join(&lobby, "a").await;
        sleep(2 * SECOND).await;
    }
    assert_eq!(changes(&mut stream), ["+a"]);
    drop(subscription);
    sleep(4 * SECOND).await;
    assert_eq!(changes(&mut stream), ["-a"]);
    assert_eq!(events(&lobby).await, ["lobby +a", "lobby -a"]);
}

#[tokio::test(start_paused = true)]
async fn subscription_can_be_member_of_several_topics() {
    let hub = Hub::new();
    let [one, other] = [hub.topic("one"), hub.topic("other")];
    let subscription = hub.subscribe(["one", "other"], Start::Latest).await.unwrap();
    let subscription = other.join("a", one.join("a", subscription).unwrap()).unwrap();
    assert_eq!((members(&one).await, members(&other).await), (vec!["a".to_owned()], vec!["a".to_owned()]));
    drop(subscription);
    sleep(6 * SECOND).await;
    assert!(members(&one).await.is_empty() && members(&other).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn adapter_keeps_the_membership() {
    let lobby = Hub::new().topic("lobby");
    let stream = join(&lobby, "a").await.map(|events| events);
    sleep(60 * SECOND).await;
    assert_eq!(members(&lobby).await, ["a"]);
    drop(stream);
    sleep(6 * SECOND).await;
    assert!(members(&lobby).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn stream_begins_with_members_and_yields_each_change() {
    let lobby = Hub::new().topic("lobby");
    let a = join(&lobby, "a").await;
    let _b = join(&lobby, "b").await;
    let mut stream = lobby.presence();
    assert_eq!(changes(&mut stream), ["+a", "+b"]);
    drop(a);
    let _c = join(&lobby, "c").await;
    assert_eq!(changes(&mut stream), ["+c"]);
    sleep(6 * SECOND).await;
    assert_eq!(changes(&mut stream), ["-a"]);
    // A slow reader gets only the differences between what it has read and the current members.
    let mut slow = lobby.presence();
    drop(join(&lobby, "d").await);
    sleep(6 * SECOND).await;
    assert_eq!(changes(&mut slow), ["+b", "+c"]);
    assert_eq!(changes(&mut stream), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn stream_ends_at_shutdown() {
    let hub = Hub::new();
    let lobby = hub.topic("lobby");
    let _a = join(&lobby, "a").await;
    let mut stream = lobby.presence();
    assert_eq!(changes(&mut stream), ["+a"]);
    let ended = tokio::spawn(async move { stream.next().await });
    sleep(SECOND).await;
    hub.shutdown();
    assert_eq!(ended.await.unwrap(), None);
    assert_eq!(lobby.members().await.unwrap_err().kind(), ErrorKind::Shutdown);
    assert_eq!(lobby.presence().next().await, None);
    drop(join(&lobby, "b").await);
}

#[tokio::test(start_paused = true)]
async fn events_are_published_in_order() {
    let lobby = with_events().presence_grace(Duration::ZERO).build().topic("lobby");
    let mut expected = Vec::new();
    for n in 0..50 {
        let member = format!("m{n}");
        drop(join(&lobby, &member).await);
        sleep(Duration::from_millis(1)).await;
        expected.extend([format!("lobby +{member}"), format!("lobby -{member}")]);
    }
    assert_eq!(events(&lobby).await, expected);
}

#[tokio::test(start_paused = true)]
async fn event_that_cannot_be_published_is_skipped() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let hub = Hub::builder()
        .presence_events(move |_, change| {
            count.fetch_add(1, Relaxed);
            match &**change.member() {
                "panic" => panic!("the application has a bug"),
                "gap" => Some(Event::new("x").event("gap")),
                "none" => None,
                member => Some(Event::new(member).id(7)),
            }
        })
        .build();
    let lobby = hub.topic("lobby");
    let mut all = Vec::new();
    for member in ["panic", "gap", "none", "a"] {
        all.push(join(&lobby, member).await);
    }
    assert_eq!(events(&lobby).await, ["a"]);
    assert_eq!(members(&lobby).await.len(), 4);
    lobby.finish().await.unwrap();
    all.push(join(&lobby, "b").await);
    assert_eq!(calls.load(Relaxed), 4, "a finished topic gets no events");
    assert!(lobby.publish(Event::new("x")).await.is_err(), "the topic is still finished");
}

#[tokio::test(start_paused = true)]
async fn callback_can_use_the_hub() {
    let hub = Arc::new(std::sync::OnceLock::<Hub>::new());
    let inner = hub.clone();
    let builder = Hub::builder().presence_events(move |topic, _| {
        let members = inner.get()?.topic(topic).members().now_or_never()?.ok()?;
        Some(Event::display(members.len()))
    });
    hub.set(builder.build()).unwrap();
    let lobby = hub.get().unwrap().topic("lobby");
    let _all = [join(&lobby, "a").await, join(&lobby, "b").await];
    assert_eq!(events(&lobby).await, ["1", "2"]);
}

#[tokio::test(start_paused = true)]
async fn any_short_text_is_a_member() {
    let lobby = with_events().build().topic("lobby");
    let mut all = Vec::new();
    for member in ["", "a\nb\r\n\ndata: c", "\u{2028}\0\"", &"ü".repeat(128)] {
        all.push(join(&lobby, member).await);
        assert!(members(&lobby).await.contains(&member.to_owned()));
    }
    for member in ["x".repeat(257), "ü".repeat(129)] {
        let error = lobby.join(&member, lobby.subscribe(Start::Latest).await.unwrap()).unwrap_err();
        assert_eq!((error.kind(), error.status().as_u16()), (ErrorKind::MemberTooLong, 400));
        assert!(error.to_string().ends_with("bytes: at most 256 are allowed"), "{error}");
    }
    assert_eq!(members(&lobby).await.len(), all.len());
}

#[tokio::test(start_paused = true)]
async fn reserved_or_long_topic_has_no_members() {
    let hub = with_events().build();
    for (name, kind, reason) in [
        ("tower-sse/nodes".to_owned(), ErrorKind::ReservedTopic, "choose another topic"),
        ("t".repeat(1025), ErrorKind::TopicTooLong, "has 1025 bytes: at most 1024 are allowed for this call"),
        ("ü".repeat(513), ErrorKind::TopicTooLong, "has 1026 bytes: at most 1024 are allowed for this call"),
    ] {
        let topic = hub.topic(&name);
        let error = topic.join("a", hub.topic("lobby").subscribe(Start::Latest).await.unwrap()).unwrap_err();
        assert_eq!((error.kind(), error.status().as_u16()), (kind, 400));
        assert!(error.to_string().ends_with(reason) && error.to_string().len() < 300, "{error}");
        assert!(members(&topic).await.is_empty() && !topic.exists());
    }
    let longest = hub.topic("t".repeat(1024));
    let _a = join(&longest, "a").await;
    assert_eq!(members(&longest).await, ["a"]);
}

/// Without a tokio runtime there is no timer. The next call of a method of presence ends the grace
/// time.
#[test]
fn everything_works_outside_of_a_runtime() {
    const GRACE: Duration = Duration::from_millis(200);

    let hub = with_events().presence_grace(GRACE).build();
    let lobby = hub.topic("lobby");
    let joined = |member| join(&lobby, member).now_or_never().unwrap();
    let mut stream = lobby.presence();
    let a = joined("a");
    let _b = joined("b");
    assert_eq!(changes(&mut stream), ["+a", "+b"]);
    let dropped = std::time::Instant::now();
    drop(a);
    let present = members(&lobby).now_or_never().unwrap();
    // A busy machine may have paused this thread.
    assert!(present == ["a", "b"] || dropped.elapsed() >= GRACE, "{present:?}");
    thread::sleep(2 * GRACE);
    assert_eq!(members(&lobby).now_or_never().unwrap(), ["b"]);
    assert_eq!(changes(&mut stream), ["-a"]);
    assert_eq!(events(&lobby).now_or_never().unwrap(), ["lobby +a", "lobby +b", "lobby -a"]);
}

/// The subscription is dropped on a thread without a runtime. The timer of the grace time then runs
/// on the runtime of the join.
#[tokio::test]
async fn grace_time_ends_after_a_drop_outside_of_a_runtime() {
    let hub = Hub::builder().presence_grace(Duration::from_millis(20)).build();
    let lobby = hub.topic("lobby");
    let mut stream = lobby.presence();
    let subscription = join(&lobby, "a").await;
    thread::spawn(move || drop(subscription)).join().unwrap();
    assert_eq!(stream.next().await, Some(Presence::joined("a")));
    assert_eq!(tokio::time::timeout(20 * SECOND, stream.next()).await, Ok(Some(Presence::left("a"))));
}

#[test]
fn runtime_without_timers_is_no_problem() {
    let hub = Hub::builder().presence_grace(Duration::from_millis(10)).build();
    let lobby = hub.topic("lobby");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        drop(join(&lobby, "a").await);
        tokio::task::yield_now().await;
        thread::sleep(Duration::from_millis(30));
        assert!(members(&lobby).await.is_empty());
    });
}

#[test]
fn threads_join_and_leave_at_the_same_time() {
    let hub = with_events().presence_grace(Duration::ZERO).build();
    let lobby = hub.topic("lobby");
    let barrier = Barrier::new(4);
    let mut kept: Vec<Subscription> = Vec::new();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let (lobby, barrier) = (&lobby, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    for n in 0..200 {
                        drop(join(lobby, &format!("m{}", (n + thread) % 5)).now_or_never().unwrap());
                    }
                    join(lobby, &format!("kept {thread}")).now_or_never().unwrap()
                })
            })
            .collect();
        kept.extend(threads.into_iter().map(|thread| thread.join().unwrap()));
    });
    let expected: BTreeSet<String> = members(&lobby).now_or_never().unwrap().into_iter().collect();
    assert_eq!(expected, (0..4).map(|thread| format!("kept {thread}")).collect());
    // Each member joins and leaves alternately.
    let mut present = BTreeSet::new();
    for event in events(&lobby).now_or_never().unwrap() {
        let (change, member) = event.strip_prefix("lobby ").unwrap().split_at(1);
        let is_change = if change == "+" { present.insert(member.to_owned()) } else { present.remove(member) };
        assert!(is_change, "{event}");
    }
    assert_eq!(present, expected);
}

#[tokio::test(start_paused = true)]
async fn questions_about_all_nodes_are_local_in_memory() {
    let hub = Hub::new();
    let lobby = hub.topic("lobby");
    assert!(!lobby.exists_anywhere().await.unwrap());
    let _all = [join(&lobby, "a").await, join(&lobby, "a").await];
    assert!(lobby.exists_anywhere().await.unwrap());
    assert_eq!(lobby.subscribers_anywhere().await.unwrap(), 2);
}

/// The task with the timer of the grace time does not keep the hub alive.
#[tokio::test(start_paused = true)]
async fn dropped_hub_ends_its_task() {
    let hub = Hub::builder().presence_grace(3600 * SECOND).build();
    drop(join(&hub.topic("lobby"), "a").await);
    sleep(SECOND).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert_eq!(tasks(), 1);
    drop(hub);
    sleep(SECOND).await;
    assert_eq!(tasks(), 0);
}

#[tokio::test(start_paused = true)]
async fn finished_and_removed_topic_does_not_come_back() {
    let hub = with_events().build();
    let lobby = hub.topic("lobby");
    let member = join(&lobby, "a").await;
    lobby.finish().await.unwrap();
    lobby.remove().await.unwrap();
    drop(member);
    sleep(6 * SECOND).await;
    assert_eq!(members(&lobby).await, [""; 0]);
    assert!(!lobby.exists());
    // A removed topic that is used again has events again.
    let _b = join(&lobby, "b").await;
    drop(join(&lobby, "c").await);
    sleep(6 * SECOND).await;
    assert_eq!(events(&lobby).await, ["lobby +b", "lobby +c", "lobby -c"]);
}

/// The topic was finished, removed and used again. Then its events have expired.
#[tokio::test(start_paused = true)]
async fn leave_in_a_topic_that_is_used_again_has_an_event() {
    let hub = with_events().build();
    let lobby = hub.topic("lobby");
    let member = lobby.join("a", hub.topic("other").subscribe(Start::Latest).await.unwrap()).unwrap();
    lobby.finish().await.unwrap();
    lobby.remove().await.unwrap();
    lobby.publish(Event::new("again")).await.unwrap();
    sleep(2 * HOUR).await;
    assert!(!lobby.exists());
    drop(member);
    sleep(6 * SECOND).await;
    assert_eq!(members(&lobby).await, [""; 0]);
    assert_eq!(events(&lobby).await, ["lobby -a"]);
}

/// A subscriber that is woken by the end of its topic. It then uses the topic again.
struct Successor {
    topic: Topic,
    subscription: Mutex<Option<Subscription>>,
}

impl Wake for Successor {
    fn wake(self: Arc<Self>) {
        if self.subscription.lock().unwrap().take().is_some() {
            self.topic.remove().now_or_never().expect("it does not wait").unwrap();
            self.topic.publish(Event::new("again")).now_or_never().expect("it does not wait").unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn topic_that_is_used_again_during_its_finish_has_events() {
    let hub = with_events().build();
    let lobby = hub.topic("lobby");
    let member = lobby.join("a", hub.topic("other").subscribe(Start::Latest).await.unwrap()).unwrap();
    let mut subscription = lobby.subscribe(Start::Latest).await.unwrap();
    let successor = Arc::new(Successor { topic: lobby.clone(), subscription: Mutex::default() });
    let waker = successor.clone().into();
    assert!(Pin::new(&mut subscription).poll_next(&mut Context::from_waker(&waker)).is_pending());
    *successor.subscription.lock().unwrap() = Some(subscription);
    lobby.finish().await.unwrap();
    sleep(2 * HOUR).await;
    assert!(!lobby.exists());
    drop(member);
    sleep(6 * SECOND).await;
    assert_eq!(events(&lobby).await, ["lobby -a"]);
}

#[tokio::test(start_paused = true)]
async fn member_that_joins_a_finished_topic_does_not_bring_it_back() {
    let hub = with_events().build();
    let lobby = hub.topic("lobby");
    lobby.publish(Event::new("x")).await.unwrap();
    lobby.finish().await.unwrap();
    let late = join(&lobby, "a").await;
    lobby.remove().await.unwrap();
    drop(late);
    sleep(6 * SECOND).await;
    assert_eq!(members(&lobby).await, [""; 0]);
    assert!(!lobby.exists());
    // The subscription is to another topic.
    let reader = hub.topic("other").subscribe(Start::Latest).await.unwrap();
    let _late = lobby.join("b", reader).unwrap();
    assert!(!lobby.exists());
}

#[tokio::test(start_paused = true)]
async fn leave_does_not_bring_a_removed_topic_back() {
    let hub = with_events().build();
    let lobby = hub.topic("lobby");
    let join_as_reader_of_another_topic =
        async || lobby.join("a", hub.topic("other").subscribe(Start::Latest).await.unwrap()).unwrap();
    for is_quiet in [false, true] {
        let reader = join_as_reader_of_another_topic().await;
        assert_eq!(events(&lobby).await, ["lobby +a"]);
        if is_quiet {
            sleep(2 * HOUR).await;
            assert!(!lobby.exists());
        }
        lobby.remove().await.unwrap();
        drop(reader);
        sleep(6 * SECOND).await;
        assert_eq!(members(&lobby).await, [""; 0]);
        assert!(!lobby.exists());
    }
    // An event creates the topic again, and expires.
    let reader = join_as_reader_of_another_topic().await;
    lobby.remove().await.unwrap();
    lobby.publish(Event::new("again")).await.unwrap();
    sleep(2 * HOUR).await;
    drop(reader);
    sleep(6 * SECOND).await;
    assert_eq!(events(&lobby).await, ["lobby -a"]);
}

/// The topic is removed while the event of the leave is being created.
#[tokio::test(start_paused = true)]
async fn unpublished_leave_does_not_bring_a_removed_topic_back() {
    let topic: Arc<OnceLock<Topic>> = Arc::default();
    let removed = topic.clone();
    let builder = Hub::builder().presence_events(move |_, change| {
        if matches!(change, Presence::Left { .. }) {
            removed.get().unwrap().remove().now_or_never().expect("it does not wait").unwrap();
        }
        Some(Event::new(text(change)))
    });
    let hub = builder.build();
    let lobby = topic.get_or_init(|| hub.topic("lobby"));
    drop(lobby.join("a", hub.topic("other").subscribe(Start::Latest).await.unwrap()).unwrap());
    assert_eq!(events(lobby).await, ["+a"]);
    sleep(6 * SECOND).await;
    assert_eq!(members(lobby).await, [""; 0]);
    assert!(!lobby.exists());
}

/// The topic is finished and removed while the event of a join or a leave is being created.
#[tokio::test(start_paused = true)]
async fn unpublished_event_does_not_bring_a_finished_topic_back() {
    for ending in ["+b", "-a"] {
        let topic: Arc<OnceLock<Topic>> = Arc::default();
        let ended = topic.clone();
        let builder = Hub::builder().presence_events(move |_, change| {
            if text(change) == ending {
                let topic = ended.get().unwrap();
                topic.finish().now_or_never().expect("it does not wait").unwrap();
                topic.remove().now_or_never().expect("it does not wait").unwrap();
            }
            Some(Event::new(text(change)))
        });
        let hub = builder.build();
        let lobby = topic.get_or_init(|| hub.topic("lobby"));
        let join_as_reader_of_another_topic =
            async |member| lobby.join(member, hub.topic("other").subscribe(Start::Latest).await.unwrap()).unwrap();
        drop(join_as_reader_of_another_topic("a").await);
        assert_eq!(events(lobby).await, ["+a"]);
        if ending == "+b" {
            let _b = join_as_reader_of_another_topic("b").await;
            assert_eq!(members(lobby).await, ["a", "b"]);
            assert!(!lobby.exists());
        }
        sleep(12 * SECOND).await;
        assert_eq!(members(lobby).await, [""; 0]);
        assert!(!lobby.exists());
    }
}

/// All clients lose their connections after more than an hour without an event, and only one of
/// them returns.
#[tokio::test(start_paused = true)]
async fn returning_client_of_a_quiet_topic_gets_the_leaves() {
    let lobby = with_events().build().topic("lobby");
    for is_removed in [false, true] {
        let [a, mut b] = [join(&lobby, "a").await, join(&lobby, "b").await];
        read(&mut b);
        sleep(2 * HOUR).await;
        if is_removed {
            // The topic has subscribers, so only its events are removed.
            lobby.remove().await.unwrap();
        }
        let id = b.cursor();
        drop([a, b]);
        sleep(6 * SECOND).await;
        let mut b = lobby.join("b", lobby.subscribe(Start::After(id)).await.unwrap()).unwrap();
        assert!(b.is_resumed() && b.gap().is_none());
        let mut missed = read(&mut b);
        missed[..2].sort();
        assert_eq!(missed, ["lobby -a", "lobby -b", "lobby +b"]);
        drop(b);
        // The events of the leaves expire like others.
        sleep(2 * HOUR).await;
        assert!(!lobby.exists());
    }
}

/// The code of `docs/presence.md`.
#[tokio::test(start_paused = true)]
async fn chained_list_of_members_keeps_gap_and_messages() {
    let lobby = Hub::builder().max_events(2).build().topic("lobby");
    let id = lobby.publish(Event::new("seen")).await.unwrap();
    for message in ["missed", "retained", "newest"] {
        lobby.publish(Event::new(message)).await.unwrap();
    }
    let events = lobby.join("a", lobby.subscribe(Start::After(id)).await.unwrap()).unwrap();
    let members = Event::json(&lobby.members().await.unwrap()).unwrap().event("members");
    let page = SseStream::new(tokio_stream::once(Ok(members.into())).chain(events));
    let mut page = test::events(page.into_http_response());
    assert_eq!(page.next().await.unwrap(), Event::new(r#"["a"]"#).event("members"));
    assert_eq!(page.next().await.unwrap().name, "gap");
    assert_eq!(page.collect(2).await, ["retained", "newest"].map(Event::new));
}

struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn stream_is_woken_only_by_changes_of_its_members() {
    let hub = Hub::new();
    let [lobby, other] = [hub.topic("lobby"), hub.topic("other")];
    let wakes = Arc::new(Wakes(AtomicUsize::new(0)));
    let waker = Waker::from(wakes.clone());
    let mut stream = pin!(lobby.presence());
    let mut poll = || stream.as_mut().poll_next(&mut Context::from_waker(&waker));
    assert!(poll().is_pending());
    let _other = join(&other, "a").await;
    assert_eq!(wakes.0.load(Relaxed), 0);
    let first = join(&lobby, "a").await;
    assert_eq!(wakes.0.load(Relaxed), 1);
    assert!(poll().is_ready() && poll().is_pending());
    let second = join(&lobby, "a").await;
    drop(first);
    sleep(6 * SECOND).await;
    drop(second);
    sleep(SECOND).await;
    let _third = join(&lobby, "a").await;
    sleep(6 * SECOND).await;
    assert_eq!(wakes.0.load(Relaxed), 1, "the member was always present");
}

#[tokio::test(start_paused = true)]
async fn stopped_hub_accepts_no_members() {
    let hub = with_events().build();
    let lobby = hub.topic("lobby");
    let member = join(&lobby, "a").await;
    hub.shutdown();
    let late = lobby.subscribe(Start::Latest).await.unwrap();
    let late = lobby.join("b", late).unwrap();
    drop((member, late));
    assert_eq!(lobby.members().await.unwrap_err().kind(), ErrorKind::Shutdown);
}
