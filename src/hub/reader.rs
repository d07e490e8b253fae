//! The reader of one topic for one subscription. A subscription has one reader for each of its
//! topics.

use super::{
    backend::Position,
    log::Read,
    topic_state::{Contents, EarlyEnd, TopicState},
    waiters::{Ticket, Waiter},
};
use crate::EncodedEvents;
use std::{sync::Arc, task::Waker};

/// The result of looking for the next events of a subscription, after its cursor. The cursor is the
/// position up to which the client has all events.
pub(super) enum Step {
    /// The next events of the subscription after its cursor, and the position of the last of them.
    Events(EncodedEvents, Position),
    /// The newest event of a `latest_only` topic (each event replaces the previous event). It is
    /// delivered in place of an older event, and the position in this variant is that of the older
    /// event. The cursor of the subscription moves only to this position, so that no event of
    /// another topic is skipped.
    Replacement(EncodedEvents, Position),
    /// The topics have no further event yet, and the client has all of their events up to this
    /// position, which is after the cursor. The subscription sends this position to the client as
    /// its new cursor.
    CaughtUp(Position),
    Evicted,
    /// No event follows yet. The waker of the subscription is registered, and the next change of a
    /// topic wakes it.
    Wait,
    /// This poll has looked at 256 topics, and more topics remain. The subscription wakes its own
    /// task, to be polled again for the remaining topics.
    Yield,
    Finished,
    /// The hub was shut down and the client has all events, or another log has replaced the log.
    EarlyEnd(EarlyEnd),
}

/// Reads one topic for one subscription. A subscription has one reader for each of its topics.
pub(super) struct Reader {
    pub(super) topic: Arc<TopicState>,
    /// The client already knows that events of this topic up to this position may have been
    /// evicted. A gap up to this position is not reported again.
    pub(super) gap_reported_through: Position,
    /// The reader delivers no event of its topic up to this position, even if the event is after
    /// the cursor of the subscription. There are two possible reasons:
    ///
    /// - The subscription has a separate start position for this topic.
    /// - The newest event of a `latest_only` topic was delivered early, in place of an older event.
    pub(super) delivered_through: Position,
    /// The position of this topic's first event after the cursor of the subscription, if it is
    /// known. The topic with the smallest such position is delivered first. Only a subscription to
    /// several topics uses this field.
    ///
    /// In a `latest_only` topic, the event at this position may be replaced. The position then
    /// stays the same. Otherwise a topic with constant updates would never be delivered.
    pub(super) next: Option<Position>,
    /// `true` if the topic is finished and all of its events were delivered. Only a subscription to
    /// several topics uses this field.
    pub(super) is_finished: bool,
    /// `true` if the hub was already shut down when the topic was last read. Only a subscription to
    /// several topics uses this field.
    pub(super) is_shut_down: bool,
    /// `true` if the subscription is a lookup: a request of the Durable Streams protocol that reads
    /// the topic or searches for it. Other subscriptions make their topics
    /// [exist](Contents::exists) for all requests, but a lookup does not.
    pub(super) is_lookup: bool,
    /// The end of the topic, if a replay (a series of reads of old records from the backend) has
    /// found the record that finishes the topic. The value is boxed because few readers have it.
    pub(super) replayed_end: Option<Box<ReplayedEnd>>,
    pub(super) ticket: Option<Ticket>,
}

/// The end of a finished topic, as a replay has found it in the log of the backend. A replay is a
/// series of reads of old records. It has found no later record of the topic in the part of the log
/// that it has read.
pub(super) struct ReplayedEnd {
    /// The position of the record that finishes the topic.
    pub(super) at: Position,
    /// The end of the part of the log that the replay has read. The topic may have later records.
    pub(super) through: Position,
}

/// The state of a subscription to a single topic while it waits for the next change of the topic,
/// such as an event or its end.
pub(super) struct Wait {
    /// A copy of the waker that the subscription has registered in the topic, and that the next
    /// change wakes. A later poll compares its own waker with this copy, and registers its own
    /// waker if they differ.
    waker: Waker,
    /// The version of the topic, a counter of its changes, when the subscription began to wait.
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
            is_shut_down: false,
            is_lookup: false,
            replayed_end: None,
            ticket: None,
        }
    }

    /// Forgets the position of the topic's next event to deliver, so that the next poll of the
    /// subscription looks for this event in the topic.
    pub(super) fn reset(&mut self) {
        self.next = None;
    }

    /// Prepares the reader of one topic to continue after a gap: sets `next`, the position of the
    /// next event to deliver.
    ///
    /// `state` is the position of the retained event of a `latest_only` topic. Then `next` stays
    /// the same if it is known, even if its event was replaced, so that the topic keeps its place
    /// in the order of delivery. If `next` is not known, it becomes `state`.
    ///
    /// The caller passes `None` for other topics, and for a `latest_only` topic without an event
    /// after the gap. Then `next` becomes `None`, and the next poll looks for the next event of the
    /// topic again.
    pub(super) fn reset_after_gap(&mut self, state: Option<Position>) {
        self.next = state.and(self.next).or(state);
    }

    /// Returns the position after which the reader looks for the next event of its topic. Events up
    /// to this position were delivered, were reported as missing, or precede the start position of
    /// this topic. A subscription to several topics can have a separate start position for each
    /// topic.
    pub(super) fn resumes_after(&self, cursor: Position) -> Position {
        cursor.max(self.gap_reported_through).max(self.delivered_through)
    }

    /// Returns the current event of a `latest_only` topic and its position. Returns `None` if the
    /// client already has this event, if its position is after `through`, or for any other topic.
    pub(super) fn undelivered_state(&self, cursor: Position, through: Position) -> Option<(Position, EncodedEvents)> {
        let mut contents = self.topic.lock();
        if !contents.latest_only {
            return None;
        }
        // Earlier events of the topic that were evicted do not matter, because the state replaces
        // them. So this read never returns `Evicted`.
        let evicted_through = contents.log.evicted_through();
        match contents.log.read(cursor.max(self.delivered_through), evicted_through, through) {
            Read::Events(state, position) => Some((position, state)),
            Read::Nothing | Read::Evicted => None,
        }
    }

    /// Registers `waker`, which the next change of the topic wakes. Returns the reason why all
    /// subscriptions of the topic must end, if there is one: the hub was shut down, or another log
    /// has replaced the log of the backend.
    pub(super) fn watch_early_end(&mut self, waker: &Waker) -> Option<EarlyEnd> {
        let waker = waker.clone();
        let mut contents = self.topic.lock();
        let early_end = contents.early_end;
        let replaced = contents.waiters.wait(&mut self.ticket, Waiter::Task(waker));
        drop(contents);
        drop(replaced);
        early_end
    }

    /// Returns the events of the topic after the position `cursor`. The client has all events up to
    /// `cursor`. If no event follows, returns [`Step::Finished`] or [`Step::EarlyEnd`] if the topic
    /// is finished or the hub is shut down. Otherwise registers `waker` for the next change of the
    /// topic, and returns [`Step::Wait`].
    ///
    /// `wait` remembers the registered waker, and the version of the topic when the wait began. If
    /// the next call finds the same waker and version, it returns [`Step::Wait`] without locking
    /// the topic.
    pub(super) fn read(&mut self, cursor: Position, waker: &Waker, wait: &mut Option<Wait>) -> Step {
        let is_known = wait.as_ref().is_some_and(|wait| wait.waker.will_wake(waker));
        if is_known && wait.as_ref().is_some_and(|wait| wait.version == self.topic.version()) {
            return Step::Wait;
        }
        // Clone the waker before the topic is locked, because `clone` runs code of the application.
        let waiter = Waiter::Task(waker.clone());
        let mut contents = self.topic.lock();
        if contents.early_end == Some(EarlyEnd::Replaced) {
            drop(contents);
            return Step::EarlyEnd(EarlyEnd::Replaced);
        }
        let read = contents.log.read(cursor, self.gap_reported_through, Position::MAX);
        let nothing_follows = match &read {
            Read::Events(_, last) => *last == contents.log.last(),
            Read::Nothing => true,
            Read::Evicted => false,
        };
        // Register the waker even if there are events. The subscription polls again immediately
        // after them, and need not lock the topic again to start waiting.
        let is_finished = contents.finished.is_some();
        let is_shut_down = contents.early_end.is_some();
        let waits_since = (nothing_follows && !is_finished && !is_shut_down).then(|| self.topic.version());
        let replaced = match waits_since {
            Some(_) => contents.waiters.wait(&mut self.ticket, waiter),
            None => Some(waiter),
        };
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
            Read::Nothing if is_shut_down => Step::EarlyEnd(EarlyEnd::Shutdown),
            Read::Nothing => Step::Wait,
        }
    }

    /// Returns `true` if the client has received every event of this topic, or a report that it was
    /// evicted. The caller may then send the client a cursor (a position to resume from) after all
    /// records of the topic.
    ///
    /// Returns `false` while the subscription has not noticed that the topic is finished. With a
    /// cursor after the record that finishes the topic, the client could resume on another node.
    /// That node might not find the record, and would not end the subscription.
    pub(super) fn is_caught_up(&self, cursor: Position) -> bool {
        let contents = self.topic.lock();
        contents.log.ends_at(self.resumes_after(cursor)) && (contents.finished.is_none() || self.is_finished)
    }

    /// Looks for the topic's next event after `cursor`, and stores the position of the event in
    /// `next`. If there is no such event, registers `waiter`, which the next change of the topic
    /// notifies. A waiter is a waker, or the ready list of a subscription: the list of its changed
    /// topics.
    ///
    /// The error is [`Step::EarlyEnd`] if another log has replaced the log of the backend, and
    /// [`Step::Evicted`] if events after `cursor` were evicted.
    pub(super) fn peek(&mut self, cursor: Position, waiter: impl FnOnce() -> Waiter) -> Result<(), Step> {
        let from = self.resumes_after(cursor);
        let mut contents = self.topic.lock();
        if contents.early_end == Some(EarlyEnd::Replaced) {
            return Err(Step::EarlyEnd(EarlyEnd::Replaced));
        }
        if contents.log.evicted_through() > from {
            return Err(Step::Evicted);
        }
        let replaced;
        (self.next, replaced) = look(&mut contents, from, &mut self.ticket, waiter);
        // A finished topic can continue: in the log of a backend, an event can follow the finish
        // record of its topic.
        self.is_finished = self.next.is_none() && contents.finished.is_some();
        self.is_shut_down = contents.early_end.is_some();
        TopicState::unlock_and_help(contents);
        drop(replaced);
        Ok(())
    }

    /// Returns the events of this topic after `cursor` and up to `through`. Returns `None` if the
    /// topic has no event after `cursor`.
    ///
    /// `position` is the position of the next event to deliver, at or before `through`. If newer
    /// events of a `latest_only` topic have replaced all events up to `through`, returns the newest
    /// event in their place. The cursor of the subscription then moves only to `position`, and
    /// never backwards, so that no event of another topic is skipped.
    ///
    /// Also looks for the next event after the returned events, and stores its position in `next`.
    /// If there is no such event, registers `waiter`, which the next change of the topic notifies.
    ///
    /// After an error, `next` is `None` and no waiter is registered. The error is
    /// [`Step::EarlyEnd`] if another log has replaced the log of the backend, and [`Step::Evicted`]
    /// if events after `cursor` were evicted.
    pub(super) fn take_turn(
        &mut self,
        position: Position,
        cursor: Position,
        through: Position,
        waiter: impl FnOnce() -> Waiter,
    ) -> Result<Option<Step>, Step> {
        self.next = None;
        let from = self.resumes_after(cursor);
        let mut contents = self.topic.lock();
        if contents.early_end == Some(EarlyEnd::Replaced) {
            return Err(Step::EarlyEnd(EarlyEnd::Replaced));
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
            Read::Evicted => return Err(Step::Evicted),
            Read::Nothing => (from, None),
        };
        let replaced;
        (self.next, replaced) = look(&mut contents, from.max(read_through), &mut self.ticket, waiter);
        self.is_finished = self.next.is_none() && contents.finished.is_some();
        self.is_shut_down = contents.early_end.is_some();
        TopicState::unlock_and_help(contents);
        drop(replaced);
        Ok(step)
    }
}

/// Returns the position of the topic's first event after `from`. If there is no such event, returns
/// `None` and registers `waiter`, which the next change of the topic notifies. A waiter is a waker,
/// or the ready list of a subscription: the list of its changed topics.
///
/// If this reader has registered a waiter before, `ticket` identifies that waiter, and the new
/// waiter replaces it. The second result is the replaced waiter. The caller drops it after it has
/// unlocked the topic.
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
