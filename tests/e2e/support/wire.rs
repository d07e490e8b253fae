//! A TCP connection to a server, with network faults. The protocol can be any.

use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

/// A TCP relay to one server. Dropping it resets its connections.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    state: watch::Sender<State>,
    accept: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    mode: Mode,
    /// The number of connections until now, and the number before the silence began.
    accepted: u64,
    accepted_before_silence: u64,
    /// This many of the first connections carry no more bytes, and do not end either.
    dead: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Normal,
    /// Bytes per second, in each direction of each connection.
    Slow(u32),
    Silent,
    /// Only the direction from the server to the client is silent.
    SilentResponses,
    Cut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Request,
    Response,
}

impl State {
    fn is_silent(&self) -> bool {
        matches!(self.mode, Mode::Silent | Mode::SilentResponses)
    }

    /// Returns whether the connection with this number carries bytes in this direction.
    fn is_passing(&self, connection: u64, direction: Direction) -> bool {
        let is_muted = match self.mode {
            Mode::Silent => true,
            Mode::SilentResponses => direction == Direction::Response,
            Mode::Normal | Mode::Slow(_) | Mode::Cut => false,
        };
        !is_muted && connection > self.dead
    }
}

impl Wire {
    /// Starts a relay to this server.
    ///
    /// # Panics
    ///
    /// If there is no free port.
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address = listener.local_addr().expect("the listener has an address");
        let state = watch::Sender::new(State { mode: Mode::Normal, accepted: 0, accepted_before_silence: 0, dead: 0 });
        let accept = tokio::spawn(accept(listener, server, state.clone()));
        Self { address, state, accept }
    }

    /// Returns the address of the relay.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets all connections, and each new connection immediately, until [`mend`](Self::mend).
    pub fn cut(&self) {
        self.set(Mode::Cut);
    }

    /// Carries no bytes. Connections stay open, and new connections are accepted, so neither end
    /// notices the fault.
    pub fn silence(&self) {
        self.set(Mode::Silent);
    }

    /// Carries bytes to the server, and none to the client.
    pub fn silence_responses(&self) {
        self.set(Mode::SilentResponses);
    }

    /// Carries this many bytes per second in each direction of each connection.
    pub fn slow_down(&self, bytes_per_second: u32) {
        self.set(Mode::Slow(bytes_per_second));
    }

    /// Carries bytes again, and delivers the bytes that have waited.
    pub fn mend(&self) {
        self.set(Mode::Normal);
    }

    /// Carries the bytes of new connections, and of the connections accepted during a silence.
    ///
    /// Older connections stay silent forever, as when a router has forgotten them.
    pub fn mend_for_new_connections(&self) {
        self.state.send_modify(|state| {
            state.dead = if state.is_silent() { state.accepted_before_silence } else { state.accepted };
            state.mode = Mode::Normal;
        });
    }

    fn set(&self, mode: Mode) {
        self.state.send_modify(|state| {
            let was_silent = state.is_silent();
            state.mode = mode;
            if state.is_silent() && !was_silent {
                state.accepted_before_silence = state.accepted;
            }
        });
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accept.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, state: watch::Sender<State>) {
    while let Ok((client, _)) = listener.accept().await {
        let mut number = 0;
        state.send_modify(|state| {
            state.accepted += 1;
            number = state.accepted;
        });
        tokio::spawn(carry(client, server, number, state.subscribe()));
    }
}

async fn carry(client: TcpStream, server: SocketAddr, number: u64, mut state: watch::Receiver<State>) {
    // Both ends notice a cut immediately, even if they are idle, because the connection is reset.
    let _reset_on_close = client.set_zero_linger();
    if state.borrow().mode == Mode::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    let _reset_on_close = server.set_zero_linger();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pass(from_client, to_server, number, Direction::Request, state.clone()) => {}
        () = pass(from_server, to_client, number, Direction::Response, state.clone()) => {}
        _ = state.wait_for(|state| state.mode == Mode::Cut) => {}
    }
}

/// Passes bytes on in one direction, until either side ends.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    number: u64,
    direction: Direction,
    mut state: watch::Receiver<State>,
) {
    let is_passing = |state: &State| state.is_passing(number, direction);
    let mut bytes = vec![0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut bytes).await {
        let Ok(mode) = state.wait_for(is_passing).await.map(|state| state.mode) else { break };
        if mode == Mode::Cut {
            // The `select!` branch for a cut may have to wait, because tokio gives a busy task a
            // budget. No byte that was read after the cut may pass.
            return;
        }
        if let Mode::Slow(bytes_per_second) = mode {
            sleep(Duration::from_secs_f64(n as f64 / f64::from(bytes_per_second))).await;
        }
        if to.write_all(&bytes[..n]).await.is_err() {
            break;
        }
    }
    // A silent wire does not carry the end of a connection either.
    drop(state.wait_for(is_passing).await);
}
