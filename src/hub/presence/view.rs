//! The members of topics (the names that are present in them) on all nodes of the hub, as the local
//! node has read them in the log. Every node computes the members from the same records in the same
//! order, so all nodes get the same members.

use super::{
    Presence, free_if_empty,
    message::{Author, Listed, Members, Part},
};
use crate::random;
use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// The maximum number of nodes without members (names present in topics) that stay in memory after
/// a cleanup of the list of nodes. The cleanup forgets the nodes that have been silent for longest.
/// A node without members is remembered because of the number of its newest record about members: a
/// record of the node with a smaller number has arrived late, and is ignored.
const MAX_EMPTY_NODES: usize = 1_000;

/// The maximum of the random pause before the local node declares a silent node dead. The pause
/// differs from node to node, so usually only one node declares the silent node dead.
const JITTER: Duration = Duration::from_millis(200);

#[derive(Clone, Default)]
pub(super) struct View {
    nodes: HashMap<u64, Node>,
    /// The members of each topic. Each member is stored with the number of nodes where it is
    /// present.
    topics: HashMap<Arc<str>, BTreeMap<Arc<str>, usize>>,
    /// The next cleanup takes place when this number of nodes is known. A number below 2,000 counts
    /// as 2,000. A cleanup forgets nodes without members. Then it sets this field to twice the
    /// number of the remaining nodes. So the average cost of handling a record does not grow with
    /// the number of nodes.
    cleanup_at: usize,
}

/// A join or a leave: a name has become a member of a topic, or is no longer a member. `author` is
/// the node that has written the record about this change to the log: usually the node where the
/// name is or was present. If that node is dead, `author` is the node that has declared it dead.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Transition {
    pub(super) topic: Arc<str>,
    pub(super) change: Presence,
    pub(super) author: u64,
}

/// States how much the local node knows about the members of a node. Members are names that are
/// present in topics on that node.
#[derive(Clone, Copy, PartialEq)]
enum Known {
    /// The local node may have missed records about members of this node. So the node may have more
    /// members than the local node knows.
    Partly,
    /// The local node has read a list of all members of the node. If the node is declared dead
    /// later, this value stays: the node then has no members.
    All,
    /// The local node has read a record that declares the node dead, and no later record or sign of
    /// life of the node. The node may still be alive if the local node has missed earlier records,
    /// because a newer sign of life makes a declaration invalid.
    Dead,
}

#[derive(Clone)]
struct Node {
    /// The number of the newest record of this node about its members. Each node numbers these
    /// records. A record with the same number as the newest one, or a smaller number, has arrived
    /// late and is ignored. Only the parts of one long list of members all have the same number,
    /// and are not late.
    number: u64,
    /// The number of the newest sign of life of this [`Node`] that was read from the log. A record
    /// that declares the node dead contains the number of the newest sign of life that the author
    /// of the record had read. If that number is smaller than this field, the record is out of date
    /// and has no effect.
    beat: u64,
    lease: Duration,
    /// Set if the hub of this node is shut down, and the node has written its last record about its
    /// members.
    is_shut_down: bool,
    seen_at: Instant,
    members: Members,
    /// A new list of all members of this node, while only some parts of the list were read. When
    /// the last part is read, the list replaces `members`. `None` if no list is incomplete.
    incoming: Option<Members>,
    known: Known,
    /// A random time that the local node waits before it declares this other node dead, in addition
    /// to the lease of the other node: the silence that its own records allow. Each node chooses
    /// its own time for the same silent node, so usually only one node declares the silent node
    /// dead.
    jitter: Duration,
    /// The time when the local node last declared this silent node dead. `None` if it has not, or
    /// if a record or a sign of life of the silent node was read after that.
    declared_at: Option<Instant>,
}

impl Node {
    fn new() -> Self {
        Self {
            number: 0,
            beat: 0,
            lease: Duration::ZERO,
            is_shut_down: false,
            seen_at: Instant::now(),
            members: Members::new(),
            incoming: None,
            known: Known::Partly,
            jitter: JITTER.mul_f64(random::fraction()),
            declared_at: None,
        }
    }

    /// Notes that a record or a sign of life of this node was read now, so the node is alive.
    fn note_alive(&mut self) {
        (self.seen_at, self.declared_at) = (Instant::now(), None);
        if self.known == Known::Dead {
            self.known = Known::Partly;
        }
    }

    fn has_members(&self) -> bool {
        !self.members.is_empty() || self.incoming.is_some()
    }

    /// Returns the time when the local node declares this other node dead, if it reads no further
    /// record or sign of life of that node. By then, the other node has been silent for its lease,
    /// plus the grace time `grace` of its members, plus a random time. Silence before
    /// `contact_since`, the end of the last outage of the backend, does not count.
    ///
    /// If the local node has already declared the other node dead, returns the time when it repeats
    /// the declaration: at the earliest one lease after the last declaration.
    fn dies_at(&self, contact_since: Option<Instant>, grace: Duration) -> Instant {
        let seen_at = contact_since.map_or(self.seen_at, |since| since.max(self.seen_at));
        let dies_at = seen_at + self.lease + grace + self.jitter;
        // If the record about the death is lost, this node writes it again.
        self.declared_at.map_or(dies_at, |declared_at| dies_at.max(declared_at + self.lease))
    }
}

impl View {
    pub(super) fn members(&self, topic: &str) -> impl Iterator<Item = &Arc<str>> {
        self.topics.get(topic).into_iter().flat_map(BTreeMap::keys)
    }

    pub(super) fn contains(&self, topic: &str, member: &str) -> bool {
        self.topics.get(topic).is_some_and(|members| members.contains_key(member))
    }

    /// Returns `true` if the name `member` is present in the topic on the node `node`.
    pub(super) fn is_on_node(&self, node: u64, topic: &str, member: &str) -> bool {
        let members = self.nodes.get(&node).and_then(|node| node.members.get(topic));
        members.is_some_and(|members| members.contains(member))
    }

    /// Returns `true` if the local node has read a list of all members of the node `node`.
    pub(super) fn is_known(&self, node: u64) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.known == Known::All)
    }

    fn add(&mut self, author: u64, node: u64, topic: &Arc<str>, member: &Arc<str>, changes: &mut Vec<Transition>) {
        let Some(node) = self.nodes.get_mut(&node) else { return };
        let topic = self.topics.get_key_value(topic).map_or_else(|| topic.clone(), |(topic, _)| topic.clone());
        let members = self.topics.entry(topic.clone()).or_default();
        // All nodes with a member share the memory of its name.
        let member = members.get_key_value(member).map_or_else(|| member.clone(), |(member, _)| member.clone());
        if !node.members.entry(topic.clone()).or_default().insert(member.clone()) {
            return;
        }
        let count = members.entry(member.clone()).or_default();
        *count += 1;
        if *count == 1 {
            changes.push(Transition { topic, change: Presence::joined(member), author });
        }
    }

    fn remove(&mut self, author: u64, node: u64, topic: &Arc<str>, member: &Arc<str>, changes: &mut Vec<Transition>) {
        let Some(node) = self.nodes.get_mut(&node) else { return };
        let Some(of_node) = node.members.get_mut(topic) else { return };
        if !of_node.remove(member) {
            return;
        }
        if of_node.is_empty() {
            node.members.remove(topic);
        }
        let Some(members) = self.topics.get_mut(topic) else { return };
        let count = members.get(member).copied().unwrap_or_default();
        if count > 1 {
            members.insert(member.clone(), count - 1);
            return;
        }
        members.remove(member);
        if members.is_empty() {
            self.topics.remove(topic);
            free_if_empty(&mut self.topics);
        }
        changes.push(Transition { topic: topic.clone(), change: Presence::left(member.clone()), author });
    }

    /// Notes that a record of a node about its members was read. Stores the number of this record,
    /// the current time as the time when the node was last heard of, and the node's lease. The
    /// lease is the silence after which the node counts as dead. Returns the node.
    ///
    /// Returns `None` if the record has arrived late. `is_new` decides this: it gets the number of
    /// the newest record of the node that was read before, and returns `false` if the record is
    /// late.
    fn note(&mut self, author: Author, is_new: impl Fn(u64) -> bool) -> Option<&mut Node> {
        self.forget_empty();
        let node = self.nodes.entry(author.node).or_insert_with(Node::new);
        if !is_new(node.number) {
            return None;
        }
        (node.number, node.lease, node.is_shut_down) = (author.number, author.lease, false);
        node.note_alive();
        Some(node)
    }

    /// Applies the joins and leaves of members on the node `author`, which has written them into
    /// the log. An empty `changes` means that the hub of `author` is shut down. Returns the
    /// resulting joins and leaves of the topics. A member that is also present on another node
    /// neither joins nor leaves its topic.
    pub(super) fn change(&mut self, author: Author, changes: &[(Arc<str>, Presence)]) -> Vec<Transition> {
        let mut transitions = Vec::new();
        let Some(node) = self.note(author, |number| author.number > number) else { return transitions };
        node.incoming = None;
        node.is_shut_down = changes.is_empty();
        for (topic, change) in changes {
            match change {
                Presence::Joined { member } => self.add(author.node, author.node, topic, member, &mut transitions),
                Presence::Left { member } => self.remove(author.node, author.node, topic, member, &mut transitions),
            }
        }
        transitions
    }

    /// Returns `true` if the number of a part of a list of all members of the node `author` is up
    /// to date. [`part`](Self::part) ignores other parts. Returns `false` if a newer record of that
    /// node was read before, or if the first part of the list was not read.
    pub(super) fn is_new_part(&self, author: Author, is_first: bool) -> bool {
        let number = self.nodes.get(&author.node).map_or(0, |node| node.number);
        author.is_new_part(is_first, number)
    }

    /// Adds a part of a list of all members of a node. When the last part is added, the whole list
    /// replaces the members of the node that were known before. Returns the joins and leaves that
    /// this replacement causes. The result is empty for all other parts. A part has no effect if a
    /// newer record of the node was read before, or if the first part of the list was not read.
    pub(super) fn part(&mut self, author: Author, part: Part) -> Vec<Transition> {
        let is_first = part.is_first;
        let Some(node) = self.note(author, |number| author.is_new_part(is_first, number)) else { return Vec::new() };
        if is_first {
            node.incoming = Some(Members::new());
        }
        let Some(incoming) = &mut node.incoming else { return Vec::new() };
        for (topic, members) in part.members {
            incoming.entry(topic).or_default().extend(members);
        }
        let Some(members) = node.incoming.take_if(|_| part.is_last) else { return Vec::new() };
        node.known = Known::All;
        self.replace(author.node, author.node, members)
    }

    /// Adds the members that a record reports as leaving, if the local node may have missed the
    /// records of their joins. These members were present on the node `author` until this record.
    /// `author` has written the record, and `changes` are its joins and leaves. Returns the members
    /// that were added.
    pub(super) fn restore_leaving(
        &mut self,
        author: Author,
        changes: &[(Arc<str>, Presence)],
    ) -> Vec<(Arc<str>, Arc<str>)> {
        let mut restored = Vec::new();
        let node = self.nodes.entry(author.node).or_insert_with(Node::new);
        let is_late = author.number <= node.number;
        // After a failed append, the next record has all members. So a record of changes follows
        // the record with the number before it.
        let has_missed = node.known != Known::All || author.number > node.number.saturating_add(1);
        if is_late || !has_missed {
            return restored;
        }
        for (topic, change) in changes {
            let Presence::Left { member } = change else { continue };
            if !self.is_on_node(author.node, topic, member) {
                self.add(author.node, author.node, topic, member, &mut Vec::new());
                restored.push((topic.clone(), member.clone()));
            }
        }
        restored
    }

    fn replace(&mut self, author: u64, node: u64, new: Members) -> Vec<Transition> {
        let mut transitions = Vec::new();
        let old = self.nodes.get(&node).map(|node| node.members.clone()).unwrap_or_default();
        for (topic, members) in &old {
            let left = members.iter().filter(|member| !new.get(topic).is_some_and(|new| new.contains(*member)));
            left.for_each(|member| self.remove(author, node, topic, member, &mut transitions));
        }
        for (topic, members) in &new {
            members.iter().for_each(|member| self.add(author, node, topic, member, &mut transitions));
        }
        transitions
    }

    /// Notes that the sign of life with the number `beat` of the node `node` was read now. Has no
    /// effect if a later sign of life of this node was read before.
    pub(super) fn beat(&mut self, node: u64, beat: u64) {
        self.forget_empty();
        // The members of this node may be read later.
        let node = self.nodes.entry(node).or_insert_with(Node::new);
        if node.beat < beat {
            node.beat = beat;
            node.note_alive();
        }
    }

    /// Removes all members of the node `node`, because the node `by` has declared it dead. Returns
    /// the leaves of the members that are not present on another node. `number` and `beat` are the
    /// numbers of the newest record about members and of the newest sign of life of `node` that
    /// `by` had read.
    ///
    /// If a record or a sign of life of `node` with a greater number was read, `node` is alive. The
    /// function then removes no member, and returns `None`.
    pub(super) fn dead(&mut self, by: u64, node: u64, number: u64, beat: u64) -> Option<Vec<Transition>> {
        self.forget_empty();
        let dead = self.nodes.entry(node).or_insert_with(Node::new);
        if dead.number > number || dead.beat > beat {
            return None;
        }
        // The numbers show which records of the dead node are late.
        (dead.number, dead.beat) = (number, beat);
        dead.incoming = None;
        // If all members were known before, all members that later records add are known, too.
        if dead.known != Known::All {
            dead.known = Known::Dead;
        }
        Some(self.replace(by, node, Members::new()))
    }

    /// Returns the nodes with members, each with its lease, the silence after which it counts as
    /// dead. Includes nodes whose list of members was read only in part.
    pub(super) fn roster(&self) -> Vec<Listed> {
        let holders = self.nodes.iter().filter(|(_, node)| node.has_members());
        let listed =
            |(id, node): (&u64, &Node)| Listed { node: *id, lease: node.lease, number: node.number, beat: node.beat };
        holders.map(listed).collect()
    }

    /// Returns `true` if the local node knows all members of a node. `listed` is the entry of the
    /// node in a roster, the list of nodes with members. The members are known if the local node
    /// has read a list of all of them. They are also known if it has read a record that declares
    /// the node dead. Such a record does not count if the author of the roster has read a later
    /// record or sign of life of the node.
    pub(super) fn is_exact(&self, listed: &Listed) -> bool {
        self.nodes.get(&listed.node).is_some_and(|node| match node.known {
            Known::Partly => false,
            Known::All => true,
            Known::Dead => node.number >= listed.number && node.beat >= listed.beat,
        })
    }

    /// Returns `true` if a node other than the local node has members of topics. `own` identifies
    /// the local node.
    pub(super) fn has_others(&self, own: u64) -> bool {
        self.others(own).next().is_some()
    }

    fn others(&self, own: u64) -> impl Iterator<Item = (u64, &Node)> {
        let others = self.nodes.iter().filter(move |(id, _)| **id != own);
        others.filter(|(_, node)| node.has_members()).map(|(id, node)| (*id, node))
    }

    /// Returns the longest and the shortest lease of the other nodes with members. A lease is the
    /// silence after which a node is declared dead. The local node, `own`, and nodes that are shut
    /// down are left out. Returns `None` if no node remains.
    pub(super) fn leases(&self, own: u64) -> Option<(Duration, Duration)> {
        let leases = || self.others(own).filter(|(_, node)| !node.is_shut_down).map(|(_, node)| node.lease);
        leases().max().zip(leases().min())
    }

    /// Returns the earliest time when the local node, `own`, declares another node dead, if it
    /// reads nothing more from that node. Only nodes with members count: returns `None` if no other
    /// node has members. Silence before `contact_since`, the end of the last outage of the backend,
    /// does not count.
    pub(super) fn next_death(&self, own: u64, contact_since: Option<Instant>, grace: Duration) -> Option<Instant> {
        self.others(own).map(|(_, node)| node.dies_at(contact_since, grace)).min()
    }

    /// Finds the other nodes that count as dead at `now` and have members. Notes that the local
    /// node, `own`, declares these nodes dead. Returns the id of each of these nodes, the number of
    /// its newest record about members, and the number of its newest sign of life. Silence before
    /// `contact_since`, the end of the last outage of the backend, does not count.
    pub(super) fn declare_deaths(
        &mut self,
        own: u64,
        contact_since: Option<Instant>,
        grace: Duration,
        now: Instant,
    ) -> Vec<(u64, u64, u64)> {
        let mut dead = Vec::new();
        for (id, node) in self.nodes.iter_mut().filter(|(id, node)| **id != own && node.has_members()) {
            if now >= node.dies_at(contact_since, grace) {
                node.declared_at = Some(now);
                dead.push((*id, node.number, node.beat));
            }
        }
        dead
    }

    /// Forgets nodes without members if too many nodes are known. Keeps the 1,000 nodes without
    /// members that have been silent for the shortest time.
    fn forget_empty(&mut self) {
        if self.nodes.len() < self.cleanup_at.max(2 * MAX_EMPTY_NODES) {
            return;
        }
        let mut times: Vec<_> =
            self.nodes.values().filter(|node| !node.has_members()).map(|node| node.seen_at).collect();
        times.sort_unstable();
        let excess = times.len().saturating_sub(MAX_EMPTY_NODES);
        if let Some(oldest) = excess.checked_sub(1).map(|index| times[index]) {
            self.nodes.retain(|_, node| node.has_members() || node.seen_at > oldest);
        }
        self.cleanup_at = 2 * self.nodes.len();
    }

    /// Returns the number of entries for members, and the capacity of the map of topics. Tests
    /// check both numbers to detect memory that is not freed.
    #[cfg(all(test, not(tower_sse_loom)))]
    pub(super) fn size(&self) -> [usize; 2] {
        let of_topics = self.topics.values().map(BTreeMap::len).sum::<usize>();
        let of_nodes = self.nodes.values().map(|node| node.members.len()).sum::<usize>();
        [of_topics + of_nodes, self.topics.capacity()]
    }

    /// Notes that the local node has missed records. They may have been further parts of lists of
    /// members, so forgets the lists that were read only in part. They may also have been signs of
    /// life, so earlier silence of a node does not count towards its death.
    pub(super) fn note_loss(&mut self) {
        let now = Instant::now();
        for node in self.nodes.values_mut() {
            node.incoming = None;
            if node.has_members() {
                node.seen_at = now;
            }
        }
    }

    /// Removes all nodes and their members of topics from this value, and returns them.
    pub(super) fn take(&mut self) -> Self {
        mem::take(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn author(node: u64, number: u64) -> Author {
        Author { node, number, lease: Duration::from_secs(10) }
    }

    fn joined(member: &str) -> (Arc<str>, Presence) {
        ("t".into(), Presence::joined(member))
    }

    #[tokio::test(start_paused = true)]
    async fn few_nodes_without_members_are_remembered() {
        let mut view = View::default();
        for node in 0..20_000 {
            view.beat(node, u64::MAX);
            view.dead(1, node + 50_000, u64::MAX, u64::MAX);
            assert!(view.nodes.len() <= 2 * MAX_EMPTY_NODES + 1);
        }
    }

    /// A node numbers its records, but the log can have them in another order. After the node 7 was
    /// declared dead, a record with a smaller number than the declaration adds no members.
    #[tokio::test(start_paused = true)]
    async fn late_record_of_a_dead_node_is_ignored_after_its_sign_of_life() {
        let mut view = View::default();
        view.beat(7, 1);
        assert_eq!(view.dead(1, 7, 5, 1), Some(Vec::new()));
        assert!(view.change(author(7, 4), &[joined("a")]).is_empty());
        assert_eq!(view.change(author(7, 6), &[joined("a")]).len(), 1);
    }

    /// The records that the local node has missed may contain signs of life of the silent node. So
    /// the silent node is not declared dead earlier than one lease after the loss.
    #[tokio::test(start_paused = true)]
    async fn silence_before_missed_records_does_not_count() {
        let mut view = View::default();
        let author = author(7, 1);
        view.change(author, &[joined("a")]);
        tokio::time::advance(author.lease).await;
        view.note_loss();
        let death = view.next_death(1, None, Duration::ZERO).unwrap();
        assert!(death >= Instant::now() + author.lease);
    }

    /// Handles 50,000 records, each from another node. If each record required an iteration over
    /// all nodes, this would take minutes. The test fails after ten seconds.
    #[tokio::test(start_paused = true)]
    async fn cost_of_a_record_does_not_depend_on_the_number_of_nodes() {
        let begin = std::time::Instant::now();
        let mut view = View::default();
        for node in 0..50_000 {
            view.change(author(node, 1), &[joined("a")]);
        }
        assert_eq!(view.nodes.len(), 50_000, "nodes with members are not forgotten");
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn node_that_is_shut_down_has_no_lease() {
        let mut view = View::default();
        view.change(author(7, 1), &[joined("a")]);
        assert!(view.leases(1).is_some());
        view.change(author(7, 2), &[]);
        assert!(view.leases(1).is_none() && view.next_death(1, None, Duration::ZERO).is_some());
        // A process that has only seemed to end is alive.
        view.change(author(7, 3), &[joined("b")]);
        assert!(view.leases(1).is_some());
    }
}
