//! What it costs a node to deliver.

use crate::{Bench, Log, Scale, median, process::Node};

/// How many events are published together, where they are not alone.
const BURST: usize = 25;

impl Bench {
    /// What CPU time a node takes for a delivery to one of its clients: to the body of a response, and over a connection to
    /// another process, to which a node without a backend delivers, too.
    ///
    /// One process has a hub in memory and one with a backend, each with as many clients. In turn, the one is published to in that
    /// process, and the other from another process, so that its time is that of reading and delivering: the same events at the
    /// same pace, slow enough that the process waits in between, whatever wakes it then. Divided by the events.
    pub(crate) fn fan_out(&mut self) -> Result<(), String> {
        let title = format!("CPU time of a delivery, {} clients", self.scale.fan_out);
        println!("\n{title:<45} {:>10} {:>14} {:>7}  target", "ns", "in memory, ns", "ratio");
        for is_connected in [false, true] {
            for log in [Log::MemoryBackend, Log::Redis, Log::Nats] {
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
        let (mut reader, mut audience, mut writer) = (Node::start()?, Node::start()?, Node::start()?);
        reader.ask(&self.open(Log::Memory, "-", 10_000))?;
        reader.ask(&self.open(log, &stream, 10_000))?;
        if log != Log::MemoryBackend {
            writer.ask(&self.open(log, &stream, 10_000))?;
        }
        let mut pairs = Vec::new();
        for round in 0..rounds {
            let mut pair = [0.0; 2];
            for place in [round % 2, (round + 1) % 2] {
                if is_connected {
                    let port = reader.ask(&format!("serve {place} {clients}"))?[0];
                    audience.ask(&format!("connect {port} {clients}"))?;
                } else {
                    reader.ask(&format!("listen {place} {clients} 0"))?;
                }
                reader.ask(&format!("begin {place}"))?;
                let is_here = place == 0 || log == Log::MemoryBackend;
                if is_here {
                    reader.tell(&format!("pace {place} {times} {burst} {micros}"))?;
                } else {
                    writer.tell(&format!("pace 0 {times} {burst} {micros}"))?;
                }
                reader.tell(&format!("heard {place} {}", times * burst))?;
                if is_here { &mut reader } else { &mut writer }.answer()?;
                let [cpu, deliveries] = reader.answer()?[..] else { return Err("two numbers".to_owned()) };
                // On a busy machine what is read late is delivered together, at once. That is not to look cheaper.
                let deliveries = deliveries.min((times * clients) as u64);
                pair[place] = cpu as f64 / deliveries as f64 / burst as f64;
                // Nobody listens to the other hub in its turn.
                audience.ask("disconnect")?;
                reader.ask(&format!("listen {place} 0 0"))?;
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
