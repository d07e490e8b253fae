/// Statistics of a hub in this process: the current numbers of topics, subscriptions and events,
/// and totals since the hub was created.
///
/// The numbers are about the topics of the application. They leave out the topic
/// `tower-sse/closed-streams`, which the crate itself uses. A
/// [`StreamRegistry`](crate::StreamRegistry) that follows the hub subscribes to this topic, and
/// announces there which streams it has closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// The number of topics that the hub has now. The topic `tower-sse/closed-streams` also counts
    /// towards [`max_topics`](super::Builder::max_topics), but not here.
    pub topics: usize,
    /// The number of open subscriptions. A subscription to several topics counts once.
    pub subscriptions: usize,
    /// The number of events that all topics together retain now.
    pub events: usize,
    /// The size of all retained events in bytes on the wire.
    pub bytes: usize,
    /// The number of events published since the hub was created. With a backend, it is the number
    /// of events that this process has read from the log of the backend.
    pub published: u64,
    /// The number of gaps since the hub was created. A gap is a range of missing events that was
    /// reported to a client, or that led to its disconnection.
    pub gaps: u64,
}
