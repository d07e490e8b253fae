//! epoll without a framework: one loop, and one write for each client and publication.

use super::{
    Command, HEARTBEAT, Options, Schedule, encode, encode_token, listen,
    publisher::{Clock, STEPS},
};
use crate::payload::{NO_TIME, Payload};
use mio::{
    Events, Interest, Poll, Token, Waker,
    net::{TcpListener, TcpStream},
};
use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
    time::Instant,
};

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n\
    transfer-encoding: chunked\r\n\r\n";
const LISTENER: Token = Token(usize::MAX);
const COMMANDS: Token = Token(usize::MAX - 1);
/// The bytes of a chunk of the firehose.
const FRAME: usize = 64 * 1024;
/// The chunks of a firehose that are sent before other clients get their turn.
const FRAMES: usize = 16;

struct Client {
    socket: TcpStream,
    request: Vec<u8>,
    /// Bytes that the socket did not take.
    unsent: Vec<u8>,
    /// The next event of a firehose.
    firehose: Option<u64>,
}

/// A publication in progress.
struct Work {
    is_tokens: bool,
    schedule: Schedule,
    clock: Clock,
    left: u64,
}

struct Server {
    clients: Vec<Option<Client>>,
    fan_out: Vec<usize>,
    tokens: Vec<usize>,
    /// The times of heartbeats in their order, and their clients.
    heartbeats: VecDeque<(Instant, usize)>,
    payload: Payload,
    next: u64,
    next_token: u64,
    work: VecDeque<Work>,
    /// Clients of a firehose whose sockets may take more.
    unfinished: Vec<usize>,
}

pub(super) fn run(options: &Options) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::from_std(listen()?);
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let waker = Arc::new(Waker::new(poll.registry(), COMMANDS)?);
    let (sender, commands) = channel();
    super::read_commands(move |command| {
        let _ = sender.send(command);
        let _ = waker.wake();
    });
    let mut server = Server {
        clients: Vec::new(),
        fan_out: Vec::new(),
        tokens: Vec::new(),
        heartbeats: VecDeque::new(),
        payload: Payload::new(options.size),
        next: 0,
        next_token: 0,
        work: VecDeque::new(),
        unfinished: Vec::new(),
    };
    let mut events = Events::with_capacity(1024);
    loop {
        let timeout = server.due().map(|due| due.saturating_duration_since(Instant::now()));
        match poll.poll(&mut events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => (),
        }
        let unfinished = std::mem::take(&mut server.unfinished);
        for event in &events {
            match event.token() {
                LISTENER => server.accept(&poll, &listener)?,
                COMMANDS => server.command(&commands),
                Token(index) => server.on_ready(index),
            }
        }
        unfinished.into_iter().for_each(|index| server.on_ready(index));
        server.publish();
        server.send_heartbeats();
    }
}

impl Server {
    fn due(&self) -> Option<Instant> {
        if !self.unfinished.is_empty() {
            return Some(Instant::now());
        }
        let work = self.work.front().map(|work| work.clock.due());
        let heartbeat = self.heartbeats.front().map(|&(due, _)| due);
        work.into_iter().chain(heartbeat).min()
    }

    fn accept(&mut self, poll: &Poll, listener: &TcpListener) -> io::Result<()> {
        loop {
            let mut socket = match listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            socket.set_nodelay(true)?;
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut socket, Token(self.clients.len()), interest)?;
            let client = Client { socket, request: Vec::new(), unsent: Vec::new(), firehose: None };
            self.clients.push(Some(client));
        }
    }

    fn command(&mut self, commands: &Receiver<Command>) {
        for command in commands.try_iter() {
            let (schedule, is_tokens) = match command {
                Command::Publish(schedule) => (schedule, false),
                Command::Tokens(schedule) => (schedule, true),
                Command::Shutdown => std::process::exit(0),
            };
            let period = if is_tokens { 1.0 / STEPS as f64 } else { schedule.burst as f64 } / schedule.rate;
            self.work.push_back(Work {
                is_tokens,
                schedule,
                clock: Clock::new(period),
                left: schedule.count * if is_tokens { STEPS } else { 1 },
            });
        }
    }

    fn on_ready(&mut self, index: usize) {
        let Some(client) = self.clients.get_mut(index).and_then(Option::as_mut) else { return };
        let is_open = client.read_request().and_then(|path| {
            match path.as_deref() {
                Some("/fan-out") => self.fan_out.push(index),
                Some("/tokens") => self.tokens.push(index),
                Some(_) => client.firehose = Some(0),
                None => return client.flush(&mut self.payload),
            }
            self.heartbeats.push_back((Instant::now() + HEARTBEAT, index));
            client.send(HEAD)?;
            client.flush(&mut self.payload)
        });
        match is_open {
            Ok(true) => (),
            Ok(false) => self.unfinished.push(index),
            Err(_) => self.clients[index] = None,
        }
    }

    fn publish(&mut self) {
        let now = Instant::now();
        while let Some(work) = self.work.front_mut() {
            if now < work.clock.due() {
                return;
            }
            let sent = work.clock.advance();
            let mut events = Vec::new();
            if work.is_tokens {
                let step = (STEPS - work.left % STEPS) % STEPS;
                events.extend_from_slice(&encode_token(self.payload.of(self.next_token, sent)));
                let clients = self.tokens.iter().skip(step as usize).step_by(STEPS as usize);
                send(&mut self.clients, clients, &chunk(&events));
                self.next_token += u64::from(step == STEPS - 1);
                work.left -= 1;
            } else {
                let burst = work.schedule.burst.min(work.left);
                for number in self.next..self.next + burst {
                    events.extend_from_slice(&encode(number, self.payload.of(number, sent)));
                }
                send(&mut self.clients, self.fan_out.iter(), &chunk(&events));
                self.next += burst;
                work.left -= burst;
            }
            if work.left == 0 {
                self.work.pop_front();
            }
        }
    }

    /// Sends heartbeats without regard to other events, which is right for streams without events.
    fn send_heartbeats(&mut self) {
        let now = Instant::now();
        while let Some(&(due, index)) = self.heartbeats.front().filter(|&&(due, _)| due <= now) {
            self.heartbeats.pop_front();
            send(&mut self.clients, [index].iter(), b"2\r\n:\n\r\n");
            if self.clients[index].is_some() {
                self.heartbeats.push_back((due + HEARTBEAT, index));
            }
        }
    }
}

fn send<'a>(clients: &mut [Option<Client>], to: impl Iterator<Item = &'a usize>, bytes: &[u8]) {
    for &index in to {
        if let Some(client) = &mut clients[index]
            && client.send(bytes).is_err()
        {
            clients[index] = None;
        }
    }
}

fn chunk(events: &[u8]) -> Vec<u8> {
    let mut chunk = format!("{:x}\r\n", events.len()).into_bytes();
    chunk.extend_from_slice(events);
    chunk.extend_from_slice(b"\r\n");
    chunk
}

impl Client {
    /// Reads what the client has sent, and returns the path of a complete request.
    fn read_request(&mut self) -> io::Result<Option<String>> {
        let mut buffer = [0; 1024];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.request.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if !self.request.ends_with(b"\r\n\r\n") {
            return Ok(None);
        }
        let request = std::mem::take(&mut self.request);
        Ok(String::from_utf8_lossy(&request).split(' ').nth(1).map(str::to_owned))
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(bytes);
            return Ok(());
        }
        let sent = write(&mut self.socket, bytes)?;
        self.unsent.extend_from_slice(&bytes[sent..]);
        Ok(())
    }

    /// Sends what the socket did not take before, and the next events of a firehose. Returns
    /// whether the socket takes no more.
    fn flush(&mut self, payload: &mut Payload) -> io::Result<bool> {
        for _ in 0..FRAMES {
            let sent = write(&mut self.socket, &self.unsent)?;
            self.unsent.drain(..sent);
            let Some(number) = self.firehose.as_mut().filter(|_| self.unsent.is_empty()) else { return Ok(true) };
            let mut events = Vec::with_capacity(FRAME + 2048);
            while events.len() < FRAME {
                events.extend_from_slice(b"data: ");
                events.extend_from_slice(payload.of(*number, NO_TIME).as_bytes());
                events.extend_from_slice(b"\n\n");
                *number += 1;
            }
            self.unsent = chunk(&events);
        }
        Ok(false)
    }
}

/// Writes until the socket takes no more, and returns the number of bytes.
fn write(socket: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match socket.write(&bytes[sent..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => sent += written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}
