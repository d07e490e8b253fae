//! A registry of open streams by key, through which an application ends the streams of a user.

#[cfg(all(feature = "hub", feature = "json"))]
mod follow;

#[cfg(all(feature = "hub", feature = "json"))]
use self::follow::Following;
#[cfg(not(all(feature = "hub", feature = "json")))]
use self::not_following::Following;
use crate::{Event, callback::contain_panic};
use bytes::Bytes;
use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    hash::Hash,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    task::Waker,
    time::{Duration, Instant},
};

/// The open streams of a server by key: a user, a session, a tenant.
///
/// A layer registers streams with [`SseLayer::register`](crate::SseLayer::register).
/// [`close`](Self::close) ends all streams of a key, for example when a user logs out or loses a
/// permission.
///
/// # Guarantee
///
/// After [`close`](Self::close) has returned, nothing that is published later reaches the streams
/// that it has closed. A stream that is in the middle of an event completes this event. The
/// [reason](crate::CloseReason) of the end is `Ended`.
///
/// A request is registered before the inner service sees the request. So `close` also ends a stream
/// whose response is not ready yet. A client can reconnect at the moment of the logout. Use this
/// order so that no stream survives the logout:
///
/// 1. The server first invalidates the session, and then calls `close`.
/// 2. A request is first registered, and then its session is checked. Place the layer outside of
///    the authentication, and read the key from the session cookie. If the key is known only after
///    the authentication, check in the handler once more that the session is valid.
///
/// Then either the check finds the invalid session, or `close` finds the registered stream.
///
/// # Costs
///
/// A registered stream takes about 190 bytes and two copies of its key, so a large key should be an
/// [`Arc`]. Each poll of a registered stream reads one atomic flag. Registering, dropping and
/// closing lock the registry for a constant time per stream.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::{Router, extract::State, routing::post};
/// use tower_sse::{SseLayer, StreamRegistry};
///
/// #[derive(Clone, Hash, PartialEq, Eq)]
/// struct Session(String);
///
/// async fn logout(State(streams): State<StreamRegistry<Session>>, session: String) {
///     let session = Session(session);
///     // First delete the session from the store, so that no request is accepted any more. Then:
///     streams.close(&session);
/// }
///
/// let streams = StreamRegistry::new();
/// let layer = SseLayer::new().register(&streams, |parts| {
///     let cookie = parts.headers.get("cookie")?.to_str().ok()?;
///     Some(Session(cookie.strip_prefix("session=")?.to_owned()))
/// });
/// let app: Router = Router::new().route("/logout", post(logout)).layer(layer).with_state(streams);
/// # }
/// ```
pub struct StreamRegistry<K> {
    shared: Arc<Shared<K>>,
}

/// A snapshot of one registered stream, as [`StreamRegistry::iter`] returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegisteredStream<K> {
    /// The key of the stream.
    pub key: K,
    /// The time since the request of the stream was registered.
    pub age: Duration,
    /// The number of events that were handed to the transport.
    pub events: u64,
    /// The number of bytes that were handed to the transport, including heartbeats.
    pub bytes: u64,
}

impl<K> StreamRegistry<K>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
{
    /// Creates an empty registry. Clones of a registry contain the same streams.
    #[must_use]
    pub fn new() -> Self {
        Self { shared: Arc::new(Shared::new()) }
    }

    /// Ends all streams of this key on this node, and returns their number. A registry that follows
    /// a hub also announces the close to the other nodes, in the background.
    pub fn close(&self, key: &K) -> usize {
        self.close_sending(key, Bytes::new())
    }

    /// Sends this event to all streams of this key on this node, and then ends them. Returns the
    /// number of these streams. A registry that follows a hub also announces the close to the other
    /// nodes, in the background.
    ///
    /// A page that should not reconnect closes its `EventSource` when it receives the event. The
    /// event is sent without its id, because no client can resume from this event. An upstream
    /// stream that cannot complete its current event within 250 milliseconds ends without this
    /// event.
    pub fn close_with(&self, key: &K, event: Event) -> usize {
        self.close_sending(key, event.without_id().encode())
    }

    fn close_sending(&self, key: &K, event: Bytes) -> usize {
        let closed = self.shared.close(key, &event);
        self.shared.following.announce(key, &event);
        closed
    }

    /// Returns the number of open streams of this key.
    #[must_use]
    pub fn count(&self, key: &K) -> usize {
        self.shared.lock().by_key.get(key).map_or(0, Streams::len)
    }

    /// Returns the number of all open streams.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.lock().count
    }

    /// Returns `true` if no stream is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the open streams at the time of this call, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = RegisteredStream<K>> + use<K> {
        let streams: Vec<_> = self.shared.lock().by_key.values().flat_map(Streams::as_slice).cloned().collect();
        streams.into_iter().map(|stream| RegisteredStream {
            key: stream.key.clone(),
            age: stream.state.began.elapsed(),
            events: stream.state.events.load(Relaxed),
            bytes: stream.state.bytes.load(Relaxed),
        })
    }

    /// Registers a stream under `key` until the returned registration is dropped. If this node is
    /// cut off from a hub that it follows, the stream is closed at once.
    pub(crate) fn register(&self, key: K) -> Registration {
        let stream = Arc::new(Registered { key, registry: Arc::clone(&self.shared), state: StreamState::new() });
        let mut streams = self.shared.lock();
        match streams.by_key.entry(stream.key.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(Streams::One(Arc::clone(&stream)));
            }
            Entry::Occupied(mut entry) => entry.get_mut().push(Arc::clone(&stream)),
        }
        streams.count += 1;
        drop(streams);
        if self.shared.following.is_cut_off() {
            self.shared.close_all();
        }
        Registration(stream)
    }
}

impl<K> Default for StreamRegistry<K>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
{
    fn default() -> Self {
        Self::new()
    }
}

impl<K> Clone for StreamRegistry<K> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<K> fmt::Debug for StreamRegistry<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamRegistry").field("streams", &self.shared.lock().count).finish()
    }
}

struct Shared<K> {
    streams: Mutex<AllStreams<K>>,
    following: Following<K>,
}

impl<K> Shared<K> {
    fn new() -> Self {
        Self { streams: Mutex::default(), following: Following::default() }
    }

    /// Closes the streams of a key on this node, and returns their number. Each stream sends
    /// `event` before its end. An empty `event` sends nothing.
    fn close(&self, key: &K, event: &Bytes) -> usize
    where
        K: Hash + Eq,
    {
        let mut all = self.lock();
        let Some(streams) = all.by_key.remove(key) else { return 0 };
        all.count -= streams.len();
        drop(all);
        for stream in streams.as_slice() {
            stream.state.close(event.clone());
        }
        streams.len()
    }

    /// Closes all streams of this node, without a closing event.
    fn close_all(&self) {
        let all = mem::take(&mut *self.lock());
        for stream in all.by_key.values().flat_map(Streams::as_slice) {
            stream.state.close(Bytes::new());
        }
    }

    fn lock(&self) -> MutexGuard<'_, AllStreams<K>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The registered streams of this node that are not closed.
struct AllStreams<K> {
    by_key: HashMap<K, Streams<K>>,
    count: usize,
}

impl<K> Default for AllStreams<K> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), count: 0 }
    }
}

/// The streams of one key. Most keys have one stream, which needs no list.
enum Streams<K> {
    One(Arc<Registered<K>>),
    Several(Vec<Arc<Registered<K>>>),
}

impl<K> Streams<K> {
    fn as_slice(&self) -> &[Arc<Registered<K>>] {
        match self {
            Self::One(stream) => std::slice::from_ref(stream),
            Self::Several(streams) => streams,
        }
    }

    fn len(&self) -> usize {
        self.as_slice().len()
    }

    fn push(&mut self, stream: Arc<Registered<K>>) {
        stream.state.index.store(self.len() as u32, Relaxed);
        match self {
            Self::One(first) => *self = Self::Several(vec![Arc::clone(first), stream]),
            Self::Several(streams) => streams.push(stream),
        }
    }

    /// Removes a stream of a key that has several streams, and returns `true`. Returns `false`
    /// without a change if the list does not contain the stream, or if the key has only one stream.
    /// The caller removes an only stream together with its key.
    fn remove(&mut self, stream: &StreamState) -> bool {
        let Self::Several(streams) = self else { return false };
        let index = stream.index.load(Relaxed) as usize;
        if !streams.get(index).is_some_and(|other| std::ptr::eq(&other.state, stream)) {
            return false;
        }
        streams.swap_remove(index);
        if let Some(moved) = streams.get(index) {
            moved.state.index.store(index as u32, Relaxed);
        }
        if let [only] = &**streams {
            *self = Self::One(Arc::clone(only));
        }
        true
    }
}

/// One registered stream.
struct Registered<K> {
    key: K,
    registry: Arc<Shared<K>>,
    state: StreamState,
}

struct StreamState {
    /// Set when the stream is closed. Before that, the closing event is stored in `wakeup`, so a
    /// task that finds the flag set also finds the event.
    is_closed: AtomicBool,
    wakeup: Mutex<Wakeup>,
    began: Instant,
    events: AtomicU64,
    bytes: AtomicU64,
    /// The index of this stream in the list of streams with its key. It changes only while the
    /// registry is locked.
    index: AtomicU32,
}

enum Wakeup {
    /// The stream is open. Contains the waker of the task that last polled the stream. A close
    /// wakes this task. `None` before the first poll.
    Open(Option<Waker>),
    /// The stream is closed. It sends this event before its end, or nothing if the event is empty.
    Closed(Box<Bytes>),
}

impl StreamState {
    fn new() -> Self {
        Self {
            is_closed: AtomicBool::new(false),
            wakeup: Mutex::new(Wakeup::Open(None)),
            began: Instant::now(),
            events: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            index: AtomicU32::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Wakeup> {
        self.wakeup.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self, event: Bytes) {
        let before = mem::replace(&mut *self.lock(), Wakeup::Closed(Box::new(event)));
        self.is_closed.store(true, Release);
        if let Wakeup::Open(Some(waker)) = before {
            contain_panic("waker", || waker.wake());
        }
    }
}

/// The part of a registered stream that does not depend on the type of its key.
trait AnyRegistered: Send + Sync {
    fn state(&self) -> &StreamState;

    fn remove(&self);
}

impl<K> AnyRegistered for Registered<K>
where
    K: Hash + Eq + Send + Sync,
{
    fn state(&self) -> &StreamState {
        &self.state
    }

    fn remove(&self) {
        let mut streams = self.registry.lock();
        let Some(of_key) = streams.by_key.get_mut(&self.key) else { return };
        let is_only = matches!(of_key, Streams::One(only) if std::ptr::eq(&only.state, &self.state));
        if is_only {
            streams.by_key.remove(&self.key);
        } else if !of_key.remove(&self.state) {
            // The stream was closed, and other streams were registered with its key since.
            return;
        }
        streams.count -= 1;
    }
}

/// The registration of one stream. Dropping it removes the stream from the registry.
pub(crate) struct Registration(Arc<dyn AnyRegistered>);

impl Registration {
    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.0.state().is_closed.load(Acquire)
    }

    /// Stores the waker that is woken when a registry closes the stream. Has no effect if the
    /// stream is already closed.
    pub(crate) fn set_waker(&self, waker: &Waker) {
        if let Wakeup::Open(stored) = &mut *self.0.state().lock() {
            *stored = Some(waker.clone());
        }
    }

    /// Returns the event that a closed stream sends before its end, or empty bytes for no event.
    /// Returns `None` if the stream is not closed.
    #[inline]
    pub(crate) fn closing_event(&self) -> Option<Bytes> {
        if !self.is_closed() {
            return None;
        }
        match &*self.0.state().lock() {
            Wakeup::Open(_) => None,
            Wakeup::Closed(event) => Some(Bytes::clone(event)),
        }
    }

    /// Adds to the number of events that the stream has sent. Only the stream itself may call this.
    #[inline]
    pub(crate) fn record_events(&self, events: u64) {
        add(&self.0.state().events, events);
    }

    /// Adds to the number of bytes that the stream has sent. Only the stream itself may call this.
    #[inline]
    pub(crate) fn record_bytes(&self, bytes: u64) {
        add(&self.0.state().bytes, bytes);
    }
}

/// Adds `more` to `counter`. Only one thread at a time changes the counter, so a load and a store
/// are enough.
#[inline]
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Relaxed) + more, Relaxed);
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Comparing keys runs code of the application.
        contain_panic("key of a registry", || self.0.remove());
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("is_closed", &self.is_closed()).finish_non_exhaustive()
    }
}

#[cfg(not(all(feature = "hub", feature = "json")))]
mod not_following {
    use bytes::Bytes;
    use std::marker::PhantomData;

    /// The state of a registry that cannot follow a hub, because the features `hub` and `json` are
    /// not both enabled.
    pub(super) struct Following<K>(PhantomData<fn(&K)>);

    impl<K> Default for Following<K> {
        fn default() -> Self {
            Self(PhantomData)
        }
    }

    impl<K> Following<K> {
        pub(super) fn announce(&self, _: &K, _: &Bytes) {}

        pub(super) fn is_cut_off(&self) -> bool {
            false
        }
    }
}
