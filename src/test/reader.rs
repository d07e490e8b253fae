use super::{ReceivedEvent, whatwg};
use bytes::Bytes;
use http_body::Body;
use std::{
    fmt,
    future::poll_fn,
    panic::Location,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{sleep, timeout};

/// A reader for the events of one response. [`events`](super::events), [`get`](super::get) and
/// [`resume`](super::resume) create it.
///
/// A method that waits for events panics if an event does not arrive within the deadline, 5 seconds
/// by default. The message contains the line of the call and everything that was read. To close the
/// connection like a client that leaves, drop the reader.
///
/// In a test with paused time ([`tokio::time::pause`]), waiting takes no real time: tokio advances
/// its clock when every task waits. A test that reads from a socket, or whose hub has a backend in
/// a server, should not pause the time. Tokio does not see that the other side of the socket is
/// busy, and advances the clock to the deadline.
pub struct EventReader {
    body: Box<dyn EventBody>,
    deadline: Duration,
    ignored: Vec<String>,
    interpreter: whatwg::Interpreter,
    /// The number of events that this reader has returned to the test or ignored so far. It is also
    /// the index of the next event in the list of all events that `interpreter` has parsed.
    read: usize,
    /// The state of the simulated client (such as its last event id) before each event that
    /// `interpreter` has parsed, in the order of these events. It is kept because `interpreter`
    /// also parses events that the test has not read yet.
    before: Vec<State>,
    /// The state of the simulated client (such as its last event id) at the last blank line that
    /// was received, or at the beginning of the stream.
    at_blank_line: State,
    end: Option<End>,
}

/// The state of a simulated client at the beginning of a block of lines, which may be an event: its
/// last event id, its reconnect delay, and the number of comments.
#[derive(Clone, Debug, Default)]
struct State {
    last_event_id: String,
    reconnection_time: Option<String>,
    /// The number of comments that the client has received so far.
    comments: usize,
}

impl State {
    fn of(source: &whatwg::EventSource) -> Self {
        Self {
            last_event_id: source.last_event_id.clone(),
            reconnection_time: source.reconnection_time.clone(),
            comments: source.comments.len(),
        }
    }
}

/// The end of a response body: complete, or failed with an error.
#[derive(Clone, Debug)]
enum End {
    Clean,
    /// The response body has failed with an error. Contains the text of the error.
    Failed(String),
}

impl EventReader {
    pub(super) fn new<B>(body: B, deadline: Duration) -> Self
    where
        B: Body<Data = Bytes, Error: fmt::Display> + Send + 'static,
    {
        Self {
            body: Box::new(Box::pin(body)),
            deadline,
            ignored: Vec::new(),
            interpreter: whatwg::Interpreter::default(),
            read: 0,
            before: Vec::new(),
            at_blank_line: State::default(),
            end: None,
        }
    }

    /// Sets the last id of the client: the id that it has sent in `Last-Event-ID`. The client keeps
    /// this id until the first blank line of the stream. There, the last id in the stream so far
    /// replaces it, or an empty id if the stream has none (HTML standard, §9.2.6).
    pub(super) fn resumed_after(mut self, last_event_id: &str) -> Self {
        last_event_id.clone_into(&mut self.interpreter.source.last_event_id);
        self.at_blank_line = State::of(&self.interpreter.source);
        self
    }

    /// Sets the deadline: the maximum time that each later call waits for an event before it
    /// panics. Default: 5 seconds.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Skips events with the name `name`, like a web page that has no listener for them. Each
    /// further call adds another name.
    ///
    /// The id of a skipped event still counts for [`last_event_id`](Self::last_event_id).
    ///
    /// # Examples
    ///
    /// A subscription to a hub begins with an event named `hub-cursor`, which this test skips:
    ///
    /// ```
    /// # #[cfg(all(feature = "axum", feature = "hub"))] {
    /// use axum::{Router, extract::State, routing::get};
    /// use tower_sse::{Event, LastEventId, hub::{Error, Hub, Subscription}, test};
    ///
    /// async fn listen(State(hub): State<Hub>, last: LastEventId) -> Result<Subscription, Error> {
    ///     hub.subscribe(["lobby"], last).await
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let hub = Hub::new();
    /// let app = Router::new().route("/", get(listen)).with_state(hub.clone());
    /// let mut events = test::get(app, "/").await.ignore("hub-cursor");
    /// hub.topic("lobby").publish(Event::new("hello")).await.unwrap();
    /// assert_eq!(events.next().await.unwrap(), Event::new("hello"));
    /// # }
    /// # main();
    /// # }
    /// ```
    #[must_use]
    pub fn ignore(mut self, name: impl Into<String>) -> Self {
        self.ignored.push(name.into());
        self
    }

    /// Returns the next event. Returns `None` if the stream has ended without an error.
    ///
    /// # Panics
    ///
    /// Panics if neither an event nor the end of the stream arrives within the deadline, or if the
    /// body fails.
    #[track_caller]
    #[expect(clippy::should_implement_trait, reason = "it is async")]
    pub fn next(&mut self) -> impl Future<Output = Option<ReceivedEvent>> + Send {
        self.next_at(Location::caller())
    }

    /// Returns the next `count` events, in order.
    ///
    /// # Panics
    ///
    /// Panics if the wait for one event exceeds the [`deadline`](Self::deadline), if the stream
    /// ends before `count` events, or if the body fails.
    #[track_caller]
    pub fn collect(&mut self, count: usize) -> impl Future<Output = Vec<ReceivedEvent>> + Send {
        let caller = Location::caller();
        async move {
            let mut events = Vec::new();
            while events.len() < count {
                match self.next_at(caller).await {
                    Some(event) => events.push(event),
                    None => {
                        panic!("the stream has ended after {} of {count} events: {events:?}, at {caller}", events.len())
                    }
                }
            }
            events
        }
    }

    /// Returns the events up to the first event that `is_last` accepts, including that event.
    ///
    /// # Panics
    ///
    /// Panics if the wait for one event exceeds the [`deadline`](Self::deadline), if the stream
    /// ends before `is_last` has accepted an event, or if the body fails.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::{Event, SseStream, test};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let answer = tokio_stream::iter([Event::new("Hel"), Event::new("lo"), Event::new("").event("done")]);
    /// # let response = SseStream::new(answer).into_http_response();
    /// let mut events = test::events(response);
    /// let answer = events.collect_until(|event| event.name == "done").await;
    /// # assert_eq!(answer.len(), 3);
    /// # }
    /// ```
    #[track_caller]
    pub fn collect_until(
        &mut self,
        mut is_last: impl FnMut(&ReceivedEvent) -> bool + Send,
    ) -> impl Future<Output = Vec<ReceivedEvent>> + Send {
        let caller = Location::caller();
        async move {
            let mut events = Vec::new();
            loop {
                match self.next_at(caller).await {
                    Some(event) => {
                        let is_over = is_last(&event);
                        events.push(event);
                        if is_over {
                            return events;
                        }
                    }
                    None => panic!("the stream has ended without the last event: {events:?}, at {caller}"),
                }
            }
        }
    }

    /// Waits for the end of the stream, and returns all remaining events.
    ///
    /// # Panics
    ///
    /// Panics if the wait for one event, or for the end after the last event, exceeds the
    /// [`deadline`](Self::deadline), or if the body fails.
    ///
    /// # Examples
    ///
    /// A stream that should end by itself, and after exactly these events:
    ///
    /// ```
    /// # use tower_sse::{Event, SseStream, test};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let steps = tokio_stream::iter([Event::new("50 %"), Event::new("100 %")]);
    /// # let response = SseStream::new(steps).end_with(Event::new("").event("done")).into_http_response();
    /// let mut events = test::events(response);
    /// let rest = events.rest().await;
    /// assert_eq!(rest, [Event::new("50 %"), Event::new("100 %"), Event::new("").event("done")]);
    /// # }
    /// ```
    #[track_caller]
    pub fn rest(&mut self) -> impl Future<Output = Vec<ReceivedEvent>> + Send {
        let caller = Location::caller();
        async move {
            let mut events = Vec::new();
            while let Some(event) = self.next_at(caller).await {
                events.push(event);
            }
            events
        }
    }

    /// Waits for `time`, and asserts that no event arrives in this time and that the stream stays
    /// open. Comments and ignored events may arrive. The [`deadline`](Self::deadline) has no effect
    /// here.
    ///
    /// # Panics
    ///
    /// Panics if an event arrives, if the stream ends, or if the body fails.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::{Event, SseStream, test};
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// # let response = SseStream::new(tokio_stream::pending::<Event>()).into_http_response();
    /// let mut events = test::events(response);
    /// events.expect_silence(Duration::from_secs(60)).await;
    /// # }
    /// ```
    #[track_caller]
    pub fn expect_silence(&mut self, time: Duration) -> impl Future<Output = ()> + Send {
        let caller = Location::caller();
        async move {
            let silence = sleep(time);
            tokio::pin!(silence);
            let event = poll_fn(|cx| match self.poll_event(cx) {
                Poll::Ready(event) => Poll::Ready(Some(event)),
                Poll::Pending => silence.as_mut().poll(cx).map(|()| None),
            });
            if let Some(event) = event.await {
                panic!("expected silence for {time:?}, but received {event:?}, at {caller}: {self:?}");
            }
        }
    }

    /// Waits until the response body fails, and returns the text of its error. A server aborts the
    /// transfer of a response when the body fails. If the stream has events before the error, read
    /// them before this call.
    ///
    /// # Panics
    ///
    /// Panics if another event or the regular end of the stream arrives before the error, or if
    /// nothing arrives within the deadline.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::{Event, SseStream, test};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let rows = tokio_stream::iter([Ok(Event::new("1")), Err(std::io::Error::other("connection lost"))]);
    /// # let response = SseStream::new(rows).into_http_response();
    /// let mut events = test::events(response);
    /// assert_eq!(events.next().await.unwrap(), Event::new("1"));
    /// assert_eq!(events.failure().await, "connection lost");
    /// # }
    /// ```
    #[track_caller]
    pub fn failure(&mut self) -> impl Future<Output = String> + Send {
        let caller = Location::caller();
        async move {
            match self.event_in_time(caller).await {
                Err(End::Failed(error)) => error,
                Err(End::Clean) => panic!("the stream has ended without an error, at {caller}: {self:?}"),
                Ok(event) => panic!("expected a failure, but received {event:?}, at {caller}: {self:?}"),
            }
        }
    }

    /// Returns the comments that were received so far, without their leading colon. Heartbeats are
    /// comments by default.
    ///
    /// If the reader has received events that it has neither returned nor ignored, comments after
    /// the blank line before the first of these events are not included.
    ///
    /// # Examples
    ///
    /// A silent stream has heartbeats. With paused time, the test does not wait for them:
    ///
    /// ```
    /// # use tower_sse::{Event, Heartbeat, SseStream, test};
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// let heartbeat = Heartbeat::every(Duration::from_secs(15)).comment("still here");
    /// let response = SseStream::new(tokio_stream::pending::<Event>()).heartbeat(heartbeat).into_http_response();
    /// let mut events = test::events(response);
    /// events.expect_silence(Duration::from_secs(20)).await;
    /// assert_eq!(events.comments().last().unwrap(), " still here");
    /// # }
    /// ```
    #[must_use]
    pub fn comments(&self) -> &[String] {
        let comments = &self.interpreter.source.comments;
        self.before_next().map_or(comments, |state| &comments[..state.comments])
    }

    /// Returns the reconnect delay in the last valid `retry` field before the next event, the first
    /// event that this reader has not returned yet. Returns `None` if there is no such field.
    ///
    /// The `retry` field within a received event counts once [`next`](Self::next) or another method
    /// has returned this event.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_sse::{Event, SseStream, test};
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let news = tokio_stream::iter([Event::new("hello")]);
    /// let response = SseStream::new(news).retry(Duration::from_secs(3)).into_http_response();
    /// let mut events = test::events(response);
    /// events.next().await;
    /// assert_eq!(events.retry(), Some(Duration::from_secs(3)));
    /// # }
    /// ```
    #[must_use]
    pub fn retry(&self) -> Option<Duration> {
        let latest = &self.interpreter.source.reconnection_time;
        let milliseconds = self.before_next().map_or(latest, |state| &state.reconnection_time).as_ref()?;
        milliseconds.parse().ok().map(Duration::from_millis)
    }

    /// Returns the id that the client would send in `Last-Event-ID` if it reconnected after the
    /// last event that a method of this reader has returned. The id is empty if the client has no
    /// id then.
    ///
    /// The id of a later event does not count, even if the event was in the same frame as the last
    /// returned event. So a test that passes this id to [`resume`](super::resume) gets all further
    /// events. The ids of [ignored](Self::ignore) events, and ids without an event, such as
    /// [`Event::checkpoint`](crate::Event::checkpoint), count, too. Such an id counts once it was
    /// received, if no event before it remains to be returned.
    ///
    /// # Examples
    ///
    /// A client that reconnects continues with the next number:
    ///
    /// ```
    /// # #[cfg(feature = "axum")] {
    /// # use axum::{Router, routing::get};
    /// # use tokio_stream::StreamExt;
    /// # use tower_sse::{Event, LastEventId, SseStream, test};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let count = |last: LastEventId| async move {
    /// #     let next = last.parse::<u64>().unwrap().map_or(0, |seen| seen.saturating_add(1));
    /// #     SseStream::new(tokio_stream::iter(next..=u64::MAX).map(|n| Event::display(n).id(n)))
    /// # };
    /// let app: Router = Router::new().route("/count", get(count));
    /// let mut events = test::get(app.clone(), "/count").await;
    /// assert_eq!(events.collect(2).await, [Event::new("0"), Event::new("1")]);
    ///
    /// let mut events = test::resume(app, "/count", events.last_event_id()).await;
    /// assert_eq!(events.next().await.unwrap(), Event::new("2"));
    /// # }
    /// # main();
    /// # }
    /// ```
    #[must_use]
    pub fn last_event_id(&self) -> &str {
        let latest = &self.interpreter.source.last_event_id;
        self.before_next().map_or(latest, |state| &state.last_event_id)
    }

    /// Returns the state of the simulated client (such as its last event id) before the next event:
    /// the first event that was received, and that the reader has neither returned nor ignored.
    /// Returns `None` if there is no such event. In this case, `self.interpreter.source` contains
    /// the current state.
    fn before_next(&self) -> Option<&State> {
        let messages = self.interpreter.source.messages.iter();
        let mut unread = messages.zip(&self.before).skip(self.read);
        unread.find(|(message, _)| !self.is_ignored(message)).map(|(_, state)| state)
    }

    fn is_ignored(&self, message: &whatwg::Message) -> bool {
        self.ignored.contains(&message.r#type)
    }

    fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let blank_lines = self.interpreter.blank_lines;
            self.interpreter.feed(std::slice::from_ref(byte));
            if self.interpreter.blank_lines > blank_lines {
                let source = &self.interpreter.source;
                let before = std::mem::replace(&mut self.at_blank_line, State::of(source));
                if source.messages.len() > self.before.len() {
                    self.before.push(before);
                }
            }
        }
    }

    async fn next_at(&mut self, caller: &Location<'_>) -> Option<ReceivedEvent> {
        match self.event_in_time(caller).await {
            Ok(event) => Some(event),
            Err(End::Clean) => None,
            Err(End::Failed(error)) => panic!("the body has failed: {error}, at {caller}; before: {self:?}"),
        }
    }

    async fn event_in_time(&mut self, caller: &Location<'_>) -> Result<ReceivedEvent, End> {
        let deadline = self.deadline;
        let event = poll_fn(|cx| self.poll_event(cx));
        match timeout(deadline, event).await {
            Ok(event) => event,
            Err(_elapsed) => panic!("no event within {deadline:?} after {} events, at {caller}: {self:?}", self.read),
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<ReceivedEvent, End>> {
        loop {
            while let Some(message) = self.interpreter.source.messages.get(self.read) {
                self.read += 1;
                if !self.is_ignored(message) {
                    return Poll::Ready(Ok(ReceivedEvent::new(message.clone())));
                }
            }
            if let Some(end) = &self.end {
                return Poll::Ready(Err(end.clone()));
            }
            match ready!(self.body.poll_data(cx)) {
                Some(Ok(bytes)) => self.feed(&bytes),
                Some(Err(error)) => self.end = Some(End::Failed(error)),
                None => self.end = Some(End::Clean),
            }
        }
    }
}

impl fmt::Debug for EventReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Everything that was received, also after the last returned event.
        f.debug_struct("EventReader")
            .field("messages", &self.interpreter.source.messages)
            .field("comments", &self.interpreter.source.comments)
            .field("retry", &self.interpreter.source.reconnection_time)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

/// A response body of any type, as a trait object for the reader. Errors are converted to text.
trait EventBody: Send {
    /// Polls the next data of the body. Returns `None` at the end of the body, and the text of the
    /// error if the body fails. Trailers are skipped.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, String>>>;
}

impl<B> EventBody for Pin<Box<B>>
where
    B: Body<Data = Bytes, Error: fmt::Display> + Send,
{
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, String>>> {
        loop {
            return Poll::Ready(match ready!(self.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => Some(Ok(data)),
                    Err(_trailers) => continue,
                },
                Some(Err(error)) => Some(Err(error.to_string())),
                None => None,
            });
        }
    }
}
