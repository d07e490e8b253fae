//! The settings of a hub, and their defaults.

use super::{backend::DEFAULT_MAX_AGE, gap::LagPolicy, log::Limits, presence::PresenceEvents};
use std::time::Duration;

#[derive(Clone, Debug)]
pub(super) struct HubConfig {
    /// The retention of each topic in the memory of this process, unless the topic sets its own.
    pub(super) retention: Limits,
    pub(super) max_topics: usize,
    pub(super) max_topics_per_subscription: usize,
    /// Decides what happens to subscribers that are so slow that their next events were evicted
    /// before they received them: they get a gap event, or are disconnected. A subscription can
    /// override it.
    pub(super) lag_policy: LagPolicy,
    /// The time that a subscription pauses after it has written events to its client. Events that
    /// arrive during the pause are written together. Zero means no pause. A subscription can
    /// override it.
    pub(super) linger: Duration,
    /// The time that a member of a topic (a name that is present in it, such as a user) stays
    /// present after its last subscription was dropped.
    pub(super) presence_grace: Duration,
    /// The time without a sign of life after which the other nodes declare the local node dead. The
    /// members that have joined topics through the local node (names that are present in these
    /// topics) then leave.
    pub(super) presence_lease: Duration,
    pub(super) presence_events: Option<PresenceEvents>,
}

impl HubConfig {
    pub(super) const DEFAULT: Self = Self {
        retention: Limits { max_events: 10_000, max_bytes: 8 << 20, max_age: DEFAULT_MAX_AGE },
        max_topics: 100_000,
        max_topics_per_subscription: 1_000,
        lag_policy: LagPolicy::Gap,
        linger: Duration::ZERO,
        presence_grace: Duration::from_secs(5),
        presence_lease: Duration::from_secs(10),
        presence_events: None,
    };
}
