/// What a hub has in this process, and what it has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// How many topics there are.
    pub topics: usize,
    /// How many subscriptions there are; one to many topics is one.
    pub subscriptions: usize,
    /// How many events the topics hold.
    pub events: usize,
    /// How many bytes these are, as they are sent.
    pub bytes: usize,
    /// How many events were published; with a backend, how many were read from its log.
    pub published: u64,
    /// How many gaps were told, or led to a disconnection.
    pub gaps: u64,
}
