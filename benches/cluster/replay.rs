//! The rate of a replay.

use crate::{Bench, Log, median, process::Node, store::Store};

/// The number of events that are published together.
const TOGETHER: usize = 1000;

impl Bench {
    /// Prints the rate of a replay from the memory of a node, and from a backend.
    ///
    /// A node reads the backend if a client was disconnected for so long that the node does not
    /// retain the missed events.
    pub(crate) fn replay(&mut self) -> Result<(), String> {
        let (events, replays) = (self.scale.history, self.scale.replays);
        let title = format!("replay of {events} events");
        println!("\n{title:<45} {:>12} {:>8} {:>11}  target", "events/s", "ratio", "connections");
        let mut in_memory = None;
        let cases = [
            (Log::Memory, true, 1),
            (Log::Redis, true, 1),
            (Log::Redis, false, 1),
            (Log::Redis, false, TOGETHER),
            (Log::Nats, false, 1),
            (Log::Nats, false, TOGETHER),
            (Log::Postgres, false, 1),
            (Log::Postgres, false, TOGETHER),
        ];
        for (log, is_retained, burst) in cases {
            let stream = self.new_stream();
            let mut writer = Node::start()?;
            writer.call(&self.open(log, &stream, events))?;
            writer.call(&format!("fill 0 {} {burst}", events / burst))?;
            let mut node = if is_retained { writer } else { Node::start()? };
            if !is_retained {
                node.call(&self.open(log, &stream, 1))?;
            }
            let mut rates = Vec::new();
            for _ in 0..replays {
                let nanos = node.call(&format!("replay 0 {events}"))?[0];
                rates.push(events as f64 * 1e9 / nanos as f64);
            }
            let rate = median(rates);
            let in_memory = *in_memory.get_or_insert(rate);
            let case = match (is_retained, burst) {
                (true, _) => "retained by the node",
                (false, 1) => "not retained",
                (false, _) => "not retained, published 1,000 together",
            };
            let target = if log == Log::Redis && !is_retained { "≥ 200,000" } else { "" };
            let connections = self.store(log).map_or(0, Store::connections);
            let ratio = rate / in_memory;
            let case = format!("{}, {case}", log.name());
            println!("{case:<45} {rate:>12.0} {ratio:>8.4} {connections:>11}  {target}");
        }
        Ok(())
    }
}
