//! Clients that do not read or have vanished, on real sockets: when the server closes their
//! connections, and their cost until then.
//!
//! The tests need Linux, which has `TCP_USER_TIMEOUT`. They need no privileges and no programs: an
//! option of the client's own socket drops its packets.
#![cfg(target_os = "linux")]

mod pinned_events;
mod stalled_clients;
mod timeouts;

use std::net::SocketAddr;
use support::client::within;
use tokio::{io::AsyncWriteExt, net::TcpStream};

async fn request(address: SocketAddr, path: &str) -> TcpStream {
    let mut tcp = within("a connection", TcpStream::connect(address)).await.unwrap();
    tcp.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await.unwrap();
    tcp
}
