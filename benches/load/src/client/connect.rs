//! Connecting from more addresses than one.

use mio::net::TcpStream;
use nix::errno::Errno;
use socket2::{Domain, Socket, Type};
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

/// The number of connections from one address. Linux has 28,000 ports for them by default.
const PORTS: usize = 20_000;

/// Begins to connect. `index` counts the connections.
pub fn connect(address: SocketAddr, index: usize) -> io::Result<TcpStream> {
    if index < PORTS {
        return TcpStream::connect(address);
    }
    let source = u32::from(Ipv4Addr::LOCALHOST) + u32::try_from(index / PORTS).map_err(io::Error::other)?;
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::from(source), 0)).into())?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => Err(error),
        _ => Ok(TcpStream::from_std(socket.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_connections_come_from_other_addresses() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        for (index, source) in [(0, 1), (PORTS - 1, 1), (PORTS, 2), (50 * PORTS - 1, 50)] {
            let _client = connect(listener.local_addr().unwrap(), index).unwrap();
            let (_, address) = listener.accept().unwrap();
            assert_eq!(address.ip(), Ipv4Addr::new(127, 0, 0, source));
        }
    }
}
