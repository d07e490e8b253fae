//! A registry of event streams by key, through which an application ends the streams of a key, such
//! as a user.

#[cfg(all(feature = "hub", feature = "json"))]
mod follow;
mod registration;
mod streams;

pub(crate) use self::registration::Registration;

#[cfg(all(feature = "hub", feature = "json"))]
use self::follow::Following;
#[cfg(not(all(feature = "hub", feature = "json")))]
use self::not_following::Following;
use self::{
    registration::{AnyRegistry, Index},
    streams::Streams,
};
use crate::{Event, callback::contain_panic};
use bytes::Bytes;
use std::{
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::{Duration, Instant},
};

/// The unit of the stored time of a stream's registration: 10 milliseconds. The stored time has 32
/// bits, so the age of a stream is right for up to 497 days.
const TICK: Duration = Duration::from_millis(10);

/// The event streams of a server by key: a user, a session, a tenant.
///
/// A layer registers streams with [`SseLayer::register`](crate::SseLayer::register).
/// [`close`](Self::close) ends all streams of a key, for example when a user logs out or loses a
/// permission.
///
/// # Guarantee
///
/// An event that is published after [`close`](Self::close) has returned never reaches the streams
/// that this call has closed. A stream that is in the middle of an event completes this event. The
/// [reason](crate::CloseReason) of the end is `Ended`. With several nodes, the guarantee holds for
/// the streams of all nodes after `close_everywhere` has returned `Ok` (features `hub` and `json`).
///
/// A request is registered before the inner service sees the request. So `close` also ends a stream
/// whose response is not ready yet: the response is then an event stream that ends immediately. A
/// client can reconnect at the moment of the logout. Use this order so that no stream survives the
/// logout:
///
/// 1. The server first invalidates the session, and then calls `close`.
/// 2. A request is first registered, and then its session is checked. Place the layer outside of
///    the authentication, and read the key from the session cookie. If the key is known only after
///    the authentication, check in the handler once more that the session is valid.
///
/// Then either the check finds the invalid session, or `close` finds the registered stream.
///
/// # Open streams
///
/// [`count`](Self::count), [`len`](Self::len), [`iter`](Self::iter) and the result of
/// [`close`](Self::close) contain only open streams. A stream is open from the moment when its
/// response passes the layer, until it is closed or its body is dropped. A request that is still in
/// its handler does not count. A response that is not an event stream, and a request over a limit
/// of the same layer, do not count either. So these numbers cannot enforce a limit: many requests
/// can be in their handlers at the same time. Use
/// [`max_streams_per`](crate::SseLayer::max_streams_per).
///
/// # Costs
///
/// With a key of 8 bytes, a registered stream takes about 60 bytes: 56 if many streams share a key,
/// and 63 if each has a key of its own. A stream has a copy of its key, so a large key should be an
/// [`Arc`]. Each poll of a registered stream reads one atomic flag. Registering, opening, dropping
/// and closing lock the registry for a constant time per stream. [`count`](Self::count) locks it
/// for a time that grows with the number of registered streams of the key.
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

/// A snapshot of one open stream, as [`StreamRegistry::iter`] returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegisteredStream<K> {
    /// The key under which the stream is registered, such as a user.
    pub key: K,
    /// The time since the stream's request arrived, a multiple of 10 milliseconds. The layer
    /// registers a request before the inner service sees it.
    pub age: Duration,
    /// The number of events of this stream that were handed to the transport.
    pub events: u64,
    /// The number of bytes of this stream that were handed to the transport, including heartbeats.
    pub bytes: u64,
}

impl<K> StreamRegistry<K>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
{
    /// Creates a registry without streams. All clones of a registry contain the same streams.
    #[must_use]
    pub fn new() -> Self {
        Self { shared: Arc::new(Shared::new()) }
    }

    /// Ends all streams that are registered under this key on this node, and returns the number of
    /// [open streams](Self#open-streams) among them. If the registry is connected with a hub
    /// (`follow`), it also announces the key to the other nodes in the background, and these nodes
    /// end their streams of this key.
    pub fn close(&self, key: &K) -> usize {
        self.close_sending(key, Bytes::new())
    }

    /// Sends `event` to all streams that are registered under this key on this node, and then ends
    /// them. Returns the number of [open streams](Self#open-streams) among them. If the registry is
    /// connected with a hub (`follow`), it also announces the key and the event in the background,
    /// so that the other nodes do the same.
    ///
    /// A page that should not reconnect closes its `EventSource` when it receives `event`. The id
    /// of `event` is not sent, because no client can resume from it. A stream that the inner
    /// service has made without [`SseStream`](crate::SseStream) may be in the middle of another
    /// event. If the other event is not complete within 250 milliseconds, the stream ends without
    /// `event`.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(all(feature = "axum", feature = "test-util"))] {
    /// # use axum::{Router, routing::get};
    /// # use tower_sse::{SseLayer, SseStream, test};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use tower_sse::{Event, StreamRegistry};
    ///
    /// let streams = StreamRegistry::<u64>::new();
    /// # let news = || async { SseStream::new(tokio_stream::pending::<Event>()) };
    /// # let layer = SseLayer::new().register(&streams, |_| Some(7));
    /// # let app: Router = Router::new().route("/news", get(news)).layer(layer);
    /// # let mut events = test::get(app, "/news").await;
    /// // In the page, for an EventSource that would otherwise reconnect:
    /// // source.addEventListener("signed-out", () => { source.close(); location.assign("/login"); });
    /// let user = 7;
    /// let pages = streams.close_with(&user, Event::new("").event("signed-out"));
    /// assert_eq!(pages, 1);
    /// assert_eq!(events.rest().await, [Event::new("").event("signed-out")]);
    /// # }
    /// # main();
    /// # }
    /// ```
    pub fn close_with(&self, key: &K, event: Event) -> usize {
        self.close_sending(key, event.without_id().encode())
    }

    fn close_sending(&self, key: &K, event: Bytes) -> usize {
        let closed = self.shared.close(key, &event);
        self.shared.following.announce(key, &event);
        closed
    }

    /// Returns the number of [open streams](Self#open-streams) that are registered under this key
    /// on this node. In a handler, the request of this handler does not count.
    ///
    /// # Examples
    ///
    /// A user without an open page in a browser gets a notice by mail:
    ///
    /// ```
    /// use tower_sse::{Event, StreamRegistry, hub::{Error, Hub}};
    ///
    /// async fn notify(hub: &Hub, streams: &StreamRegistry<u64>, user: u64, text: &str) -> Result<(), Error> {
    ///     hub.topic(format!("notices/{user}")).publish(Event::new(text)).await?;
    ///     if streams.count(&user) == 0 {
    ///         send_mail(user, text);
    ///     }
    ///     Ok(())
    /// }
    /// # use std::cell::Cell;
    /// # thread_local! { static MAILS: Cell<u32> = const { Cell::new(0) } }
    /// # fn send_mail(_: u64, _: &str) { MAILS.set(MAILS.get() + 1); }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// # notify(&Hub::new(), &StreamRegistry::new(), 7, "Your parcel has arrived.").await?;
    /// # assert_eq!(MAILS.get(), 1);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn count(&self, key: &K) -> usize {
        let hash = self.shared.hash_of(key);
        self.shared.lock().count(key, hash)
    }

    /// Returns the number of all [open streams](Self#open-streams).
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.lock().len()
    }

    /// Returns `true` if no stream is [open](Self#open-streams).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the [open streams](Self#open-streams) at the time of this call, in no particular
    /// order.
    ///
    /// # Examples
    ///
    /// The rows of an admin page, with the oldest streams first:
    ///
    /// ```
    /// # #[cfg(all(feature = "axum", feature = "test-util"))] {
    /// # use axum::{Router, routing::get};
    /// # use tower_sse::{Event, SseLayer, SseStream, test};
    /// use std::cmp::Reverse;
    /// use tower_sse::StreamRegistry;
    ///
    /// fn rows(streams: &StreamRegistry<String>) -> Vec<String> {
    ///     let mut open: Vec<_> = streams.iter().collect();
    ///     open.sort_by_key(|stream| Reverse(stream.age));
    ///     open.iter()
    ///         .map(|stream| format!("{}: {} s, {} events", stream.key, stream.age.as_secs(), stream.events))
    ///         .collect()
    /// }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let streams = StreamRegistry::new();
    /// # use tokio_stream::StreamExt;
    /// # let hello = || tokio_stream::once(Event::new("hello")).chain(tokio_stream::pending());
    /// # let news = move || async move { SseStream::new(hello()) };
    /// # let layer = SseLayer::new().register(&streams, |_| Some("Anna".to_owned()));
    /// # let app: Router = Router::new().route("/news", get(news)).layer(layer);
    /// # let mut events = test::get(app, "/news").await;
    /// # events.next().await;
    /// # assert_eq!(rows(&streams), ["Anna: 0 s, 1 events"]);
    /// # }
    /// # main();
    /// # }
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = RegisteredStream<K>> + use<K> {
        let streams = self.shared.lock();
        let now = self.shared.now();
        let snapshots = streams.iter().map(|stream| RegisteredStream {
            key: stream.key.clone(),
            age: TICK * now.wrapping_sub(stream.began),
            events: stream.events,
            bytes: stream.bytes,
        });
        let snapshots: Vec<_> = snapshots.collect();
        drop(streams);
        snapshots.into_iter()
    }

    /// Registers a request for a stream under `key` until the returned registration is dropped. The
    /// stream counts as open after [`Registration::open`]. Returns `None` if 4 billion streams are
    /// registered. If this node has been cut off from the log of a hub for longer than
    /// `fail_closed_after`, it cannot know which streams other nodes have closed. This method then
    /// closes all streams of the registry, including the new one.
    pub(crate) fn register(&self, key: K) -> Option<Registration> {
        let Self { shared } = self;
        let (hash, now) = (shared.hash_of(&key), shared.now());
        let registration = shared.lock().add(key, hash, |key| shared.hash_of(key), shared.clone(), now);
        if shared.following.is_cut_off() {
            shared.close_all();
        }
        registration
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
        f.debug_struct("StreamRegistry").field("streams", &self.shared.lock().len()).finish()
    }
}

struct Shared<K> {
    streams: Mutex<Streams<K>>,
    hasher: RandomState,
    created: Instant,
    following: Following<K>,
}

impl<K> Shared<K> {
    fn new() -> Self {
        Self {
            streams: Mutex::default(),
            hasher: RandomState::new(),
            created: Instant::now(),
            following: Following::default(),
        }
    }

    /// Closes the streams that are registered under `key` on this node, and returns the number of
    /// open streams among them. Each stream sends `event` before its end, unless `event` is empty.
    fn close(&self, key: &K, event: &Bytes) -> usize
    where
        K: Hash + Eq,
    {
        let hash = self.hash_of(key);
        let (closed, wakers) = self.lock().close(key, hash, event);
        wake(wakers);
        closed
    }

    /// Closes all streams of the registry, and sends no event before their end. The registry
    /// contains only the streams of this node.
    fn close_all(&self) {
        let wakers = self.lock().close_all();
        wake(wakers);
    }

    fn hash_of(&self, key: &K) -> u64
    where
        K: Hash,
    {
        self.hasher.hash_one(key)
    }

    /// Returns the time since the registry was created, in ticks of 10 milliseconds.
    fn now(&self) -> u32 {
        // The number wraps around after 497 days. The difference of two times is still right.
        (self.created.elapsed().as_millis() / TICK.as_millis()) as u32
    }

    fn lock(&self) -> MutexGuard<'_, Streams<K>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> AnyRegistry for Shared<K>
where
    K: Hash + Eq + Send + Sync,
{
    fn remove(&self, index: Index) {
        let removed = self.lock().remove(index, |key| self.hash_of(key));
        drop(removed);
    }

    fn open(&self, index: Index) {
        self.lock().open(index);
    }

    fn closing_event(&self, index: Index) -> Bytes {
        self.lock().closing_event(index)
    }

    fn has_same_key(&self, index: Index, other: Index) -> bool {
        self.lock().has_same_key(index, other)
    }
}

fn wake(wakers: Vec<Waker>) {
    for waker in wakers {
        contain_panic("waker", || waker.wake());
    }
}

#[cfg(not(all(feature = "hub", feature = "json")))]
mod not_following {
    use bytes::Bytes;
    use std::marker::PhantomData;

    /// A stand-in that does nothing, for builds without the feature `hub`, without `json`, or
    /// without both. With both features, another type `Following` announces closed streams to the
    /// other nodes of a hub.
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
