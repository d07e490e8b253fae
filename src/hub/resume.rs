//! The point in the log where a subscription resumes.

/// The resume point of a subscription in several topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResumePoint {
    /// The greatest position with no retained event between it and the first one. A client that
    /// returns from there gets no second gap for the same events.
    pub(super) cursor: u64,
    /// The position of the first event after the cursor.
    pub(super) first: Option<u64>,
}

impl ResumePoint {
    /// No topic yet.
    pub(super) const START: Self = Self { cursor: u64::MAX, first: None };

    /// The resume point in a topic whose next event is `first`, or that has no event up to `end`.
    pub(super) fn of(first: Option<u64>, end: u64) -> Self {
        Self { cursor: first.map_or(end, |first| first.saturating_sub(1)), first }
    }

    /// The resume point in these topics and another one.
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
            topics.iter().fold(ResumePoint::START, |point, &(first, end)| point.and(ResumePoint::of(first, end)))
        };
        assert_eq!(of(&[(None, 7)]), ResumePoint { cursor: 7, first: None });
        assert_eq!(of(&[(Some(5), 7), (None, 7)]), ResumePoint { cursor: 4, first: Some(5) });
        assert_eq!(of(&[(Some(5), 7), (Some(3), 7)]), ResumePoint { cursor: 2, first: Some(3) });
        assert_eq!(of(&[(Some(5), 7), (None, 2)]), ResumePoint { cursor: 2, first: Some(5) });
        assert_eq!(of(&[(Some(0), 7)]), ResumePoint { cursor: 0, first: Some(0) });
    }
}
