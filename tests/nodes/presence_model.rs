//! A model of presence on several nodes, with random failures: all nodes have the members that have
//! subscriptions, and each change has its event.

use super::{
    PLENTY,
    faulty::{Faulty, Mode, Shared},
    presence::{GRACE, LEASE, SECOND, assert_members, changes, events, join, node, replay},
    settle,
};
use futures_util::FutureExt;
use proptest::{collection::vec, prelude::*};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};
use tokio::{
    runtime,
    time::{Instant, sleep, sleep_until},
};
use tower_sse::hub::{
    Start, Subscription,
    backend::{Backend, Record, RecordKind},
};

#[derive(Clone, Debug)]
enum Step {
    Join {
        node: usize,
        member: usize,
    },
    Drop {
        node: usize,
        member: usize,
    },
    Set {
        node: usize,
        mode: Mode,
    },
    Page {
        node: usize,
        size: usize,
    },
    /// The process of the node ends, and a new one takes its place.
    Kill {
        node: usize,
    },
    /// Appends `count` records to another topic. A small log then evicts records of presence.
    Evict {
        count: usize,
    },
    /// Another log replaces the current one. It begins with the newest `kept` retained records.
    Replace {
        kept: usize,
    },
    /// The log seems to have evicted the record after the last one that these nodes have read. All
    /// nodes have read all records before.
    Miss {
        nodes: [bool; NODES],
    },
    Pass {
        milliseconds: u64,
    },
}

/// A sequence of steps, and the log in which it begins.
#[derive(Clone, Debug)]
struct Run {
    max_records: usize,
    /// Set if nodes may miss records that are not about presence, from the beginning of the log or
    /// later. A node then is never cut off for longer than [`CUT`], and no node is killed. So each
    /// join and each leave has its event, although no node may know all members.
    is_missing: bool,
    /// The number of nodes where members join. The other nodes only read the members.
    joining: usize,
    steps: Vec<Step>,
}

const NODES: usize = 3;
const MEMBERS: [&str; 4] = ["a", "b", "c", "d"];

/// The longest time that a node is cut off if nodes miss records. Then it works for at least as
/// long. It is longer than the time that other nodes wait for its answer, but so short that no node
/// declares the node dead: nodes that do not know all members may not agree about a death.
const CUT: Duration = Duration::from_secs(11);

/// Returns a strategy for steps that are possible in each run.
fn step() -> impl Strategy<Value = Step> {
    let node = || 0..NODES;
    let mode = prop_oneof![
        4 => Just(Mode::Works),
        1 => Just(Mode::Fails),
        2 => Just(Mode::Hangs),
        2 => Just(Mode::LosesAnswers),
        1 => Just(Mode::Lags),
        2 => Just(Mode::ReadsOnly),
    ];
    let pass = prop_oneof![4 => 1..500_u64, 3 => 500..5000_u64, 2 => 5000..30_000_u64];
    prop_oneof![
        6 => (node(), 0..MEMBERS.len()).prop_map(|(node, member)| Step::Join { node, member }),
        5 => (node(), 0..MEMBERS.len()).prop_map(|(node, member)| Step::Drop { node, member }),
        4 => (node(), mode).prop_map(|(node, mode)| Step::Set { node, mode }),
        1 => (node(), 1..5_usize).prop_map(|(node, size)| Step::Page { node, size }),
        6 => pass.prop_map(|milliseconds| Step::Pass { milliseconds }),
    ]
}

fn run() -> impl Strategy<Value = Run> {
    let step_with_losses = prop_oneof![
        22 => step(),
        1 => (0..NODES).prop_map(|node| Step::Kill { node }),
        1 => (1..60_usize).prop_map(|count| Step::Evict { count }),
        1 => (0..60_usize).prop_map(|kept| Step::Replace { kept }),
    ];
    (vec(step_with_losses, 1..60), any::<bool>()).prop_map(|(steps, is_evicting)| Run {
        max_records: if is_evicting { 30 } else { PLENTY },
        is_missing: false,
        joining: NODES,
        steps,
    })
}

/// Returns a strategy for runs with members on the first node only, which often dies. The other
/// nodes only read the members, and often miss records.
fn run_with_deaths() -> impl Strategy<Value = Run> {
    let step = prop_oneof![
        6 => step(),
        2 => (1..60_usize).prop_map(|count| Step::Evict { count }),
        2 => Just(Step::Kill { node: 0 }),
    ];
    vec(step, 1..30).prop_map(|steps| Run { max_records: 30, is_missing: false, joining: 1, steps })
}

fn run_with_missed_records() -> impl Strategy<Value = Run> {
    let step = prop_oneof![
        22 => step(),
        2 => Just(Step::Miss { nodes: [true; NODES] }),
        1 => any::<[bool; NODES]>().prop_map(|nodes| Step::Miss { nodes }),
    ];
    vec(step, 1..60).prop_map(|steps| Run { max_records: PLENTY, is_missing: true, joining: NODES, steps })
}

/// The outages of the nodes in a run with missed records, and their losses.
struct Cuts {
    is_limited: bool,
    /// For each node, the end of its outage, or the earliest time of the next one.
    until: [Instant; NODES],
    /// Set if some nodes may know all members while others have missed records. A node that has
    /// missed records leaves all unpublished events to the others, which then must publish them
    /// before they miss records themselves.
    is_mixed: bool,
}

impl Cuts {
    fn set(&mut self, connections: &[Faulty], node: usize, mode: Mode) {
        let (connection, now) = (&connections[node], Instant::now());
        if !self.is_limited {
            connection.set(mode);
        } else if connection.mode() != Mode::Works {
            connection.set(mode);
            if mode == Mode::Works {
                let duration = now + CUT - self.until[node];
                self.is_mixed |= duration > LEASE / 3;
                self.until[node] = now + CUT;
            }
        } else if mode != Mode::Works && now >= self.until[node] {
            connection.set(mode);
            self.until[node] = now + CUT;
        }
    }

    /// Waits until `end`. Ends the outages that are too long.
    async fn pass(&mut self, connections: &[Faulty], end: Instant) {
        loop {
            let is_cut = |node: &usize| self.is_limited && connections[*node].mode() != Mode::Works;
            let first = (0..NODES).filter(is_cut).min_by_key(|node| self.until[*node]);
            let Some(node) = first.filter(|node| self.until[*node] <= end) else { break };
            sleep_until(self.until[node]).await;
            self.set(connections, node, Mode::Works);
        }
        sleep_until(end).await;
    }

    /// Lets these nodes miss a record of another topic. The other nodes read the record. Has no
    /// effect if a node has not read all records before.
    async fn miss(&mut self, shared: &Shared, connections: &[Faulty], nodes: [bool; NODES]) {
        let are_all = nodes.iter().all(|is_missing| *is_missing);
        if self.is_mixed || !are_all {
            (0..NODES).for_each(|node| self.set(connections, node, Mode::Works));
            sleep(LEASE * 2 + GRACE).await;
            self.is_mixed = !are_all;
            if self.is_mixed {
                // The nodes that have missed records leave all unpublished events to the others,
                // which need up to a second. If these are cut off before, the events can be lost.
                self.until = [Instant::now() + SECOND; NODES];
            }
        }
        settle().await;
        let last = shared.log().bounds.last.get();
        if connections.iter().any(|connection| connection.followed.load(Relaxed) < last) {
            return;
        }
        for (connection, _) in connections.iter().zip(nodes).filter(|(_, is_missing)| *is_missing) {
            connection.missed.store(last + 1, Relaxed);
        }
        shared.append_event("other", "missed");
    }
}

/// Runs the steps. Then asserts that within a lease, the grace time and three seconds, all nodes
/// have the members that have subscriptions.
async fn nodes_agree(Run { max_records, is_missing, joining, steps }: Run) {
    let shared = Shared::new(max_records);
    let mut connections: Vec<Faulty> = (0..NODES).map(|_| shared.connect()).collect();
    let mut cuts = Cuts { is_limited: is_missing, until: [Instant::now(); NODES], is_mixed: false };
    if is_missing {
        shared.append_event("other", "missed");
        connections.iter().for_each(|connection| connection.missed.store(1, Relaxed));
    }
    let mut hubs = Vec::new();
    for connection in &connections {
        hubs.push(node(connection).await);
    }
    // Without subscribers, a topic may not exist on a node. Then only the node that has caused a
    // leave publishes its event, and may be too late if it does not know all members yet.
    let mut readers = Vec::new();
    for hub in hubs.iter().filter(|_| is_missing) {
        readers.push(hub.topic("lobby").subscribe(Start::Latest).await.unwrap());
    }
    let mut streams: Vec<_> = hubs.iter().map(|hub| hub.topic("lobby").presence()).collect();
    let mut seen = vec![Vec::new(); NODES];
    let mut subscriptions: BTreeMap<(usize, usize), Vec<Subscription>> = BTreeMap::new();
    // An event can be lost if nodes die or are cut off before they have published it. Then the
    // events are not compared.
    let (mut kills, mut has_all_events) = (0, true);
    for step in steps {
        match step {
            Step::Join { node, member } => {
                let node = node % joining;
                let subscription = join(&hubs[node], MEMBERS[member]).await;
                subscriptions.entry((node, member)).or_default().push(subscription);
            }
            Step::Drop { node, member } => {
                _ = subscriptions.entry((node % joining, member)).or_default().pop();
            }
            Step::Set { node, mode } => {
                cuts.set(&connections, node, mode);
                has_all_events &= kills == 0 || mode == Mode::Works;
            }
            Step::Page { node, size } => connections[node].page.store(size, Relaxed),
            Step::Kill { node: killed } => {
                let mut others = connections.iter().enumerate().filter(|(node, _)| *node != killed);
                has_all_events &= kills == 0 && others.all(|(_, other)| other.mode() == Mode::Works);
                kills += 1;
                // The ended process cannot append the leaves of its members.
                connections[killed].set(Mode::Hangs);
                subscriptions.retain(|(node, _), _| *node != killed);
                connections[killed] = shared.connect();
                hubs[killed] = node(&connections[killed]).await;
                streams[killed] = hubs[killed].topic("lobby").presence();
                seen[killed].clear();
            }
            Step::Evict { count } => {
                let connection = shared.connect();
                for n in 0..count {
                    let record = Record::new("other", RecordKind::Event, format!("data: {n}\n\n"));
                    connection.append(vec![record]).await.unwrap();
                }
            }
            Step::Replace { kept } => {
                let held = shared.log().held();
                shared.replace(max_records, held[held.len().saturating_sub(kept)..].to_vec());
            }
            Step::Miss { nodes } => cuts.miss(&shared, &connections, nodes).await,
            Step::Pass { milliseconds } => {
                cuts.pass(&connections, Instant::now() + Duration::from_millis(milliseconds)).await;
            }
        }
        for (stream, seen) in streams.iter_mut().zip(&mut seen) {
            seen.extend(changes(stream));
        }
    }
    connections.iter().for_each(|connection| connection.set(Mode::Works));
    // The nodes read the log again after at most two seconds. Then each node has a whole lease to
    // send a sign of life.
    sleep(LEASE + GRACE + SECOND * 3).await;
    let present = subscriptions.iter().filter(|(_, all)| !all.is_empty()).map(|((_, member), _)| MEMBERS[*member]);
    let expected: Vec<_> = present.collect::<BTreeSet<_>>().into_iter().collect();
    assert_members(&hubs, &expected).await;
    for (stream, mut seen) in streams.iter_mut().zip(seen) {
        seen.extend(changes(stream));
        assert!(replay(&seen).iter().eq(&expected), "{seen:?}");
    }
    if max_records == PLENTY && shared.logs().len() == 1 && has_all_events {
        // No record about presence was evicted, so each join and each leave has its event.
        assert!(replay(&events(&shared)).iter().eq(&expected), "{:?}", events(&shared));
    }
    // The members stay the same.
    sleep(LEASE * 2).await;
    assert_members(&hubs, &expected).await;
    // All nodes know all members again, so each node learns of a join at once.
    for hub in &hubs {
        let new = join(hub, "new").await;
        sleep(SECOND).await;
        let all: Vec<_> = expected.iter().copied().chain(["new"]).collect();
        let begin = Instant::now();
        assert_members(&hubs, &all).await;
        drop(new);
        sleep(GRACE + SECOND).await;
        assert_members(&hubs, &expected).await;
        assert!(begin.elapsed() < GRACE + SECOND * 2, "{:?}", begin.elapsed());
    }
}

fn check(run: Run) {
    let runtime = runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(nodes_agree(run).boxed_local());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_nodes_have_the_members_of_the_model(run in run()) {
        check(run);
    }

    #[test]
    fn readers_agree_after_deaths_and_losses(run in run_with_deaths()) {
        check(run);
    }

    #[test]
    fn nodes_that_miss_records_publish_all_events(run in run_with_missed_records()) {
        check(run);
    }
}
