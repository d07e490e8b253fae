//! The client: one thread that reads all streams and checks each event.

mod chunks;
mod connect;
mod connection;
mod events;
mod verifier;

pub use connect::connect;
pub use connection::{Phase, Stream};
pub use events::{Events, Sink};
pub use verifier::{Faults, Verifier};

use crate::payload;
use connection::{Connection, Progress};
use mio::{Interest, Poll, Token, event::Event};
use std::{
    io,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

/// The pause of a client that has read everything.
///
/// A client that waits in `epoll_wait` would be woken by the server's writes, in the CPU time of
/// the server. On a network, no server pays for that. A timer wakes this client instead.
const PAUSE: Duration = Duration::from_micros(50);

/// Counts of everything that arrived.
#[derive(Debug, Default)]
pub struct Totals {
    /// Response heads.
    pub open: u64,
    pub events: u64,
    pub heartbeats: u64,
    pub reads: u64,
    pub bytes: u64,
    pub chunks: u64,
    /// Streams that ended with the last chunk.
    pub ended: u64,
    pub faults: Faults,
    /// The microseconds from sending to reading, of the events whose sequence number has none of
    /// the bits of the mask.
    pub latencies: Vec<u32>,
    pub sample_mask: u64,
    /// The microseconds from each request to its first event.
    pub first_events: Vec<u32>,
    /// The message of the first fault of a connection.
    pub first_error: Option<String>,
}

/// All connections, and the sockets that are ready.
#[derive(Debug)]
pub struct Client {
    poll: Poll,
    ready: mio::Events,
    state: State,
    /// Waits in `epoll_wait` instead of pausing.
    pub is_blocking: bool,
    /// The number of connections that may be opening at the same time. The servers' listeners queue
    /// 1,024.
    opening: usize,
}

#[derive(Debug)]
struct State {
    address: SocketAddr,
    path: String,
    with_ids: bool,
    connections: Vec<Connection>,
    is_stalled: Vec<bool>,
    /// Connections with bytes that were not read in their turn.
    unfinished: Vec<usize>,
    buffer: Box<[u8]>,
    totals: Totals,
}

impl Client {
    /// Creates a client of this path. `with_ids` keeps the last id of each stream.
    pub fn new(address: SocketAddr, path: &str, with_ids: bool) -> io::Result<Self> {
        let state = State {
            address,
            path: path.to_owned(),
            with_ids,
            connections: Vec::new(),
            is_stalled: Vec::new(),
            unfinished: Vec::new(),
            buffer: vec![0; 256 * 1024].into(),
            totals: Totals::default(),
        };
        Ok(Self {
            poll: Poll::new()?,
            ready: mio::Events::with_capacity(1024),
            state,
            is_blocking: false,
            opening: 256,
        })
    }

    pub fn totals(&mut self) -> &mut Totals {
        &mut self.state.totals
    }

    pub fn streams(&self) -> impl Iterator<Item = &Stream> {
        self.state.connections.iter().map(|connection| &connection.stream)
    }

    /// Opens connections, and waits until the head of each response has arrived.
    pub fn open(&mut self, count: usize, mut stream: impl FnMut() -> Stream) -> io::Result<()> {
        let wanted = self.state.connections.len() + count;
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.is_opening(wanted) {
            let opening = |state: &State| state.connections.len() - state.totals.open as usize;
            while self.state.connections.len() < wanted && opening(&self.state) < self.opening {
                let index = self.state.connections.len();
                let connection = self.connect(index, stream())?;
                self.state.connections.push(connection);
                self.state.is_stalled.push(false);
            }
            self.step(Duration::from_millis(100))?;
            if let Some(error) = &self.state.totals.first_error {
                return Err(io::Error::other(format!("a connection failed: {error}")));
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("{} of {wanted} streams are open", self.state.totals.open)));
            }
        }
        Ok(())
    }

    fn is_opening(&self, wanted: usize) -> bool {
        (self.state.totals.open as usize) < wanted
    }

    /// Closes a connection and opens another for the same stream, with the last id.
    pub fn reconnect(&mut self, index: usize) -> io::Result<()> {
        let stream = std::mem::take(&mut self.state.connections[index].stream);
        self.state.connections[index] = self.connect(index, stream)?;
        Ok(())
    }

    fn connect(&self, index: usize, stream: Stream) -> io::Result<Connection> {
        let mut connection = Connection::new(connect(self.state.address, index)?, stream, self.state.with_ids);
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut connection.socket, Token(index), interest)?;
        Ok(connection)
    }

    pub fn phase(&self, index: usize) -> Phase {
        self.state.connections[index].phase
    }

    /// Stops to read a stream, or continues.
    pub fn stall(&mut self, index: usize, is_stalled: bool) {
        self.state.is_stalled[index] = is_stalled;
        if !is_stalled {
            // A second to catch up.
            self.state.connections[index].stream.set_live_since(payload::micros() + 1_000_000);
            self.state.unfinished.push(index);
        }
    }

    /// Reads what has arrived. Waits up to `timeout` for the first byte.
    pub fn step(&mut self, timeout: Duration) -> io::Result<()> {
        let is_waiting = self.is_blocking && self.state.unfinished.is_empty();
        let timeout = if is_waiting { timeout } else { Duration::ZERO };
        match self.poll.poll(&mut self.ready, Some(timeout)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => (),
        }
        let unfinished = std::mem::take(&mut self.state.unfinished);
        if self.ready.is_empty() && unfinished.is_empty() && !self.is_blocking {
            thread::sleep(PAUSE);
        }
        for event in &self.ready {
            self.state.on_ready(event);
        }
        for index in unfinished {
            self.state.read(index, false);
        }
        Ok(())
    }

    /// Reads until the condition holds, and returns whether it did so before the deadline.
    pub fn run_until(&mut self, deadline: Instant, mut is_done: impl FnMut(&Totals) -> bool) -> io::Result<bool> {
        while !is_done(&self.state.totals) {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return Ok(false) };
            self.step(left.min(Duration::from_millis(100)))?;
        }
        Ok(true)
    }
}

impl State {
    fn on_ready(&mut self, event: &Event) {
        let index = event.token().0;
        let connection = &mut self.connections[index];
        if connection.phase == Phase::Connecting
            && event.is_writable()
            && let Err(error) = connection.request(&self.path)
        {
            self.fail(index, &error);
            return;
        }
        if event.is_readable() || event.is_read_closed() {
            self.read(index, event.is_read_closed());
        }
    }

    fn read(&mut self, index: usize, is_closed: bool) {
        let connection = &mut self.connections[index];
        if self.is_stalled[index] || !matches!(connection.phase, Phase::Head | Phase::Stream) {
            return;
        }
        match connection.read(&mut self.buffer, is_closed, &mut self.totals) {
            Ok(Progress::Drained) => (),
            Ok(Progress::Unfinished) => self.unfinished.push(index),
            Err(error) => self.fail(index, &error),
        }
    }

    fn fail(&mut self, index: usize, error: &io::Error) {
        self.connections[index].phase = Phase::Closed;
        self.totals.faults.broken += 1;
        self.totals.first_error.get_or_insert_with(|| error.to_string());
    }
}
