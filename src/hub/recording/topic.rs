//! The methods of a topic for recordings.

use super::Recorder;
use crate::{
    SseItem,
    hub::{Error, Topic},
};
use tokio_stream::Stream;

impl Topic {
    /// Records a stream in this topic: a task publishes the items of the stream, independently of
    /// any client. The recording begins when [`start`](Recorder::start) is called on the result.
    ///
    /// For example, the answer of a language model continues after the client that has requested it
    /// has disconnected. Clients subscribe to the topic as usual. The stream can have the same
    /// items as an [`SseStream`](crate::SseStream::new). The hub replaces the ids of the events.
    /// Items that are ready at the same time are published as one batch.
    ///
    /// With [`latest_only`](Self::latest_only), each recorded event replaces the previous event.
    ///
    /// When the recording [ends](crate::hub::Outcome), it [finishes](Self::finish) the topic, also
    /// after an error, so clients stop reconnecting. So use a new topic for each recording: the
    /// first end in a topic ends all recordings of the topic. With a backend, a new recording can
    /// replace the recording of a dead node, as long as its [will](crate::hub::Recorder::will) is
    /// not published. Other publishers may publish to the topic during the recording.
    ///
    /// A recording whose topic has a name of more than 16 KiB is
    /// [interrupted](crate::hub::Outcome::Interrupted) at its start.
    ///
    /// # With a backend
    ///
    /// During an outage of the backend, the recording does not poll its stream. It tries to publish
    /// its last batch, of at most 64 items, until the log contains the batch. No event is lost or
    /// published twice. If the backend refuses a batch but responds to other requests, for example
    /// because the batch is too large, the recording appends it in smaller parts. If the backend
    /// refuses a single event for a minute, the recording ends as
    /// [failed](crate::hub::Outcome::Failed). The log then contains all events before this event.
    ///
    /// The recording does not poll its stream while it appends a batch to the log, even without an
    /// outage. Each append takes one `fdatasync` with a file, and one round trip with a server. So
    /// a source that drops ticks, such as a tokio interval with `MissedTickBehavior::Delay`,
    /// becomes slower.
    ///
    /// If the node of the recording dies, another node publishes the
    /// [`will`](crate::hub::Recorder::will), an event that the application has set for this case,
    /// and then finishes the topic. If the log is [replaced](crate::hub::backend) by another log,
    /// the recording continues in the other log. If the same log loses records, the recording is
    /// [interrupted](crate::hub::Outcome::Interrupted).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_stream::Stream;
    /// use tower_sse::{BoxError, Event, hub::{Hub, Outcome}};
    ///
    /// # fn model(prompt: &str) -> impl Stream<Item = Result<Event, BoxError>> + Send + use<> {
    /// #     tokio_stream::iter([Ok(Event::new(prompt))])
    /// # }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let hub = Hub::new();
    /// let answer = hub.topic("answer/42");
    /// let recording = answer
    ///     .record(model("Why is the sky blue?"))
    ///     .abandon_after(Duration::from_secs(30))
    ///     .time_limit(Duration::from_secs(600))
    ///     .on_error(|error| Some(Event::display(error).event("failed")))
    ///     .end_with(Event::new("[DONE]"))
    ///     .will(Event::new("").event("interrupted"))
    ///     .start();
    /// assert_eq!(recording.outcome().await, Outcome::Finished);
    /// # }
    /// ```
    pub fn record<S>(&self, stream: S) -> Recorder
    where
        S: Stream + Send + 'static,
        S::Item: SseItem,
    {
        // The recording itself reports an error: the hub is shut down, or has too many topics.
        let _ = self.check_reserved().and_then(|()| self.apply_retention(true));
        Recorder::new(self.core.clone(), self.name.clone(), self.latest_only, self.retention, stream)
    }

    /// Stops the recordings of this topic on all nodes. A recording is a task that [publishes a
    /// stream](Self::record) to the topic. Has no effect if the topic has no recording.
    ///
    /// With a backend, the method returns when the log contains the request to stop. A recording on
    /// another node ends when that node reads the request.
    ///
    /// # Errors
    ///
    /// [`Backend`](crate::hub::ErrorKind::Backend) if the backend does not acknowledge the request
    /// to stop. Recordings on the local node are stopped in any case.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_sse::hub::{Error, Hub};
    ///
    /// /// The handler of a "Stop" button.
    /// async fn stop(hub: &Hub, answer: &str) -> Result<(), Error> {
    ///     hub.topic(format!("answers/{answer}")).stop_recording().await
    /// }
    /// ```
    pub async fn stop_recording(&self) -> Result<(), Error> {
        self.check_reserved()?;
        super::stop(&self.core, &self.name).await
    }
}
