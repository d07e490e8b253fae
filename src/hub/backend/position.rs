use std::fmt;

/// The number of a record in a log. A log is an append-only list of events.
///
/// The positions of a log begin at 1 and increase, not necessarily by one. They have a meaning only
/// together with the [epoch](super::Bounds::epoch) of their log: a number that identifies one
/// lifetime of the log.
///
/// # Examples
///
/// ```
/// use tower_sse::hub::backend::Position;
///
/// let first = Position::START.next();
/// assert_eq!(first, Position::new(1));
/// assert!(first > Position::START);
/// assert_eq!(first.get(), 1);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(u64);

impl Position {
    /// The position before the first record of every log, number 0. No record has this position,
    /// and a reader that starts after it gets all retained records. This is the default position.
    pub const START: Self = Self(0);

    /// The greatest position, number [`u64::MAX`].
    pub const MAX: Self = Self(u64::MAX);

    /// Creates a position from its number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns the position as a number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the position with the next greater number. The result for [`MAX`](Self::MAX) is
    /// `MAX`.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Returns the position with the next smaller number. The result for [`START`](Self::START) is
    /// `START`.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl From<u64> for Position {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
