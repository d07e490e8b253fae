//! A port that stays reserved while no server listens on it.

use std::{io, net::SocketAddr};
use tokio::net::{TcpListener, TcpSocket};

/// A reserved port of 127.0.0.1. A connection attempt is refused while no server listens.
#[derive(Debug)]
pub struct Port {
    address: SocketAddr,
    /// Bound, and never listening. The system gives the port to no other program, and the owner of
    /// this value can listen on it.
    _socket: TcpSocket,
}

impl Port {
    /// Reserves a free port.
    ///
    /// # Errors
    ///
    /// If there is no free port.
    pub fn free() -> io::Result<Self> {
        let socket = bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        Ok(Self { address: socket.local_addr()?, _socket: socket })
    }

    /// Returns the address of the port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Listens on the port. Only one listener at a time is possible.
    pub(crate) fn listen(&self) -> io::Result<TcpListener> {
        bind(self.address)?.listen(1024)
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}
