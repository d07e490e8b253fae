//! Checks that each event of a stream arrives once and in order.

/// The number of missing events that a verifier remembers, to distinguish late from repeated
/// events.
const REMEMBERED: usize = 1024;

/// Events that arrived, and faults of their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Events that never arrived.
    pub lost: u64,
    pub repeated: u64,
    /// Events that arrived after a later event.
    pub reordered: u64,
    /// Gaps that the server has reported.
    pub gaps: u64,
    /// Connections that ended, and responses other than an event stream.
    pub broken: u64,
}

impl Faults {
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    pub fn add(&mut self, other: &Self) {
        self.lost += other.lost;
        self.repeated += other.repeated;
        self.reordered += other.reordered;
        self.gaps += other.gaps;
        self.broken += other.broken;
    }
}

impl std::fmt::Display for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { lost, repeated, reordered, gaps, broken } = self;
        write!(f, "{lost} lost, {repeated} repeated, {reordered} reordered, {gaps} gaps, {broken} broken connections")
    }
}

/// The order of one stream.
#[derive(Debug, Default)]
pub struct Verifier {
    /// The next sequence number. `None` accepts any as the first.
    next: Option<u64>,
    missing: Vec<u64>,
}

impl Verifier {
    /// Creates a verifier of a stream that begins with this sequence number.
    pub fn beginning_with(first: u64) -> Self {
        Self { next: Some(first), missing: Vec::new() }
    }

    /// Returns the sequence number that has to come next.
    pub fn next(&self) -> Option<u64> {
        self.next
    }

    /// Records an event and returns whether it is in order.
    pub fn accept(&mut self, sequence: u64, faults: &mut Faults) -> bool {
        let next = self.next.unwrap_or(sequence);
        if sequence == next {
            self.next = Some(next + 1);
            return true;
        }
        self.out_of_order(sequence, next, faults);
        false
    }

    #[cold]
    fn out_of_order(&mut self, sequence: u64, next: u64, faults: &mut Faults) {
        if sequence > next {
            faults.lost += sequence - next;
            self.missing.extend((next..sequence).take(REMEMBERED.saturating_sub(self.missing.len())));
            self.next = Some(sequence + 1);
        } else if let Some(found) = self.missing.iter().position(|&missing| missing == sequence) {
            self.missing.swap_remove(found);
            faults.lost -= 1;
            faults.reordered += 1;
        } else {
            faults.repeated += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(sequences: &[u64]) -> Faults {
        let mut faults = Faults::default();
        let mut verifier = Verifier::beginning_with(5);
        for &sequence in sequences {
            verifier.accept(sequence, &mut faults);
        }
        faults
    }

    #[test]
    fn events_in_order_are_no_fault() {
        assert!(faults(&[5, 6, 7]).is_none());
    }

    #[test]
    fn lost_event_is_a_fault_also_at_the_beginning() {
        assert_eq!(faults(&[5, 7, 8]), Faults { lost: 1, ..Faults::default() });
        assert_eq!(faults(&[8]), Faults { lost: 3, ..Faults::default() });
    }

    #[test]
    fn repeated_event_is_a_fault() {
        assert_eq!(faults(&[5, 5, 6, 5]), Faults { repeated: 2, ..Faults::default() });
        assert_eq!(faults(&[4]), Faults { repeated: 1, ..Faults::default() });
    }

    #[test]
    fn reordered_event_is_a_fault_and_not_lost() {
        assert_eq!(faults(&[5, 7, 6, 8]), Faults { reordered: 1, ..Faults::default() });
        assert_eq!(faults(&[5, 7, 6, 6]), Faults { reordered: 1, repeated: 1, ..Faults::default() });
    }

    #[test]
    fn first_event_of_an_open_beginning_is_any() {
        let (mut verifier, mut faults) = (Verifier::default(), Faults::default());
        assert!(verifier.accept(42, &mut faults) && verifier.accept(43, &mut faults));
        assert!(!verifier.accept(45, &mut faults));
    }
}
