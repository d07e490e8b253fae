//! The task of a recording: it reads the stream of the application and publishes its events into a
//! topic.

use super::{
    Settings,
    append::{self, Failure},
    keeper,
    local::Local,
    outcome::Outcome,
};
use crate::{
    BoxError, EncodedEvents, Event, SseItem,
    callback::contain_panic,
    hub::{
        backend::{Record, RecordKind},
        core::Core,
        error::Error,
        registry::check_reserved,
        retention::Retention,
        topic::check_name,
    },
};
use bytes::Bytes;
use std::{
    future::{pending, poll_fn},
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::watch,
    task::yield_now,
    time::{Instant, sleep},
};
use tokio_stream::Stream;

/// The maximum number of items of the recorded stream that are published at once. Items that are
/// ready at the same time are published as one batch.
const MAX_BATCH: usize = 64;

/// The maximum size of a batch of several items, in bytes. A larger item is published alone, so
/// that the backend can refuse this item without the others.
const MAX_BATCH_BYTES: usize = 64 << 10;

/// The maximum length, in bytes, of the name of a topic into which a recording publishes. A longer
/// name could make the signs of life of this node so large that the backend refuses them. Other
/// nodes would then take over all recordings of this node.
const MAX_TOPIC_BYTES: usize = 16 << 10;

/// Returns an error if a recording cannot publish into this topic: if its name is reserved or too
/// long.
pub(super) fn check_topic(topic: &str) -> Result<(), Error> {
    check_reserved(topic)?;
    if topic.len() > MAX_TOPIC_BYTES { Err(Error::topic_too_long(topic, MAX_TOPIC_BYTES)) } else { Ok(()) }
}

type Item = Option<Result<EncodedEvents, BoxError>>;
type PollItem = dyn FnMut(&mut Context<'_>) -> Poll<Item> + Send;

/// The stream that a recording publishes. The type of the stream is erased.
pub(super) struct Items {
    poll: Box<PollItem>,
    /// The last result of the stream (an item, an error or the end), if it did not fit into the
    /// current batch. The next batch begins with this result.
    ahead: Option<Item>,
}

impl Items {
    pub(super) fn new<S>(stream: S) -> Self
    where
        S: Stream + Send + 'static,
        S::Item: SseItem,
    {
        let mut stream = Box::pin(stream);
        let poll = Box::new(move |cx: &mut Context<'_>| {
            stream.as_mut().poll_next(cx).map(|item| item.map(SseItem::into_events))
        });
        Self { poll, ahead: None }
    }

    /// Polls the stream that the recording publishes into its topic. If the stream panics, returns
    /// an error. The caller must not poll again after an error or the end.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Item> {
        if let Some(item) = self.ahead.take() {
            return Poll::Ready(item);
        }
        let polled = catch_unwind(AssertUnwindSafe(|| (self.poll)(cx)));
        polled.unwrap_or_else(|_| Poll::Ready(Some(Err("the stream has panicked".into()))))
    }

    /// Puts the newest item of the recorded stream back, so that the next poll returns this item.
    /// If the item is an error or the end, drops the stream.
    fn put_back(&mut self, item: Item) {
        if !matches!(item, Some(Ok(_))) {
            let stream = mem::replace(&mut self.poll, Box::new(|_| Poll::Pending));
            contain_panic("recording", || drop(stream));
        }
        self.ahead = Some(item);
    }
}

/// The next action of a recording: it publishes events, fails with an error, or ends with an
/// outcome.
enum Step {
    Publish(Vec<Event>),
    Fail(BoxError),
    End(Outcome),
}

/// Runs a recording, a task that publishes a stream into a topic, until it ends. Then sends the
/// result, such as finished or failed, through `outcome`.
pub(super) async fn run(
    registered: Registered,
    items: Items,
    settings: Settings,
    outcome: watch::Sender<Option<Outcome>>,
) {
    let ended = record(&registered.core, &registered.local, items, settings).await;
    drop(registered);
    outcome.send_replace(Some(ended));
}

/// An entry in the list of this node's recordings. Dropping this value removes the recording from
/// the list, for example when the tokio runtime is shut down.
pub(super) struct Registered {
    core: Arc<Core>,
    local: Arc<Local>,
}

impl Registered {
    pub(super) fn new(core: Arc<Core>, local: Arc<Local>) -> Self {
        core.recordings.add(&local, || core.backend.as_ref().map(|backend| backend.last()));
        let topic = &local.announced.topic;
        if core.is_shut_down() {
            local.shut_down();
        } else if core.is_finished(topic) || check_topic(topic).is_err() {
            local.end();
        } else if core.backend.is_none() {
            // There is no other node.
            local.note_announced();
        }
        keeper::start(&core);
        Self { core, local }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // The application may hold a handle to the recording, and so `local`, for a long time. The
        // removal wakes the keeper, whose next sign of life can then log the end of the outage.
        self.local.appends.end();
        self.core.recordings.remove(&self.local);
    }
}

async fn record(core: &Arc<Core>, local: &Local, mut items: Items, settings: Settings) -> Outcome {
    let Settings { retention, abandon_after, time_limit, will, end, mut on_error, on_stop, .. } = settings;
    let mut stop = local.stop.subscribe();
    let mut requested = pin!(async move { stop.wait_for(Option::is_some).await.ok().and_then(|stop| *stop) });
    let mut expired = pin!(after(time_limit));
    let mut abandoned = pin!(abandoned(core, local, abandon_after));
    // Another node has to know the recording before its first event is in the log.
    let mut announced = pin!(announced(local));
    let mut is_announced = false;
    if local.has_ended() {
        return Outcome::Interrupted;
    }
    let (mut ended, mut last) = loop {
        let step = poll_fn(|cx| {
            if let Poll::Ready(outcome) = requested.as_mut().poll(cx) {
                return Poll::Ready(Step::End(outcome.unwrap_or(Outcome::Interrupted)));
            }
            if expired.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Step::End(Outcome::TimedOut));
            }
            if abandoned.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Step::End(Outcome::Abandoned));
            }
            is_announced = is_announced || announced.as_mut().poll(cx).is_ready();
            if is_announced { next(&mut items, cx) } else { Poll::Pending }
        })
        .await;
        let step = match step {
            Step::Publish(events) => {
                let mut publishing = pin!(publish(core, local, retention, events));
                let published = poll_fn(|cx| {
                    if let Poll::Ready(published) = publishing.as_mut().poll(cx) {
                        return Poll::Ready(Ok(published));
                    }
                    if !local.is_retrying() {
                        return Poll::Pending;
                    }
                    // A recording can be stopped even if the backend does not accept its events.
                    if let Poll::Ready(outcome) = requested.as_mut().poll(cx) {
                        return Poll::Ready(Err(outcome.unwrap_or(Outcome::Interrupted)));
                    }
                    if expired.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(Err(Outcome::TimedOut));
                    }
                    abandoned.as_mut().poll(cx).map(|()| Err(Outcome::Abandoned))
                });
                match published.await {
                    Ok(Ok(())) if local.is_over() => break (Outcome::Interrupted, None),
                    // A stream that is always ready would otherwise block its thread.
                    Ok(Ok(())) => {
                        yield_now().await;
                        continue;
                    }
                    Ok(Err(Failure::Ended)) => break (Outcome::Interrupted, None),
                    Ok(Err(Failure::Refused(error))) => Step::Fail(error),
                    Err(outcome) => Step::End(outcome),
                }
            }
            step => step,
        };
        match step {
            Step::Publish(_) => {}
            Step::Fail(error) => break (Outcome::Failed, on_error.take().and_then(|f| contained(|| f(error)))),
            Step::End(Outcome::Finished) => break (Outcome::Finished, end),
            Step::End(Outcome::Interrupted) => break (Outcome::Interrupted, will.filter(|_| !local.is_over())),
            Step::End(outcome) => break (outcome, on_stop.and_then(|f| contained(|| f(outcome)))),
        }
    };
    // The stream is dropped before the end is published, so that it does nothing more.
    contain_panic("recording", || drop(items));
    while let Some(event) = last.take() {
        // The event gets the same form as an event of the stream.
        let event = decode(&event.into()).collect();
        match publish(core, local, retention, event).await {
            Err(Failure::Ended) => ended = Outcome::Interrupted,
            // Without its last event, the topic does not show that the stream has ended.
            Err(Failure::Refused(error)) if ended == Outcome::Finished => {
                ended = Outcome::Failed;
                last = on_error.take().and_then(|f| contained(|| f(error)));
            }
            Ok(()) | Err(Failure::Refused(_)) => {}
        }
    }
    // If another node has published the will and died, this node finishes the topic.
    match finish(core, local).await {
        Ok(()) if !local.is_silenced() => ended,
        // The topic does not exist, because the hub has too many topics.
        Err(Failure::Refused(_)) if core.backend.is_none() => Outcome::Failed,
        _ => Outcome::Interrupted,
    }
}

/// Polls the stream that a recording publishes into a topic. Returns the events to publish next:
/// all items that are ready now, up to 64 items and 64 KiB, or one larger item. Returns the end or
/// the error of the stream if no item precedes it.
fn next(items: &mut Items, cx: &mut Context<'_>) -> Poll<Step> {
    let mut events = Vec::new();
    let mut bytes = 0;
    for _ in 0..MAX_BATCH {
        match items.poll_next(cx) {
            Poll::Ready(Some(Ok(encoded)))
                if events.is_empty() || bytes + encoded.as_bytes().len() <= MAX_BATCH_BYTES =>
            {
                bytes += encoded.as_bytes().len();
                events.extend(decode(&encoded));
            }
            Poll::Ready(Some(Err(error))) if events.is_empty() => return Poll::Ready(Step::Fail(error)),
            Poll::Ready(None) if events.is_empty() => return Poll::Ready(Step::End(Outcome::Finished)),
            // The events before this item, or before the end, are published first.
            Poll::Ready(item) => {
                items.put_back(item);
                break;
            }
            Poll::Pending if events.is_empty() => return Poll::Pending,
            Poll::Pending => break,
        }
    }
    Poll::Ready(Step::Publish(events))
}

/// Decodes the wire bytes of a stream's item into single events. Removes their ids, because the hub
/// assigns ids when it publishes the events.
fn decode(encoded: &EncodedEvents) -> impl Iterator<Item = Event> {
    let text = std::str::from_utf8(encoded.as_bytes()).unwrap_or_default();
    text.split_inclusive("\n\n").filter_map(|event| {
        // An event without any field is an empty line.
        let is_kept = |line: &&str| *line != "\n" && !line.starts_with("id: ");
        let lines: String = event.split_inclusive('\n').filter(is_kept).chain(["\n"]).collect();
        Event::from_wire(lines.as_bytes())
    })
}

/// Publishes a batch of events of a recording. Sets the retention limits of the topic first,
/// because the hub may have dropped the topic and its limits while the stream was silent.
async fn publish(
    core: &Arc<Core>,
    local: &Local,
    retention: Option<Retention>,
    events: Vec<Event>,
) -> Result<(), Failure> {
    let refused = |error| Failure::Refused(BoxError::from(error));
    // The events before an invalid event are published.
    let check = |(index, event): (usize, &Event)| Some((index, check_name(event.name()).err()?));
    if let Some((valid, error)) = events.iter().enumerate().find_map(check) {
        let valid = events.into_iter().take(valid).collect();
        Box::pin(publish(core, local, retention, valid)).await?;
        return Err(refused(error));
    }
    if events.is_empty() {
        return Ok(());
    }
    if local.has_ended() {
        return Err(Failure::Ended);
    }
    let topic = &local.announced.topic;
    // In memory, a recording ends under the lock of the registry. So the hub checks this under that
    // lock.
    let is_running = || !local.has_ended();
    if let Some(retention) = retention {
        // Publishing itself reports an error: the hub is shut down, or has too many topics.
        let _ = core.set_retention(topic, retention, true, is_running);
    }
    if core.backend.is_none() {
        return match core.publish_in_memory(topic, local.announced.latest_only, events, |_| is_running()) {
            Ok(_) => Ok(()),
            Err(error) if error.is_finished() || core.is_shut_down() => Err(Failure::Ended),
            Err(error) => Err(refused(error)),
        };
    }
    let kind = local.announced.kind();
    let record = |event: Event| Record { topic: topic.clone(), kind, event: event.encode() };
    append::append(core, local, events.into_iter().map(record).collect()).await
}

/// Finishes the topic of a recording. Has no effect if the recording must publish nothing more: the
/// topic may then belong to a newer recording.
async fn finish(core: &Arc<Core>, local: &Local) -> Result<(), Failure> {
    if local.has_ended() {
        return Err(Failure::Ended);
    }
    let topic = &local.announced.topic;
    if core.backend.is_none() {
        return match core.finish_in_memory(topic, || !local.has_ended()) {
            Ok(()) => Ok(()),
            Err(error) if error.is_finished() || core.is_shut_down() => Err(Failure::Ended),
            Err(error) => Err(Failure::Refused(error.into())),
        };
    }
    let record = Record { topic: topic.clone(), kind: RecordKind::Finish, event: Bytes::new() };
    append::append(core, local, vec![record]).await
}

/// Calls a function of the application that returns the last event of a recording. If the function
/// panics, the panic is logged and the result is `None`.
fn contained(f: impl FnOnce() -> Option<Event>) -> Option<Event> {
    let mut event = None;
    contain_panic("recording", || event = f());
    event
}

async fn after(time: Option<Duration>) {
    match time {
        Some(time) => sleep(time).await,
        None => pending().await,
    }
}

/// Waits until this node has announced the recording in the log. If this node dies later, another
/// node publishes the will, the last event of the recording, and finishes its topic.
async fn announced(local: &Local) {
    let mut announcement = local.announcement.subscribe();
    // The sender is in `local`, so the channel is open.
    let _open = announcement.wait_for(|announcement| announcement.is_done).await;
}

/// Waits until the topic into which the recording publishes its stream has had no subscribers on
/// any node for the duration `time`. The recording then ends. If `time` is `None`, never returns.
async fn abandoned(core: &Core, local: &Local, time: Option<Duration>) {
    let Some(time) = time else { return pending().await };
    let topic = &local.announced.topic;
    let mut watched_at = Instant::now();
    let mut was_watched = false;
    loop {
        let is_elsewhere = || core.backend.is_some() && core.recordings.is_watched_elsewhere(topic, local.lease);
        let is_watched = core.subscribers(topic) > 0 || is_elsewhere();
        if is_watched || was_watched {
            watched_at = Instant::now();
        }
        was_watched = is_watched;
        let left = time.saturating_sub(watched_at.elapsed());
        if left.is_zero() && !is_watched {
            return;
        }
        sleep(left.min(time / 20).clamp(Duration::from_millis(1), Duration::from_secs(1))).await;
    }
}
