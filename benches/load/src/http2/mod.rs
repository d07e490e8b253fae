//! A client with many event streams on each HTTP/2 connection.

mod frames;

use crate::client::{Events, Faults, Sink, connect};
use frames::Frame;
use mio::{Interest, Poll, Token, net::TcpStream};
use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

/// The number of streams that may be opening at the same time.
const OPENING: u64 = 5000;

#[derive(Debug, Default)]
pub struct Totals {
    pub open: u64,
    pub events: u64,
    pub heartbeats: u64,
    pub ended: u64,
    pub faults: Faults,
}

#[derive(Debug)]
struct Connection {
    socket: TcpStream,
    /// Bytes that are not sent yet. They begin with the requests.
    unsent: Vec<u8>,
    /// The beginning of a frame.
    rest: Vec<u8>,
    /// The next sequence number of each stream.
    next: Vec<u32>,
    is_closed: bool,
}

#[derive(Debug)]
pub struct Http2Client {
    poll: Poll,
    ready: mio::Events,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
    pub totals: Totals,
}

impl Http2Client {
    pub fn new() -> io::Result<Self> {
        let (poll, ready) = (Poll::new()?, mio::Events::with_capacity(1024));
        Ok(Self { poll, ready, connections: Vec::new(), buffer: vec![0; 256 * 1024], totals: Totals::default() })
    }

    /// Opens connections with this number of streams each.
    pub fn open(&mut self, address: SocketAddr, path: &str, connections: usize, streams: u32) -> io::Result<()> {
        let wanted = connections as u64 * u64::from(streams);
        let requests = frames::requests(path, streams);
        let deadline = Instant::now() + Duration::from_secs(600);
        while self.totals.open < wanted {
            let requested = self.connections.len() as u64 * u64::from(streams);
            if self.connections.len() < connections && requested - self.totals.open < OPENING {
                let mut socket = connect(address, self.connections.len())?;
                let interest = Interest::READABLE | Interest::WRITABLE;
                self.poll.registry().register(&mut socket, Token(self.connections.len()), interest)?;
                let (unsent, next) = (requests.clone(), vec![0; streams as usize]);
                self.connections.push(Connection { socket, unsent, rest: Vec::new(), next, is_closed: false });
            }
            self.step()?;
            if !self.totals.faults.is_none() || Instant::now() > deadline {
                let Totals { open, faults, .. } = &self.totals;
                return Err(io::Error::other(format!("{open} of {wanted} streams are open; {faults}")));
            }
        }
        Ok(())
    }

    pub fn run_until(&mut self, deadline: Instant, mut is_done: impl FnMut(&Totals) -> bool) -> io::Result<bool> {
        while !is_done(&self.totals) {
            if Instant::now() > deadline {
                return Ok(false);
            }
            self.step()?;
        }
        Ok(true)
    }

    fn step(&mut self) -> io::Result<()> {
        match self.poll.poll(&mut self.ready, Some(Duration::from_millis(1))) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => (),
        }
        for event in &self.ready {
            let connection = &mut self.connections[event.token().0];
            if !connection.is_closed && connection.on_ready(&mut self.buffer, &mut self.totals).is_err() {
                connection.is_closed = true;
            }
        }
        Ok(())
    }
}

impl Connection {
    fn on_ready(&mut self, buffer: &mut [u8], totals: &mut Totals) -> io::Result<()> {
        self.flush()?;
        loop {
            match self.socket.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.accept(&buffer[..read], totals),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.flush(),
                Err(error) => return Err(error),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match self.socket.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                // A socket that is still connecting is not connected.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) => break,
                Err(error) => return Err(error),
            }
        }
        if self.unsent.is_empty() {
            self.unsent = Vec::new();
        }
        Ok(())
    }

    fn accept(&mut self, bytes: &[u8], totals: &mut Totals) {
        let joined;
        let mut left = bytes;
        if !self.rest.is_empty() {
            self.rest.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.rest);
            left = &joined;
        }
        while let Some(frame) = Frame::next(&mut left) {
            self.on_frame(&frame, totals);
        }
        self.rest = left.to_vec();
    }

    fn on_frame(&mut self, frame: &Frame<'_>, totals: &mut Totals) {
        match frame.kind {
            frames::HEADERS if frame.is_ok() => totals.open += 1,
            frames::HEADERS | frames::RST_STREAM => totals.faults.broken += 1,
            frames::DATA => {
                if let Some(next) = self.next.get_mut(frame.stream as usize / 2) {
                    let mut sink = Record { next, totals };
                    let mut events = Events::new(false);
                    events.feed(frame.payload, &mut sink);
                    // The servers send each event in one frame.
                    totals.faults.broken += u64::from(!events.is_complete());
                }
                totals.ended += u64::from(frame.flags & frames::END_STREAM != 0);
            }
            frames::SETTINGS | frames::PING if frame.flags & frames::ACK == 0 => {
                let payload = if frame.kind == frames::PING { frame.payload } else { &[] };
                frames::write(&mut self.unsent, frame.kind, frames::ACK, 0, payload);
            }
            _ => (),
        }
    }
}

struct Record<'a> {
    next: &'a mut u32,
    totals: &'a mut Totals,
}

impl Sink for Record<'_> {
    fn event(&mut self, sequence: u64, _: u64) {
        let next = u64::from(*self.next);
        self.totals.events += 1;
        self.totals.faults.lost += sequence.saturating_sub(next);
        self.totals.faults.repeated += u64::from(sequence < next);
        *self.next = u32::try_from(sequence + 1).unwrap_or(u32::MAX);
    }

    fn id(&mut self, _: &[u8]) {}

    fn gap(&mut self) {
        self.totals.faults.gaps += 1;
    }

    fn heartbeat(&mut self) {
        self.totals.heartbeats += 1;
    }
}
