//! The members of topics (the names present in them) on the local node. [`Locals`] stores the
//! number of subscriptions of each member, and the end of its grace time after the last
//! subscription. It also stores whether the local node has announced the member to the other nodes,
//! by a record in the log.

use super::{Presence, free_if_empty, message::Members};
use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

type Key = (Arc<str>, Arc<str>);

#[derive(Default)]
pub(super) struct Locals {
    topics: HashMap<Arc<str>, HashMap<Arc<str>, Local>>,
    /// The members without a subscription, which will leave, sorted by the end of their grace time.
    /// The number in each key distinguishes members whose grace times end at the same time.
    leaving: BTreeMap<(Instant, u64), Key>,
    next_key: u64,
    /// The members whose last join or leave the local node has not announced to the other nodes
    /// yet, by a record in the log. They are in the order of these changes.
    changed: BTreeMap<u64, Key>,
}

/// A member of a topic on the local node: a name that is present in the topic. After the member has
/// left, this value stays until the local node has announced the leave to the other nodes, by a
/// record in the log.
#[derive(Default)]
struct Local {
    subscriptions: usize,
    /// The time when this member leaves, at the end of the grace time after its last subscription,
    /// and a number that makes the pair unique. The pair is the key of the member in
    /// `Locals::leaving`. `None` if the member has a subscription, or has left.
    leaving: Option<(Instant, u64)>,
    /// Set if the local node has announced to the other nodes that this name is a member of the
    /// topic, and has announced no leave after that. An announcement is a record in the log. The
    /// flag is set before the record is appended. If that append fails, all members of the local
    /// node are announced again.
    is_announced: bool,
    /// Set if this member has joined or left the topic, and no record in the log announces this to
    /// the other nodes yet. The number is the key of the member in `Locals::changed`.
    changed: Option<u64>,
}

impl Local {
    fn is_member(&self) -> bool {
        self.subscriptions > 0 || self.leaving.is_some()
    }
}

impl Locals {
    /// Counts a new subscription on the local node that makes the name `member` a member of
    /// `topic`. If the name had no subscription left, but its grace time was not over, it stays a
    /// member.
    pub(super) fn join(&mut self, topic: &Arc<str>, member: &Arc<str>) {
        let local = self.topics.entry(topic.clone()).or_default().entry(member.clone()).or_default();
        local.subscriptions += 1;
        if let Some(leaving) = local.leaving.take() {
            self.leaving.remove(&leaving);
        }
        self.compare(topic, member);
    }

    /// Adds the member to `changed`, the list of members to announce to the other nodes, if it has
    /// joined or left since its last announcement. Otherwise removes it from the list. Also removes
    /// the member from `topics` if it has left and its leave need not be announced.
    fn compare(&mut self, topic: &Arc<str>, member: &Arc<str>) {
        let local = self.topics.get_mut(topic).and_then(|members| members.get_mut(member));
        let Some(local) = local else { return };
        let has_changed = local.is_member() != local.is_announced;
        match local.changed {
            None if has_changed => {
                local.changed = Some(self.next_key);
                self.changed.insert(self.next_key, (topic.clone(), member.clone()));
                self.next_key += 1;
            }
            Some(key) if !has_changed => {
                local.changed = None;
                self.changed.remove(&key);
            }
            _ => {}
        }
        if !local.is_member() && !local.is_announced {
            self.forget(topic, member);
        }
    }

    /// Counts the end of a subscription that made the name `member` a member of `topic`. After its
    /// last subscription, the name stays a member for the time `grace`. Then
    /// [`expire`](Self::expire) ends its membership.
    pub(super) fn leave(&mut self, topic: &Arc<str>, member: &Arc<str>, grace: Duration) {
        let of_topic = self.topics.get_mut(topic);
        let Some(local) = of_topic.and_then(|members| members.get_mut(member)) else { return };
        local.subscriptions = local.subscriptions.saturating_sub(1);
        if local.subscriptions > 0 {
            return;
        }
        let key = (Instant::now() + grace, self.next_key);
        local.leaving = Some(key);
        self.next_key += 1;
        self.leaving.insert(key, (topic.clone(), member.clone()));
    }

    fn get_mut(&mut self, topic: &str, member: &str) -> Option<&mut Local> {
        self.topics.get_mut(topic)?.get_mut(member)
    }

    /// Ends the membership of each member whose grace time is over at `now`. The grace time begins
    /// when the last subscription of the member ends.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(first) = self.leaving.first_entry().filter(|first| first.key().0 <= now) {
            let (topic, member) = first.remove();
            if let Some(local) = self.get_mut(&topic, &member) {
                local.leaving = None;
            }
            self.compare(&topic, &member);
        }
    }

    /// Returns the next time when a grace time ends, so that a member leaves its topic. Returns
    /// `None` if all members have a subscription.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.leaving.first_key_value().map(|((end, _), _)| *end)
    }

    pub(super) fn has_changes(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Returns `true` if the local node has no members of topics, and has announced to the other
    /// nodes that all earlier members have left.
    pub(super) fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }

    /// Returns the joins and leaves on the local node that it has not announced to the other nodes
    /// yet, in their order. From now on, these changes count as announced, so the caller must
    /// append them to the log that the nodes share.
    pub(super) fn take_changes(&mut self) -> Vec<(Arc<str>, Presence)> {
        let mut changes = Vec::new();
        for (topic, member) in mem::take(&mut self.changed).into_values() {
            let Some(local) = self.get_mut(&topic, &member) else { continue };
            local.changed = None;
            local.is_announced = local.is_member();
            if local.is_announced {
                changes.push((topic, Presence::joined(member)));
            } else {
                self.forget(&topic, &member);
                changes.push((topic, Presence::left(member)));
            }
        }
        changes
    }

    /// Returns the number of entries for members in all maps, and the capacity of the map of
    /// topics. A test of the memory use calls this method.
    #[cfg(all(test, not(tower_sse_loom)))]
    pub(super) fn size(&self) -> [usize; 2] {
        let members = self.topics.values().map(HashMap::len).sum::<usize>();
        [members + self.leaving.len() + self.changed.len(), self.topics.capacity()]
    }

    fn forget(&mut self, topic: &str, member: &str) {
        let Some(members) = self.topics.get_mut(topic) else { return };
        members.remove(member);
        if members.is_empty() {
            self.topics.remove(topic);
            free_if_empty(&mut self.topics);
        }
    }

    /// Returns all members of topics on the local node, by topic. The caller appends them to the
    /// log, where they replace all earlier records of the local node about its members. From now
    /// on, exactly these members count as announced to the other nodes.
    pub(super) fn take_all(&mut self) -> Members {
        self.changed.clear();
        let mut all = Members::new();
        self.topics.retain(|topic, members| {
            members.retain(|_, local| {
                local.changed = None;
                local.is_announced = local.is_member();
                local.is_announced
            });
            if !members.is_empty() {
                all.insert(topic.clone(), members.keys().cloned().collect());
            }
            !members.is_empty()
        });
        free_if_empty(&mut self.topics);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(5);

    fn joined(member: &str) -> (Arc<str>, Presence) {
        ("t".into(), Presence::joined(member))
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_first_subscription_and_the_end_of_grace_are_changes() {
        let mut locals = Locals::default();
        let (topic, member) = ("t".into(), "a".into());
        locals.join(&topic, &member);
        locals.join(&topic, &member);
        assert_eq!(locals.take_changes(), [joined("a")]);
        locals.leave(&topic, &member, GRACE);
        assert_eq!(locals.next_end(), None);
        locals.leave(&topic, &member, GRACE);
        locals.expire(Instant::now());
        assert!(!locals.has_changes());
        locals.expire(Instant::now() + GRACE);
        assert_eq!(locals.take_changes(), [("t".into(), Presence::left("a"))]);
        assert!(locals.is_empty() && locals.next_end().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn changes_that_cancel_each_other_are_not_announced() {
        let mut locals = Locals::default();
        let (topic, member) = ("t".into(), "a".into());
        for _ in 0..3 {
            locals.join(&topic, &member);
            locals.leave(&topic, &member, Duration::ZERO);
            locals.expire(Instant::now());
            assert!(!locals.has_changes() && locals.is_empty());
        }
        assert_eq!(locals.take_changes(), []);
        locals.join(&topic, &member);
        assert_eq!(locals.take_changes(), [joined("a")]);
    }

    #[tokio::test(start_paused = true)]
    async fn whole_list_covers_all_changes() {
        let mut locals = Locals::default();
        let (topic, one, other) = ("t".into(), "a".into(), "b".into());
        locals.join(&topic, &one);
        locals.join(&topic, &other);
        locals.take_changes();
        locals.leave(&topic, &one, Duration::ZERO);
        locals.expire(Instant::now());
        assert_eq!(locals.take_all(), Members::from([(topic, [other].into())]));
        assert!(!locals.has_changes());
    }
}
