//! The delay of events and their rate.

use crate::{
    Bench, Log, median,
    process::{Node, all},
    store::Store,
};
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// Times in nanoseconds, and rates per second.
#[derive(Clone, Copy)]
struct Row {
    median_delay: f64,
    p99_delay: f64,
    acknowledged: f64,
    events: f64,
    deliveries: f64,
    connections: usize,
}

impl Bench {
    /// Prints the delay of a single event, and the rate of events, by the number of clients and
    /// nodes.
    ///
    /// Every node has the same number of clients. First, one node publishes single events. Then,
    /// all nodes publish as fast as their events are acknowledged. Each measurement is repeated,
    /// and compared to the hub in memory of the same repetition.
    pub(crate) fn deliveries(&mut self) -> Result<(), String> {
        println!(
            "\n{:<20} {:>7} {:>5} {:>8} {:>8} {:>6} {:>8} {:>9} {:>9} {:>6} {:>12} {:>6} {:>11}",
            "",
            "clients",
            "nodes",
            "p50, µs",
            "p99, µs",
            "ratio",
            "ack, µs",
            "events/s",
            "per node",
            "ratio",
            "deliveries/s",
            "ratio",
            "connections",
        );
        for &clients in self.scale.clients {
            let mut cases = vec![(Log::Memory, 1), (Log::MemoryBackend, 1)];
            // A log in memory has no second node.
            cases.extend(Log::SERVERS.into_iter().flat_map(|log| self.scale.nodes.iter().map(move |n| (log, *n))));
            let mut rows = vec![Vec::new(); cases.len()];
            for _ in 0..self.scale.times {
                let mut in_memory = None;
                for (rows, &(log, nodes)) in rows.iter_mut().zip(&cases) {
                    let row = self.deliver(log, nodes, clients)?;
                    rows.push((row, *in_memory.get_or_insert(row)));
                }
            }
            for (rows, (log, nodes)) in rows.iter().zip(cases) {
                let of = |of: fn(&(Row, Row)) -> f64| median(rows.iter().map(of).collect());
                println!(
                    "{:<20} {clients:>7} {nodes:>5} {:>8.0} {:>8.0} {:>6.2} {:>8.0} {:>9.0} {:>9.0} {:>6.2} {:>12.0} {:>6.2} {:>11}",
                    log.name(),
                    of(|(row, _)| row.median_delay / 1e3),
                    of(|(row, _)| row.p99_delay / 1e3),
                    of(|(row, memory)| row.median_delay / memory.median_delay),
                    of(|(row, _)| row.acknowledged / 1e3),
                    of(|(row, _)| row.events),
                    of(|(row, _)| row.events) / nodes as f64,
                    of(|(row, memory)| row.events / memory.events),
                    of(|(row, _)| row.deliveries),
                    of(|(row, memory)| row.deliveries / memory.deliveries),
                    rows.iter().map(|(row, _)| row.connections).max().unwrap_or(0),
                );
            }
        }
        println!(
            "clients: per node; deliveries/s: to all clients; connections: to the server, from all nodes, at most"
        );
        Ok(())
    }

    fn deliver(&mut self, log: Log, count: usize, clients: usize) -> Result<Row, String> {
        let stream = self.new_stream();
        let mut nodes = (0..count).map(|_| Node::start()).collect::<Result<Vec<_>, _>>()?;
        all(&mut nodes, &self.open(log, &stream, 10_000))?;

        all(&mut nodes, &format!("read 0 {clients} 1"))?;
        all(&mut nodes, "begin 0")?;
        let (times, micros) = self.scale.alone;
        let acknowledged = nodes[0].call(&format!("pace 0 {times} 1 {micros}"))?;
        all(&mut nodes, &format!("wait 0 {times}"))?;
        // All nodes have the same number of clients, so their quantiles have the same weight.
        let mut delays = all(&mut nodes, "delays 0")?.concat();
        delays.sort_unstable();

        all(&mut nodes, &format!("read 0 {clients} 0"))?;
        all(&mut nodes, "begin 0")?;
        let (millis, publishers) = self.scale.flood;
        let begin = Instant::now();
        nodes.iter_mut().try_for_each(|node| node.send(&format!("flood 0 {millis} {publishers}")))?;
        sleep(Duration::from_millis(millis / 2));
        let connections = self.store(log).map_or(0, Store::connections);
        let published: u64 = nodes.iter_mut().map(Node::receive).collect::<Result<Vec<_>, _>>()?.concat().iter().sum();
        all(&mut nodes, &format!("wait 0 {published}"))?;
        let events = published as f64 / begin.elapsed().as_secs_f64();
        Ok(Row {
            median_delay: quantile(&delays, 0.5),
            p99_delay: quantile(&delays, 0.99),
            acknowledged: quantile(&acknowledged, 0.5),
            events,
            deliveries: events * (count * clients) as f64,
            connections,
        })
    }
}

/// Returns a quantile of sorted values.
pub(crate) fn quantile(sorted: &[u64], part: f64) -> f64 {
    let at = sorted.len().saturating_sub(1) as f64 * part;
    sorted.get(at as usize).copied().unwrap_or(0) as f64
}
