//! Metrics and events of hubs and their backends.

use crate::recording::{Emitted, Seen, observed};
use http_body_util::BodyExt;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tower_sse::{
    BoxError, Event, LastEventId, SseStream, StreamRegistry,
    hub::{
        ErrorKind, Hub, LagPolicy, Outcome, Start,
        backend::{self, Backend, Bounds, MemoryBackend, Page, Position},
    },
};
use tracing::Level;

#[test]
fn gap_is_counted_by_reason() {
    observed(async |seen: Seen| {
        let hub = Hub::builder().max_events(1).build();
        let topic = hub.topic("news");
        let first = topic.publish(Event::new("first")).await.expect("a hub in memory does not fail");
        let slow = topic.subscribe(LastEventId::default()).await.expect("a hub in memory does not fail");
        let strict = topic.subscribe(LastEventId::default()).await.expect("a hub in memory does not fail");
        for _ in 0..2 {
            topic.publish(Event::new("next")).await.expect("a hub in memory does not fail");
        }
        let id = |id: &str| Start::After(id.parse().expect("an id"));
        let (epoch, _) = first.as_str().split_once('-').expect("an epoch and a number");
        for (requested, reason) in [
            (first.as_str(), "evicted"),
            (&*format!("{epoch}-99"), "ahead"),
            ("aaaaaaaa-1", "other_epoch"),
            ("what?", "malformed"),
        ] {
            let subscription = topic.subscribe(id(requested)).await.expect("a hub in memory does not fail");
            assert_eq!(subscription.gap().expect("a gap").reason().as_str(), reason);
        }
        for subscription in [slow, strict.lag_policy(LagPolicy::Disconnect)] {
            assert!(std::pin::pin!(subscription).next().await.is_some());
        }
        let names = ["evicted", "ahead", "malformed", "other_epoch"].map(|reason| (reason, 1.0));
        let expected = names.into_iter().chain([("lagged", 2.0)]);
        let expected = expected.map(|(reason, n)| (format!("tower_sse_hub_gaps_total{{reason={reason}}}"), n));
        assert_eq!(seen.numbers(), expected.collect());
        let of = |gap: &Emitted| {
            assert_eq!((gap.level, &*gap.message(), &*gap.fields["topic"]), (Level::DEBUG, "gap reported", "news"));
            gap.fields["reason"].clone()
        };
        let reasons: Vec<_> = seen.events().iter().map(of).collect();
        assert_eq!(reasons, ["evicted", "ahead", "other_epoch", "malformed", "lagged", "lagged"]);
    });
}

#[test]
fn finished_subscription_that_is_not_204_is_logged() {
    observed(async |seen: Seen| {
        let topic = Hub::new().topic("news");
        let last = topic.publish(Event::new("last")).await.expect("a hub in memory does not fail");
        topic.finish().await.expect("a hub in memory does not fail");
        for (hides_end, expected) in [(false, 0), (true, 1)] {
            let end = topic.subscribe(last.clone()).await.expect("a hub in memory does not fail");
            let response = if hides_end {
                let adapter = futures_util::stream::select(end, futures_util::stream::empty());
                SseStream::new(adapter).into_http_response().map(BodyExt::boxed_unsync)
            } else {
                SseStream::new(end).into_http_response().map(BodyExt::boxed_unsync)
            };
            assert_eq!(response.status(), if hides_end { 200 } else { 204 });
            drop(response.into_body().collect().await);
            let warnings = seen.events().into_iter().filter(|event| event.level == Level::WARN);
            let warnings: Vec<_> = warnings.map(|event| event.message()).collect();
            assert_eq!(warnings.len(), expected, "{warnings:?}");
            assert!(warnings.iter().all(|warning| warning.contains("SseStream::map_stream")), "{warnings:?}");
        }
    });
}

/// A backend in memory whose calls fail during an outage.
struct Outages {
    log: MemoryBackend,
    is_down: watch::Receiver<bool>,
    /// Set while only the appends fail.
    is_full: watch::Receiver<bool>,
}

impl Outages {
    fn new(max_records: usize, is_down: watch::Receiver<bool>) -> Self {
        Self { log: MemoryBackend::new(max_records), is_down, is_full: watch::channel(false).1 }
    }

    async fn unless_full<T>(&self, append: impl Future<Output = Result<T, BoxError>>) -> Result<T, BoxError> {
        if *self.is_full.borrow() {
            return Err("the disk is full".into());
        }
        self.unless_down(append).await
    }

    async fn unless_down<T>(&self, call: impl Future<Output = Result<T, BoxError>>) -> Result<T, BoxError> {
        let mut is_down = self.is_down.clone();
        tokio::select! {
            biased;
            _ = is_down.wait_for(|is_down| *is_down) => Err("the backend is down".into()),
            result = call => result,
        }
    }
}

impl Backend for Outages {
    async fn open(&self) -> Result<(), BoxError> {
        self.is_down.clone().wait_for(|is_down| !*is_down).await?;
        Ok(())
    }

    async fn bounds(&self) -> Result<Bounds, BoxError> {
        self.unless_down(self.log.bounds()).await
    }

    async fn append(&self, records: Vec<backend::Record>) -> Result<backend::Appended, BoxError> {
        self.unless_full(self.log.append(records)).await
    }

    async fn append_if_unchanged(
        &self,
        records: Vec<backend::Record>,
        epoch: u64,
        since: Position,
    ) -> Result<Option<backend::Appended>, BoxError> {
        if records[0].event.ends_with(b"large\n\n") || &*records[0].topic == "refused" {
            return Err("the record is too big".into());
        }
        self.unless_full(self.log.append_if_unchanged(records, epoch, since)).await
    }

    async fn read(&self, topics: &[Arc<str>], after: Position) -> Result<Page, BoxError> {
        self.unless_down(self.log.read(topics, after)).await
    }

    async fn follow(&self, after: Position) -> Result<Page, BoxError> {
        self.unless_down(self.log.follow(after)).await
    }
}

/// Returns the level, the message, and the fields `operation` and `error` of each event that is no
/// gap.
fn outages(seen: &Seen) -> Vec<(Level, String, Option<String>, Option<String>)> {
    let field = |event: &Emitted, name: &str| event.fields.get(name).cloned();
    let events = seen.events().into_iter().filter(|event| event.message() != "gap reported");
    events.map(|event| (event.level, event.message(), field(&event, "operation"), field(&event, "error"))).collect()
}

fn failed(operation: &str) -> (Level, String, Option<String>, Option<String>) {
    (Level::WARN, "backend failed".into(), Some(operation.into()), Some("the backend is down".into()))
}

fn recovered(operation: &str) -> (Level, String, Option<String>, Option<String>) {
    (Level::INFO, "backend recovered".into(), Some(operation.into()), None)
}

#[test]
fn outage_is_logged_once_and_each_failure_counted() {
    observed(async |seen: Seen| {
        let (down, is_down) = watch::channel(false);
        let log = Outages::new(100, is_down);
        let hub = Hub::builder().max_events(1).backend(log).connect().await.expect("the backend is up");
        let topic = hub.topic("news");
        let first = topic.publish(Event::new("first")).await.expect("the backend is up");
        topic.publish(Event::new("second")).await.expect("the backend is up");
        topic.publish(Event::new("third")).await.expect("the backend is up");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let cursor = topic.subscribe(LastEventId::default()).await.expect("the backend is up").cursor();
        let epoch = cursor.as_str().split_once('-').expect("an epoch").0;
        let unknown = || Start::After(format!("{epoch}-99").parse().expect("an id"));
        for _ in 0..2 {
            let before = outages(&seen).len();
            down.send_replace(true);
            tokio::time::sleep(Duration::from_millis(1)).await;
            topic.publish(Event::new("lost")).await.expect_err("the backend is down");
            let mut history = topic.subscribe(first.clone()).await.expect("an outage is not an error here");
            let _ahead = topic.subscribe(unknown()).await.expect("an outage is not an error here");
            let _no_event = tokio::time::timeout(Duration::from_secs(60), history.next()).await;
            down.send_replace(false);
            history.next().await.expect("the history continues").expect("no error");
            drop(topic.subscribe(unknown()).await.expect("a gap"));
            tokio::time::sleep(Duration::from_secs(60)).await;
            let mut events = outages(&seen).split_off(before);
            assert_eq!(events[..3], [failed("follow"), failed("read"), failed("bounds")]);
            events[3..].sort_by(|one, other| one.2.cmp(&other.2));
            assert_eq!(events[3..], [recovered("bounds"), recovered("follow"), recovered("read")]);
        }

        let name = |operation: &str| format!("tower_sse_hub_backend_failures_total{{operation={operation}}}");
        let numbers = seen.numbers();
        assert_eq!((numbers[&name("publish")], numbers[&name("bounds")]), (2.0, 2.0));
        // A retry follows after 200 to 400 milliseconds, and the first ones are faster.
        for operation in ["follow", "read"] {
            assert!((300.0..640.0).contains(&numbers[&name(operation)]), "{operation}: {numbers:?}");
        }
    });
}

/// The backend refuses appends, and responds to other requests.
#[test]
fn outage_of_recordings_is_logged_once() {
    observed(async |seen: Seen| {
        let (_down, is_down) = watch::channel(false);
        let (full, is_full) = watch::channel(false);
        let hub = Hub::builder().backend(Outages { is_full, ..Outages::new(10_000, is_down) }).connect().await.unwrap();
        let begin = (Level::WARN, "backend failed".into(), Some("recording".into()), Some("the disk is full".into()));
        let mut expected = Vec::new();
        for round in 0..2 {
            let items = || tokio_stream::iter(0..100).map(Event::display).throttle(Duration::from_millis(100));
            let recordings: Vec<_> =
                (0..3).map(|n| hub.topic(format!("{round}/{n}")).record(items()).start()).collect();
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(outages(&seen), expected);
            full.send_replace(true);
            tokio::time::sleep(Duration::from_secs(20)).await;
            // This recording waits for its announcement.
            let late = hub.topic(format!("{round}/late")).record(items()).start();
            tokio::time::sleep(Duration::from_secs(20)).await;
            expected.push(begin.clone());
            assert_eq!(outages(&seen), expected);
            full.send_replace(false);
            for recording in recordings.into_iter().chain([late]) {
                assert_eq!(recording.outcome().await, Outcome::Finished);
            }
            expected.push(recovered("recording"));
            assert_eq!(outages(&seen), expected);
        }
        // No recording has started yet.
        full.send_replace(true);
        let recording = hub.topic("first").record(tokio_stream::once(Event::new("1"))).start();
        tokio::time::sleep(Duration::from_secs(20)).await;
        full.send_replace(false);
        assert_eq!(recording.outcome().await, Outcome::Finished);
        expected.extend([begin, recovered("recording")]);
        assert_eq!(outages(&seen), expected);
    });
}

/// The backend refuses one event, while another recording publishes.
#[test]
fn refused_event_of_a_recording_is_logged_once() {
    observed(async |seen: Seen| {
        let (_down, is_down) = watch::channel(false);
        let hub = Hub::builder().backend(Outages::new(10_000, is_down)).connect().await.unwrap();
        let items = tokio_stream::iter(0..1_000).map(Event::display).throttle(Duration::from_millis(100));
        let other = hub.topic("other").record(items).start();
        let recording = hub.topic("a").record(tokio_stream::once(Event::new("large"))).start();
        assert_eq!(recording.outcome().await, Outcome::Failed);
        assert_eq!(other.outcome().await, Outcome::Finished);
        let begin =
            (Level::WARN, "backend failed".into(), Some("recording".into()), Some("the record is too big".into()));
        assert_eq!(outages(&seen), [begin, recovered("recording")]);
    });
}

/// The backend refuses all records of one topic, and the application keeps the recording's handle.
#[test]
fn failed_recording_does_not_hide_later_outages() {
    observed(async |seen: Seen| {
        let (_down, is_down) = watch::channel(false);
        let (full, is_full) = watch::channel(false);
        let hub = Hub::builder().backend(Outages { is_full, ..Outages::new(10_000, is_down) }).connect().await.unwrap();
        let begin =
            |error: &str| (Level::WARN, "backend failed".into(), Some("recording".into()), Some(error.to_owned()));
        let recording = hub.topic("refused").record(tokio_stream::once(Event::new("1"))).start();
        recording.outcome().await;
        // The last sign of life of this node ends the outage.
        tokio::time::sleep(Duration::from_secs(20)).await;
        let mut expected = vec![begin("the record is too big"), recovered("recording")];
        assert_eq!(outages(&seen), expected);

        let items = tokio_stream::iter(0..100).map(Event::display).throttle(Duration::from_millis(100));
        let other = hub.topic("other").record(items).start();
        tokio::time::sleep(Duration::from_secs(1)).await;
        full.send_replace(true);
        tokio::time::sleep(Duration::from_secs(20)).await;
        full.send_replace(false);
        assert_eq!(other.outcome().await, Outcome::Finished);
        expected.extend([begin("the disk is full"), recovered("recording")]);
        assert_eq!(outages(&seen), expected);
        drop(recording);
    });
}

#[test]
fn slow_opening_of_a_log_is_logged_once() {
    observed(async |seen: Seen| {
        for seconds in [4, 60] {
            let (down, is_down) = watch::channel(true);
            let log = Outages::new(100, is_down);
            let open = async {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                down.send_replace(false);
            };
            let (hub, ()) = tokio::join!(Hub::builder().backend(log).connect(), open);
            hub.expect("the log opens");
        }
        let events = seen.events();
        let [event] = &events[..] else { panic!("{} events", events.len()) };
        assert_eq!((event.level, &*event.message()), (Level::WARN, "backend is still opening its log"));
        assert_eq!(event.fields["seconds"], "5");
    });
}

#[test]
fn rejected_history_reads_count_and_log_once() {
    observed(async |seen: Seen| {
        let (down, is_down) = watch::channel(false);
        let log = Outages::new(10_000, is_down);
        let hub = Hub::builder().max_events(1).backend(log).connect().await.expect("the backend is up");
        let topic = hub.topic("news");
        let mut ids = Vec::new();
        for n in 0..1100 {
            ids.push(topic.publish(Event::display(n)).await.expect("the backend is up"));
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
            drop(topic.subscribe(ids[0].clone()).await.expect("no read waits"));
            let rejected = seen.numbers()["tower_sse_hub_reads_rejected_total"];
            assert_eq!(rejected, f64::from(6 * round));
            let messages: Vec<_> = seen.events().iter().map(Emitted::message).collect();
            assert_eq!(messages, ["history reads rejected", "history reads accepted"].repeat(round as usize));
        }
        drop(down);
    });
}

#[test]
fn takeover_of_recordings_is_logged_once() {
    observed(async |seen: Seen| {
        let log = MemoryBackend::new(10_000);
        let hubs = [Hub::builder().backend(log.clone()), Hub::builder().backend(log)].map(|hub| hub.connect());
        let [stopped, other] = hubs.map(async |hub| hub.await.expect("the backend is up"));
        let (stopped, _other) = (stopped.await, other.await);
        for number in 0..20 {
            let topic = stopped.topic(format!("answer-{number}"));
            topic.record(tokio_stream::pending::<Event>()).will(Event::new("will")).start();
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        stopped.shutdown();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let (warnings, details): (Vec<_>, _) = seen.events().into_iter().partition(|event| event.level == Level::WARN);
        let [warning] = &warnings[..] else { panic!("{warnings:?}") };
        assert_eq!((&*warning.message(), &*warning.fields["recordings"]), ("recordings of a dead node finished", "20"));
        let details: Vec<_> =
            details.into_iter().filter(|event| event.message() == "recording of a dead node finished").collect();
        assert_eq!(details.len(), 20);
        assert!(
            details.iter().all(|event| event.level == Level::DEBUG && event.fields["topic"].starts_with("answer-"))
        );
    });
}

#[test]
fn failed_announcement_of_a_close_is_logged_once() {
    observed(async |seen: Seen| {
        let (_down, is_down) = watch::channel(false);
        let (full, is_full) = watch::channel(false);
        let hub = Hub::builder().backend(Outages { is_full, ..Outages::new(10_000, is_down) }).connect().await.unwrap();
        let users = StreamRegistry::<u64>::new();
        users.follow(&hub).await.unwrap();
        users.close(&1);
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let before = seen.events().len();
            full.send_replace(true);
            users.close(&2);
            users.close(&3);
            tokio::time::sleep(Duration::from_secs(20)).await;
            full.send_replace(false);
            users.close_everywhere(&4).await.unwrap();
            tokio::time::sleep(Duration::from_secs(5)).await;
            let events = seen.events().split_off(before);
            let lines: Vec<_> = events.iter().map(|event| (event.level, event.message())).collect();
            let expected = [(Level::WARN, "close not announced yet"), (Level::INFO, "closes announced")];
            assert_eq!(lines, expected.map(|(level, message)| (level, message.to_owned())));
            let error = "the backend has not confirmed a write to the topic \"tower-sse/closed-streams\"";
            assert_eq!(events[0].fields["error"], error);
        }
    });
}
