//! Recordings: tasks that publish a stream into a topic, whether clients are connected or not.

pub(super) mod append;
pub(super) mod beat;
mod copy;
pub(super) mod keeper;
mod local;
pub(super) mod nodes;
mod outage;
mod outcome;
mod peer;
mod task;
mod topic;

pub use outcome::Outcome;

use self::{
    beat::Announced,
    local::Local,
    task::{Items, Registered, check_topic},
};
use super::{core::Core, error::Error, retention::Retention, topic::check_name};
use crate::{BoxError, Event, SseItem, random};
use bytes::Bytes;
use std::{
    fmt,
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};
use tokio::{runtime::Handle, sync::watch};
use tokio_stream::Stream;

/// The maximum size of the will of a recording, in bytes. The will is the event that another node
/// publishes if the node of the recording dies. Each sign of life of a node contains the wills of
/// all its recordings.
const MAX_WILL_BYTES: usize = 16 << 10;

/// The pause between two rounds of [`drain`]. Each round ends all recordings of this node, the
/// tasks that publish streams into topics. The rounds repeat until no recording runs, because a
/// handler may start another recording after a round.
const DRAIN_PAUSE: Duration = Duration::from_millis(100);

/// The default of [`Recorder::lease`]: the time that a node may be silent before another node takes
/// over its recordings, the tasks that publish streams into topics. The other node publishes the
/// last events that were set for this case, and finishes the topics.
const LEASE: Duration = Duration::from_secs(10);

/// The settings of a recording, a task that publishes a stream into a topic.
/// [`Topic::record`](super::Topic::record) creates the settings, and [`start`](Self::start) starts
/// the recording.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_sse::{BoxError, Event, hub::{Hub, Outcome, Recording}};
///
/// fn answer(hub: &Hub, id: u64, tokens: impl tokio_stream::Stream<Item = Result<Event, BoxError>> + Send + 'static) -> Recording {
///     hub.topic(format!("answers/{id}"))
///         .record(tokens)
///         .abandon_after(Duration::from_secs(30))
///         .time_limit(Duration::from_secs(20 * 60))
///         .on_error(|error| Some(Event::display(error).event("failed")))
///         .on_stop(|outcome| match outcome {
///             Outcome::Abandoned => Some(Event::new("no client was reading").event("abandoned")),
///             _ => Some(Event::new("the answer was stopped").event("stopped")),
///         })
///         .end_with(Event::new("[DONE]").event("done"))
///         .will(Event::new("the server was restarted").event("failed"))
///         .start()
/// }
/// ```
#[must_use = "a recording begins with `start`"]
pub struct Recorder {
    core: Arc<Core>,
    topic: Arc<str>,
    latest_only: bool,
    items: Items,
    settings: Settings,
}

struct Settings {
    /// The limits that the recording sets for the retained events of the topic. `None` if the
    /// recording does not change the limits of the topic.
    retention: Option<Retention>,
    abandon_after: Option<Duration>,
    time_limit: Option<Duration>,
    lease: Duration,
    will: Option<Event>,
    end: Option<Event>,
    on_error: Option<Box<dyn FnOnce(BoxError) -> Option<Event> + Send>>,
    on_stop: Option<Box<dyn FnOnce(Outcome) -> Option<Event> + Send>>,
}

/// A handle to a recording: a task that publishes a stream into a topic.
///
/// Clones are handles to the same recording. The recording continues when all of its handles are
/// dropped.
///
/// # Examples
///
/// ```
/// use tower_sse::{Event, hub::{Hub, Outcome}};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let endless = tokio_stream::pending::<Event>();
/// let recording = Hub::new().topic("jobs/7").record(endless).start();
/// recording.stop();
/// assert_eq!(recording.outcome().await, Outcome::Stopped);
/// # }
/// ```
#[derive(Clone)]
pub struct Recording {
    local: Arc<Local>,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Recorder {
    pub(super) fn new<S>(
        core: Arc<Core>,
        topic: Arc<str>,
        latest_only: bool,
        retention: Option<Retention>,
        stream: S,
    ) -> Self
    where
        S: Stream + Send + 'static,
        S::Item: SseItem,
    {
        let settings = Settings {
            retention,
            abandon_after: None,
            time_limit: None,
            lease: LEASE,
            will: None,
            end: None,
            on_error: None,
            on_stop: None,
        };
        Self { core, topic, latest_only, items: Items::new(stream), settings }
    }

    /// Ends the recording, the task that publishes the stream, when its topic has had no
    /// subscribers on any node for this time. By default, the recording continues without
    /// subscribers.
    ///
    /// The time begins with the recording, so the first client has this long to subscribe. With a
    /// backend, another node reports its first subscriber after at most about one second, or a
    /// third of the [`lease`](Self::lease) if this is shorter. After an outage of the backend, the
    /// time begins again, because subscribers on other nodes are unknown during the outage.
    pub fn abandon_after(mut self, time: Duration) -> Self {
        self.settings.abandon_after = Some(time);
        self
    }

    /// Ends the recording, the task that publishes the stream, when it has run for this time.
    /// Default: no limit.
    pub fn time_limit(mut self, time: Duration) -> Self {
        self.settings.time_limit = Some(time);
        self
    }

    /// Sets a function that returns the last event if the recording, the task that publishes the
    /// stream into a topic, [fails](Outcome::Failed). This happens if the stream returns an error
    /// or panics, or if an event cannot be published. `f` gets the error of the stream or of the
    /// publication, or an error that reports the panic. By default, or if `f` returns `None`, the
    /// topic is finished without another event.
    pub fn on_error(mut self, f: impl FnOnce(BoxError) -> Option<Event> + Send + 'static) -> Self {
        self.settings.on_error = Some(Box::new(f));
        self
    }

    /// Sets a function that returns the last event of the recording, the task that publishes the
    /// stream, if it ends as [`Stopped`](Outcome::Stopped), [`Abandoned`](Outcome::Abandoned) or
    /// [`TimedOut`](Outcome::TimedOut). `f` gets this outcome. The recording publishes the event,
    /// and then finishes the topic. By default, or if `f` returns `None`, the recording finishes
    /// the topic without another event.
    pub fn on_stop(mut self, f: impl FnOnce(Outcome) -> Option<Event> + Send + 'static) -> Self {
        self.settings.on_stop = Some(Box::new(f));
        self
    }

    /// Sets the last event of the recording, the task that publishes the stream, for the case that
    /// the stream ends without an error. By default, the topic is finished without another event.
    ///
    /// A recording [fails](Outcome::Failed) immediately if this event is named `gap` or
    /// `hub-cursor`, like the hub's own events. It fails at its end if the backend refuses this
    /// event.
    pub fn end_with(mut self, event: Event) -> Self {
        self.settings.end = Some(event);
        self
    }

    /// Sets the will: the last event of the recording for the case that its node dies. The
    /// recording is the task that publishes the stream into a topic. By default, the topic is
    /// finished without another event.
    ///
    /// If this process dies during the recording, another node of the hub publishes this event and
    /// finishes the topic. The other node does so at most about one second after this process has
    /// been silent for the [`lease`](Self::lease). If this process was only paused and comes back,
    /// it publishes nothing more, so the event is published once. Without another node, the next
    /// process that connects to the log publishes it. Without a backend, the will is published only
    /// by [`Hub::drain_recordings`](super::Hub::drain_recordings). [`Recording::announced`] waits
    /// until the other nodes can read the will in the log. The will is not published if the log has
    /// [lost records](Outcome::Interrupted) that may include the end of the recording.
    ///
    /// If the hub was [shut down](super::Hub::shutdown) during the recording, another node or the
    /// next process publishes the will at once, and not after the lease. For this, let the process
    /// run for a second after the shutdown. It then appends a last record to the log.
    ///
    /// With a log in a [file](super::Builder::file), there is no other node. After a crash, the new
    /// process publishes the will when it has run for the time of the lease. To end such a topic
    /// earlier, publish a last event of your own in place of the will, and
    /// [finish](super::Topic::finish) the topic. The hub then publishes no will.
    ///
    /// Each sign of life of this node contains the will, so keep it short. A recording
    /// [fails](Outcome::Failed) immediately if its will has more than 16 KiB, or is named `gap` or
    /// `hub-cursor`, like the hub's own events.
    pub fn will(mut self, event: Event) -> Self {
        self.settings.will = Some(event);
        self
    }

    /// Sets how long this node may be silent before another node takes over the recording:
    /// publishes the [`will`](Self::will) as its last event and finishes its topic. Default: 10
    /// seconds. The minimum is 100 milliseconds, and the maximum is one hour: a value outside of
    /// this range is set to the nearer limit.
    ///
    /// This node sends three signs of life within the shortest lease of its recordings. Each sign
    /// of life covers all of its recordings. If the lease is shorter than about ten response times
    /// of the backend under full load, the signs of life can be late. The other nodes can then take
    /// over recordings that still run. A recording that was taken over publishes nothing more, and
    /// its outcome is [`Interrupted`](Outcome::Interrupted).
    pub fn lease(mut self, time: Duration) -> Self {
        self.settings.lease = time.clamp(Duration::from_millis(100), Duration::from_secs(3600));
        self
    }

    /// Starts the recording, a task that publishes the stream into the topic, on the current tokio
    /// runtime.
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime.
    pub fn start(self) -> Recording {
        let Self { core, topic, latest_only, mut items, mut settings } = self;
        let will = settings.will.clone().map(|will| will.without_id().complete().encode()).unwrap_or_default();
        // Another node publishes the will as it is. The end is published too late to report a
        // mistake of the caller.
        let names = [&settings.will, &settings.end].map(|event| event.as_ref().and_then(Event::name));
        let checked = names.into_iter().try_for_each(check_name).map_err(BoxError::from);
        let checked = checked.and_then(|()| check_size(&will));
        let will = if checked.is_ok() { will } else { Bytes::new() };
        if let Err(error) = checked {
            settings.will = None;
            items = Items::new(tokio_stream::once(Result::<Event, _>::Err(error)));
        }
        let needs_subscribers = settings.abandon_after.is_some();
        let announced = Announced { topic, id: random::bits(), will, needs_subscribers, latest_only };
        let runtime = Handle::current();
        let local = Arc::new(Local::new(announced, settings.lease, &core.recordings.outage));
        let (sender, outcome) = watch::channel(None);
        let registered = Registered::new(core, local.clone());
        runtime.spawn(task::run(registered, items, settings, sender));
        Recording { local, outcome }
    }
}

impl Recording {
    /// Stops the recording. The recording then publishes the event of [`Recorder::on_stop`] and
    /// finishes its topic. Calling this again, or after the end of the recording, has no effect.
    ///
    /// To stop a recording on another node, call
    /// [`Topic::stop_recording`](super::Topic::stop_recording).
    pub fn stop(&self) {
        self.local.stop(Outcome::Stopped);
    }

    /// Waits for the end of the recording, the task that publishes the stream, and returns why it
    /// has ended. The topic is then finished, except after some
    /// [interruptions](Outcome::Interrupted).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn outcome(&self) -> Outcome {
        let mut outcome = self.outcome.clone();
        let ended = outcome.wait_for(Option::is_some).await;
        // The task always sets it, except if its runtime was shut down.
        ended.ok().and_then(|outcome| *outcome).unwrap_or(Outcome::Interrupted)
    }

    /// Waits until the log of the backend has a sign of life of this node that lists the recording,
    /// the task that publishes the stream. The sign of life also contains the
    /// [`will`](Recorder::will). From then on, if this process dies, the will is published and the
    /// topic is finished: by another node, or after a restart by this one.
    ///
    /// The recording polls its stream only after this sign of life is in the log, usually some
    /// milliseconds after the start. If the process dies earlier, the topic has no event of the
    /// recording, but it is not finished either. Clients that a response has sent to the topic then
    /// wait there for ever. So do clients that find the topic because you have published another
    /// event to it. So await this method before you return the response that starts a job. Without
    /// a backend, or if the log already has this sign of life, the future completes on its first
    /// poll.
    ///
    /// # Errors
    ///
    /// - [`Backend`](super::ErrorKind::Backend) if the backend does not acknowledge the sign of
    ///   life in time: within a third of the shortest [`lease`](Recorder::lease) on this node, or
    ///   half a second if that is longer. The recording itself tries again until this succeeds. So
    ///   either [stop](Self::stop) the recording, or call this method again.
    /// - [`Finished`](super::ErrorKind::Finished) if the recording has ended without a sign of
    ///   life, for example because its topic was finished before.
    /// - [`Shutdown`](super::ErrorKind::Shutdown) if the hub is shut down.
    /// - [`ReservedTopic`](super::ErrorKind::ReservedTopic) if the name of the topic begins with
    ///   `tower-sse/`.
    /// - [`TopicTooLong`](super::ErrorKind::TopicTooLong) if the name of the topic has more than 16
    ///   KiB.
    ///
    /// While this node has not read the log to its end, for example after the start of the process,
    /// the method waits without a time limit.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    ///
    /// # Examples
    ///
    /// ```
    /// use http::StatusCode;
    /// use tokio_stream::StreamExt;
    /// use tower_sse::{Event, hub::{Error, Hub}};
    ///
    /// async fn start_job(hub: &Hub, id: u64) -> Result<StatusCode, Error> {
    ///     let begun = tokio_stream::once(Event::new("import.csv").event("begun"));
    ///     let steps = begun.chain(tokio_stream::iter((0..100).map(Event::display)));
    ///     let job = hub.topic(format!("jobs/{id}"));
    ///     let recording = job.record(steps).will(Event::new("").event("interrupted")).start();
    ///     recording.announced().await.inspect_err(|_| recording.stop())?;
    ///     Ok(StatusCode::ACCEPTED)
    /// }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # assert_eq!(start_job(&Hub::new(), 7).await.unwrap(), 202);
    /// # }
    /// ```
    pub async fn announced(&self) -> Result<(), Error> {
        let mut announcement = self.local.announcement.subscribe();
        let failures = announcement.borrow().failures;
        let mut decided = pin!(announcement.wait_for(|it| it.is_done || it.failures > failures));
        let mut outcome = self.outcome.clone();
        let mut ended = pin!(outcome.wait_for(Option::is_some));
        poll_fn(|cx| {
            if let Poll::Ready(decided) = decided.as_mut().poll(cx) {
                // The sender is in `local`, so the channel is open.
                let failed = decided.ok().filter(|it| !it.is_done).map(|it| it.error.clone());
                let error = failed.map(|error| Error::backend(self.topic(), error.as_ref().into()));
                return Poll::Ready(error.map_or(Ok(()), Err));
            }
            ended.as_mut().poll(cx).map(|outcome| self.announced_before_end(outcome.is_ok()))
        })
        .await
    }

    /// Returns the result of [`announced`](Self::announced) if the recording has ended without
    /// being announced in the current log. A recording is announced when the log has a sign of life
    /// of this node that lists the recording. The result is `Ok` if the recording was announced in
    /// an earlier log. Another log has then replaced that log, and the recording has finished its
    /// topic there. `has_outcome` is `false` if the task of the recording has ended without an
    /// [`Outcome`], because its runtime was shut down.
    fn announced_before_end(&self, has_outcome: bool) -> Result<(), Error> {
        check_topic(self.topic())?;
        if self.local.is_shut_down() || !has_outcome {
            return Err(Error::shut_down());
        }
        if self.local.was_announced() { Ok(()) } else { Err(Error::finished(self.topic())) }
    }

    /// Returns the name of the topic into which the recording publishes its stream.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.local.announced.topic
    }
}

fn check_size(will: &Bytes) -> Result<(), BoxError> {
    match will.len() <= MAX_WILL_BYTES {
        true => Ok(()),
        false => Err(format!("the will has {} bytes: at most {MAX_WILL_BYTES} are allowed", will.len()).into()),
    }
}

/// Stops all recordings (tasks that publish streams) of this topic, on all nodes. Returns an error
/// if the backend does not acknowledge the request to the other nodes.
pub(super) async fn stop(core: &Arc<Core>, topic: &Arc<str>) -> Result<(), Error> {
    core.recordings.stop(topic);
    match &core.backend {
        Some(backend) => backend.append_record(beat::Message::Stop(topic.clone()).record()).await.map(drop),
        None => Ok(()),
    }
}

/// Waits for up to `time` until all recordings (tasks that publish streams into topics) of this
/// node have ended. Then makes each remaining recording publish its will (the last event, which is
/// also published if the node dies) and finish its topic. Waits without a time limit until they
/// have ended. Returns the number of recordings that were running when `time` was over.
pub(super) async fn drain(core: &Arc<Core>, time: Duration) -> usize {
    let mut running = core.recordings.running.subscribe();
    let is_drained = tokio::time::timeout(time, running.wait_for(|running| *running == 0)).await.is_ok();
    if is_drained {
        return 0;
    }
    let interrupted = *core.recordings.running.borrow();
    loop {
        // A handler may start another recording in the meantime.
        core.recordings.interrupt();
        let ended = running.wait_for(|running| *running == 0);
        if tokio::time::timeout(DRAIN_PAUSE, ended).await.is_ok() {
            return interrupted;
        }
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = *self.outcome.borrow();
        f.debug_struct("Recording").field("topic", &self.topic()).field("outcome", &outcome).finish()
    }
}
