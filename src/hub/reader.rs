//! The readers of subscriptions. A subscription has one reader for each of its topics.

use super::{
    backend::Position,
    log::Read,
    topic_state::{Contents, TopicState},
    waiters::{Ticket, Waiter},
};
use crate::EncodedEvents;
use std::{sync::Arc, task::Waker};

/// The result of looking for the next events of a subscription. The cursor is the position up to
/// which the client has all events.
pub(super) enum Step {
    /// The next events after the cursor, and the position of the last of them.
    Events(EncodedEvents, Position),
    /// The newest event of a `latest_only` topic, delivered in place of an older event that it has
    /// replaced. The position is that of the older event, and becomes the cursor.
    Replacement(EncodedEvents, Position),
    /// No event follows, and the client has all events up to this position, which is after the
    /// cursor. The subscription sends this position to the client as its new cursor.
    CaughtUp(Position),
    Evicted,
    /// No event follows yet. The waker is registered, and the next change of a topic wakes it.
    Wait,
    /// Too many topics were looked at in one poll. The subscription wakes itself, to be polled
    /// again for the remaining topics.
    Yield,
    Finished,
    Shutdown,
}

/// Reads one topic for one subscription. A subscription has one reader for each of its topics.
pub(super) struct Reader {
    pub(super) topic: Arc<TopicState>,
    /// The eviction of events up to this position was already reported to the client, so it is not
    /// reported again.
    pub(super) gap_reported_through: Position,
    /// Events of this topic up to this position are not delivered, even if the position is after
    /// the cursor of the subscription.
    ///
    /// It is the start position of the topic, if the topic has a start of its own. In a
    /// `latest_only` topic, it can be the position of an event that was delivered early, in place
    /// of an older event.
    pub(super) delivered_through: Position,
    /// The position of the topic's first event after the cursor, if it is known. The topic with the
    /// smallest `next` is delivered first.
    ///
    /// If a newer event replaces the event of a `latest_only` topic, `next` does not change.
    /// Otherwise a topic with constant updates would never be delivered. Only a subscription to
    /// several topics uses this field.
    pub(super) next: Option<Position>,
    /// Set if the topic is finished and all of its events were delivered. Only a subscription to
    /// several topics uses this field.
    pub(super) is_finished: bool,
    /// The position of the record that finished the topic, if no later event has reopened the
    /// topic. Only a replay from the backend uses this field. The value is boxed because few
    /// readers have it.
    pub(super) finished_at: Option<Box<Position>>,
    pub(super) ticket: Option<Ticket>,
}

/// The wait of a subscription to a single topic for the next change of the topic.
pub(super) struct Wait {
    /// A copy of the waker that is registered with the topic. If the subscription is polled with
    /// another waker, it registers the other waker.
    waker: Waker,
    /// The version of the topic when the wait began. While the topic has this version, it has not
    /// changed.
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

    /// Forgets the position of the next event, so that the next poll looks for it in the topic.
    pub(super) fn reset(&mut self) {
        self.next = None;
    }

    /// Prepares the reader to continue after a gap. With `None`, the reader looks for its next
    /// event again. In a `latest_only` topic that retains an event, `state` is the position of this
    /// event. The event is then delivered at the position in `next`, if there is one, and otherwise
    /// at `state`.
    pub(super) fn reset_after_gap(&mut self, state: Option<Position>) {
        self.next = state.and(self.next).or(state);
    }

    /// Returns the position after which the reader looks for the next event of its topic. Events up
    /// to this position were delivered, reported as missing, or are before the topic's own start.
    pub(super) fn resumes_after(&self, cursor: Position) -> Position {
        cursor.max(self.gap_reported_through).max(self.delivered_through)
    }

    /// Returns `true` if the hub was shut down, or if another log has replaced its log: all
    /// subscriptions of the topic must then end. Also registers `waker` for the next change of the
    /// topic.
    pub(super) fn watch_shutdown(&mut self, waker: &Waker) -> bool {
        let waker = waker.clone();
        let mut contents = self.topic.lock();
        let is_cut = contents.is_shut_down;
        let replaced = contents.waiters.wait(&mut self.ticket, Waiter::Task(waker));
        drop(contents);
        drop(replaced);
        is_cut
    }

    /// Returns the events of the topic after `cursor`. If there are none, registers `waker` for the
    /// next change and returns [`Step::Wait`].
    ///
    /// `wait` describes the registration of the previous call, and is updated. If the topic has not
    /// changed since, the topic is not locked.
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

    /// Looks for the topic's next event after `cursor`, and stores its position in `next`. If there
    /// is no such event, registers the waiter, which the next change of the topic wakes.
    ///
    /// Returns `Err` with the step that the subscription has to take if the hub is shut down, or if
    /// events after `cursor` were evicted.
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
        // A finished topic can continue: in the log of a backend, an event can follow the finish
        // record of its topic.
        self.is_finished = self.next.is_none() && contents.finished.is_some();
        TopicState::unlock_and_help(contents);
        drop(replaced);
        Ok(())
    }

    /// Returns the events of this topic after `cursor` and up to `through`. Returns `None` if the
    /// topic has no event after `cursor`. If a newer event of a `latest_only` topic has replaced
    /// the events, returns the newer event. The cursor then moves to `position`, the known position
    /// of the replaced event, and never backwards.
    ///
    /// Also looks for the next event after the returned events, and stores its position in `next`.
    /// If there is no such event, registers the waiter for the next change of the topic.
    pub(super) fn take_turn(
        &mut self,
        position: Position,
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
                (last, Some(Step::Replacement(events, position.max(cursor))))
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

/// Returns the position of the topic's first event after `from`. If there is no such event, returns
/// `None` and registers a new waiter, in place of the waiter that `ticket` identifies. The second
/// result is the replaced waiter, which the caller drops after it has unlocked the topic.
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
