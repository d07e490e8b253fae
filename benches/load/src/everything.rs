//! Everything at once: many clients. Some clients reconnect, and some do not read.

use crate::{
    child::Server,
    client::{Client, Phase, Stream, Verifier},
    contestant::Contestant,
    machine,
    measure::{Latency, latency},
    server::Schedule,
};
use clap::Args;
use std::{
    collections::VecDeque,
    io,
    time::{Duration, Instant},
};

/// Steps from one client to the next. It has no factor in common with usual numbers of clients.
const STRIDE: usize = 769;
/// The pause between two reconnects.
const TICK: Duration = Duration::from_millis(5);

#[derive(Args, Clone, Debug)]
pub struct Options {
    #[arg(long, value_enum, default_value_t = Contestant::Serve)]
    contestant: Contestant,
    #[arg(long, default_value_t = 2000)]
    clients: usize,
    /// Events per second
    #[arg(long, default_value_t = 50)]
    rate: u64,
    /// The bytes of data of an event
    #[arg(long, default_value_t = 1024)]
    size: usize,
    /// The share of the clients that reconnect in each second, in percent
    #[arg(long, default_value_t = 10)]
    reconnect: usize,
    /// The share of the clients that do not read, in percent
    #[arg(long, default_value_t = 1)]
    stall: usize,
    /// The seconds that a stalled client does not read. `serve` closes its connection after 30
    #[arg(long, default_value_t = 20)]
    stall_seconds: u64,
    /// The seconds of the whole run
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// The events that the hub retains
    #[arg(long, default_value_t = 10_000)]
    retain: u64,
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    #[arg(long, default_value_t = 1)]
    client_core: usize,
}

/// The clients that behave badly.
struct Churn {
    client: Client,
    clients: usize,
    next: usize,
    reconnects: u64,
    /// Connections that the server has closed, because their clients did not read.
    closed: u64,
    /// The clients that do not read, and until when.
    stalled: VecDeque<(Instant, usize)>,
}

impl Churn {
    /// Returns the next client that has a stream and reads it.
    fn next_reader(&mut self) -> usize {
        loop {
            self.next = (self.next + STRIDE) % self.clients;
            let is_stalled = self.stalled.iter().any(|&(_, index)| index == self.next);
            if !is_stalled && self.client.phase(self.next) == Phase::Stream {
                return self.next;
            }
        }
    }

    fn reconnect(&mut self, count: usize) -> io::Result<()> {
        for _ in 0..count {
            let index = self.next_reader();
            self.client.reconnect(index)?;
        }
        self.reconnects += count as u64;
        Ok(())
    }

    /// Keeps so many clients from reading, each for this time.
    fn stall(&mut self, count: usize, time: Duration) -> io::Result<()> {
        let now = Instant::now();
        while self.stalled.front().is_some_and(|&(until, _)| until <= now) {
            self.resume()?;
        }
        while self.stalled.len() < count {
            let index = self.next_reader();
            self.client.stall(index, true);
            // They end one by one.
            let share = (self.stalled.len() + 1) as u32;
            self.stalled.push_back((now + time * share / count as u32, index));
        }
        Ok(())
    }

    /// Lets the client read that was stalled first.
    fn resume(&mut self) -> io::Result<()> {
        let Some((_, index)) = self.stalled.pop_front() else { return Ok(()) };
        self.client.stall(index, false);
        Ok(())
    }

    /// Reconnects the clients whose connections the server has closed.
    fn reopen(&mut self) -> io::Result<()> {
        for index in 0..self.clients {
            if self.client.phase(index) == Phase::Closed {
                self.client.reconnect(index)?;
                self.closed += 1;
            }
        }
        Ok(())
    }
}

pub fn run(options: &Options) -> io::Result<()> {
    machine::pin(options.client_core)?;
    let arguments = [format!("--size={}", options.size), format!("--retain={}", options.retain)];
    let mut server = Server::start(options.contestant, options.server_core, &arguments)?;
    let mut client = Client::new(server.address, "/fan-out", true)?;
    // A log that is full does not grow while the memory is measured.
    client.open(1, || Stream::new(Verifier::beginning_with(0)))?;
    server.publish(&Schedule { count: options.retain, rate: 20_000.0, burst: 20 })?;
    let full = Instant::now() + Duration::from_secs(60);
    if !client.run_until(full, |totals| totals.events >= options.retain)? {
        return Err(io::Error::other(format!("the log is not full after a minute; {}", client.totals().faults)));
    }
    client.open(options.clients - 1, || Stream::new(Verifier::beginning_with(options.retain)))?;
    client.totals().latencies.clear();

    let schedule = Schedule { count: options.rate * options.seconds, rate: options.rate as f64, burst: 1 };
    server.publish(&schedule)?;
    let stalled = options.clients * options.stall / 100;
    let mut churn =
        Churn { client, clients: options.clients, next: 0, reconnects: 0, closed: 0, stalled: VecDeque::new() };
    println!("{} clients, {} events/s of {} bytes", options.clients, options.rate, options.size);
    println!("{} % reconnect each second, {stalled} do not read for {} s", options.reconnect, options.stall_seconds);
    println!("| s | p50, ms | p99, ms | RSS of the server, MB | reconnects | first event after a reconnect, p99, ms |");
    println!("|---|---|---|---|---|---|");

    let (cpu, begin) = (server.cpu_time()?, Instant::now());
    let mut all = Vec::new();
    let mut memory = Vec::new();
    let periods = options.seconds.div_ceil(10).max(1);
    for period in 1..=periods {
        let end = begin + Duration::from_secs((period * 10).min(options.seconds));
        while Instant::now() < end {
            churn.client.run_until((Instant::now() + TICK).min(end), |_| false)?;
            let due = begin.elapsed().as_secs_f64() * (options.clients * options.reconnect) as f64 / 100.0;
            churn.reconnect((due as u64).saturating_sub(churn.reconnects) as usize)?;
            churn.stall(stalled, Duration::from_secs(options.stall_seconds))?;
            churn.reopen()?;
        }
        let resident = server.resident()? as f64 / 1e6;
        memory.push(resident);
        let totals = churn.client.totals();
        let mut samples = std::mem::take(&mut totals.latencies);
        let mut first = std::mem::take(&mut totals.first_events);
        let millis = |latency: Option<Latency>| latency.map_or((0.0, 0.0), |it| (it.p50 / 1000.0, it.p99 / 1000.0));
        let (p50, p99) = millis(latency(&mut samples));
        let reconnect = millis(latency(&mut first)).1;
        let seconds = begin.elapsed().as_secs();
        println!("| {seconds} | {p50:.2} | {p99:.2} | {resident:.1} | {} | {reconnect:.1} |", churn.reconnects);
        all.extend(samples.into_iter().step_by(8));
    }
    let cpu = server.cpu_time()? - cpu;
    let real = begin.elapsed();

    while !churn.stalled.is_empty() {
        churn.resume()?;
    }
    let (last, clients) = (options.retain + schedule.count, options.clients);
    // Publications that were late have postponed the others.
    let mut progress = (churn.client.totals().events, Instant::now());
    let is_complete = |churn: &Churn| churn.client.streams().all(|stream| stream.verifier.next() == Some(last));
    while !is_complete(&churn) && progress.1.elapsed() < Duration::from_secs(10) {
        churn.client.run_until(Instant::now() + Duration::from_millis(100), |_| false)?;
        churn.reopen()?;
        let events = churn.client.totals().events;
        if events > progress.0 {
            progress = (events, Instant::now());
        }
    }
    let incomplete = churn.client.streams().filter(|stream| stream.verifier.next() != Some(last)).count();
    // The connections that the server has closed are counted by themselves.
    let faults = crate::client::Faults { broken: 0, ..churn.client.totals().faults };

    println!();
    if let Some(Latency { p50, p99 }) = latency(&mut all) {
        println!("clients that read: p50 {:.2} ms, p99 {:.2} ms", p50 / 1000.0, p99 / 1000.0);
    }
    println!("{} reconnects; the server closed {} connections", churn.reconnects, churn.closed);
    println!("{:.1} % of a core for the server", 100.0 * cpu.as_secs_f64() / real.as_secs_f64());
    let max = |memory: &[f64]| memory.iter().copied().fold(0.0, f64::max);
    let (early, late) = memory.split_at(memory.len().div_ceil(2));
    println!("memory of the server: at most {:.1} MB, then {:.1} MB", max(early), max(late));
    println!("{faults}; {incomplete} of {clients} streams incomplete");
    println!("load average of the machine: {:.1}", machine::load_average()?);
    let is_flat = late.is_empty() || max(late) <= 1.05 * max(early);
    match faults.is_none() && incomplete == 0 && is_flat {
        true => Ok(()),
        false => Err(io::Error::other("events were lost, or the memory grew")),
    }
}
