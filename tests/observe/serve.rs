//! The events of the server.

use crate::recording::{Emitted, Seen, observed, observed_in_real_time};
use axum::{Router, routing::get, serve::Listener};
use std::{
    future::pending,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::Duration,
};
use support::listener::Memory;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::TcpStream,
    sync::mpsc,
    task::JoinHandle,
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tower_sse::serve;
use tracing::Level;

/// Accepts one connection.
struct Once(Option<TcpStream>);

impl Listener for Once {
    type Io = TcpStream;
    type Addr = ();

    async fn accept(&mut self) -> (TcpStream, ()) {
        match self.0.take() {
            Some(socket) => (socket, ()),
            None => pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn socket_without_client_timeout_is_logged_and_served() {
    observed_in_real_time(async |seen: Seen| {
        // No option of TCP can be set on a Unix socket.
        let (client, socket) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = TcpStream::from_std(OwnedFd::from(socket).into()).unwrap();
        let app = Router::new().route("/", get(async || "fine"));
        let server = tokio::spawn(serve(Once(Some(socket)), app).into_future());

        let mut client = tokio::net::UnixStream::from_std(client).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut response = String::new();
        client.read_to_string(&mut response).await.unwrap();
        assert!(response.ends_with("\r\n\r\nfine"), "{response}");
        let [Emitted { level: Level::WARN, in_span: None, fields }] = &seen.events()[..] else {
            panic!("{:?}", seen.events())
        };
        assert_eq!(fields["message"], "socket options not set");
        assert!(fields["error"].contains("not supported"), "{fields:?}");
        server.abort();
    });
}

/// Returns an app whose handler never responds.
fn endless() -> (mpsc::UnboundedReceiver<()>, Router) {
    let (sender, requests) = mpsc::unbounded_channel();
    let handler = async move || {
        sender.send(()).unwrap();
        pending::<()>().await;
    };
    (requests, Router::new().route("/", get(handler)))
}

/// A server in a shutdown with a timeout of 60 seconds, and clients whose requests it handles.
async fn shutting_down(clients: usize) -> (JoinHandle<io::Result<()>>, Vec<DuplexStream>) {
    let (mut requests, app) = endless();
    let (connections, listener) = mpsc::unbounded_channel();
    let shutdown = CancellationToken::new();
    let server = serve(Memory(listener), app).with_graceful_shutdown(shutdown.clone());
    let server = tokio::spawn(server.shutdown_timeout(Duration::from_secs(60)).into_future());
    let mut open = Vec::new();
    for _ in 0..clients {
        let (mut client, io) = duplex(1024);
        connections.send(io).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        requests.recv().await.unwrap();
        open.push(client);
    }
    shutdown.cancel();
    (server, open)
}

#[test]
fn shutdown_timeout_logs_number_of_closed_connections() {
    observed(async |seen: Seen| {
        let (server, mut clients) = shutting_down(3).await;
        sleep(Duration::from_secs(30)).await;
        // A connection that ends during the shutdown is not counted.
        drop(clients.pop());
        sleep(Duration::from_secs(29)).await;
        assert_eq!((server.is_finished(), seen.events()), (false, Vec::new()));
        server.await.unwrap().unwrap();
        let [Emitted { level: Level::WARN, in_span: None, fields }] = &seen.events()[..] else {
            panic!("{:?}", seen.events())
        };
        assert_eq!((&*fields["message"], &*fields["connections"]), ("shutdown timed out", "2"));
    });
}

#[test]
fn shutdown_before_its_timeout_logs_nothing() {
    observed(async |seen: Seen| {
        let (server, clients) = shutting_down(1).await;
        sleep(Duration::from_secs(59)).await;
        assert!(!server.is_finished());
        drop(clients);
        server.await.unwrap().unwrap();
        sleep(Duration::from_secs(60)).await;
        assert_eq!(seen.events(), []);
    });
}

#[test]
fn connection_with_too_many_cancelled_requests_is_logged() {
    observed(async |seen: Seen| {
        let (mut requests, app) = endless();
        let (connections, listener) = mpsc::unbounded_channel();
        let (mut client, io) = duplex(1 << 16);
        connections.send(io).unwrap();
        let server = tokio::spawn(serve(Memory(listener), app).into_future());
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        // At once, a client may cancel 400 requests.
        for number in 0..401_u32 {
            assert_eq!(seen.events(), [], "after {number} requests");
            let stream = (2 * number + 1).to_be_bytes();
            // GET, http, /, and the authority `a` (RFC 7541).
            let request = [b"\0\0\x06\x01\x05", &stream[..], b"\x82\x86\x84\x01\x01a"].concat();
            client.write_all(&request).await.unwrap();
            requests.recv().await.unwrap();
            // RST_STREAM with the code CANCEL.
            let cancel = [b"\0\0\x04\x03\0", &stream[..], b"\0\0\0\x08"].concat();
            client.write_all(&cancel).await.unwrap();
        }
        client.read_to_end(&mut Vec::new()).await.unwrap();
        let [Emitted { level: Level::WARN, in_span: None, fields }] = &seen.events()[..] else {
            panic!("{:?}", seen.events())
        };
        assert_eq!(fields["message"], "connection closed: too many cancelled requests");
        assert_eq!(fields.len(), 1);
        server.abort();
    });
}
