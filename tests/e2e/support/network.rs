//! A wire to a server that can be broken in more than one way, whatever is spoken on it.

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

/// A TCP relay to one server. It is gone on drop, with its connections.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    state: watch::Sender<State>,
    accepts: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    way: Way,
    /// How many connections were made, and how many before it became silent.
    made: u64,
    made_before_silence: u64,
    /// So many of the first connections carry nothing any more, and do not end either.
    dead: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Whole,
    /// Bytes a second, in each direction of each connection.
    Slow(u32),
    Silent,
    Cut,
}

impl Wire {
    /// One to this server.
    ///
    /// # Panics
    ///
    /// If there is no free port.
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address = listener.local_addr().expect("it listens");
        let state = watch::Sender::new(State { way: Way::Whole, made: 0, made_before_silence: 0, dead: 0 });
        let accepts = tokio::spawn(accept(listener, server, state.clone()));
        Self { address, state, accepts }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets all connections, and each new one at once, until [`mend`](Self::mend).
    pub fn cut(&self) {
        self.goes(Way::Cut);
    }

    /// Carries nothing, and tells nobody: connections stay, and new ones are made, as it seems to both ends.
    pub fn silence(&self) {
        self.goes(Way::Silent);
    }

    /// Carries so many bytes a second in each direction of each connection.
    pub fn slow_down(&self, bytes_a_second: u32) {
        self.goes(Way::Slow(bytes_a_second));
    }

    /// Passes on again, with what has waited.
    pub fn mend(&self) {
        self.goes(Way::Whole);
    }

    /// Passes on what comes by new connections, those that were asked for while it was silent included. Those that there were stay
    /// silent for ever, as where a router has forgotten them.
    pub fn mend_for_new_connections(&self) {
        self.state.send_modify(|state| {
            state.dead = if state.way == Way::Silent { state.made_before_silence } else { state.made };
            state.way = Way::Whole;
        });
    }

    fn goes(&self, way: Way) {
        self.state.send_modify(|state| {
            if way == Way::Silent && state.way != Way::Silent {
                state.made_before_silence = state.made;
            }
            state.way = way;
        });
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepts.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, state: watch::Sender<State>) {
    while let Ok((client, _)) = listener.accept().await {
        let mut number = 0;
        state.send_modify(|state| {
            state.made += 1;
            number = state.made;
        });
        tokio::spawn(carry(client, server, number, state.subscribe()));
    }
}

async fn carry(client: TcpStream, server: SocketAddr, number: u64, mut state: watch::Receiver<State>) {
    // Whoever is cut off is to notice at once, also in the middle of nothing.
    let _a_reset_at_the_end = client.set_zero_linger();
    if state.borrow().way == Way::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    let _a_reset_at_the_end = server.set_zero_linger();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (there, back) = (state.clone(), state.clone());
    tokio::select! {
        () = pass(from_client, to_server, number, there) => {}
        () = pass(from_server, to_client, number, back) => {}
        _ = state.wait_for(|state| state.way == Way::Cut) => {}
    }
}

/// Until either side ends.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, number: u64, mut state: watch::Receiver<State>) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut bytes).await {
        let carries = |state: &State| state.way != Way::Silent && number > state.dead;
        let Ok(way) = state.wait_for(carries).await.map(|state| state.way) else { break };
        if way == Way::Cut {
            // The other branch of the `select!` may have to wait for its turn, as tokio gives a busy task
            // a budget. Nothing that was read after the cut may pass.
            return;
        }
        if let Way::Slow(bytes_a_second) = way {
            sleep(Duration::from_secs_f64(n as f64 / f64::from(bytes_a_second))).await;
        }
        if to.write_all(&bytes[..n]).await.is_err() {
            break;
        }
    }
    // A silent wire does not carry the news of an end either.
    drop(state.wait_for(|state| state.way != Way::Silent && number > state.dead).await);
}
