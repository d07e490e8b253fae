/// Statistics of a hub in this process: the current numbers of topics, subscriptions and events,
/// and totals since the hub was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// The number of topics.
    pub topics: usize,
    /// The number of subscriptions. A subscription to many topics counts once.
    pub subscriptions: usize,
    /// The number of retained events.
    pub events: usize,
    /// The size of the retained events in bytes on the wire.
    pub bytes: usize,
    /// The number of events published; with a backend, the number of events read from its log.
    pub published: u64,
    /// The number of gaps that were reported, or led to a disconnection.
    pub gaps: u64,
}
