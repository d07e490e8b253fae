//! One HTTP/1.1 connection of the client, with one event stream.

use super::{
    Totals,
    chunks::Chunks,
    events::{Events, Sink},
    verifier::{Faults, Verifier},
};
use crate::payload;
use memchr::memmem;
use mio::net::TcpStream;
use std::io::{self, Read, Write};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Connecting,
    Head,
    Stream,
    /// The stream has ended, or is broken.
    Closed,
}

/// The reason why a read stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All bytes that had arrived are read.
    Drained,
    /// More bytes may be there.
    Unfinished,
}

/// The outcomes of one stream that outlive its connection.
#[derive(Debug, Default)]
pub struct Stream {
    pub verifier: Verifier,
    pub received: u64,
    /// The last id, if ids are kept.
    pub last_id: Vec<u8>,
    /// Set when the first event after the last request has arrived.
    has_first: bool,
    /// The time of the last request.
    requested: u64,
    /// Events that were sent before are late for a reason of the client. Their latency is not
    /// recorded.
    live_since: u64,
}

impl Stream {
    pub fn new(verifier: Verifier) -> Self {
        Self { verifier, ..Self::default() }
    }

    /// Records latencies of events that are sent from this time on.
    pub(super) fn set_live_since(&mut self, time: u64) {
        self.live_since = time % payload::LIMIT;
    }

    /// Creates a stream that resumes after this id.
    pub fn resuming(verifier: Verifier, last_id: Vec<u8>) -> Self {
        Self { verifier, last_id, ..Self::default() }
    }
}

#[derive(Debug)]
pub struct Connection {
    pub socket: TcpStream,
    pub phase: Phase,
    pub stream: Stream,
    head: Vec<u8>,
    chunks: Chunks,
    events: Events,
}

impl Connection {
    /// Creates a connection of a socket that is connecting.
    pub fn new(socket: TcpStream, mut stream: Stream, with_ids: bool) -> Self {
        stream.has_first = false;
        stream.requested = payload::micros();
        stream.live_since = stream.requested;
        let events = Events::new(with_ids);
        Self { socket, phase: Phase::Connecting, stream, head: Vec::new(), chunks: Chunks::default(), events }
    }

    /// Sends the request once the connection is open.
    pub fn request(&mut self, path: &str) -> io::Result<()> {
        if let Some(error) = self.socket.take_error()? {
            return Err(error);
        }
        if self.socket.peer_addr().is_err() {
            return Ok(());
        }
        let mut request = format!("GET {path} HTTP/1.1\r\nHost: load\r\nAccept: text/event-stream\r\n").into_bytes();
        if !self.stream.last_id.is_empty() {
            request.extend_from_slice(b"Last-Event-ID: ");
            request.extend_from_slice(&self.stream.last_id);
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        self.socket.write_all(&request)?;
        self.phase = Phase::Head;
        Ok(())
    }

    /// Reads once, or until the end if the peer has closed its side.
    pub fn read(&mut self, buffer: &mut [u8], is_closed: bool, totals: &mut Totals) -> io::Result<Progress> {
        loop {
            let read = match self.socket.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Progress::Drained),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            totals.reads += 1;
            totals.bytes += read as u64;
            self.accept(&buffer[..read], totals)?;
            if self.phase == Phase::Closed {
                return Ok(Progress::Drained);
            }
            if !is_closed {
                return Ok(if read == buffer.len() { Progress::Unfinished } else { Progress::Drained });
            }
        }
    }

    fn accept(&mut self, mut bytes: &[u8], totals: &mut Totals) -> io::Result<()> {
        if self.phase == Phase::Head {
            let before = self.head.len();
            self.head.extend_from_slice(bytes);
            let Some(end) = memmem::find(&self.head, b"\r\n\r\n") else { return Ok(()) };
            let head = std::mem::take(&mut self.head);
            bytes = &bytes[end + 4 - before..];
            let fields = head[..end].to_ascii_lowercase();
            let is_chunked = memmem::find(&fields, b"transfer-encoding: chunked").is_some();
            if !fields.starts_with(b"http/1.1 200") || !is_chunked {
                return Err(io::Error::other(String::from_utf8_lossy(&head).into_owned()));
            }
            self.phase = Phase::Stream;
            totals.open += 1;
        }
        let before = self.chunks.count;
        let mut record = Record { stream: &mut self.stream, totals, now: payload::micros() };
        while let Some(data) = self.chunks.next(&mut bytes) {
            self.events.feed(data, &mut record);
        }
        totals.chunks += self.chunks.count - before;
        if self.chunks.is_end() {
            self.phase = Phase::Closed;
            totals.ended += 1;
        }
        Ok(())
    }
}

struct Record<'a> {
    stream: &'a mut Stream,
    totals: &'a mut Totals,
    /// The time of the read.
    now: u64,
}

impl Sink for Record<'_> {
    fn event(&mut self, sequence: u64, sent: u64) {
        let Self { stream, totals, now } = self;
        stream.verifier.accept(sequence, &mut totals.faults);
        stream.received += 1;
        totals.events += 1;
        let is_live = payload::is_since(sent, stream.live_since);
        if is_live
            && sequence & totals.sample_mask == 0
            && let Some(latency) = payload::latency(sent, *now)
        {
            totals.latencies.push(u32::try_from(latency).unwrap_or(u32::MAX));
        }
        if !stream.has_first {
            stream.has_first = true;
            let latency = payload::latency(stream.requested, *now).unwrap_or_default();
            totals.first_events.push(u32::try_from(latency).unwrap_or(u32::MAX));
        }
    }

    fn id(&mut self, id: &[u8]) {
        self.stream.last_id.clear();
        self.stream.last_id.extend_from_slice(id);
    }

    fn gap(&mut self) {
        self.totals.faults.add(&Faults { gaps: 1, ..Faults::default() });
    }

    fn heartbeat(&mut self) {
        self.totals.heartbeats += 1;
    }
}
