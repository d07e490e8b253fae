//! Nodes that are processes, which are killed, and which stand still.

use crate::{
    checker::{Back, Checker, Holds, Load},
    nodes::{Node, Parser},
    with_each_engine,
    world::{AN_ERROR, at_least, busy},
};
use e2e::{
    Example, Port,
    store::{Engine, Store},
};
use std::{net::SocketAddr, time::Duration};
use tokio::time::sleep;

with_each_engine! {
    a_node_that_is_killed_while_it_publishes_has_lost_nothing_that_it_acknowledged,
    a_process_that_reads_more_slowly_than_others_publish_loses_nothing,
    a_backend_that_is_killed_under_two_processes_loses_nothing,
}

/// The `cluster` example as one node.
#[derive(Debug)]
pub(crate) struct Process {
    port: Port,
    engine: Engine,
    url: String,
    runs: Option<Example>,
}

impl Process {
    pub(crate) fn start(store: &Store) -> Self {
        let port = Port::free().expect("there is a free port");
        let mut process = Self { port, engine: store.engine(), url: store.url(), runs: None };
        process.restart();
        process
    }

    /// Where it was.
    pub(crate) fn restart(&mut self) {
        let backend = match self.engine {
            Engine::Redis => "--redis",
            Engine::Nats => "--nats",
        };
        self.runs = Some(Example::start_with("cluster", &[backend, &self.url, &self.address().to_string()]));
    }

    /// By SIGKILL, in the middle of whatever it does.
    pub(crate) fn kill(&mut self) {
        self.runs = None;
    }

    pub(crate) fn signal(&self, name: &str) {
        self.runs.as_ref().expect("it runs").signal(name);
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

async fn a_node_that_is_killed_while_it_publishes_has_lost_nothing_that_it_acknowledged(engine: Engine) {
    let store = Store::start(engine, &[]).await;
    let mut processes = [Process::start(&store), Process::start(&store)];
    let nodes = [Node::from(&processes[0]), Node::from(&processes[1])];
    let checker = busy(engine, &nodes).await;
    for round in 0..6 {
        let process = &mut processes[round % 2];
        process.kill();
        checker.refuses(1).await;
        checker.all_get_more().await;
        process.restart();
        checker.acknowledges(5000).await;
    }
    checker.acknowledges_in_all(at_least::NODES_KILLED).await;
    let report = checker.check(nodes[0].clone(), "nodes are killed six times").await;
    assert!(report.refused > 0, "they were killed while they published");
    report.nothing_is_missed(at_least::NODES_KILLED);
}

async fn a_process_that_reads_more_slowly_than_others_publish_loses_nothing(engine: Engine) {
    let store = Store::start(engine, &[]).await;
    let processes = [Process::start(&store), Process::start(&store)];
    let [fast, slow] = [Node::from(&processes[0]), Node::from(&processes[1])];
    let mut checker = Checker::new(engine);
    checker.follow(std::slice::from_ref(&fast), 5000, Parser::Fast).await;
    checker.follow_at_leisure(slow.clone(), Holds::Still).await;
    checker.follow_at_leisure(slow.clone(), Holds::Still).await;
    checker.publish(fast.clone(), Load::BATCHES);
    checker.publish(fast.clone(), Load::SINGLE);
    let mut behind = 0;
    while checker.acknowledged() < at_least::SLOW_PROCESS {
        processes[1].signal("STOP");
        checker.acknowledges(4000).await;
        behind = checker.is_behind().max(behind);
        processes[1].signal("CONT");
        sleep(Duration::from_millis(20)).await;
    }
    let report = checker.check(fast, &format!("a process was {behind} events behind")).await;
    report.nothing_is_missed(at_least::SLOW_PROCESS);
    assert!(behind > 3000, "it was slower: {behind}");
}

async fn a_backend_that_is_killed_under_two_processes_loses_nothing(engine: Engine) {
    let mut store = Store::start(engine, &[]).await;
    let processes = [Process::start(&store), Process::start(&store)];
    let nodes = [Node::from(&processes[0]), Node::from(&processes[1])];
    let checker = busy(engine, &nodes).await;
    let mut times = Vec::new();
    for _ in 0..3 {
        store.kill();
        checker.refuses(1).await;
        checker.stands_still().await;
        store.restart().await;
        times.push(checker.all_get_more().await);
        checker.acknowledges(2000).await;
    }
    let report = checker.check(nodes[0].clone(), "a backend is killed under two processes").await;
    let report = report.nothing_is_missed(4000).fails_within(AN_ERROR);
    let errors = report.errors.keys().collect::<Vec<_>>();
    assert!(errors.iter().all(|error| error.starts_with("the backend has not confirmed")), "{errors:?}");
    Back::is_soon(engine, "killed under two processes", &times);
}
