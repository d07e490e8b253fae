//! Readers: a subscription has one reader for each of its topics.

use super::{
    backend::Position,
    log::Read,
    topic_state::{Contents, TopicState},
    waiters::{Ticket, Waiter},
};
use crate::EncodedEvents;
use std::{sync::Arc, task::Waker};

/// The result of reading the topics of a subscription at its cursor.
pub(super) enum Step {
    /// The next events, and the position of the last of them.
    Events(EncodedEvents, Position),
    /// The newest event of a `latest_only` topic, and the position of the event that it has
    /// replaced. The client then has all events up to that position.
    Replacement(EncodedEvents, Position),
    /// Nothing follows, and all events up to this position are delivered.
    CaughtUp(Position),
    Evicted,
    /// No event yet. The waker is registered.
    Wait,
    /// There are more topics to look at. The subscription has to be polled again.
    Yield,
    Finished,
    Shutdown,
}

/// The reader of one topic of a subscription.
pub(super) struct Reader {
    pub(super) topic: Arc<TopicState>,
    /// Evicted events up to this position were already reported to the client.
    pub(super) gap_reported_through: Position,
    /// Events of this topic up to this position are not delivered again. It can be after the
    /// cursor. It is the start of the topic, if the topic has its own. Or it is the position of the
    /// newest event of a `latest_only` topic, if this event was delivered in place of an event that
    /// it had replaced.
    pub(super) delivered_through: Position,
    /// The position of the first event after the cursor, if it is known. It decides when this topic
    /// has its turn among the other topics. In a `latest_only` topic, it stays the same when the
    /// event is replaced. Otherwise a topic that is updated all the time would never have its turn.
    /// Only a merge uses it.
    pub(super) next: Option<Position>,
    /// Set if the topic is finished, and read to the end. Only a merge uses it.
    pub(super) is_finished: bool,
    /// The position of the finish record, if no later event has reopened the topic. Only a replay
    /// uses it. It is in a box because few readers have it.
    pub(super) finished_at: Option<Box<Position>>,
    pub(super) ticket: Option<Ticket>,
}

/// The wait of a subscription for the next change of its only topic.
pub(super) struct Wait {
    /// A copy of the waker that is registered with the topic. A poll with another waker registers
    /// that one.
    waker: Waker,
    /// The version of the topic when the wait began.
    version: u64,
}

impl Reader {
    pub(super) fn new(topic: Arc<TopicState>, gap_reported_through: Position) -> Self {
        Self {
            topic,
            gap_reported_through,
            delivered_through: Position::START,
            next: None,
            is_finished: false,
            finished_at: None,
            ticket: None,
        }
    }

    /// Forgets what the reader knows about the topic, so that its next poll reads the topic from
    /// the cursor.
    pub(super) fn reset(&mut self) {
        self.next = None;
    }

    /// Resets the reader after a gap. If the topic is `latest_only`, `state` is the position of its
    /// newest event. This event is due at the position that `next` had, or at `state` if `next` was
    /// unknown.
    pub(super) fn reset_after_gap(&mut self, state: Option<Position>) {
        self.next = state.and(self.next).or(state);
    }

    /// Returns the position after which events of this topic are not delivered or reported yet.
    pub(super) fn resumes_after(&self, cursor: Position) -> Position {
        cursor.max(self.gap_reported_through).max(self.delivered_through)
    }

    /// Returns `true` if the subscriptions of the topic have to end, because the hub was shut down
    /// or its log was replaced. Otherwise registers the waker for the next change.
    pub(super) fn watch_shutdown(&mut self, waker: &Waker) -> bool {
        let waker = waker.clone();
        let mut contents = self.topic.lock();
        let is_cut = contents.is_shut_down;
        let replaced = contents.waiters.wait(&mut self.ticket, Waiter::Task(waker));
        drop(contents);
        drop(replaced);
        is_cut
    }

    /// Returns the events after the cursor, or registers the waker. `wait` is the wait of the last
    /// read.
    pub(super) fn read(&mut self, cursor: Position, waker: &Waker, wait: &mut Option<Wait>) -> Step {
        let is_known = wait.as_ref().is_some_and(|wait| wait.waker.will_wake(waker));
        if is_known && wait.as_ref().is_some_and(|wait| wait.version == self.topic.version()) {
            return Step::Wait;
        }
        // Clone the waker before the topic is locked, because `clone` runs code of the application.
        let waiter = Waiter::Task(waker.clone());
        let mut contents = self.topic.lock();
        if contents.is_shut_down {
            drop(contents);
            return Step::Shutdown;
        }
        let read = contents.log.read(cursor, self.gap_reported_through, Position::MAX);
        let nothing_follows = match &read {
            Read::Events(_, last) => *last == contents.log.last(),
            Read::Nothing => true,
            Read::Evicted => false,
        };
        // Register the waker even if there are events. The subscription polls again immediately
        // after them, and need not lock the topic again to start waiting.
        let waits_since = (nothing_follows && contents.finished.is_none()).then(|| self.topic.version());
        let replaced = match waits_since {
            Some(_) => contents.waiters.wait(&mut self.ticket, waiter),
            None => Some(waiter),
        };
        let is_finished = contents.finished.is_some();
        TopicState::unlock_and_help(contents);
        drop(replaced);
        match (waits_since, &mut *wait) {
            (Some(version), Some(wait)) if is_known => wait.version = version,
            (Some(version), _) => *wait = Some(Wait { waker: waker.clone(), version }),
            (None, _) => {}
        }
        match read {
            Read::Events(events, last) => Step::Events(events, last),
            Read::Evicted => Step::Evicted,
            Read::Nothing if is_finished => Step::Finished,
            Read::Nothing => Step::Wait,
        }
    }

    /// Looks for the topic's next event after the cursor. Stores its position in `next`, or
    /// registers the waiter if there is no such event. If the subscription has to do something else
    /// first, such as report a gap, returns this step as an `Err`, and the caller returns it.
    pub(super) fn peek(&mut self, cursor: Position, waiter: impl FnOnce() -> Waiter) -> Result<(), Step> {
        let from = self.resumes_after(cursor);
        let mut contents = self.topic.lock();
        if contents.is_shut_down {
            return Err(Step::Shutdown);
        }
        if contents.log.evicted_through() > from {
            return Err(Step::Evicted);
        }
        let replaced;
        (self.next, replaced) = look(&mut contents, from, &mut self.ticket, waiter);
        // This can change: in the log of a backend, an event can follow the finish record of its
        // topic.
        self.is_finished = self.next.is_none() && contents.finished.is_some();
        TopicState::unlock_and_help(contents);
        drop(replaced);
        Ok(())
    }

    /// Returns the events of this topic from `place` up to `through`. If a newer event of a
    /// `latest_only` topic has replaced them, returns that event. `None` means that this topic has
    /// no event after the cursor any more. Then looks for the next event, as [`peek`](Self::peek)
    /// does.
    pub(super) fn take_turn(
        &mut self,
        place: Position,
        cursor: Position,
        through: Position,
        waiter: impl FnOnce() -> Waiter,
    ) -> Option<Step> {
        self.next = None;
        let from = self.resumes_after(cursor);
        let mut contents = self.topic.lock();
        if contents.is_shut_down {
            return Some(Step::Shutdown);
        }
        let mut read = contents.log.read(from, from, through);
        let is_replaced = matches!(read, Read::Nothing);
        if is_replaced {
            read = contents.log.read(from, from, Position::MAX);
        }
        let (read_through, step) = match read {
            Read::Events(events, last) if is_replaced => {
                self.delivered_through = last;
                (last, Some(Step::Replacement(events, place.max(cursor))))
            }
            Read::Events(events, last) => (last, Some(Step::Events(events, last))),
            Read::Evicted => return Some(Step::Evicted),
            Read::Nothing => (from, None),
        };
        let replaced;
        (self.next, replaced) = look(&mut contents, from.max(read_through), &mut self.ticket, waiter);
        self.is_finished = self.next.is_none() && contents.finished.is_some();
        TopicState::unlock_and_help(contents);
        drop(replaced);
        step
    }
}

/// Returns the position of the next event, or registers the waiter. Also returns the waiter to
/// drop.
fn look(
    contents: &mut Contents,
    from: Position,
    ticket: &mut Option<Ticket>,
    waiter: impl FnOnce() -> Waiter,
) -> (Option<Position>, Option<Waiter>) {
    match contents.log.first_after(from) {
        Some(next) => (Some(next), None),
        None => (None, contents.waiters.wait(ticket, waiter())),
    }
}
