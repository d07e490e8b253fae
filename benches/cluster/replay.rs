//! What it takes to read a log again.

use crate::{Bench, Log, median, process::Node, store::Store};

/// How many events are published together, where they are not alone.
const TOGETHER: usize = 1000;

impl Bench {
    /// What a client gets that was away for so long that its node does not hold what it missed.
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
        ];
        for (log, held, burst) in cases {
            let stream = self.new_stream();
            let mut writer = Node::start()?;
            writer.ask(&self.open(log, &stream, events))?;
            writer.ask(&format!("fill 0 {} {burst}", events / burst))?;
            let mut node = if held { writer } else { Node::start()? };
            if !held {
                node.ask(&self.open(log, &stream, 1))?;
            }
            let mut rates = Vec::new();
            for _ in 0..replays {
                let nanos = node.ask(&format!("replay 0 {events}"))?[0];
                rates.push(events as f64 * 1e9 / nanos as f64);
            }
            let rate = median(rates);
            let in_memory = *in_memory.get_or_insert(rate);
            let what = match (held, burst) {
                (true, _) => "held by the node",
                (false, 1) => "not held",
                (false, _) => "not held, published 1,000 together",
            };
            let target = if log == Log::Redis && !held { "≥ 200,000" } else { "" };
            let connections = self.store(log).map_or(0, Store::connections);
            let ratio = rate / in_memory;
            let what = format!("{}, {what}", log.name());
            println!("{what:<45} {rate:>12.0} {ratio:>8.4} {connections:>11}  {target}");
        }
        Ok(())
    }
}
