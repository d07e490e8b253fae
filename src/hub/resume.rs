//! The point in the log where a subscription resumes.

use super::backend::Position;

/// The point in the log where a new subscription begins, or where a subscription resumes after a
/// gap. (The events of the gap were evicted from the memory of this process or from the backend.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResumePoint {
    /// The position after which the subscription continues. It is smaller than `first`, the
    /// position of the next event. In a subscription to a single topic, it is not before any event
    /// that a gap reports as missing. So a client that reconnects with this position as its id gets
    /// no second gap for these events.
    pub(super) cursor: Position,
    /// The position of the first event that the resumed subscription delivers. `None` if no event
    /// follows yet.
    pub(super) first: Option<Position>,
}

impl ResumePoint {
    /// The neutral element of [`and`](Self::and): combining it with another resume point returns
    /// that resume point. It is the initial value for a fold over topics.
    pub(super) const START: Self = Self { cursor: Position::MAX, first: None };

    /// Returns the resume point for one topic: immediately before `first`, the position of the
    /// topic's first event that the subscription still has to deliver. If there is no such event up
    /// to the position `end`, `first` is `None`, and the subscription resumes after `end`.
    pub(super) fn of(first: Option<Position>, end: Position) -> Self {
        Self { cursor: first.map_or(end, |first| first.previous()), first }
    }

    /// Combines the resume points of two sets of topics: takes the smaller `cursor` and the smaller
    /// `first`.
    pub(super) fn and(self, other: Self) -> Self {
        let first = [self.first, other.first].into_iter().flatten().min();
        Self { cursor: self.cursor.min(other.cursor), first }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursor_is_before_the_first_event_of_any_topic() {
        let of = |topics: &[(Option<u64>, u64)]| {
            let points = topics.iter().map(|(first, end)| ResumePoint::of(first.map(Position::new), (*end).into()));
            let point = points.fold(ResumePoint::START, ResumePoint::and);
            (point.cursor.get(), point.first.map(Position::get))
        };
        assert_eq!(of(&[(None, 7)]), (7, None));
        assert_eq!(of(&[(Some(5), 7), (None, 7)]), (4, Some(5)));
        assert_eq!(of(&[(Some(5), 7), (Some(3), 7)]), (2, Some(3)));
        assert_eq!(of(&[(Some(5), 7), (None, 2)]), (2, Some(5)));
        assert_eq!(of(&[(Some(0), 7)]), (0, Some(0)));
    }
}
