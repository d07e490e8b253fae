//! A listener of connections in memory, for servers in paused time.

use axum::serve::Listener;
use std::{future::pending, io};
use tokio::{io::DuplexStream, sync::mpsc::UnboundedReceiver};

/// Accepts the connections that the channel yields. The address of each is `memory`.
pub struct Memory(pub UnboundedReceiver<DuplexStream>);

impl Listener for Memory {
    type Io = DuplexStream;
    type Addr = &'static str;

    async fn accept(&mut self) -> (DuplexStream, &'static str) {
        match self.0.recv().await {
            Some(io) => (io, "memory"),
            None => pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<&'static str> {
        Ok("memory")
    }
}
