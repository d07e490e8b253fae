//! Nodes in processes that are killed or stopped.

use crate::{
    checker::{Checker, Load, PauseMode, Recovery},
    nodes::{Node, Parser},
    setup::{ERROR_TIMEOUT, min_events, start_load},
    with_each_store,
};
use e2e::{Example, Port, Store, StoreKind};
use std::{net::SocketAddr, time::Duration};
use tokio::time::sleep;

with_each_store! {
    killed_node_loses_no_acknowledged_event,
    slow_process_loses_nothing,
    killed_backend_of_two_processes_loses_nothing,
}

/// A process of the `cluster` example with one node.
#[derive(Debug)]
pub(crate) struct Process {
    port: Port,
    kind: StoreKind,
    url: String,
    example: Option<Example>,
}

impl Process {
    pub(crate) fn start(store: &Store) -> Self {
        let port = Port::free().expect("there is a free port");
        let mut process = Self { port, kind: store.kind(), url: store.url(), example: None };
        process.restart();
        process
    }

    /// Starts the process again at the same address.
    pub(crate) fn restart(&mut self) {
        let arguments = [self.kind.option(), &self.url, &self.address().to_string()];
        self.example = Some(Example::start_with("cluster", &arguments));
    }

    /// Kills the process with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.example = None;
    }

    pub(crate) fn signal(&self, name: &str) {
        self.example.as_ref().expect("the process runs").signal(name);
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.port.address()
    }
}

impl From<&Process> for Node {
    fn from(process: &Process) -> Self {
        Self::Server(process.address())
    }
}

async fn killed_node_loses_no_acknowledged_event(kind: StoreKind) {
    let store = Store::start(kind, &[]).await;
    let mut processes = [Process::start(&store), Process::start(&store)];
    let nodes = [Node::from(&processes[0]), Node::from(&processes[1])];
    let checker = start_load(kind, &nodes).await;
    for round in 0..6 {
        let process = &mut processes[round % 2];
        process.kill();
        checker.wait_for_errors(1).await;
        checker.wait_for_delivery_to_all().await;
        process.restart();
        checker.wait_for_more_acknowledged(5000).await;
    }
    checker.wait_for_acknowledged(min_events::NODES_KILLED.get()).await;
    let report = checker.check(nodes[0].clone(), "nodes are killed six times").await;
    assert!(report.failed > 0, "the nodes were killed while they published");
    report.assert_nothing_missed(min_events::NODES_KILLED.get());
}

async fn slow_process_loses_nothing(kind: StoreKind) {
    let store = Store::start(kind, &[]).await;
    let processes = [Process::start(&store), Process::start(&store)];
    let [fast, slow] = [Node::from(&processes[0]), Node::from(&processes[1])];
    let mut checker = Checker::new(kind);
    checker.follow(std::slice::from_ref(&fast), 5000, Parser::Fast).await;
    checker.follow_unpaced(slow.clone(), PauseMode::StaySubscribed).await;
    checker.follow_unpaced(slow.clone(), PauseMode::StaySubscribed).await;
    checker.publish(fast.clone(), Load::BATCHES);
    checker.publish(fast.clone(), Load::SINGLE);
    let mut behind = 0;
    while checker.acknowledged() < min_events::SLOW_PROCESS.get() {
        processes[1].signal("STOP");
        checker.wait_for_more_acknowledged(4000).await;
        behind = checker.lag().max(behind);
        processes[1].signal("CONT");
        sleep(Duration::from_millis(20)).await;
    }
    let report = checker.check(fast, &format!("a process was {behind} events behind")).await;
    report.assert_nothing_missed(min_events::SLOW_PROCESS.get());
    assert!(behind > 3000, "the slow process is not slower: {behind}");
}

async fn killed_backend_of_two_processes_loses_nothing(kind: StoreKind) {
    let mut store = Store::start(kind, &[]).await;
    let processes = [Process::start(&store), Process::start(&store)];
    let nodes = [Node::from(&processes[0]), Node::from(&processes[1])];
    let checker = start_load(kind, &nodes).await;
    let mut recoveries = Vec::new();
    for _ in 0..3 {
        store.kill();
        checker.wait_for_errors(1).await;
        checker.wait_until_idle().await;
        store.restart().await;
        recoveries.push(checker.wait_for_delivery_to_all().await);
        checker.wait_for_more_acknowledged(2000).await;
    }
    let report = checker.check(nodes[0].clone(), "a backend is killed under two processes").await;
    let report = report.assert_nothing_missed(4000).assert_errors_within(ERROR_TIMEOUT);
    let errors = report.errors.keys().collect::<Vec<_>>();
    assert!(errors.iter().all(|error| error.starts_with("the backend has not confirmed")), "{errors:?}");
    Recovery::assert_fast(kind, "killed under two processes", &recoveries);
}
