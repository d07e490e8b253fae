//! [`PresenceStream`], a stream of the joins and leaves of members (the names that are present in a
//! topic). Also the state that it shares with the hub.

use super::{Presence, announcer, free_if_empty, state::State, view::Transition};
use crate::hub::core::Core;
use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};
use tokio_stream::Stream;

/// The maximum number of changed names, 10,000, that are remembered for one [`PresenceStream`]
/// between two polls. A changed name has joined or left the topic. If there are more, these names
/// are forgotten. At its next poll, the stream then compares all members of its topic with the
/// members that it has yielded.
const MAX_CHANGED: usize = 10_000;

/// A stream of the joins and leaves of the members of a topic.
/// [`Topic::presence`](super::super::Topic::presence) creates it.
///
/// The stream begins with [`Joined`](Presence::Joined) for each member that the topic has, sorted
/// by name. Then it yields each join and each leave, on any node. Joins and leaves of one member
/// alternate.
///
/// If the reader is slow, the stream skips changes: it yields only the differences between the
/// members that it has yielded and the current ones. So its memory depends on the number of
/// distinct members, not on the number of changes.
///
/// The stream waits while the local node does not know all members, because it has missed records
/// of the log. When the node knows them again, the stream yields the differences.
///
/// The stream ends when the hub is [shut down](super::super::Hub::shutdown). The stream does not
/// count as a subscriber, and keeps its hub alive.
#[must_use = "a stream yields changes only if it is polled"]
pub struct PresenceStream {
    core: Arc<Core>,
    topic: Arc<str>,
    key: u64,
    /// The names that are members of the topic for the reader of this stream: they have joined and
    /// not left, according to the joins and leaves that the stream has yielded, or will yield next
    /// from `queue`.
    known: HashSet<Arc<str>>,
    queue: VecDeque<Presence>,
}

/// The states of the open [`PresenceStream`]s of the hub. Each stream yields the joins and leaves
/// of the members of one topic. The states are stored by topic, and then by the number (key) that
/// the hub has given to the stream.
#[derive(Default)]
pub(super) struct Watchers {
    topics: HashMap<Arc<str>, HashMap<u64, Watcher>>,
    next_key: u64,
    to_wake: Vec<Waker>,
    is_ended: bool,
}

/// The state that the hub shares with one [`PresenceStream`], a stream of the joins and leaves of a
/// topic's members: the changes that the stream has not seen, and its waker.
#[derive(Default)]
struct Watcher {
    /// The names that may have joined or left the topic since the [`PresenceStream`] last compared
    /// its members. The list is empty if `has_changed_entirely` is set.
    changed: Vec<Arc<str>>,
    is_changed: HashSet<Arc<str>>,
    /// Set if it is not known which names may have joined or left the topic since the
    /// [`PresenceStream`] last compared its members. At its next poll, the stream compares all
    /// members of the topic with the members that it has reported to the application.
    has_changed_entirely: bool,
    waker: Option<Waker>,
}

impl Watcher {
    fn change_entirely(&mut self) {
        *self = Self { has_changed_entirely: true, waker: self.waker.take(), ..Self::default() };
    }
}

impl Watchers {
    fn join(&mut self, topic: &Arc<str>) -> u64 {
        self.next_key += 1;
        let watcher = Watcher { has_changed_entirely: true, ..Watcher::default() };
        self.topics.entry(topic.clone()).or_default().insert(self.next_key, watcher);
        self.next_key
    }

    /// Removes a [`PresenceStream`], which yields the joins and leaves of a topic's members,
    /// because the stream was dropped. Returns the waker of the task that has polled the stream.
    /// The caller drops the waker after it has released the lock, because dropping a waker can run
    /// code of the application.
    fn leave(&mut self, topic: &Arc<str>, key: u64) -> Option<Waker> {
        let watchers = self.topics.get_mut(topic)?;
        let watcher = watchers.remove(&key);
        if watchers.is_empty() {
            self.topics.remove(topic);
            free_if_empty(&mut self.topics);
        }
        watcher?.waker
    }

    /// Reports joins and leaves of members, the names that are present in topics, to the
    /// [`PresenceStream`]s of these topics. The caller then wakes the streams:
    /// [`take_wakers`](Self::take_wakers) returns their wakers.
    pub(super) fn note(&mut self, transitions: &[Transition]) {
        for Transition { topic, change, .. } in transitions {
            for watcher in self.topics.get_mut(topic).into_iter().flat_map(HashMap::values_mut) {
                if watcher.changed.len() >= MAX_CHANGED {
                    watcher.change_entirely();
                }
                if !watcher.has_changed_entirely && watcher.is_changed.insert(change.member().clone()) {
                    watcher.changed.push(change.member().clone());
                }
                self.to_wake.extend(watcher.waker.take());
            }
        }
    }

    /// Makes each [`PresenceStream`] compare all members of its topic with the members that it has
    /// yielded, at its next poll. Collects the wakers of the streams. Called when the local node
    /// knows the members of all nodes again, after it has missed records of the log or has begun to
    /// read another log. Also called at a shutdown, but only to wake the streams.
    pub(super) fn note_loss(&mut self) {
        for watcher in self.topics.values_mut().flat_map(HashMap::values_mut) {
            watcher.change_entirely();
            self.to_wake.extend(watcher.waker.take());
        }
    }

    /// Ends each [`PresenceStream`], a stream of joins and leaves of members, because the hub is
    /// shut down.
    pub(super) fn end(&mut self) {
        self.is_ended = true;
        self.note_loss();
    }

    /// Takes the wakers of the [`PresenceStream`]s to wake, for example because a name has joined
    /// or left the topic of the stream. The caller wakes them after it has released the lock.
    pub(super) fn take_wakers(&mut self) -> Vec<Waker> {
        mem::take(&mut self.to_wake)
    }
}

impl PresenceStream {
    pub(in crate::hub) fn new(core: &Arc<Core>, topic: &Arc<str>) -> Self {
        let presence = &core.presence;
        let mut state = presence.state();
        state.is_wanted = true;
        let key = state.watchers.join(topic);
        drop(state);
        announcer::apply(core);
        Self { core: core.clone(), topic: topic.clone(), key, known: HashSet::new(), queue: VecDeque::new() }
    }

    /// Compares each name in `members` with `known`, the members that the joins and leaves of this
    /// stream have reported so far. Queues a join if the name is a member of the topic in `state`,
    /// but not in `known`. Queues a leave in the opposite case. Updates `known`.
    fn compare(&mut self, state: &State, members: impl IntoIterator<Item = Arc<str>>) {
        for member in members {
            let is_member = state.view.contains(&self.topic, &member);
            match is_member {
                true if self.known.insert(member.clone()) => self.queue.push_back(Presence::joined(member)),
                false if self.known.remove(&member) => self.queue.push_back(Presence::left(member)),
                _ => {}
            }
        }
    }
}

impl Stream for PresenceStream {
    type Item = Presence;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Presence>> {
        let this = self.get_mut();
        if let Some(change) = this.queue.pop_front() {
            return Poll::Ready(Some(change));
        }
        // A waker of the application is cloned and dropped without a lock.
        let waker = cx.waker().clone();
        let core = this.core.clone();
        let mut state = core.presence.state();
        if state.watchers.is_ended {
            return Poll::Ready(None);
        }
        let is_complete = state.is_complete();
        let watcher = state.watchers.topics.get_mut(&this.topic).and_then(|watchers| watchers.get_mut(&this.key));
        let Some(watcher) = watcher else { return Poll::Ready(None) };
        let replaced = watcher.waker.replace(waker);
        if is_complete {
            let changed = mem::take(&mut watcher.changed);
            watcher.is_changed.clear();
            if mem::take(&mut watcher.has_changed_entirely) {
                let mut left: Vec<_> = this.known.iter().cloned().collect();
                left.sort_unstable();
                this.compare(&state, left);
                let members: Vec<_> = state.view.members(&this.topic).cloned().collect();
                this.compare(&state, members);
            } else {
                this.compare(&state, changed);
            }
        }
        drop(state);
        drop(replaced);
        match this.queue.pop_front() {
            Some(change) => Poll::Ready(Some(change)),
            None => Poll::Pending,
        }
    }
}

impl Drop for PresenceStream {
    fn drop(&mut self) {
        let waker = self.core.presence.state().watchers.leave(&self.topic, self.key);
        drop(waker);
    }
}

impl fmt::Debug for PresenceStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PresenceStream").field("topic", &self.topic).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_that_is_not_polled_remembers_few_changes() {
        let mut watchers = Watchers::default();
        let topic: Arc<str> = "t".into();
        let key = watchers.join(&topic);
        let watcher = |watchers: &Watchers| {
            let watcher = &watchers.topics["t"][&key];
            (watcher.changed.len(), watcher.is_changed.len(), watcher.has_changed_entirely)
        };
        watchers.topics.values_mut().flat_map(HashMap::values_mut).for_each(|watcher| *watcher = Watcher::default());
        for n in 0..2 * MAX_CHANGED {
            let change = Presence::joined(n.to_string());
            watchers.note(&[Transition { topic: topic.clone(), change, author: 1 }]);
            let (changed, is_changed, _) = watcher(&watchers);
            assert!(changed <= MAX_CHANGED && is_changed <= MAX_CHANGED);
        }
        assert_eq!(watcher(&watchers), (0, 0, true), "the next poll compares all members");
    }
}
