//! Presence: which names, for example of users, are members of each topic, on all nodes (the
//! processes that share a log). [`Topic::join`](super::Topic::join) ties a name to a topic and to a
//! subscription. The name is a member as long as it has at least one such subscription, and then
//! for the grace time.
//!
//! A node counts the subscriptions of each of its members. It appends a record to the log when a
//! member joins with its first subscription, and when it leaves at the end of the grace time. Every
//! node computes the members of all nodes from these records. All nodes read the records in the
//! same order, so they agree.

mod announcer;
mod local;
mod message;
mod pending;
mod state;
mod stream;
mod survey;
mod topic;
mod view;

pub(super) use self::{
    announcer::start,
    message::is_of,
    survey::{exists_anywhere, subscribers_anywhere},
};
pub use stream::PresenceStream;

use self::{pending::MAX_BATCH_BYTES, state::State, view::Transition};
use super::{
    backend::{Page, Position, Record},
    config::HubConfig,
    core::Core,
    error::Error,
    node::BackendClient,
    recording::{append::caught_up, beat::Beats},
    topic::complete,
};
use crate::{Event, callback::contain_panic};
use std::{
    collections::HashMap,
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, timeout_at},
};

/// The maximum length of the name of a member of a topic, in bytes. A longer name cannot become a
/// member of a topic.
pub(super) const MAX_MEMBER_BYTES: usize = 256;

/// The maximum length of the name of a topic with members (names that are present in it), in bytes.
/// With a longer topic name, a record of the local node about these members could be too large for
/// the backend, and its append would fail. After a failed append, the next record lists all members
/// of the node again, including those of this topic. Its append would fail, too, so the node could
/// announce no member of any topic.
pub(super) const MAX_TOPIC_BYTES: usize = 1024;

/// The maximum number of topics whose join and leave events the local node appends to the log at
/// the same time. The events report that a member has joined or left a topic. The events of further
/// topics wait.
const MAX_PUBLISHING: usize = 16;

/// The time that [`members`], the read of a topic's members on all nodes, has for requests to the
/// backend and for answers of other nodes: 5 seconds. Its whole time limit is longer by the lease
/// (the silence after which a node is declared dead) and the grace time that the members of a dead
/// node get. After the whole limit, [`members`] returns an error.
const PATIENCE: Duration = Duration::from_secs(5);

/// A join or a leave: a name, for example of a user, has become a member of a topic, or is no
/// longer a member. Any node can be the cause. [`Topic::presence`](super::Topic::presence) returns
/// a stream of these changes. [`Builder::presence_events`](super::Builder::presence_events) sets a
/// function that creates events from them.
///
/// # Examples
///
/// ```
/// use tower_sse::{Event, hub::Presence};
///
/// fn event_of(change: &Presence) -> Option<Event> {
///     let name = match change {
///         Presence::Joined { .. } => "joined",
///         Presence::Left { .. } => "left",
///         // A later version may report other changes.
///         _ => return None,
///     };
///     Some(Event::new(change.member()).event(name))
/// }
///
/// assert_eq!(event_of(&Presence::joined("Anna")), Some(Event::new("Anna").event("joined")));
/// assert_eq!(event_of(&Presence::left("Anna")), Some(Event::new("Anna").event("left")));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Presence {
    /// The member has joined the topic: its first subscription has begun, on any node. A member is
    /// a name, for example of a user.
    #[non_exhaustive]
    Joined {
        /// The name of the member.
        member: Arc<str>,
    },
    /// The member has left the topic: it had no subscription on any node for the [grace
    /// time](super::Builder::presence_grace).
    #[non_exhaustive]
    Left {
        /// The name of the member.
        member: Arc<str>,
    },
}

impl Presence {
    /// Creates a [`Joined`](Self::Joined) value: the name `member` has become a member of a topic.
    /// Applications need this only in tests.
    #[must_use]
    pub fn joined(member: impl Into<Arc<str>>) -> Self {
        Self::Joined { member: member.into() }
    }

    /// Creates a [`Left`](Self::Left) value: the name `member` is no longer a member of a topic.
    /// Applications need this only in tests.
    #[must_use]
    pub fn left(member: impl Into<Arc<str>>) -> Self {
        Self::Left { member: member.into() }
    }

    /// Returns the name of the member that has joined or left.
    #[must_use]
    pub fn member(&self) -> &Arc<str> {
        let (Self::Joined { member } | Self::Left { member }) = self;
        member
    }
}

type EventOf = dyn Fn(&str, &Presence) -> Option<Event> + Send + Sync;

/// The function of the application that creates an event from a join or a leave of a member.
/// [`Builder::presence_events`](super::Builder::presence_events) sets it.
#[derive(Clone)]
pub(super) struct PresenceEvents(pub(super) Arc<EventOf>);

impl fmt::Debug for PresenceEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresenceEvents")
    }
}

/// The members of the topics (the names present in them) on all nodes, as far as the local node
/// knows them. Also contains the settings of the hub for members, such as the grace time.
pub(super) struct Presences {
    /// The random number that identifies the local node in the log.
    node: u64,
    grace: Duration,
    lease: Duration,
    events: Option<PresenceEvents>,
    has_backend: bool,
    state: Mutex<State>,
    /// Notified when the announcer, the task that appends records about members of topics to the
    /// log, has something to do.
    changed: Notify,
    /// Notified when the known members of topics have changed, so that the callers that wait in
    /// [`until`](Self::until) check again whether their wait is over.
    updated: Notify,
    publishing: Semaphore,
}

impl Presences {
    pub(super) fn new(node: u64, config: &HubConfig, has_backend: bool) -> Self {
        Self {
            node,
            grace: config.presence_grace,
            lease: config.presence_lease,
            events: config.presence_events.clone(),
            has_backend,
            state: Mutex::new(State::new(!has_backend)),
            changed: Notify::new(),
            updated: Notify::new(),
            publishing: Semaphore::new(MAX_PUBLISHING),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Releases the lock of `state`, which contains what the local node knows about the members of
    /// topics. Then wakes the streams of topics whose members have changed, and the callers of
    /// [`until`](Self::until), which wait for a change.
    fn release(&self, mut state: MutexGuard<'_, State>) {
        let wakers = state.watchers.take_wakers();
        let is_updated = state.take_update();
        drop(state);
        if is_updated {
            self.updated.notify_waiters();
        }
        wake(wakers);
    }

    /// Returns the result of `is_done` for the current state of the members of topics.
    ///
    /// Also calls [`release`](Self::release), which stores this state, and notifies the callers of
    /// [`until`](Self::until) if the state stored before differs from it. Without this call, these
    /// callers could miss a change: if the state that `is_done` has seen changed back to the state
    /// stored before, this would not count as a change.
    fn check(&self, is_done: impl Fn(&State) -> bool) -> bool {
        let state = self.state();
        let is_done = is_done(&state);
        self.release(state);
        is_done
    }

    /// Waits until `is_done` returns `true` for the state of the members of topics. Calls `is_done`
    /// immediately, and again after each change of this state.
    async fn until(&self, is_done: impl Fn(&State) -> bool) {
        loop {
            let mut updated = pin!(self.updated.notified());
            updated.as_mut().enable();
            if self.check(&is_done) {
                return;
            }
            updated.await;
        }
    }

    /// Updates the members of topics from the records of `page`, the next part of the log. `beats`
    /// are the signs of life of nodes in this page: the position of each in the log, its node, and
    /// its sequence number. The caller adds the other records of the page to their topics after
    /// this call.
    pub(super) fn note(&self, page: &Page, beats: Beats) {
        let mut beats = beats.into_iter().peekable();
        let mut state = self.state();
        let (noted_through, was_complete) = (state.noted_through, state.is_complete());
        if page.evicted_through > noted_through {
            state.lose(self);
        }
        for (position, record) in page.records.iter().filter(|(position, _)| *position > noted_through) {
            state.noted_through = *position;
            while beats.next_if(|(at, ..)| at < position).is_some() {}
            if let Some((_, node, beat)) = beats.next_if(|(at, ..)| at == position) {
                state.note_beat(self, node, beat);
                continue;
            }
            let is_complete = state.is_complete();
            let transitions = state.note_record(self, *position, record);
            let has_events = self.events.is_some() && *position > state.begin;
            // The last answer of another node completes the members that the local node knows. The
            // members in it were there before, so they have no events.
            if transitions.is_empty() || !has_events || state.is_complete() != is_complete {
                continue;
            }
            // The function of the application runs without a lock.
            drop(state);
            let events = transitions.into_iter().filter_map(|transition| Some((self.event(&transition)?, transition)));
            let events: Vec<_> = events.collect();
            state = self.state();
            for (event, Transition { topic, change, author }) in events {
                let event = event.encode();
                if event.len() <= MAX_BATCH_BYTES {
                    state.pending.add(&topic, &change, event, author == self.node);
                }
            }
        }
        state.noted_through = state.noted_through.max(page.through);
        if state.is_complete() && !was_complete {
            state.watchers.note_loss();
        }
        self.release(state);
    }

    /// Prepares for reading a log from its oldest record, after the local node has connected to the
    /// backend, or after another log has replaced the current one.
    ///
    /// The node reads the records after the position `after`, because earlier records may have been
    /// evicted. If `after` is [`Position::START`], no record was evicted: the node forgets the
    /// members of the previous log. Otherwise, the node does not know all members. It then treats
    /// the members that it knew as it does after [missed records](State::lose): if it uses
    /// presence, it keeps each node's members until that node announces its members or is declared
    /// dead.
    ///
    /// `last` is the end of the log at this time. The node publishes no events for joins and leaves
    /// up to `last`. It does not count as knowing all members until it has read up to `last`.
    ///
    /// Returns the wakers of the streams that yield joins and leaves. The caller must release its
    /// locks before it wakes them.
    pub(super) fn reset(&self, after: Position, last: Position) -> Vec<Waker> {
        let mut state = self.state();
        state.lose(self);
        // The other log may have members of the local node that have left.
        state.announce_all();
        state.pending.clear();
        state.forget_ends();
        (state.noted_through, state.begin) = (after, last);
        if after == Position::START {
            // Nothing was evicted, so the local node reads all records.
            state.note_all_known();
        }
        if state.is_complete() {
            state.watchers.note_loss();
        }
        state.watchers.take_wakers()
    }

    /// Notes that a topic was finished, so that later joins and leaves of its members are not
    /// published as events. Only a hub without a backend calls this: with a backend, the node
    /// learns from the log that a topic was finished.
    pub(super) fn note_finished(&self, topic: &Arc<str>) {
        if self.events.is_some() {
            self.state().note_end(topic);
        }
    }

    /// Forgets finished topics without members and without unpublished join and leave events, if
    /// many finished topics are remembered. Called after [`note_finished`](Self::note_finished),
    /// without the locks of the registry and of the topic, because the time grows with the number
    /// of finished topics.
    pub(super) fn forget_finished(&self) {
        if self.events.is_some() {
            self.state().clean_up();
        }
    }

    /// Notes that a topic without events has got an event. If the topic was finished before, joins
    /// and leaves of its members are published as events again. Only a hub without a backend calls
    /// this: with a backend, the node learns from the log that a topic was opened again.
    pub(super) fn note_reopened(&self, topic: &str) {
        if self.events.is_some() {
            self.state().note_reopened(topic);
        }
    }

    /// Returns `true` if join or leave events can still follow in this topic. This is so if the
    /// application wants such events, and the topic has unpublished ones or has members. Each
    /// member leaves at some time, which creates a leave event.
    pub(super) fn has_events_to_come(&self, topic: &str) -> bool {
        self.events.is_some() && self.state().has_members_or_events(topic)
    }

    /// Creates the event that reports a join or a leave to the subscribers of the topic. Returns
    /// `None` if the application has set no function that creates these events. Also returns `None`
    /// if the function returns `None`, panics, or names the event `gap` or `hub-cursor`, which are
    /// reserved.
    fn event(&self, Transition { topic, change, .. }: &Transition) -> Option<Event> {
        let PresenceEvents(event_of) = self.events.as_ref()?;
        let mut event = None;
        contain_panic("presence_events", || event = event_of(topic, change));
        complete(event?).ok()
    }

    /// Stops tracking the members of topics on the local node, because the hub is shut down. Ends
    /// the tasks, and the streams that yield joins and leaves. If the log has members of the local
    /// node, returns a record for the caller to append. When the other nodes read this record, they
    /// begin the grace times of these members at once: members that do not reconnect in this time
    /// leave. Without the record, they would first wait until the local node counts as dead.
    pub(super) fn shut_down(&self) -> Option<Record> {
        let mut state = self.state();
        let last = state.end(self);
        let views = (state.view.take(), state.last_known.take());
        state.watchers.end();
        self.release(state);
        drop(views);
        self.stop();
        last
    }

    /// Aborts the tasks of the local node that track the members of topics and publish their join
    /// and leave events, because the hub is shut down or is being dropped.
    pub(super) fn stop(&self) {
        let mut state = self.state();
        let tasks = state.task.take().into_iter().chain(state.pending.end());
        let tasks: Vec<_> = tasks.collect();
        drop(state);
        tasks.into_iter().for_each(|task| task.abort());
    }

    /// Returns `true` if the local node has members of topics, or knows of members on other nodes.
    /// The keeper, one task per node, then sends the signs of life of the local node, and watches
    /// the signs of life of the other nodes.
    pub(super) fn is_active(&self) -> bool {
        let state = self.state();
        !state.is_shut_down && (!state.locals.is_empty() || state.watched().has_others(self.node))
    }

    /// Returns the lease of the local node: the time of silence after which the other nodes declare
    /// it dead, so that its members leave their topics. Returns `None` if the local node has no
    /// members, or if the hub is shut down.
    pub(super) fn own_lease(&self) -> Option<Duration> {
        let state = self.state();
        (!state.is_shut_down && !state.locals.is_empty()).then_some(self.lease)
    }

    /// Returns the shortest lease of the other nodes that have members, names that are present in
    /// topics. A lease is the time of silence after which a node is declared dead. Nodes that are
    /// shut down do not count. Returns `None` if no node remains.
    pub(super) fn shortest_lease(&self) -> Option<Duration> {
        self.state().watched().leases(self.node).map(|(_, shortest)| shortest)
    }

    /// Returns the earliest time when the local node will declare another node dead, if it reads no
    /// further sign of life from that node. Only nodes with members of topics count: returns `None`
    /// if no other node has members. Silence before `contact_since`, the end of the last outage of
    /// the backend, does not count.
    pub(super) fn next_death(&self, contact_since: Option<Instant>) -> Option<Instant> {
        let state = self.state();
        state.watched().next_death(self.node, contact_since, state.death_grace(self))
    }

    /// Queues a record for each other node with members of topics that has been silent for too
    /// long. The record declares that node dead. The limit is the sum of the node's lease (the time
    /// of silence that its own records allow), the grace time of members, and a random pause.
    /// Silence before `contact_since`, the end of the last outage of the backend, does not count.
    /// The caller must have just read the whole log, which may contain newer signs of life.
    pub(super) fn declare_deaths(&self, contact_since: Option<Instant>) {
        let mut state = self.state();
        let grace = state.death_grace(self);
        let dead = state.watched_mut().declare_deaths(self.node, contact_since, grace, Instant::now());
        let message = |(node, number, beat)| message::Message::Dead { by: self.node, node, number, beat };
        let has_dead = !dead.is_empty();
        dead.into_iter().for_each(|dead| state.send(message(dead)));
        drop(state);
        if has_dead {
            self.changed.notify_one();
        }
    }
}

/// Frees the memory of a map if the map is empty. An empty `HashMap` otherwise keeps its capacity.
fn free_if_empty<K, V>(map: &mut HashMap<K, V>) {
    if map.is_empty() {
        *map = HashMap::new();
    }
}

/// Wakes the tasks that poll streams of joins and leaves of members. The caller must hold no lock,
/// because a waker can run code of the application.
pub(super) fn wake(wakers: Vec<Waker>) {
    for waker in wakers {
        contain_panic("waker", || waker.wake());
    }
}

/// One subscription that makes a name a member of a topic. When the last such subscription of the
/// name on the local node is dropped, the grace time of the member begins: it stays a member for
/// this time, and then leaves.
pub(super) struct Membership {
    core: Arc<Core>,
    topic: Arc<str>,
    member: Arc<str>,
}

impl Membership {
    pub(super) fn new(core: &Arc<Core>, topic: &Arc<str>, member: &str) -> Result<Self, Error> {
        if member.len() > MAX_MEMBER_BYTES {
            return Err(Error::member_too_long(member, MAX_MEMBER_BYTES));
        }
        if topic.len() > MAX_TOPIC_BYTES {
            return Err(Error::topic_too_long(topic, MAX_TOPIC_BYTES));
        }
        super::registry::check_reserved(topic)?;
        let member: Arc<str> = member.into();
        let mut state = core.presence.state();
        if !state.is_shut_down {
            state.locals.join(topic, &member);
        }
        drop(state);
        announcer::apply(core);
        Ok(Self { core: core.clone(), topic: topic.clone(), member })
    }
}

/// The memberships of one subscription: one for each call of [`Topic::join`](super::Topic::join),
/// which makes a name a member of a topic. Most subscriptions have no membership, and then need no
/// allocation.
#[derive(Default)]
pub(super) struct Memberships(Vec<Membership>);

impl Memberships {
    pub(super) fn add(&mut self, membership: Membership) {
        self.0.push(membership);
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let presence = &self.core.presence;
        presence.state().locals.leave(&self.topic, &self.member, presence.grace);
        announcer::apply(&self.core);
    }
}

/// Returns the names of the members of a topic on all nodes, sorted. With a backend, first waits
/// until the local node knows the members of topics on all nodes.
///
/// Returns an error if the backend does not respond, or if the hub is shut down. Also returns an
/// error if the members are not known in time. The time limit is the sum of the lease (the silence
/// after which a node is declared dead), the grace time of members and five seconds.
pub(super) async fn members(core: &Arc<Core>, topic: &Arc<str>) -> Result<Vec<Arc<str>>, Error> {
    announcer::apply(core);
    let presence = &core.presence;
    if let Some(backend) = &core.backend {
        presence.want();
        announcer::apply(core);
        let known = members_of_all_nodes(core, backend, topic);
        return backend.unless_stopped(known).await.unwrap_or_else(|| Err(Error::shut_down()));
    }
    let state = presence.state();
    // A shutdown also forgets the members.
    if state.is_shut_down { Err(Error::shut_down()) } else { Ok(state.members(topic)) }
}

async fn members_of_all_nodes(core: &Core, backend: &BackendClient, topic: &Arc<str>) -> Result<Vec<Arc<str>>, Error> {
    let presence = &core.presence;
    let deadline = Instant::now() + presence.lease + presence.grace + PATIENCE;
    let failed = |reason: &str| Error::backend("", reason.into());
    let ticket = presence.state().ticket();
    loop {
        let ready = presence.until(|state| state.is_complete() && state.has_written(ticket));
        timeout_at(deadline, ready).await.map_err(|_| failed("the other nodes are not known in time"))?;
        let resets = backend.resets();
        let newest = backend.newest().await;
        let has_read = match newest {
            Some(through) => caught_up(core, through, resets, deadline).await,
            None => false,
        };
        if backend.resets() != resets && Instant::now() < deadline {
            // The position is of the replaced log.
            continue;
        }
        if !has_read {
            let is_behind = newest.is_some();
            return Err(failed(if is_behind { "this node is behind the log" } else { "the backend does not respond" }));
        }
        let state = presence.state();
        // A shutdown also forgets the members.
        if state.is_shut_down {
            return Err(Error::shut_down());
        }
        if state.is_complete() {
            return Ok(state.members(topic));
        }
    }
}

#[cfg(all(test, not(tower_sse_loom)))]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn few_finished_topics_without_members_are_remembered() {
        let events = PresenceEvents(Arc::new(|_, _| None));
        let config = HubConfig { presence_events: Some(events), ..HubConfig::DEFAULT };
        let core = Arc::new(Core::new(config, None));
        let topics: Vec<Arc<str>> = (0..3_000).map(|n| format!("topic {n}").into()).collect();
        topics.iter().for_each(|topic| core.finish_in_memory(topic, || true).unwrap());
        let state = core.presence.state();
        let remembered = topics.iter().filter(|topic| state.has_ended(topic)).count();
        assert!(remembered <= 1_000, "{remembered}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_memory_is_kept_after_all_members_have_left() {
        let config = HubConfig { presence_grace: Duration::ZERO, ..HubConfig::DEFAULT };
        let core = Arc::new(Core::new(config, None));
        let topics: Vec<Arc<str>> = (0..1_000).map(|n| format!("topic {n}").into()).collect();
        let mut all = Vec::new();
        for topic in &topics {
            all.extend((0..10).map(|n| Membership::new(&core, topic, &format!("member {n}")).unwrap()));
        }
        let (entries, capacity) = core.presence.state().size();
        assert!(entries >= 20_000 && capacity >= 2_000, "{entries} {capacity}");
        drop(all);
        tokio::time::sleep(Duration::from_millis(1)).await;
        announcer::apply(&core);
        assert_eq!(core.presence.state().size(), (0, 0));
    }
}
