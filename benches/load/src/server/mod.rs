//! The servers: one process for each contestant, with the same endpoints and the same publications.
//!
//! | path | stream |
//! |---|---|
//! | `/fan-out` | events that are published to all clients |
//! | `/tokens` | events that are sent to each client by itself, through a channel |
//! | `/firehose` | events that are always ready |
//!
//! The server prints its address, and reads commands from its standard input. It exits when the
//! input ends.

mod actix;
mod axum;
mod epoll;
mod hyper;
mod publisher;
mod tower_sse;

use crate::{contestant::Contestant, machine};
use bytes::Bytes;
use clap::Args;
use publisher::Publisher;
use socket2::{Domain, Socket, Type};
use std::{
    io::{self, BufRead, Write},
    net::SocketAddr,
    time::Duration,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// The silence before a heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// The number of connections that wait to be accepted.
const QUEUE: i32 = 4096;

#[derive(Args, Clone, Debug)]
pub struct Options {
    #[arg(long, value_enum)]
    pub contestant: Contestant,
    /// The core of the process
    #[arg(long)]
    pub core: Option<usize>,
    /// The bytes of data of an event
    #[arg(long, default_value_t = 128)]
    pub size: usize,
    /// The number of events that a slow client may be behind
    #[arg(long, default_value_t = 1024)]
    pub retain: usize,
    /// The milliseconds that a subscription of tower-sse collects events
    #[arg(long)]
    pub linger_ms: Option<u64>,
    /// Sends heartbeats also where they cost memory for each stream
    #[arg(long)]
    pub heartbeats: bool,
    /// The seconds of silence before a heartbeat of tower-sse; 15 by default
    #[arg(long)]
    pub heartbeat: Option<u64>,
    /// Prints how long each publication takes the publisher
    #[arg(long)]
    pub timings: bool,
    /// A fault that the server has on purpose, to test the client; the contestant is hyper
    #[arg(long, value_enum)]
    pub fault: Option<Fault>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    Lost,
    Repeated,
    Reordered,
}

/// A line of the standard input.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Command {
    /// Publishes to all clients.
    Publish(Schedule),
    /// Sends to each client by itself.
    Tokens(Schedule),
    /// Ends all streams, and then the process.
    Shutdown,
}

/// Events per client, events per second, and events at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    pub count: u64,
    pub rate: f64,
    pub burst: u64,
}

impl Command {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let name = words.next()?;
        if name == "shutdown" {
            return Some(Self::Shutdown);
        }
        let schedule = Schedule {
            count: words.next()?.parse().ok()?,
            rate: words.next()?.parse().ok()?,
            burst: words.next()?.parse().ok()?,
        };
        match name {
            "publish" => Some(Self::Publish(schedule)),
            "tokens" => Some(Self::Tokens(schedule)),
            _ => None,
        }
    }
}

pub fn run(options: Options) -> io::Result<()> {
    if let Some(core) = options.core {
        machine::pin(core)?;
    }
    match options.contestant {
        Contestant::Epoll => epoll::run(&options),
        Contestant::Actix => actix::run(options),
        _ => run_on_tokio(options),
    }
}

fn run_on_tokio(options: Options) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listen()?)?;
        let (sender, commands) = unbounded_channel();
        read_commands(move |command| _ = sender.send(command));
        match options.contestant {
            Contestant::Axum | Contestant::Layer => axum::run(listener, &options, commands).await,
            Contestant::Hyper => hyper::run(listener, &options, commands).await,
            _ => tower_sse::run(listener, &options, commands).await,
        }
    })
}

/// Opens a port with a queue that is long enough for many clients at once.
fn listen() -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.listen(QUEUE)?;
    socket.set_nonblocking(true)?;
    let listener = std::net::TcpListener::from(socket);
    println!("{}", listener.local_addr()?);
    io::stdout().flush()?;
    Ok(listener)
}

/// Reads commands in a thread of its own.
fn read_commands(send: impl Fn(Command) + Send + 'static) {
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            match Command::parse(&line) {
                Some(command) => send(command),
                None => eprintln!("not a command: {line}"),
            }
        }
        std::process::exit(0);
    });
}

type Commands = UnboundedReceiver<Command>;

/// Encodes an event for the contestants that have no encoder.
fn encode(id: u64, data: &str) -> Bytes {
    format!("id: {id}\ndata: {data}\n\n").into()
}

/// The same without an id.
fn encode_token(data: &str) -> Bytes {
    format!("data: {data}\n\n").into()
}
