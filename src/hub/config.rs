//! The settings of a hub, and their defaults.

use super::{gap::LagPolicy, log::Limits, presence::PresenceEvents};
use std::time::Duration;

#[derive(Clone, Debug)]
pub(super) struct HubConfig {
    /// The retention of each topic in the memory of this process, unless the topic sets its own.
    pub(super) retention: Limits,
    pub(super) max_topics: usize,
    pub(super) max_topics_per_subscription: usize,
    /// The treatment of subscribers that are slower than the retention, so that their next events
    /// were evicted. A subscription can override it.
    pub(super) lag_policy: LagPolicy,
    /// The time that a subscription waits for more events after a write, so that the next write can
    /// carry several events. Zero means no wait. A subscription can override it.
    pub(super) linger: Duration,
    /// The time that a member of a topic stays present after its last subscription was dropped.
    pub(super) presence_grace: Duration,
    /// The time without a sign of life after which the other nodes declare this node dead, so that
    /// its members leave.
    pub(super) presence_lease: Duration,
    pub(super) presence_events: Option<PresenceEvents>,
}

impl HubConfig {
    pub(super) const DEFAULT: Self = Self {
        retention: Limits { max_events: 10_000, max_bytes: 8 << 20, max_age: Duration::from_secs(60 * 60) },
        max_topics: 100_000,
        max_topics_per_subscription: 1_000,
        lag_policy: LagPolicy::Gap,
        linger: Duration::ZERO,
        presence_grace: Duration::from_secs(5),
        presence_lease: Duration::from_secs(10),
        presence_events: None,
    };
}
