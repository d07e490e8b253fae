//! The CPU time of deliveries.

use crate::{Bench, Log, Scale, median, process::Node};

/// The number of events that are published together.
const BURST: usize = 25;

impl Bench {
    /// Prints the CPU time of a node per delivery of an event to a client.
    ///
    /// The client is the body of a response, or a connection of another process.
    ///
    /// One process has two hubs, in memory and with a backend, each with the same number of
    /// clients. The two hubs receive events in turn. The events of the hub in memory are published
    /// in the process, and those of the other hub in another process, so that the process only
    /// reads and delivers. Both have the same events at the same pace. The pace is so slow that the
    /// process waits between two bursts, so each burst includes the cost of a wake-up.
    pub(crate) fn fan_out(&mut self) -> Result<(), String> {
        let title = format!("CPU time of a delivery, {} clients", self.scale.fan_out);
        println!("\n{title:<45} {:>10} {:>14} {:>7}  target", "ns", "in memory, ns", "ratio");
        for is_connected in [false, true] {
            for log in [Log::MemoryBackend, Log::Redis, Log::Nats, Log::Postgres] {
                for burst in [1, BURST] {
                    self.fan_out_of(log, burst, is_connected)?;
                }
            }
        }
        Ok(())
    }

    fn fan_out_of(&mut self, log: Log, burst: usize, is_connected: bool) -> Result<(), String> {
        let Scale { fan_out: clients, rounds, .. } = self.scale;
        let (times, micros) = if is_connected { self.scale.connected } else { self.scale.bodies };
        let stream = self.new_stream();
        let (mut node, mut client, mut writer) = (Node::start()?, Node::start()?, Node::start()?);
        node.call(&self.open(Log::Memory, "-", 10_000))?;
        node.call(&self.open(log, &stream, 10_000))?;
        if log != Log::MemoryBackend {
            writer.call(&self.open(log, &stream, 10_000))?;
        }
        let mut pairs = Vec::new();
        for round in 0..rounds {
            let mut pair = [0.0; 2];
            for hub in [round % 2, (round + 1) % 2] {
                if is_connected {
                    let port = node.call(&format!("serve {hub} {clients}"))?[0];
                    client.call(&format!("connect {port} {clients}"))?;
                } else {
                    node.call(&format!("read {hub} {clients} 0"))?;
                }
                node.call(&format!("begin {hub}"))?;
                let is_own = hub == 0 || log == Log::MemoryBackend;
                if is_own {
                    node.send(&format!("pace {hub} {times} {burst} {micros}"))?;
                } else {
                    writer.send(&format!("pace 0 {times} {burst} {micros}"))?;
                }
                node.send(&format!("wait {hub} {}", times * burst))?;
                if is_own { &mut node } else { &mut writer }.receive()?;
                let [cpu, deliveries] = node.receive()?[..] else { return Err("not two numbers".to_owned()) };
                // A busy machine delivers late events together. This must not count as cheaper.
                let deliveries = deliveries.min((times * clients) as u64);
                pair[hub] = cpu as f64 / deliveries as f64 / burst as f64;
                // The clients disconnect before the turn of the other hub.
                client.call("disconnect")?;
                node.call(&format!("read {hub} 0 0"))?;
            }
            pairs.push(pair);
        }
        let of = |of: fn(&[f64; 2]) -> f64| median(pairs.iter().map(of).collect());
        println!(
            "{:<45} {:>10.1} {:>14.1} {:>7.3}  {}",
            format!(
                "{}, {}, {}",
                log.name(),
                if burst == 1 { "alone" } else { "25 together" },
                if is_connected { "connections" } else { "bodies" },
            ),
            of(|[_, ours]| *ours),
            of(|[memory, _]| *memory),
            of(|[memory, ours]| ours / memory),
            if log == Log::MemoryBackend { "" } else { "≤ 1.1" },
        );
        Ok(())
    }
}
