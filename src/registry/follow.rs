//! Registries that close streams on all nodes of a hub.
//!
//! When a node closes the streams of a key, such as a user, it announces the key as an event in one
//! topic of the hub. The hub of every other node passes the announcement to the registry before it
//! delivers any later event, and the registry closes its streams of this key.

use super::{Shared, StreamRegistry};
use crate::{
    Event, JsonError,
    callback::contain_panic,
    hub::{
        Announcements, CLOSED_STREAMS, Error, ErrorKind, Hub, RegistryName, Start, Subscription, SubscriptionError,
        Topic,
    },
    random, trace,
};
use bytes::Bytes;
use serde_core::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    hash::Hash,
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{
            AtomicUsize,
            Ordering::{AcqRel, Acquire},
        },
    },
    time::Duration,
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_stream::Stream;

/// The pause before a node tries again to announce closed streams to the other nodes, after
/// publishing the announcement has failed. Also the pause before the node subscribes to the topic
/// of the announcements again, after its subscription has ended.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

impl<K> StreamRegistry<K>
where
    K: Serialize + DeserializeOwned + Hash + Eq + Clone + Send + Sync + 'static,
{
    /// Connects this registry with a hub, so that a call of [`close`](Self::close) on one node
    /// closes the streams that are registered under the key on all nodes. The node of the call
    /// announces the key in a topic of the hub. The other nodes read the announcement, and close
    /// their streams with this key. Call `follow` once on each node, at its start.
    ///
    /// A node closes the streams before it delivers anything that follows the announcement in the
    /// log. [`close_everywhere`](Self::close_everywhere) closes streams like `close`, and waits
    /// until the announcement is in the log. So nothing that is published after `close_everywhere`
    /// has succeeded reaches these streams, however late a node reads the log. A stream that is
    /// closed may miss events that were published shortly before.
    ///
    /// A node that is cut off from the backend closes the announced streams as soon as it can read
    /// the log again. If the log no longer retains all announcements by then, the node cannot know
    /// which of its streams were closed. So it closes all of its registered streams. Their clients
    /// then reconnect and authenticate again. [`fail_closed_after`](Self::fail_closed_after) limits
    /// the time that a node keeps its streams while it is cut off.
    ///
    /// An announcement contains the key, and the event of [`close_with`](Self::close_with) if there
    /// is one. It is published as JSON in the topic `tower-sse/closed-streams` of the hub, and the
    /// retention of the hub applies to it. The name of this topic is reserved. So a client that
    /// chooses a topic can neither read the keys, such as session ids, nor close the streams of
    /// others. If another program finishes the topic in the log, announcements cannot be published.
    /// The nodes try again until the topic accepts events again.
    ///
    /// If several registries follow one log, for example those of users and of tenants, give each
    /// of them a name with [`follow_as`](Self::follow_as).
    ///
    /// An announcement reaches the other nodes after some milliseconds. If a user logs in again
    /// meanwhile with the same key, the new stream may be closed as well. To prevent this, use the
    /// session, and not the user, as the key.
    ///
    /// The task that reads the log of the hub deserializes, hashes and compares the announced keys.
    /// So these operations of the type `K` must not block. If an operation panics, the node does
    /// not know which streams to close, and closes all streams of this registry. A key that cannot
    /// be deserialized closes no stream. So during a deploy that changes the type `K`, old and new
    /// nodes must understand the keys of each other.
    ///
    /// While a node is behind the log, for example after its start, a client that needs old events
    /// from the backend waits until the node has read the log. Without this wait, the client could
    /// get events from after the close of its stream, because the node has not read the
    /// announcement yet.
    ///
    /// Background tasks publish the announcements, and watch the topic. They end when the registry
    /// and all layers with it are dropped, and its streams have ended. After a shutdown of the hub,
    /// the watching task ends by itself. The publishing task ends when it tries to publish the next
    /// announcement.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`follow_as`](Self::follow_as). A second registry in this process that
    /// calls `follow` for the same hub gets the error
    /// [`RegistryNameInUse`](ErrorKind::RegistryNameInUse).
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_sse::{StreamRegistry, hub::{Error, Hub}};
    ///
    /// async fn registry(hub: &Hub) -> Result<StreamRegistry<String>, Error> {
    ///     let streams = StreamRegistry::new();
    ///     streams.follow(hub).await?;
    ///     Ok(streams)
    /// }
    /// ```
    pub async fn follow(&self, hub: &Hub) -> Result<(), Error> {
        self.follow_as(hub, "").await
    }

    /// Connects this registry with a hub under a name, and otherwise like [`follow`](Self::follow).
    /// If a node closes the streams of a key, the other nodes close the streams of this key only in
    /// registries with the same name. `follow` uses the empty name.
    ///
    /// Use the same name for a registry on all nodes, and a name of its own for each registry of a
    /// node. All applications that share the log share these names, too. For example, the user 7
    /// and the tenant 7 have the same key in JSON. If their registries had the same name, closing
    /// the streams of the tenant on one node would close the streams of the user on the other
    /// nodes.
    ///
    /// # Errors
    ///
    /// - The errors of [`Topic::subscribe`].
    /// - [`RegistryNameInUse`](ErrorKind::RegistryNameInUse) if a registry of this process already
    ///   follows the hub under this name, even if it is the same registry. The name becomes free
    ///   when all handles of that registry and all layers with it are dropped, and all of its
    ///   streams have ended.
    /// - [`RegistryNameTooLong`](ErrorKind::RegistryNameTooLong) if the name has more than 256
    ///   bytes.
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_sse::{StreamRegistry, hub::{Error, Hub}};
    ///
    /// #[derive(Clone)]
    /// struct Streams {
    ///     users: StreamRegistry<u64>,
    ///     tenants: StreamRegistry<u64>,
    /// }
    ///
    /// async fn streams(hub: &Hub) -> Result<Streams, Error> {
    ///     let streams = Streams { users: StreamRegistry::new(), tenants: StreamRegistry::new() };
    ///     streams.users.follow_as(hub, "users").await?;
    ///     streams.tenants.follow_as(hub, "tenants").await?;
    ///     Ok(streams)
    /// }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// # let hub = Hub::new();
    /// # let streams = streams(&hub).await?;
    /// # let error = streams.users.follow_as(&hub, "tenants").await.unwrap_err();
    /// # assert_eq!(error.kind(), tower_sse::hub::ErrorKind::RegistryNameInUse);
    /// # Ok(()) }
    /// ```
    pub async fn follow_as(&self, hub: &Hub, name: &str) -> Result<(), Error> {
        // A node without a backend cannot be cut off.
        let silence = lock(&self.shared.following.fail_closed_after).filter(|_| hub.has_backend());
        let inbox = Arc::new(Inbox {
            node: format!("{:016x}", random::bits()),
            name: name.into(),
            registry: Arc::downgrade(&self.shared),
            silence,
            state: Mutex::new(ReadState { silent_since: Instant::now(), is_cut_off: false }),
        });
        let announcements: Weak<dyn Announcements> = Arc::downgrade(&(inbox.clone() as _));
        let name = hub.reserve_registry_name(name, announcements)?;
        let topic = hub.topic_of_crate(CLOSED_STREAMS);
        let subscription = subscribe(&topic).await?;
        let (queue, announcements) = unbounded_channel();
        let follower = Follower { topic: topic.clone(), inbox: inbox.clone() };
        let node = inbox.node.clone();
        let sign = Event::json(&json!({ "node": node }))?;
        let encode = |key: &K| serde_json::to_value(key);
        let announcer = Announcer { topic: topic.clone(), node, name, queue, encode, _inbox: inbox };
        // The signs of life have a task of their own, so that a slow announcement does not delay
        // them.
        let beats = silence.map(|silence| tokio::spawn(beat(topic.clone(), sign, silence / 3)));
        let publisher = Publisher { topic, queue: announcements, pending: VecDeque::new() };
        let following = tokio::spawn(follower.run(subscription));
        tokio::spawn(async move {
            publisher.run().await;
            following.abort();
            beats.inspect(|beats| beats.abort());
        });
        lock(&self.shared.following.announcers).push(announcer);
        Ok(())
    }

    /// Sets the time after which a node closes all of its streams if it has read no announcement of
    /// closed streams and no sign of life from the log of the hub. The node then counts as cut off.
    /// New streams are closed, too, until the node reads an announcement or a sign of life again.
    /// By default, the streams of a node that is cut off stay open.
    ///
    /// Each node publishes a sign of life three times in this time, in the topic
    /// `tower-sse/closed-streams`. If another program finishes this topic, the nodes count as cut
    /// off. A stream of a node that is cut off ends at the latest after this time plus the timeout
    /// of a request to the backend. Less than one second counts as one second. Call this method
    /// before [`follow`](Self::follow). It has no effect with a hub in memory.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_sse::StreamRegistry;
    ///
    /// let streams = StreamRegistry::<String>::new().fail_closed_after(Duration::from_secs(30));
    /// ```
    #[must_use]
    pub fn fail_closed_after(self, time: Duration) -> Self {
        *lock(&self.shared.following.fail_closed_after) = Some(time.max(Duration::from_secs(1)));
        self
    }

    /// Ends all streams of this key on this node, and waits until the announcement for the other
    /// nodes is in the log of the hub. Returns the number of [open streams](Self#open-streams) that
    /// were ended on this node.
    ///
    /// Nothing that is published to the hub after this call has succeeded reaches a stream of this
    /// key on any node. This holds for the streams that were registered before the call.
    ///
    /// [`close`](Self::close) does not wait. It publishes the announcement in the background, and
    /// tries again until that succeeds, the hub is shut down, or the process ends.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Topic::publish`]. The streams of this node are closed nevertheless,
    /// and publishing the announcement is tried again in the background. Also returns an error if
    /// the key does not serialize to JSON. Then nothing is announced.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped after its first poll, the streams of this node are closed
    /// nevertheless. The announcement is then published in the background.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_sse::{StreamRegistry, hub::Error};
    ///
    /// async fn log_out(streams: &StreamRegistry<String>, session: &String) -> Result<(), Error> {
    ///     let closed = streams.close_everywhere(session).await?;
    ///     println!("{closed} streams of this node are closed");
    ///     Ok(())
    /// }
    /// ```
    pub async fn close_everywhere(&self, key: &K) -> Result<usize, Error> {
        self.close_everywhere_sending(key, Bytes::new()).await
    }

    /// Sends `event` to all streams of the key on all nodes, and then ends these streams. Combines
    /// [`close_with`](Self::close_with), which sends an event, and
    /// [`close_everywhere`](Self::close_everywhere), which waits until the announcement for the
    /// other nodes is in the log.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`close_everywhere`](Self::close_everywhere).
    pub async fn close_everywhere_with(&self, key: &K, event: Event) -> Result<usize, Error> {
        self.close_everywhere_sending(key, event.without_id().encode()).await
    }

    async fn close_everywhere_sending(&self, key: &K, event: Bytes) -> Result<usize, Error> {
        let closed = self.shared.close(key, &event);
        let announcements: Vec<_> =
            lock(&self.shared.following.announcers).iter().map(|announcer| announcer.prepare(key, &event)).collect();
        let mut failure = None;
        for announcement in announcements {
            if let Err(error) = announcement?.publish().await {
                failure.get_or_insert(error);
            }
        }
        failure.map_or(Ok(closed), Err)
    }
}

/// An announcement to the other nodes of a hub: this node has closed the streams that are
/// registered under a key, such as a user. If the announcement is dropped before
/// [`publish`](Self::publish) has succeeded, a background task publishes it.
struct Announcement {
    topic: Topic,
    queue: UnboundedSender<Event>,
    event: Option<Event>,
}

impl Announcement {
    async fn publish(mut self) -> Result<(), Error> {
        let Some(event) = self.event.clone() else { return Ok(()) };
        self.topic.publish(event).await?;
        self.event = None;
        Ok(())
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        if let Some(event) = self.event.take() {
            let _hub_is_shut_down = self.queue.send(event);
        }
    }
}

/// The part of a stream registry that connects the registry with hubs. It announces to the other
/// nodes of each hub the keys, such as users, whose streams this node has closed. It also counts
/// the hubs that this node is cut off from.
pub(super) struct Following<K> {
    announcers: Mutex<Vec<Announcer<K>>>,
    /// The number of hubs that this node is cut off from: it has read no announcement or sign of
    /// life from their logs for the time of
    /// [`fail_closed_after`](StreamRegistry::fail_closed_after). While the number is not zero, each
    /// new stream is closed as soon as it is registered.
    cut_off_hubs: AtomicUsize,
    fail_closed_after: Mutex<Option<Duration>>,
}

impl<K> Default for Following<K> {
    fn default() -> Self {
        Self { announcers: Mutex::default(), cut_off_hubs: AtomicUsize::new(0), fail_closed_after: Mutex::default() }
    }
}

impl<K> Following<K> {
    /// Announces in the background that this node has closed the streams that are registered under
    /// `key`. `event` is the event that each closed stream sends before its end, or empty. If the
    /// key does not serialize, the error is logged.
    pub(super) fn announce(&self, key: &K, event: &Bytes) {
        for announcer in &*lock(&self.announcers) {
            match announcer.prepare(key, event) {
                Ok(announcement) => drop(announcement),
                Err(error) => trace::close_not_announced(&error.into()),
            }
        }
    }

    pub(super) fn is_cut_off(&self) -> bool {
        self.cut_off_hubs.load(Acquire) > 0
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Announces to the other nodes of a hub the keys whose streams this node has closed. A stream
/// registry has one `Announcer` for each connected hub.
struct Announcer<K> {
    topic: Topic,
    /// The random name of this node, which each of its announcements contains. When the node reads
    /// an announcement with its own name, it ignores the announcement, because it has already
    /// closed the streams.
    node: String,
    name: RegistryName,
    queue: UnboundedSender<Event>,
    encode: fn(&K) -> Result<Value, serde_json::Error>,
    /// Receives the announcements of other nodes, and closes the streams that are registered on
    /// this node under the announced keys. The hub has only a weak reference to this inbox, so the
    /// field keeps the inbox in memory.
    _inbox: Arc<Inbox<K>>,
}

impl<K> Announcer<K> {
    fn prepare(&self, key: &K, event: &Bytes) -> Result<Announcement, JsonError> {
        let key = (self.encode)(key).map_err(JsonError::new)?;
        let (node, registry, event) = (&self.node, self.name.as_str(), String::from_utf8_lossy(event));
        let event = json!({ "node": node, "registry": registry, "key": key, "event": event });
        Ok(Announcement { topic: self.topic.clone(), queue: self.queue.clone(), event: Some(Event::json(&event)?) })
    }
}

/// The background task that publishes the announcements of this node. An announcement makes the
/// other nodes close their streams of a key, such as a user. If publishing fails, the announcement
/// moves to the end of the queue. The task tries again after 200 milliseconds, until publishing
/// succeeds.
struct Publisher {
    topic: Topic,
    queue: UnboundedReceiver<Event>,
    /// The announcements that are not in the log of the hub yet. Each of them contains a key, such
    /// as a user, whose streams this node has closed.
    pending: VecDeque<Event>,
}

impl Publisher {
    /// Publishes the announcements of closed streams from the queue. Ends when all handles of the
    /// stream registry are dropped and the queue is empty. After a shutdown of the hub, this method
    /// ends when it tries to publish the next announcement.
    async fn run(mut self) {
        let mut next_attempt = None;
        let mut is_failure_logged = false;
        loop {
            match until(next_attempt, self.queue.recv()).await {
                Some(Some(announcement)) => {
                    self.pending.push_back(announcement);
                    // After a failure, a further announcement does not shorten the pause.
                    next_attempt.get_or_insert_with(Instant::now);
                }
                Some(None) if self.pending.is_empty() => return,
                // All handles are dropped, so no further announcement can come.
                Some(None) => sleep(RETRY_PAUSE).await,
                None => {}
            }
            if next_attempt.is_some_and(|at| at <= Instant::now()) {
                for _ in 0..self.pending.len() {
                    let Some(announcement) = self.pending.pop_front() else { break };
                    match self.topic.publish(announcement.clone()).await {
                        Ok(_) => {}
                        Err(error) if error.kind() == ErrorKind::Shutdown => return,
                        Err(error) => {
                            self.pending.push_back(announcement);
                            if !mem::replace(&mut is_failure_logged, true) {
                                trace::announcements_failed(&error.into());
                            }
                        }
                    }
                }
                if self.pending.is_empty() && mem::take(&mut is_failure_logged) {
                    trace::announcements_recovered();
                }
                next_attempt = (!self.pending.is_empty()).then(|| Instant::now() + RETRY_PAUSE);
            }
        }
    }
}

/// Publishes a sign of life of this node after every `interval`, until the hub is shut down. A sign
/// of life is an event in the topic where nodes announce closed streams. As long as the node reads
/// events of this topic, it is not cut off from the log.
async fn beat(topic: Topic, sign: Event, interval: Duration) {
    loop {
        let next = Instant::now().checked_add(interval);
        // Other errors are not handled here: without signs of life in the log, the node closes its
        // streams.
        let published = topic.publish(sign.clone()).await;
        if published.is_err_and(|error| error.kind() == ErrorKind::Shutdown) {
            return;
        }
        let Some(next) = next else { return };
        sleep_until(next).await;
    }
}

/// Waits for `future` until `time`. Returns `None` if that time comes first. Waits without a limit
/// if `time` is `None`.
async fn until<F: Future>(time: Option<Instant>, future: F) -> Option<F::Output> {
    match time {
        None => Some(future.await),
        Some(at) => timeout_at(at, future).await.ok(),
    }
}

/// The part of a stream registry that receives the announcements of other nodes. If another node
/// has closed its streams of a key, such as a user, the inbox closes the streams of the key on this
/// node. The hub calls the inbox for each event in the topic of the announcements, in the task that
/// reads the log.
struct Inbox<K> {
    /// The random name of this node. Each announcement of closed streams contains the name of its
    /// node. This node ignores its own announcements, because it has already closed these streams.
    node: String,
    /// The name under which this registry is connected with the hub. Each announcement of closed
    /// streams contains the name of its registry. This registry ignores announcements with another
    /// name, because they are about other streams.
    name: Box<str>,
    registry: Weak<Shared<K>>,
    /// The time limit that [`fail_closed_after`](StreamRegistry::fail_closed_after) sets. If this
    /// node reads no event in the topic of the announcements for this time, it closes all streams
    /// of this registry. `None` for no limit.
    silence: Option<Duration>,
    state: Mutex<ReadState>,
}

/// The state that shows whether a node is cut off from the log of a hub. It contains the time when
/// the node last read an event in the topic where nodes announce closed streams.
struct ReadState {
    /// The start of the current silence, which [`Inbox::silence`] limits. At this time, the node
    /// last read an event in the topic where nodes announce closed streams, or was last found to be
    /// cut off.
    silent_since: Instant,
    /// Set while this node is cut off from the log of this hub: it has read no announcement or
    /// sign of life for the time in [`Inbox::silence`].
    is_cut_off: bool,
}

impl<K> Inbox<K> {
    /// Notes that this node is not cut off from the log of the hub. Called when the node has read
    /// an event in the topic where nodes announce closed streams. Also called when the registry
    /// stops following the hub, and so no longer depends on its log.
    fn note_read(&self, registry: &Shared<K>) {
        lock(&self.state).set_cut_off(registry, false);
    }

    /// If the [deadline](Self::deadline) has passed, notes that this node is cut off from the log
    /// of the hub, and closes all streams of the registry. Before the deadline, does nothing.
    fn check_silence(&self) {
        let Some(registry) = self.registry.upgrade() else { return };
        let mut state = lock(&self.state);
        if state.deadline(self.silence).is_some_and(|deadline| deadline <= Instant::now()) {
            state.set_cut_off(&registry, true);
            drop(state);
            registry.close_all();
        }
    }

    /// Returns the time when this node begins to count as cut off from the log, if it reads no
    /// announcement and no sign of life before. Returns `None` if there is no time limit.
    fn deadline(&self) -> Option<Instant> {
        lock(&self.state).deadline(self.silence)
    }
}

impl ReadState {
    fn deadline(&self, silence: Option<Duration>) -> Option<Instant> {
        self.silent_since.checked_add(silence?)
    }

    /// Sets whether this node counts as cut off from the log of this hub, and starts the time limit
    /// of [`Inbox::silence`] again.
    fn set_cut_off<K>(&mut self, registry: &Shared<K>, is_cut_off: bool) {
        self.silent_since = Instant::now();
        let hubs = &registry.following.cut_off_hubs;
        match (mem::replace(&mut self.is_cut_off, is_cut_off), is_cut_off) {
            (false, true) => _ = hubs.fetch_add(1, AcqRel),
            (true, false) => _ = hubs.fetch_sub(1, AcqRel),
            (false, false) | (true, true) => {}
        }
    }
}

impl<K> Inbox<K>
where
    K: DeserializeOwned + Hash + Eq,
{
    /// Closes the streams of this node with the key in `announcement`, because another node has
    /// closed its streams with this key. Ignores all events that are not such announcements.
    fn apply(&self, registry: &Shared<K>, announcement: &Event) {
        // Anything that is no announcement comes from another program, and is skipped.
        let Some(data) = announcement.event_data() else { return };
        let Ok(mut announcement) = serde_json::from_str::<Value>(&data) else { return };
        if announcement["node"].as_str().is_none_or(|node| node == self.node) {
            return;
        }
        // A sign of life has no key. A `Null` in its place would be the key `None` or `()`.
        let Some(key) = announcement.get_mut("key").map(Value::take) else { return };
        // Equal keys of another registry, such as the number of a tenant, mean other streams.
        if announcement["registry"] != *self.name {
            return;
        }
        // Only a whole event reaches clients, whatever another program has written.
        let event = announcement["event"].as_str().and_then(|event| Event::from_wire(event.as_bytes()));
        let event = event.map(Event::encode).unwrap_or_default();
        if let Ok(key) = serde_json::from_value::<K>(key) {
            registry.close(&key, &event);
        }
    }
}

impl<K> Announcements for Inbox<K>
where
    K: DeserializeOwned + Hash + Eq + Send + Sync,
{
    fn read(&self, announcement: &Event) {
        // Keys run code of the application: they are deserialized, hashed, compared and dropped.
        contain_panic("key of a registry", || {
            let Some(registry) = self.registry.upgrade() else { return };
            self.note_read(&registry);
            let mut is_applied = false;
            contain_panic("key of a registry", || {
                self.apply(&registry, announcement);
                is_applied = true;
            });
            // Without the key, the node does not know which of its streams were closed.
            if !is_applied {
                registry.close_all();
            }
        });
    }

    fn missed(&self) {
        contain_panic("key of a registry", || self.registry.upgrade().iter().for_each(|registry| registry.close_all()));
    }
}

/// The task that notices when this node is cut off from the log of the hub. It also keeps a
/// subscription to the topic where nodes announce closed streams, so that the topic exists.
/// Otherwise, the hub would reject the announcements while it has its maximum number of topics.
struct Follower<K> {
    topic: Topic,
    inbox: Arc<Inbox<K>>,
}

impl<K> Follower<K> {
    /// Watches whether this node is cut off from the log. Subscribes to the topic of the
    /// announcements again if the subscription ends. Stops when the hub is shut down, or when all
    /// handles of the stream registry are dropped.
    async fn run(self, mut subscription: Subscription) {
        loop {
            match until(self.inbox.deadline(), next(&mut subscription)).await {
                // With a backend, the hub has already passed the events to the inbox.
                Some(Some(Ok(_))) => continue,
                None => {
                    self.inbox.check_silence();
                    continue;
                }
                Some(Some(Err(SubscriptionError::Shutdown))) => return,
                // The subscription has lagged, another log has replaced the log, or another program
                // has finished the topic.
                Some(Some(Err(_)) | None) => {}
            }
            sleep(RETRY_PAUSE).await;
            // If subscribing fails, the old subscription is kept. It has ended, so the loop comes
            // here again.
            if let Some(Ok(again)) = until(self.inbox.deadline(), subscribe(&self.topic)).await {
                subscription = again;
            }
            // An ended subscription is ready each time, so the wait for its next item never sees
            // the deadline.
            self.inbox.check_silence();
        }
    }
}

/// When the task that watches the topic of the announcements ends, notes that this node no longer
/// counts as cut off from the log of this hub. Otherwise, if the node was cut off before a shutdown
/// of this hub, a registry that also follows other hubs would close each new stream.
impl<K> Drop for Follower<K> {
    fn drop(&mut self) {
        if let Some(registry) = self.inbox.registry.upgrade() {
            self.inbox.note_read(&registry);
        }
    }
}

/// Subscribes to the topic where nodes announce closed streams. The subscription receives only the
/// events that are published from now on.
async fn subscribe(topic: &Topic) -> Result<Subscription, Error> {
    Ok(topic.subscribe(Start::Latest).await?.linger(Duration::ZERO))
}

async fn next(subscription: &mut Subscription) -> Option<<Subscription as Stream>::Item> {
    std::future::poll_fn(|cx| Pin::new(&mut *subscription).poll_next(cx)).await
}
