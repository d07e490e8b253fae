//! Readers: a subscription has one reader for each of its topics, and merges them.

use super::{backend::Position, log::Read, topic_state::TopicState, waiters::Ticket};
use crate::EncodedEvents;
use std::{sync::Arc, task::Waker};

/// The result of reading the topics of a subscription at its cursor.
pub(super) enum Step {
    /// The next events, and the position of the last of them.
    Events(EncodedEvents, Position),
    /// A state that has replaced the state at this place. All events up to the place are delivered.
    Replacement(EncodedEvents, Position),
    /// Nothing follows, and all events up to this position are delivered.
    CaughtUp(Position),
    Evicted,
    /// No event yet. The waker is registered.
    Wait,
    Finished,
    Shutdown,
}

/// The reader of one topic of a subscription.
pub(super) struct Reader {
    pub(super) topic: Arc<TopicState>,
    /// Evicted events up to this position were already reported to the client.
    pub(super) gap_reported_through: Position,
    /// The position of a state that was delivered at the place of an earlier state. It may be after
    /// the cursor.
    delivered_through: Position,
    /// The position of the first event after the cursor, if it is known. It is the place of this
    /// topic among the other topics. A state keeps its place when it is replaced. Otherwise a topic
    /// that is updated all the time would never have its turn. Only `merge` uses it.
    next: Option<Position>,
    /// The version of the topic when this reader began to wait. `None` if it does not wait.
    seen: Option<u64>,
    is_finished: bool,
    /// The position of the finish record, if the backend has no event of the topic after it.
    pub(super) finished_at: Option<Position>,
    pub(super) ticket: Option<Ticket>,
}

impl Reader {
    pub(super) fn new(topic: Arc<TopicState>, gap_reported_through: Position) -> Self {
        Self {
            topic,
            gap_reported_through,
            delivered_through: Position::START,
            next: None,
            seen: None,
            is_finished: false,
            finished_at: None,
            ticket: None,
        }
    }

    /// Resets the reader, so that it reads the topic again.
    pub(super) fn reset(&mut self) {
        self.next = None;
        self.forget_waker();
    }

    /// Registers a waker at the next read, even if the topic has not changed.
    pub(super) fn forget_waker(&mut self) {
        self.seen = None;
    }

    /// Resets the reader. A state keeps its place, or gets this place if it had none.
    pub(super) fn reset_after_gap(&mut self, state: Option<Position>) {
        self.next = state.and(self.next).or(state);
        self.forget_waker();
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
        let replaced = contents.waiters.wait(&mut self.ticket, waker);
        drop(contents);
        drop(replaced);
        is_cut
    }

    fn waits(&self) -> bool {
        self.seen.is_some_and(|seen| seen == self.topic.version())
    }

    /// Returns the events after the cursor, or registers the waker.
    pub(super) fn read(&mut self, cursor: Position, waker: &Waker) -> Step {
        if self.waits() {
            return Step::Wait;
        }
        // Clone the waker before the topic is locked, because `clone` runs code of the application.
        let waker = waker.clone();
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
        let replaced = if nothing_follows && contents.finished.is_none() {
            self.seen = Some(self.topic.version());
            contents.waiters.wait(&mut self.ticket, waker)
        } else {
            Some(waker)
        };
        let is_finished = contents.finished.is_some();
        drop(contents);
        drop(replaced);
        match read {
            Read::Events(events, last) => Step::Events(events, last),
            Read::Evicted => Step::Evicted,
            Read::Nothing if is_finished => Step::Finished,
            Read::Nothing => Step::Wait,
        }
    }

    /// Looks for the topic's next event after the cursor. Stores its position in `next`, or
    /// registers the waker if there is no such event. Returns `Err` with a step that the caller
    /// must return first.
    fn peek(&mut self, cursor: Position, waker: &Waker) -> Result<(), Step> {
        if self.next.is_some() || self.waits() {
            return Ok(());
        }
        let waker = waker.clone();
        let mut contents = self.topic.lock();
        let from = self.resumes_after(cursor);
        if contents.is_shut_down {
            drop(contents);
            return Err(Step::Shutdown);
        }
        if contents.log.evicted_through() > from {
            return Err(Step::Evicted);
        }
        self.next = contents.log.first_after(from);
        let mut replaced = None;
        // This can change: in the log of a backend, an event can follow the finish record of its
        // topic.
        self.is_finished = self.next.is_none() && contents.finished.is_some();
        if self.next.is_none() {
            self.seen = Some(self.topic.version());
            replaced = contents.waiters.wait(&mut self.ticket, waker);
        }
        drop(contents);
        drop(replaced);
        Ok(())
    }

    /// Returns the events of this topic that are at its place and up to `through`. If another state
    /// has replaced them, returns that state. `None`: nothing follows the cursor any more.
    fn take_turn(&mut self, place: Position, cursor: Position, through: Position) -> Option<Step> {
        self.next = None;
        let from = self.resumes_after(cursor);
        let mut contents = self.topic.lock();
        if contents.is_shut_down {
            return Some(Step::Shutdown);
        }
        match contents.log.read(from, from, through) {
            Read::Events(events, last) => return Some(Step::Events(events, last)),
            Read::Evicted => return Some(Step::Evicted),
            Read::Nothing => {}
        }
        match contents.log.read(from, from, Position::MAX) {
            Read::Events(events, last) => {
                self.delivered_through = last;
                Some(Step::Replacement(events, place.max(cursor)))
            }
            _ => None,
        }
    }
}

/// Merges these topics in the order of the log. Returns the next events after the cursor, which are
/// of one topic. A state that was replaced in the meantime is delivered at the place of the earlier
/// state. `committed` returns the [committed](super::core::Core::committed) position.
pub(super) fn merge(readers: &mut [Reader], committed: impl Fn() -> Position, cursor: Position, waker: &Waker) -> Step {
    // A state that a gap has passed over. The id of the gap is that of the state as well, so the
    // state can precede the next gap. Otherwise a topic that lags all the time would starve it.
    for reader in &mut *readers {
        if let Some(step) =
            reader.next.filter(|place| *place <= cursor).and_then(|place| reader.take_turn(place, cursor, place))
        {
            return step;
        }
    }
    loop {
        // Read the committed position before the topics, so that the topics contain every event up
        // to it.
        let committed = committed();
        let mut first: Option<(Position, usize)> = None;
        let mut second = Position::MAX;
        for (i, reader) in readers.iter_mut().enumerate() {
            // An eviction has to be reported before any later event. Otherwise a client could
            // disconnect after that event and resume with its id, without the gap.
            if let Err(step) = reader.peek(cursor, waker) {
                return step;
            }
            let Some(next) = reader.next else { continue };
            match first {
                Some((least, _)) if least < next => second = second.min(next),
                _ => {
                    second = first.map_or(second, |(least, _)| least);
                    first = Some((next, i));
                }
            }
        }
        match first {
            // This event is after the committed position, so an event with a smaller position may
            // not be visible yet.
            Some((next, _)) if next > committed => {}
            Some((place, index)) => {
                let reader = &mut readers[index];
                if let Some(step) = reader.take_turn(place, cursor, committed.min(second.previous())) {
                    return step;
                }
            }
            None => {
                let delivered = readers.iter().map(|reader| reader.delivered_through).max();
                // An event before an uncommitted state may not be visible yet.
                let caught_up = delivered.unwrap_or(cursor).min(committed);
                return if caught_up > cursor {
                    Step::CaughtUp(caught_up)
                } else if readers.iter().all(|reader| reader.is_finished) {
                    Step::Finished
                } else {
                    Step::Wait
                };
            }
        }
    }
}
