//! What it costs that a hub is on several nodes: in memory, with a backend in memory, with Redis Streams and with NATS JetStream,
//! in one run.
//!
//! ```console
//! $ cargo bench --bench cluster --features redis,nats
//! ```
//!
//! It starts the servers, and itself once more for each node. A ratio is against the hub in memory. All of them share one
//! machine, so more nodes are less machine for each of them. It reads `/proc`, and opens 1,000 connections: `ulimit -n 2000`.

mod audience;
mod node;
mod process;
mod store;

use process::{NODE, Node, all};
use std::{
    env,
    process::ExitCode,
    time::{Duration, Instant},
};
use store::{Engine, Store};

/// How much of everything.
struct Scale {
    /// How often delays and numbers are measured.
    times: usize,
    clients: &'static [usize],
    nodes: &'static [usize],
    /// Events one after the other, of which the delay is measured, and microseconds between two of them.
    alone: (usize, u64),
    /// Milliseconds of events as fast as they can be published, and how many are on their way at the same time.
    flood: (u64, usize),
    /// Clients of which the CPU time of a delivery is measured, and how often. Each time so much is published, with so many
    /// microseconds in between that the node is idle for a while.
    fan_out: usize,
    rounds: usize,
    bodies: (usize, u64),
    connected: (usize, u64),
    history: usize,
    replays: usize,
}

const FULL: Scale = Scale {
    times: 3,
    clients: &[10, 100, 1000],
    nodes: &[1, 2, 4],
    alone: (200, 4000),
    flood: (1000, 64),
    fan_out: 1000,
    rounds: 11,
    bodies: (200, 3000),
    connected: (60, 25_000),
    history: 100_000,
    replays: 7,
};

const TEST: Scale = Scale {
    times: 1,
    clients: &[2],
    nodes: &[1, 2],
    alone: (3, 1000),
    flood: (20, 4),
    fan_out: 10,
    rounds: 1,
    bodies: (3, 1000),
    connected: (3, 2000),
    history: 3000,
    replays: 1,
};

/// How many events are published together: where their delivery is measured, and where their replay is.
const BURST: usize = 25;
const TOGETHER: usize = 1000;

/// Where a log is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Log {
    Memory,
    MemoryBackend,
    Redis,
    Nats,
}

impl Log {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::MemoryBackend => "a backend in memory",
            Self::Redis => "Redis",
            Self::Nats => "NATS",
        }
    }
}

struct Bench {
    scale: Scale,
    redis: Store,
    nats: Store,
    streams: usize,
}

fn main() -> ExitCode {
    let result = match env::args().nth(1).as_deref() {
        Some(NODE) => node::main().map_err(|error| error.to_string()),
        _ => run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let is_test = env::args().any(|arg| arg == "--test");
    let scale = if is_test { TEST } else { FULL };
    let redis = Store::start(Engine::Redis)?;
    let nats = Store::start(Engine::Nats)?;
    let mut bench = Bench { scale, redis, nats, streams: 0 };
    bench.deliveries()?;
    bench.fan_out()?;
    bench.replay()
}

impl Bench {
    fn store(&self, log: Log) -> Option<&Store> {
        match log {
            Log::Redis => Some(&self.redis),
            Log::Nats => Some(&self.nats),
            _ => None,
        }
    }

    fn new_stream(&mut self) -> String {
        self.streams += 1;
        format!("bench-{}", self.streams)
    }

    /// How a process opens a hub, which then has the next number in that process.
    fn open(&self, log: Log, stream: &str, max_events: usize) -> String {
        let kind = match log {
            Log::Memory => "memory",
            Log::MemoryBackend => "backend",
            Log::Redis => "redis",
            Log::Nats => "nats",
        };
        let url = self.store(log).map_or("-".to_owned(), Store::url);
        format!("open {kind} {url} {stream} {max_events}")
    }

    /// How late an event comes that is alone, and how many there can be, and how both grow.
    ///
    /// Every node has as many clients. One of them publishes what is alone; then all of them publish at once, as fast as what they
    /// have published is acknowledged. It is all measured several times, each time against the hub in memory of that time.
    fn deliveries(&mut self) -> Result<(), String> {
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
            // What is in the memory of a process has no other node.
            cases.extend(
                [Log::Redis, Log::Nats].into_iter().flat_map(|log| self.scale.nodes.iter().map(move |n| (log, *n))),
            );
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
                    of(|(row, _)| row.late / 1e3),
                    of(|(row, _)| row.latest / 1e3),
                    of(|(row, memory)| row.late / memory.late),
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
            "clients: of each node; deliveries/s: to all of them; connections: to the server, of all nodes, at most"
        );
        Ok(())
    }

    fn deliver(&mut self, log: Log, count: usize, clients: usize) -> Result<Row, String> {
        let stream = self.new_stream();
        let mut nodes = (0..count).map(|_| Node::start()).collect::<Result<Vec<_>, _>>()?;
        all(&mut nodes, &self.open(log, &stream, 10_000))?;

        all(&mut nodes, &format!("listen 0 {clients} 1"))?;
        all(&mut nodes, "begin 0")?;
        let (times, micros) = self.scale.alone;
        let acknowledged = nodes[0].ask(&format!("pace 0 {times} 1 {micros}"))?;
        all(&mut nodes, &format!("heard 0 {times}"))?;
        // Each has as many clients, so each counts the same.
        let mut delays = all(&mut nodes, "delays 0")?.concat();
        delays.sort_unstable();

        all(&mut nodes, &format!("listen 0 {clients} 0"))?;
        all(&mut nodes, "begin 0")?;
        let (millis, publishers) = self.scale.flood;
        let begin = Instant::now();
        nodes.iter_mut().try_for_each(|node| node.tell(&format!("flood 0 {millis} {publishers}")))?;
        std::thread::sleep(Duration::from_millis(millis / 2));
        let connections = self.store(log).map_or(0, Store::connections);
        let published: u64 = nodes.iter_mut().map(Node::answer).collect::<Result<Vec<_>, _>>()?.concat().iter().sum();
        all(&mut nodes, &format!("heard 0 {published}"))?;
        let events = published as f64 / begin.elapsed().as_secs_f64();
        Ok(Row {
            late: quantile(&delays, 0.5),
            latest: quantile(&delays, 0.99),
            acknowledged: quantile(&acknowledged, 0.5),
            events,
            deliveries: events * (count * clients) as f64,
            connections,
        })
    }

    /// What CPU time a node takes for a delivery to one of its clients: to the body of a response, and over a connection to
    /// another process, to which a node without a backend delivers, too.
    ///
    /// One process has a hub in memory and one with a backend, each with as many clients. In turn, the one is published to in that
    /// process, and the other from another process, so that its time is that of reading and delivering: the same events at the
    /// same pace, slow enough that the process waits in between, whatever wakes it then. Divided by the events.
    fn fan_out(&mut self) -> Result<(), String> {
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

    /// What a client gets that was away for so long that its node does not hold what it missed.
    fn replay(&mut self) -> Result<(), String> {
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

/// Times in nanoseconds, and what happens in a second.
#[derive(Clone, Copy)]
struct Row {
    late: f64,
    latest: f64,
    acknowledged: f64,
    events: f64,
    deliveries: f64,
    connections: usize,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Of what is sorted.
fn quantile(sorted: &[u64], part: f64) -> f64 {
    let at = sorted.len().saturating_sub(1) as f64 * part;
    sorted.get(at as usize).copied().unwrap_or(0) as f64
}
