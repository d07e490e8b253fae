//! One measurement: one row with one contestant.

use crate::{
    child::Server,
    client::{Client, Stream, Verifier},
    contestant::Contestant,
    machine,
    row::{Load, Row},
    server::{Fault, Schedule},
    special,
};
use clap::ValueEnum;
use std::{
    io,
    time::{Duration, Instant},
};

/// A client that uses more of its core is the bottleneck.
const BUSY: f64 = 0.95;
/// The time without any event after which the missing events are lost.
const SILENCE: Duration = Duration::from_secs(8);

#[derive(Clone, Debug)]
pub struct Settings {
    /// The length of a measurement.
    pub seconds: f64,
    pub server_core: usize,
    pub is_client_blocking: bool,
    /// Overrides the number of clients of each row.
    pub clients: Option<usize>,
    pub fault: Option<Fault>,
}

/// The outcome of a measurement without any fault.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// The CPU time of the server per delivered event, in nanoseconds.
    pub cpu: f64,
    /// Deliveries per second of real time.
    pub rate: f64,
    /// Microseconds from publishing to reading. `None` if the load has no fixed rate.
    pub latency: Option<Latency>,
    /// The resident memory per stream, in bytes, before the first event.
    pub memory: f64,
    /// The shares of real time that the server and the client ran.
    pub server_share: f64,
    pub client_share: f64,
    /// The shares of real time that they were ready while their cores ran other processes.
    pub server_waited: f64,
    pub client_waited: f64,
    /// Deliveries per chunk, which shows how many events the server has joined.
    pub per_chunk: f64,
}

#[derive(Clone, Copy, Debug)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
}

/// Measures, or returns why the figures would be wrong.
pub fn measure(row: &Row, contestant: Contestant, settings: &Settings) -> io::Result<Figures> {
    let row = &Row { clients: settings.clients.unwrap_or(row.clients), ..*row };
    let mut run = Run::start(row, contestant, settings)?;
    match row.load {
        Load::Saturation => special::saturation(&mut run, row),
        Load::Idle => special::idle(&mut run, row),
        Load::Reconnect { missed } => special::reconnect(&mut run, row, missed),
        _ => {
            run.open_all(row)?;
            run.under_load(row, settings.seconds)
        }
    }
}

/// A server and its client.
#[derive(Debug)]
pub struct Run {
    pub server: Server,
    pub client: Client,
    /// The resident memory per stream.
    memory: f64,
    /// Set if the server joins events for some time.
    has_linger: bool,
}

impl Run {
    fn start(row: &Row, contestant: Contestant, settings: &Settings) -> io::Result<Self> {
        let mut options = vec![format!("--size={}", row.size)];
        if let Some(fault) = settings.fault.and_then(|fault| fault.to_possible_value()) {
            options.push(format!("--fault={}", fault.get_name()));
        }
        match row.load {
            Load::Linger { millis, .. } => options.push(format!("--linger-ms={millis}")),
            Load::Saturation => options.push("--retain=65536".to_owned()),
            Load::Idle => options.push("--heartbeats".to_owned()),
            _ => (),
        }
        let path = match row.load {
            Load::Tokens { .. } => "/tokens",
            Load::Firehose => "/firehose",
            _ => "/fan-out",
        };
        let server = Server::start(contestant, settings.server_core, &options)?;
        let mut client = Client::new(server.address, path, matches!(row.load, Load::Reconnect { .. }))?;
        client.is_blocking = settings.is_client_blocking;
        let has_linger = contestant.has_hub() && matches!(row.load, Load::Linger { .. });
        Ok(Self { server, client, memory: 0.0, has_linger })
    }

    /// Opens all streams, which begin with the first event.
    pub fn open_all(&mut self, row: &Row) -> io::Result<()> {
        // The first stream warms the server up, and is not counted.
        let stream = || Stream::new(Verifier::beginning_with(0));
        self.client.open(1, stream)?;
        let before = self.server.resident()?;
        self.client.open(row.clients - 1, stream)?;
        let memory = self.server.resident()?.saturating_sub(before);
        self.memory = memory as f64 / (row.clients - 1).max(1) as f64;
        Ok(())
    }

    fn under_load(&mut self, row: &Row, seconds: f64) -> io::Result<Figures> {
        match (row.schedule(seconds / 4.0), row.schedule(seconds)) {
            (Some(warm_up), Some(schedule)) => {
                self.deliver(row, &warm_up)?;
                self.figures(|run| run.deliver(row, &schedule))
            }
            _ => {
                self.read_for(seconds / 4.0)?;
                self.figures(|run| run.read_for(seconds))
            }
        }
    }

    /// Publishes, and reads until each stream has received each event.
    pub fn deliver(&mut self, row: &Row, schedule: &Schedule) -> io::Result<()> {
        match row.load {
            Load::FanOut { burst: 1, rate } => return self.deliver_in_groups(row, schedule.count, rate, 1),
            Load::Linger { rate, millis } => {
                // Ten times as many events as one write has. The first event of a group is alone.
                let group = if self.has_linger { (rate * millis as f64 / 100.0).ceil() as u64 } else { 1 };
                return self.deliver_in_groups(row, schedule.count.next_multiple_of(group), rate, group);
            }
            Load::Tokens { .. } => self.server.send_tokens(schedule)?,
            _ => self.server.publish(schedule)?,
        }
        self.receive(schedule.count * row.clients as u64)
    }

    /// Publishes a group of events when it is due, and when each stream has received the group
    /// before.
    ///
    /// Two events at once cost less than two single ones. A server that gets too little of its
    /// core, because other processes need it, would look better than it is.
    fn deliver_in_groups(&mut self, row: &Row, count: u64, rate: f64, group: u64) -> io::Result<()> {
        let period = Duration::from_secs_f64(group as f64 / rate);
        let mut due = Instant::now();
        for _ in 0..count / group {
            self.client.run_until(due, |_| false)?;
            // A publication that is late postpones the others.
            due = due.max(Instant::now() - period / 2) + period;
            self.server.publish(&Schedule { count: group, rate, burst: 1 })?;
            self.receive(group * row.clients as u64)?;
        }
        Ok(())
    }

    /// Reads this number of events.
    pub fn receive(&mut self, events: u64) -> io::Result<()> {
        let mut seen = self.client.totals().events;
        let wanted = seen + events;
        // On a busy machine, the events may come slowly.
        while !self.client.run_until(Instant::now() + SILENCE, |totals| totals.events >= wanted)? {
            let totals = self.client.totals();
            if totals.events == seen {
                let missing = wanted - totals.events;
                return Err(io::Error::other(format!("{missing} events did not arrive; {}", totals.faults)));
            }
            seen = totals.events;
        }
        Ok(())
    }

    pub fn read_for(&mut self, seconds: f64) -> io::Result<()> {
        self.client.run_until(Instant::now() + Duration::from_secs_f64(seconds), |_| false)?;
        Ok(())
    }

    /// Returns the figures of a load. Figures with faults, or of a client that was too slow, are
    /// errors.
    pub fn figures(&mut self, load: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<Figures> {
        let own = std::process::id();
        self.client.totals().latencies.clear();
        let (events, chunks) = (self.client.totals().events, self.client.totals().chunks);
        let begin = Instant::now();
        let server = (self.server.cpu_time()?, self.server.waiting_time()?);
        let client = (machine::cpu_time(own)?, machine::waiting_time(own)?);
        load(self)?;
        let real = begin.elapsed().as_secs_f64();
        let share = |time: Duration| time.as_secs_f64() / real;
        let cpu = self.server.cpu_time()? - server.0;

        let totals = self.client.totals();
        if !totals.faults.is_none() || totals.ended > 0 {
            let error = totals.first_error.clone().unwrap_or_default();
            return Err(io::Error::other(format!("{}, {} streams ended. {error}", totals.faults, totals.ended)));
        }
        let events = (totals.events - events) as f64;
        let figures = Figures {
            cpu: cpu.as_nanos() as f64 / events,
            rate: events / real,
            latency: latency(&mut totals.latencies),
            memory: self.memory,
            server_share: share(cpu),
            client_share: share(machine::cpu_time(own)? - client.0),
            server_waited: share(self.server.waiting_time()? - server.1),
            client_waited: share(machine::waiting_time(own)? - client.1),
            per_chunk: events / (totals.chunks - chunks) as f64,
        };
        check_client(figures.client_share)?;
        Ok(figures)
    }
}

/// Refuses the figures of a client that was too slow.
fn check_client(share: f64) -> io::Result<()> {
    if share < BUSY {
        return Ok(());
    }
    let percent = 100.0 * share;
    Err(io::Error::other(format!("the client is the bottleneck: it used {percent:.0} % of its core")))
}

/// Returns percentiles of latencies, and sorts the latter.
pub fn latency(samples: &mut [u32]) -> Option<Latency> {
    samples.sort_unstable();
    let percentile = |share: f64| {
        let index = (samples.len() as f64 * share).ceil() as usize;
        samples.get(index.saturating_sub(1)).map(|&micros| f64::from(micros))
    };
    Some(Latency { p50: percentile(0.5)?, p99: percentile(0.99)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_without_idle_time_is_refused() {
        assert!(check_client(0.94).is_ok());
        assert!(check_client(0.95).unwrap_err().to_string().contains("bottleneck"));
    }

    #[test]
    fn percentiles_are_samples_that_so_many_do_not_exceed() {
        let mut samples: Vec<u32> = (1..=200).rev().collect();
        let latency = latency(&mut samples).unwrap();
        assert_eq!((latency.p50, latency.p99), (100.0, 198.0));
        assert!(super::latency(&mut []).is_none());
    }
}
