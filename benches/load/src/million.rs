//! A million streams in one process: their memory, heartbeats, one event to all, and a shutdown.

use crate::{
    child::Server,
    client::{Client, Stream, Verifier},
    contestant::Contestant,
    http2::Http2Client,
    machine::{self, KernelMemory},
    server::Schedule,
};
use clap::Args;
use std::{
    io,
    time::{Duration, Instant},
};

#[derive(Args, Clone, Debug)]
pub struct Options {
    #[arg(long, value_enum, default_value_t = Contestant::Serve)]
    contestant: Contestant,
    /// The connections. A process may have 20,000 descriptors here: `ulimit -n`
    #[arg(long)]
    connections: Option<usize>,
    /// The streams of each HTTP/2 connection
    #[arg(long, default_value_t = 100)]
    streams: u32,
    /// One stream on each HTTP/1.1 connection instead
    #[arg(long)]
    http1: bool,
    /// The seconds between two heartbeats of a stream
    #[arg(long, default_value_t = 60)]
    heartbeat: u64,
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    #[arg(long, default_value_t = 1)]
    client_core: usize,
}

/// The client of either protocol.
enum Streams {
    Http1(Box<Client>),
    Http2(Http2Client),
}

impl Streams {
    fn open(&mut self, server: &Server, options: &Options, connections: usize) -> io::Result<()> {
        match self {
            Self::Http1(client) => client.open(connections, || Stream::new(Verifier::beginning_with(0))),
            Self::Http2(client) => client.open(server.address, "/fan-out", connections, options.streams),
        }
    }

    /// Reads until the count of events or of ended streams is reached. Returns whether it was.
    fn run_until(&mut self, deadline: Instant, is_done: impl Fn(Counts) -> bool) -> io::Result<bool> {
        match self {
            Self::Http1(client) => client.run_until(deadline, |it| {
                is_done(Counts { events: it.events, heartbeats: it.heartbeats, ended: it.ended })
            }),
            Self::Http2(client) => client.run_until(deadline, |it| {
                is_done(Counts { events: it.events, heartbeats: it.heartbeats, ended: it.ended })
            }),
        }
    }

    fn counts(&mut self) -> Counts {
        match self {
            Self::Http1(client) => {
                let it = client.totals();
                Counts { events: it.events, heartbeats: it.heartbeats, ended: it.ended }
            }
            Self::Http2(client) => {
                let it = &client.totals;
                Counts { events: it.events, heartbeats: it.heartbeats, ended: it.ended }
            }
        }
    }

    fn check(&mut self) -> io::Result<()> {
        let faults = match self {
            Self::Http1(client) => client.totals().faults,
            Self::Http2(client) => client.totals.faults,
        };
        if faults.is_none() { Ok(()) } else { Err(io::Error::other(faults.to_string())) }
    }
}

#[derive(Clone, Copy, Debug)]
struct Counts {
    events: u64,
    heartbeats: u64,
    ended: u64,
}

pub fn run(options: &Options) -> io::Result<()> {
    machine::pin(options.client_core)?;
    let arguments = [format!("--heartbeat={}", options.heartbeat), "--timings".to_owned()];
    let mut server = Server::start(options.contestant, options.server_core, &arguments)?;
    let mut client = if options.http1 {
        Streams::Http1(Box::new(Client::new(server.address, "/fan-out", false)?))
    } else {
        Streams::Http2(Http2Client::new()?)
    };
    let connections = options.connections.unwrap_or(if options.http1 { 18_000 } else { 10_000 });
    let per_connection = if options.http1 { 1 } else { options.streams };
    let streams = connections as f64 * f64::from(per_connection);
    println!("{streams} streams on {connections} connections to {}", options.contestant.name());

    let (base, kernel, cpu, begin) = (server.resident()?, KernelMemory::now()?, server.cpu_time()?, Instant::now());
    client.open(&server, options, connections)?;
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let opened = (server.cpu_time()? - cpu, begin.elapsed());
    println!("open:      {:.1} s, {:.1} µs of CPU per stream", opened.1.as_secs_f64(), micros(opened.0) / streams);
    let user = server.resident()?.saturating_sub(base) as f64;
    let slab = KernelMemory::now()?.slab.saturating_sub(kernel.slab) as f64;
    println!("memory:    {:.0} bytes per stream (RSS of the server)", user / streams);
    println!("           {:.0} bytes per connection in the kernel, for both ends", slab / connections as f64);

    let wanted = client.counts().events + streams as u64;
    let (cpu, begin) = (server.cpu_time()?, Instant::now());
    server.publish(&Schedule { count: 1, rate: 1.0, burst: 1 })?;
    if !client.run_until(begin + Duration::from_secs(120), |counts| counts.events >= wanted)? {
        return Err(io::Error::other(format!("{} of {wanted} events arrived", client.counts().events)));
    }
    let (cpu, real) = (server.cpu_time()? - cpu, begin.elapsed());
    println!(
        "one event: {:.2} s until the last delivery, {:.2} µs of CPU each",
        real.as_secs_f64(),
        micros(cpu) / streams
    );
    let buffers = KernelMemory::now()?.buffers;
    println!("           {:.1} MB in the buffers of all sockets", buffers as f64 / 1e6);

    // After an event to all, all streams are silent from the same moment on.
    let wanted = client.counts().heartbeats + streams as u64;
    let (cpu, begin) = (server.cpu_time()?, Instant::now());
    let interval = Duration::from_secs(options.heartbeat);
    if !client.run_until(begin + 2 * interval + Duration::from_secs(30), |counts| counts.heartbeats >= wanted)? {
        return Err(io::Error::other(format!("{} of {wanted} heartbeats arrived", client.counts().heartbeats)));
    }
    let cpu = server.cpu_time()? - cpu;
    let share = 100.0 * cpu.as_secs_f64() / interval.as_secs_f64();
    println!(
        "heartbeat: {:.2} µs of CPU each; every {interval:?} that is {share:.1} % of a core",
        micros(cpu) / streams
    );
    let user = server.resident()?.saturating_sub(base) as f64;
    println!("memory:    {:.0} bytes per stream (RSS of the server)", user / streams);
    client.check()?;

    let (cpu, begin) = (server.cpu_time()?, Instant::now());
    server.line("shutdown")?;
    let is_done = client.run_until(begin + Duration::from_secs(120), |counts| counts.ended >= streams as u64)?;
    let real = begin.elapsed().as_secs_f64();
    let ended = client.counts().ended;
    match server.cpu_time() {
        Ok(now) => {
            println!("shutdown:  {ended} streams in {real:.2} s, {:.2} µs of CPU each", micros(now - cpu) / streams)
        }
        Err(_) => println!("shutdown:  {ended} streams in {real:.2} s"),
    }
    if is_done { Ok(()) } else { Err(io::Error::other("some streams did not end")) }
}
