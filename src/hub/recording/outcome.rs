/// The reasons why a [`Recording`](super::Recording), a task that publishes a stream into a topic,
/// has ended. The topic is then finished, except after some [interruptions](Self::Interrupted), or
/// if the hub [could not create it](Self::Failed).
///
/// # Examples
///
/// ```
/// use tower_sse::{Event, hub::{Hub, Outcome}};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let job = Hub::new().topic("jobs/7");
/// let recording = job.record(tokio_stream::iter([Ok(Event::new("half")), Err("the disk is full")])).start();
/// assert_eq!(recording.outcome().await, Outcome::Failed);
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The stream has ended without an error, and all of its events and the event of
    /// [`end_with`](super::Recorder::end_with) were published.
    Finished,
    /// The recording, the task that publishes a stream into a topic, has failed: the stream
    /// returned an error or panicked, or one of its events or
    /// [`end_with`](super::Recorder::end_with) could not be published. The events before the error
    /// or before that event were published. A recording of a hub in memory also has this outcome if
    /// the hub cannot create the topic, because the hub already has its maximum number of topics.
    /// The topic then does not exist.
    Failed,
    /// [`Recording::stop`](super::Recording::stop) or
    /// [`Topic::stop_recording`](crate::hub::Topic::stop_recording) was called.
    Stopped,
    /// The topic had no subscribers for the time of
    /// [`Recorder::abandon_after`](super::Recorder::abandon_after).
    Abandoned,
    /// The recording has reached its [`time_limit`](super::Recorder::time_limit).
    TimedOut,
    /// Something outside of the recording has ended it. After the first two causes below, its topic
    /// is finished. After the other causes, the topic may be unfinished when the recording ends,
    /// and another node or a newer recording may finish it later:
    ///
    /// - [`Topic::finish`](crate::hub::Topic::finish) was called for its topic.
    /// - The hub was [drained](crate::hub::Hub::drain_recordings).
    /// - The log has lost or evicted records before this node has read them. Redis loses records in
    ///   a failover, a crash, or with `FLUSHALL`. Any backend evicts records that a node could not
    ///   read for longer than they are retained. These records may show that another node has taken
    ///   over the recording, so this recording publishes no further event. The recording finishes
    ///   its topic, unless a newer recording of the topic does so later.
    /// - A copy has replaced the log, for example in a failover. The copy has the end of an earlier
    ///   recording of the topic, and no later sign of life that this node knows. This is rare: the
    ///   node usually recognizes such an end.
    /// - The hub was [shut down](crate::hub::Hub::shutdown), or its tokio runtime was.
    /// - Another node has published the [`will`](super::Recorder::will), because this node did not
    ///   renew its [`lease`](super::Recorder::lease) in time. The other node or this node then
    ///   finishes the topic.
    /// - The backend did not accept the record that finishes the topic.
    /// - The name of its topic has more than 16 KiB, or begins with `tower-sse/`.
    Interrupted,
}
