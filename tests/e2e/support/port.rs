//! A port that stays its own while nobody listens there.

use std::{io, net::SocketAddr};
use tokio::net::{TcpListener, TcpSocket};

/// A port of this machine. Who connects while nobody listens is refused.
#[derive(Debug)]
pub struct Port {
    address: SocketAddr,
    /// Bound, and never listening: so nobody else gets the port, and whoever has this can listen there.
    _socket: TcpSocket,
}

impl Port {
    /// One that is free.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn free() -> io::Result<Self> {
        let socket = socket_at(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        Ok(Self { address: socket.local_addr()?, _socket: socket })
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// One at a time.
    pub(crate) fn listen(&self) -> io::Result<TcpListener> {
        socket_at(self.address)?.listen(1024)
    }
}

fn socket_at(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}
