//! A model of presence on several nodes, with random failures: all nodes have the members that have
//! subscriptions, and each change has its event.

use super::{
    PLENTY,
    faulty::{Faulty, Mode, Shared},
    presence::{GRACE, LEASE, SECOND, assert_members, changes, events, join, node, replay},
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
    time::{Instant, sleep},
};
use tower_sse::hub::{
    Subscription,
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
    Pass {
        milliseconds: u64,
    },
}

const NODES: usize = 3;
const MEMBERS: [&str; 4] = ["a", "b", "c", "d"];

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
        1 => node().prop_map(|node| Step::Kill { node }),
        1 => (1..60_usize).prop_map(|count| Step::Evict { count }),
        1 => (0..60_usize).prop_map(|kept| Step::Replace { kept }),
        6 => pass.prop_map(|milliseconds| Step::Pass { milliseconds }),
    ]
}

/// Runs the steps. Then asserts that within a lease, the grace time and three seconds, all nodes
/// have the members that have subscriptions.
async fn nodes_agree(steps: Vec<Step>, max_records: usize) {
    let shared = Shared::new(max_records);
    let mut connections: Vec<Faulty> = (0..NODES).map(|_| shared.connect()).collect();
    let mut hubs = Vec::new();
    for connection in &connections {
        hubs.push(node(connection).await);
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
                let subscription = join(&hubs[node], MEMBERS[member]).await;
                subscriptions.entry((node, member)).or_default().push(subscription);
            }
            Step::Drop { node, member } => _ = subscriptions.entry((node, member)).or_default().pop(),
            Step::Set { node, mode } => {
                connections[node].set(mode);
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
                    let event = format!("data: {n}\n\n").into();
                    let record = Record { topic: "other".into(), kind: RecordKind::Event, event };
                    connection.append(vec![record]).await.unwrap();
                }
            }
            Step::Replace { kept } => {
                let held = shared.log().held();
                shared.replace(max_records, held[held.len().saturating_sub(kept)..].to_vec());
            }
            Step::Pass { milliseconds } => sleep(Duration::from_millis(milliseconds)).await,
        }
        for (stream, seen) in streams.iter_mut().zip(&mut seen) {
            seen.extend(changes(stream));
        }
    }
    connections.iter().for_each(|connection| connection.set(Mode::Works));
    // The nodes read the log again after at most a second. Then each node has a whole lease to send
    // a sign of life.
    sleep(LEASE + GRACE + SECOND * 3).await;
    let present = subscriptions.iter().filter(|(_, all)| !all.is_empty()).map(|((_, member), _)| MEMBERS[*member]);
    let expected: Vec<_> = present.collect::<BTreeSet<_>>().into_iter().collect();
    assert_members(&hubs, &expected).await;
    for (stream, mut seen) in streams.iter_mut().zip(seen) {
        seen.extend(changes(stream));
        assert!(replay(&seen).iter().eq(&expected), "{seen:?}");
    }
    if max_records == PLENTY && shared.logs().len() == 1 && has_all_events {
        // No record was evicted, so each join and each leave has its event.
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

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_nodes_have_the_members_of_the_model(steps in vec(step(), 1..60), is_evicting in any::<bool>()) {
        let runtime = runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let max_records = if is_evicting { 30 } else { PLENTY };
        runtime.block_on(nodes_agree(steps, max_records).boxed_local());
    }
}
