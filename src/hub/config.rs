//! The settings of a hub, and their defaults.

use super::{gap::LagPolicy, log::Retention, presence::PresenceEvents};
use std::time::Duration;

#[derive(Clone, Debug)]
pub(super) struct HubConfig {
    /// The retention of each topic in this process.
    pub(super) retention: Retention,
    pub(super) max_topics: usize,
    pub(super) max_topics_per_subscription: usize,
    /// The policy of subscriptions that do not set their own.
    pub(super) lag_policy: LagPolicy,
    /// The pause after a write. Zero: no pause.
    pub(super) linger: Duration,
    /// The time for which a member without a subscription is present.
    pub(super) presence_grace: Duration,
    /// The time without a sign of life after which the members of a node begin to leave.
    pub(super) presence_lease: Duration,
    pub(super) presence_events: Option<PresenceEvents>,
}

impl HubConfig {
    pub(super) const DEFAULT: Self = Self {
        retention: Retention { max_events: 10_000, max_bytes: 8 << 20, max_age: Duration::from_secs(60 * 60) },
        max_topics: 100_000,
        max_topics_per_subscription: 1_000,
        lag_policy: LagPolicy::Gap,
        linger: Duration::ZERO,
        presence_grace: Duration::from_secs(5),
        presence_lease: Duration::from_secs(10),
        presence_events: None,
    };
}
