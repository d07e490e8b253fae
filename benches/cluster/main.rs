//! The cost of a hub with a backend: in memory, with a backend in memory, in a file, with Redis
//! Streams, with NATS JetStream, and with Postgres, in one run.
//!
//! ```console
//! $ cargo bench -p benches --bench cluster --features file,redis,nats,postgres
//! ```
//!
//! The benchmark starts the servers, and a process of its own executable for each node. Ratios are
//! against the hub in memory. All processes share a machine, so each of several nodes has a smaller
//! part of it.
//!
//! The benchmark needs Linux's `/proc`, and 1,000 connections: `ulimit -n 2000`.

mod clients;
mod commits;
mod deliveries;
mod fan_out;
mod file;
mod node;
mod process;
mod replay;
mod store;

use file::Files;
use process::NODE;
use std::{env, error::Error, iter::successors, process::ExitCode};
use store::{Engine, Store};

/// The sizes of all measurements.
struct Scale {
    /// Measurements of each row of delays and rates.
    times: usize,
    clients: &'static [usize],
    nodes: &'static [usize],
    /// Single events with a measured delay, and the microseconds between two of them.
    alone: (usize, u64),
    /// Milliseconds of publishing without an interval, and the events in flight.
    flood: (u64, usize),
    /// Clients in the measurement of CPU time per delivery.
    fan_out: usize,
    /// Rounds of this measurement.
    rounds: usize,
    /// Bursts per round for bodies, and the microseconds between them. The node is idle in between.
    bodies: (usize, u64),
    /// Bursts per round for connections, and the microseconds between them.
    connected: (usize, u64),
    /// Events in a replayed log.
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

/// The location of a log.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Log {
    Memory,
    MemoryBackend,
    File,
    /// A file with `Durability::Process`.
    FileProcess,
    Redis,
    Nats,
    Postgres,
    /// Postgres that acknowledges a commit before it is on the disk, as Redis does here.
    PostgresAsync,
}

impl Log {
    /// The logs in servers.
    const SERVERS: [Self; 4] = [Self::Redis, Self::Nats, Self::Postgres, Self::PostgresAsync];

    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::MemoryBackend => "a backend in memory",
            Self::File | Self::FileProcess => "file",
            Self::Redis => "Redis",
            Self::Nats => "NATS",
            Self::Postgres => "Postgres",
            Self::PostgresAsync => "Postgres, async",
        }
    }
}

struct Bench {
    scale: Scale,
    redis: Store,
    nats: Store,
    postgres: Store,
    postgres_async: Store,
    files: Files,
    streams: usize,
}

fn main() -> ExitCode {
    let result = match env::args().nth(1).as_deref() {
        Some(NODE) => node::main().map_err(|error| {
            let first: &dyn Error = &*error;
            let chain: Vec<_> =
                successors(Some(first), |error| Error::source(*error)).map(ToString::to_string).collect();
            chain.join(": ")
        }),
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
    let postgres = Store::start(Engine::Postgres { is_synchronous: true })?;
    let postgres_async = Store::start(Engine::Postgres { is_synchronous: false })?;
    let files = Files::new()?;
    let mut bench = Bench { scale, redis, nats, postgres, postgres_async, files, streams: 0 };
    // Like criterion, runs the tables whose names contain an argument, or all of them.
    let filters: Vec<_> = env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(&**filter));
    let tables: [(_, fn(&mut Bench) -> _); 5] = [
        ("deliveries", Bench::deliveries),
        ("commits", Bench::commits),
        ("fan-out", Bench::fan_out),
        ("replay", Bench::replay),
        ("file", Bench::file),
    ];
    tables.into_iter().filter(|(name, _)| is_wanted(name)).try_for_each(|(_, table)| table(&mut bench))
}

impl Bench {
    fn store(&self, log: Log) -> Option<&Store> {
        match log {
            Log::Redis => Some(&self.redis),
            Log::Nats => Some(&self.nats),
            Log::Postgres => Some(&self.postgres),
            Log::PostgresAsync => Some(&self.postgres_async),
            _ => None,
        }
    }

    fn new_stream(&mut self) -> String {
        self.streams += 1;
        format!("bench-{}", self.streams)
    }

    /// Returns the command that opens a hub. A node numbers its hubs from zero.
    fn open(&self, log: Log, stream: &str, max_events: usize) -> String {
        let kind = match log {
            Log::Memory => "memory",
            Log::MemoryBackend => "backend",
            Log::File => "file",
            Log::FileProcess => "file-process",
            Log::Redis => "redis",
            Log::Nats => "nats",
            Log::Postgres | Log::PostgresAsync => "postgres",
        };
        let url = match log {
            Log::File | Log::FileProcess => self.files.url(),
            _ => self.store(log).map_or("-".to_owned(), Store::url),
        };
        format!("open {kind} {url} {stream} {max_events}")
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
